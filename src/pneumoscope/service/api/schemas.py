"""What the API answers with when all goes well, as OpenAPI shows it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pneumoscope.core.results import NOTICE, ImageInfo, ModelInfo, Prediction
from pneumoscope.service.storage.records import Page, StoredPrediction

__all__ = ["Health", "PredictionPageSchema", "PredictionSchema", "PredictionsSchema", "ReviewRequest", "ReviewSchema"]

_ID = "0123456789abcdef0123456789abcdef"
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_TIME = "2026-01-31T09:30:00.000000Z"


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ImageInfoSchema(_Schema):
    """What the image's file holds."""

    width: int = Field(examples=[1320])
    """Pixels, as a viewer shows it."""
    height: int = Field(examples=[968])
    """Pixels."""
    format: str = Field(examples=["JPEG"])


class ModelInfoSchema(_Schema):
    """Which bundle spoke."""

    name: str = Field(examples=["default"])
    version: str = Field(examples=["0.1.0"])
    """Of the pneumoscope that made it."""
    sha256: str = Field(examples=[_SHA256])
    """Of its network file."""


class ReviewRequest(_Schema):
    """A person's reading."""

    agrees: bool = Field(strict=True, examples=[True])
    """Whether they agree with the decision."""
    note: str = Field(
        default="", examples=["infiltrate in the right lower field"], max_length=4000, pattern=r"^[^\x00]*$"
    )


class ReviewSchema(ReviewRequest):
    """A person's reading as it is kept."""

    at: str = Field(examples=[_TIME])
    """ISO 8601 in UTC."""
    who: str = Field(examples=["ward-3"])
    """The name of the token that it was sent with, or "local" where none is asked for."""


class PredictionSchema(_Schema):
    """One image: what `pneumoscope predict --json` says of it, and how it is kept."""

    id: str | None = Field(examples=[_ID])
    """The same image, model and operating point have the same id; null where the image could not be read."""
    created: str | None = Field(examples=[_TIME])
    """ISO 8601 in UTC; null where nothing is kept."""
    path: str = Field(examples=["image.jpeg"])
    """The image as the client named it."""
    decision: Literal["normal", "pneumonia", "uncertain", "rejected"] | None
    """Null where the image could not be read."""
    probability: float | None = Field(examples=[0.97])
    """Of pneumonia, calibrated; null where the image is rejected."""
    interval: tuple[float, float] | None = Field(examples=[[0.95, 0.99]])
    """Of the probability."""
    interval_reason: str = Field(examples=[""])
    """Why there is no interval; empty where there is one."""
    threshold: float | None = Field(examples=[0.5])
    """An image at or above this probability is called pneumonia."""
    reason: str = Field(examples=[""])
    """Why the image is uncertain or rejected."""
    image: ImageInfoSchema | None
    model: ModelInfoSchema
    error: str = Field(examples=[""])
    """Why the image could not be read, and what to do."""
    operating_point: str = Field(examples=["balanced"])
    image_sha256: str | None = Field(examples=[_SHA256])
    """Of the file as it was posted."""
    image_bytes: int | None = Field(examples=[245760])
    image_removed: str | None = Field(examples=[None])
    """When the image was removed and its numbers kept; null while it is here."""
    review: ReviewSchema | None
    notice: str = Field(examples=[NOTICE])

    @classmethod
    def of_record(cls, record: StoredPrediction) -> PredictionSchema:
        """A kept image."""
        return cls(
            id=record.id,
            created=record.created,
            operating_point=record.operating_point,
            image_sha256=record.image_sha256,
            image_bytes=record.image_bytes,
            image_removed=record.image_removed,
            review=None if record.review is None else ReviewSchema(**dataclasses.asdict(record.review)),
            **_said(record.prediction),
        )

    @classmethod
    def of_unreadable(cls, prediction: Prediction, operating_point: str) -> PredictionSchema:
        """An image that could not be read, of which nothing is kept."""
        return cls(
            id=None,
            created=None,
            operating_point=operating_point,
            image_sha256=None,
            image_bytes=None,
            image_removed=None,
            review=None,
            **_said(prediction),
        )


class PredictionsSchema(_Schema):
    """The images of one request, in the order in which they were sent."""

    predictions: list[PredictionSchema]
    notice: str = Field(default=NOTICE, examples=[NOTICE])


class PredictionPageSchema(_Schema):
    """Some of the images that are kept."""

    predictions: list[PredictionSchema]
    total: int = Field(examples=[1])
    """That match, on all pages."""
    next: str = Field(examples=[""])
    """To be sent as `after` for the next page; empty at the end."""
    notice: str = Field(default=NOTICE, examples=[NOTICE])

    @classmethod
    def of_page(cls, page: Page) -> PredictionPageSchema:
        """A page of records."""
        return cls(
            predictions=[PredictionSchema.of_record(each) for each in page.records], total=page.total, next=page.next
        )


class Health(_Schema):
    """That the process answers, or can judge and keep images."""

    status: Literal["ok"] = "ok"


def _said(prediction: Prediction) -> dict[str, Any]:
    image, model = prediction.image, prediction.model
    said = {field.name: getattr(prediction, field.name) for field in dataclasses.fields(prediction)}
    return {**said, "image": image and _facts(image), "model": _facts(model)}


def _facts(facts: ImageInfo | ModelInfo) -> dict[str, object]:
    return dataclasses.asdict(facts)

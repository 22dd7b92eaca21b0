"""What the API answers with when all goes well, as OpenAPI shows it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.messages import prediction_message
from pneumoscope.core.prediction import Decision, Failure, ImageInfo, ModelInfo, Prediction, Rejection, Uncertainty
from pneumoscope.core.results import Interval
from pneumoscope.service.storage.records import Page, StoredPrediction

__all__ = ["Health", "PredictionPageSchema", "PredictionSchema", "PredictionsSchema", "ReviewRequest", "ReviewSchema"]

_ID = "0123456789abcdef0123456789abcdef"
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_TIME = "2026-01-31T09:30:00.000000Z"


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
    decision: Decision | None
    """Null if the image could not be read."""
    probability: float | None = Field(examples=[0.97])
    """Calibrated probability of pneumonia; null if the image is rejected."""
    interval: Interval | None
    """Venn-Abers interval of the probability."""
    threshold: float | None = Field(examples=[0.5])
    """At or above this probability the decision is "pneumonia"."""
    rejection: Rejection | None
    """Why the image is rejected."""
    uncertainty: Uncertainty | None
    """The uncertainty band that the score lies in."""
    failure: Failure | None
    """Why the image could not be read."""
    message: str = Field(examples=[""])
    """The rejection, the uncertainty or the failure as a sentence."""
    image: ImageInfo | None
    model: ModelInfo
    operating_point: str = Field(examples=["balanced"])
    image_sha256: str | None = Field(examples=[_SHA256])
    """Of the file as it was posted."""
    image_bytes: int | None = Field(examples=[245760])
    image_removed: str | None = Field(examples=[None])
    """When the image was removed and its numbers kept; null while it is here."""
    review: ReviewSchema | None
    notice: str = Field(default=NOTICE, examples=[NOTICE])

    @classmethod
    def of_record(cls, record: StoredPrediction) -> PredictionSchema:
        """A kept image."""
        return cls(
            id=record.id,
            created=record.created,
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
    said = {field.name: getattr(prediction, field.name) for field in dataclasses.fields(prediction)}
    return said | {"message": prediction_message(prediction)}

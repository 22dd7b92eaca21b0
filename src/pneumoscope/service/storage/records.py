"""One image as a service keeps it, and how records are asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import RowMapping

from pneumoscope.core.errors import UsageError
from pneumoscope.core.prediction import Decision, Prediction
from pneumoscope.service.storage.blob_store import content_hash

__all__ = [
    "TIME_FORM",
    "Filter",
    "Order",
    "Page",
    "PredictionStatistics",
    "Review",
    "Row",
    "StoredPrediction",
    "is_id",
    "moment",
    "new_row",
    "of_row",
    "record_id",
    "rest_hash",
]

Order = Literal["newest", "oldest", "highest", "lowest", "attention"]
Row = RowMapping | Mapping[str, Any]  # of the table of predictions, by its columns
_REST = (
    "image_bytes", "interval_low", "interval_high", "interval_method", "interval_n", "threshold", "rejection_code",
    "rejection_parameters", "uncertainty_low", "uncertainty_high", "uncertainty_coverage", "width", "height", "format",
    "model_name", "model_version",
)  # fmt: skip
TIME_FORM = "2026-01-31 or 2026-01-31T09:30:00Z, in UTC"


@dataclasses.dataclass(frozen=True, slots=True)
class Review:
    """A person's reading: whether they agree with the decision, what they noted, when (ISO 8601 in UTC), and who it was."""

    agrees: bool
    note: str
    at: str
    who: str


@dataclasses.dataclass(frozen=True, slots=True)
class StoredPrediction:
    """One image as it is kept.

    Attributes:
        id: of the image's content, the model and the operating point: the same three have the same id.
        created: ISO 8601 in UTC.
        prediction: as `predict` makes it; its path is the name that the client gave the image.
        image_sha256, image_bytes: of the file as it was posted.
        image_removed: when the image was removed and its numbers kept; None while it is there.
        operating_point: that the decision was made at.
        review: None before a person has read it.
    """

    id: str
    created: str
    prediction: Prediction
    image_sha256: str
    image_bytes: int
    image_removed: str | None
    operating_point: str
    review: Review | None


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """Which records: each is of all where it is None.

    Attributes:
        decision: "no_pneumonia", "pneumonia", "uncertain" or "rejected".
        reviewed: whether a person has read it.
        since, until: ISO 8601 in UTC; `until` itself is not included.
    """

    decision: Decision | None = None
    reviewed: bool | None = None
    since: str | None = None
    until: str | None = None


class PredictionStatistics(NamedTuple):
    """What statistics need of an image: when it came (ISO 8601 in UTC), what was said, and whether a person who read it agreed."""

    created: str
    decision: Decision
    probability: float | None
    agrees: bool | None


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Some records in their order, how many there are in all, and where the next page begins; empty at the end."""

    records: tuple[StoredPrediction, ...]
    total: int
    next: str


def is_id(text: str) -> bool:
    """Whether this could be the id of a record."""
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None


def record_id(image_sha256: str, model_sha256: str, operating_point: str) -> str:
    """32 hexadecimal digits: the same image, judged by the same model at the same point, is one record."""
    return hashlib.sha256(f"{image_sha256} {model_sha256} {operating_point}".encode()).hexdigest()[:32]


def moment(text: str, name: str) -> str:
    """A time as records have it, so that the two can be compared as text.

    Args:
        text: a date, or a time in UTC; ISO 8601.
        name: of what it was given as.
    Raises:
        UsageError: there is no such time.
    """
    try:
        time = datetime.fromisoformat(text)
        time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{name} is {text!r}, which is no time", hint=f"Write it as {TIME_FORM}") from error
    return f"{time.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def new_row(prediction: Prediction, image: bytes, operating_point: str) -> dict[str, Any]:
    """A record as a row of the table, all but when it was made.

    Args:
        prediction: of an image that could be read.
        image: the file's bytes.
        operating_point: by name.
    """
    if prediction.decision is None:
        raise ValueError(f"{prediction.path!r} could not be read; there is nothing to keep")
    sha256 = content_hash(image)
    row = {name: value for name, value in prediction.to_row().items() if not name.startswith("failure_")}
    return row | {
        "id": record_id(sha256, prediction.model.sha256, operating_point),
        "image_sha256": sha256,
        "image_bytes": len(image),
        "image_removed": None,
        "agrees": None,
        "note": "",
        "reviewed": None,
        "reviewer": None,
    }


def rest_hash(row: Row) -> str:
    """The SHA-256 of what was said of an image and never changes, but stands in the audit log in no other way.

    Without the image's name: it is nowhere in the trail, and from a hash it could be guessed.
    """
    said = json.dumps([row[name] for name in _REST], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(said.encode()).hexdigest()


def of_row(row: Row) -> StoredPrediction:
    """A row of the table, or what is to be one, as a record."""
    review = None
    if row["reviewed"] is not None:
        review = Review(row["agrees"], row["note"], row["reviewed"], row["reviewer"])
    return StoredPrediction(
        id=row["id"],
        created=row["created"],
        prediction=Prediction.from_row(dict(row)),
        image_sha256=row["image_sha256"],
        image_bytes=row["image_bytes"],
        image_removed=row["image_removed"],
        operating_point=row["operating_point"],
        review=review,
    )

"""One film as a service keeps it, and how records are asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import RowMapping

from pneumoscope.errors import UsageError
from pneumoscope.results import Decision, FilmFacts, ModelFacts, Prediction
from pneumoscope.service.film_store import film_hash

__all__ = [
    "TIME_FORM",
    "Filter",
    "Judged",
    "Order",
    "Page",
    "Record",
    "Review",
    "Row",
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
    "film_bytes", "interval_low", "interval_high", "interval_reason", "threshold", "reason", "width", "height", "format",
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
class Record:
    """One film as it is kept.

    Attributes:
        id: of the film's content, the model and the operating point: the same three have the same id.
        created: ISO 8601 in UTC.
        prediction: as `predict` makes it; its path is the name that the client gave the film.
        film_sha256, film_bytes: of the file as it was posted.
        film_removed: when the film was removed and its numbers kept; None while it is there.
        operating_point: that the decision was made at.
        review: None before a person has read it.
    """

    id: str
    created: str
    prediction: Prediction
    film_sha256: str
    film_bytes: int
    film_removed: str | None
    operating_point: str
    review: Review | None


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """Which records: each is of all where it is None.

    Attributes:
        decision: "normal", "pneumonia", "uncertain" or "rejected".
        reviewed: whether a person has read it.
        since, until: ISO 8601 in UTC; `until` itself is not included.
    """

    decision: Decision | None = None
    reviewed: bool | None = None
    since: str | None = None
    until: str | None = None


class Judged(NamedTuple):
    """What statistics need of a film: when it came (ISO 8601 in UTC), what was said, and whether a person who read it agreed."""

    created: str
    decision: Decision
    probability: float | None
    agrees: bool | None


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Some records in their order, how many there are in all, and where the next page begins; empty at the end."""

    records: tuple[Record, ...]
    total: int
    next: str


def is_id(text: str) -> bool:
    """Whether this could be the id of a record."""
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None


def record_id(film_sha256: str, model_sha256: str, operating_point: str) -> str:
    """32 hexadecimal digits: the same film, judged by the same model at the same point, is one record."""
    return hashlib.sha256(f"{film_sha256} {model_sha256} {operating_point}".encode()).hexdigest()[:32]


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
        raise UsageError(f"{name} is {text!r}, which is no time", advice=f"Write it as {TIME_FORM}") from error
    return f"{time.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def new_row(prediction: Prediction, film: bytes, operating_point: str) -> dict[str, Any]:
    """A record as a row of the table, all but when it was made.

    Args:
        prediction: of a film that could be read.
        film: the file's bytes.
        operating_point: by name.
    """
    facts, interval = prediction.film, prediction.interval or (None, None)
    if facts is None or prediction.decision is None or prediction.threshold is None:
        raise ValueError(f"{prediction.path!r} could not be read; there is nothing to keep")
    sha256 = film_hash(film)
    return {
        "id": record_id(sha256, prediction.model.sha256, operating_point),
        "name": prediction.path,
        "film_sha256": sha256,
        "film_bytes": len(film),
        "film_removed": None,
        "decision": prediction.decision,
        "probability": prediction.probability,
        "interval_low": interval[0],
        "interval_high": interval[1],
        "interval_reason": prediction.interval_reason,
        "threshold": prediction.threshold,
        "reason": prediction.reason,
        "width": facts.width,
        "height": facts.height,
        "format": facts.format,
        "model_name": prediction.model.name,
        "model_version": prediction.model.version,
        "model_sha256": prediction.model.sha256,
        "operating_point": operating_point,
        "agrees": None,
        "note": "",
        "reviewed": None,
        "reviewer": None,
    }


def rest_hash(row: Row) -> str:
    """The SHA-256 of what was said of a film and never changes, but stands in the audit trail in no other way.

    Without the film's name: it is nowhere in the trail, and from a hash it could be guessed.
    """
    said = json.dumps([row[name] for name in _REST], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(said.encode()).hexdigest()


def of_row(row: Row) -> Record:
    """A row of the table, or what is to be one, as a record."""
    prediction = Prediction(
        path=row["name"],
        decision=row["decision"],
        probability=row["probability"],
        interval=None if row["interval_low"] is None else (row["interval_low"], row["interval_high"]),
        interval_reason=row["interval_reason"],
        threshold=row["threshold"],
        reason=row["reason"],
        film=FilmFacts(row["width"], row["height"], row["format"]),
        model=ModelFacts(row["model_name"], row["model_version"], row["model_sha256"]),
    )
    review = None
    if row["reviewed"] is not None:
        review = Review(row["agrees"], row["note"], row["reviewed"], row["reviewer"])
    return Record(
        id=row["id"],
        created=row["created"],
        prediction=prediction,
        film_sha256=row["film_sha256"],
        film_bytes=row["film_bytes"],
        film_removed=row["film_removed"],
        operating_point=row["operating_point"],
        review=review,
    )

"""Stored predictions: the record, its row in the database, and queries for pages and statistics."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, Executable, RowMapping, Select, and_, case, func, or_, select

from pneumoscope.core.errors import UnknownNameError, UsageError
from pneumoscope.core.identity import ConflictCode
from pneumoscope.core.prediction import OVERRIDES, Decision, Failure, ImageStatistics, ModelInfo, Prediction
from pneumoscope.service.storage.blob_store import content_hash
from pneumoscope.service.storage.identities import CONFLICT_COLUMNS, IDENTITY_COLUMNS, matches_search
from pneumoscope.service.storage.tables import instances, patients, predictions, studies

__all__ = [
    "TIME_FORMAT",
    "Filter",
    "Order",
    "Page",
    "PredictionStatistics",
    "Review",
    "Row",
    "StoredPrediction",
    "UnreadableFile",
    "compute_id",
    "count_rejections",
    "find_page",
    "format_time",
    "has_image",
    "is_id",
    "is_referenced",
    "latest_statistics",
    "new_row",
    "new_unreadable_row",
    "result_hash",
    "select_one",
    "select_stored",
]

Order = Literal["newest", "oldest", "highest", "lowest", "urgency"]
Row = RowMapping | Mapping[str, Any]  # of the table of predictions
TIME_FORMAT = "2026-01-31 or 2026-01-31T09:30:00Z, in UTC"
_MAX_PAGE_SIZE = 200
# Columns that never change and that the audit log does not contain itself. The order is part of the hash.
_RESULT_COLUMNS = (
    "image_bytes", "interval_low", "interval_high", "interval_method", "interval_n", "threshold", "rejection_code",
    "rejection_parameters", "uncertainty_low", "uncertainty_high", "uncertainty_coverage", "width", "height", "format",
    "model_name", "model_version",
)  # fmt: skip
# Rejections that another header of the same image may lack.
_HEADER_REJECTIONS = {
    *OVERRIDES, "age_required", "age_not_understood", "outside_age_range", "modality_not_supported", "lateral_view",
    "for_processing", "presentation_intent_not_understood",
}  # fmt: skip
# Such columns of later revisions: hashed if they are set, so that the hashes of earlier predictions stay the same.
_LATER_RESULT_COLUMNS = (
    "age", "age_source", "warnings", "model_site", "image_brightness", "image_contrast", "image_sharpness", "image_border",
)  # fmt: skip
_JOINED = (
    predictions.outerjoin(instances, predictions.c.pixel_sha256 == instances.c.pixel_sha256)
    .outerjoin(studies)
    .outerjoin(patients)
)
# Sort key of "urgency": pneumonia, uncertain and no pneumonia, each by falling probability, then rejected images; those with a
# review last.
_URGENCY = (
    case((predictions.c.reviewed.is_not(None), 10.0), else_=0.0)
    + case(
        (predictions.c.decision == "pneumonia", 2.0),
        (predictions.c.decision == "uncertain", 4.0),
        (predictions.c.decision == "no_pneumonia", 6.0),
        else_=8.0,
    )
    - func.coalesce(predictions.c.probability, 0.0)
)


@dataclasses.dataclass(frozen=True, slots=True)
class Review:
    """A person's reading of an image.

    Attributes:
        agrees: Whether the reviewer agrees with the decision.
        note: The reviewer's note; may be empty.
        time: ISO 8601 in UTC.
        reviewer: Name of the token that the review was sent with; "local" without authentication.
    """

    agrees: bool
    note: str
    time: str
    reviewer: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class StoredPrediction(Prediction):
    """A prediction in the database. `path` is the name that the client gave the image.

    Attributes:
        id: Derived from the image's content, the model, the operating point and an entered age.
        created: Time of the prediction, ISO 8601 in UTC.
        image_sha256: SHA-256 of the uploaded file.
        image_bytes: Size of the uploaded file in bytes.
        image_removed: Time when retention removed the image, ISO 8601 in UTC; None while it is stored.
        review: The latest review; None if there is none.
        study_key: Key of the study, for `GET /v1/studies/{study_key}` and filters; None without an identity.
        patient_key: Key of the patient; None if nothing is known of the patient.
        conflicts: Identifiers that another image, study or patient has as well.
    """

    id: str
    created: str
    image_sha256: str
    image_bytes: int
    image_removed: str | None
    review: Review | None
    study_key: str | None = None
    patient_key: str | None = None
    conflicts: tuple[ConflictCode, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """Return the prediction as one flat row: `Prediction.to_row`, and the other columns of the table."""
        review = self.review
        # `super()` without arguments fails in a dataclass with slots.
        return Prediction.to_row(self) | {
            "id": self.id,
            "created": self.created,
            "image_sha256": self.image_sha256,
            "image_bytes": self.image_bytes,
            "image_removed": self.image_removed,
            "agrees": review and review.agrees,
            "note": review.note if review else "",
            "reviewed": review and review.time,
            "reviewer": review and review.reviewer,
            "study_key": self.study_key,
            "patient_key": self.patient_key,
            **{column.name: column.name in self.conflicts for column in CONFLICT_COLUMNS},
        }

    @property
    def image_key(self) -> str:
        """What identifies the image: the hash of its pixels, or of its file if that is unknown."""
        return (self.image and self.image.pixel_sha256) or self.image_sha256

    @property
    def etag(self) -> str:
        """The entity tag (RFC 9110) of the prediction with its review, image and identity: it changes when one of them does."""
        review, identity = (each and dataclasses.astuple(each) for each in (self.review, self.identity))
        state = json.dumps([review, self.image_removed, identity])
        return f'"{hashlib.sha256(f"{self.id} {state}".encode()).hexdigest()[:32]}"'

    @classmethod
    def fields_from_row(cls, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor arguments that a row of the table contains."""
        reviewed = row["reviewed"] is not None
        return Prediction.fields_from_row(row) | {
            "id": row["id"],
            "created": row["created"],
            "image_sha256": row["image_sha256"],
            "image_bytes": row["image_bytes"],
            "image_removed": row["image_removed"],
            "review": Review(row["agrees"], row["note"], row["reviewed"], row["reviewer"]) if reviewed else None,
            "study_key": row["study_key"],
            "patient_key": row["patient_key"],
            "conflicts": tuple(column.name for column in CONFLICT_COLUMNS if row[column.name]),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """Conditions on predictions; None stands for no condition.

    Attributes:
        decision: "no_pneumonia", "pneumonia", "uncertain" or "rejected".
        rejected: Whether the decision is "rejected".
        reviewed: Whether there is a review.
        since: Earliest time, included; ISO 8601 in UTC.
        until: Latest time, excluded; ISO 8601 in UTC.
        study_key: Key of a study.
        patient_key: Key of a patient.
        search: Words of `identities.matches_search`, all of which must match.
    """

    decision: Decision | None = None
    rejected: bool | None = None
    reviewed: bool | None = None
    since: str | None = None
    until: str | None = None
    study_key: str | None = None
    patient_key: str | None = None
    search: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class UnreadableFile:
    """A record of a file that could not be read. The file itself is not stored.

    Attributes:
        id: Derived from the content, the name and the failure, so that a file that is sent again is listed once.
        path: The name that the client gave the file.
        created: Time of the first attempt, ISO 8601 in UTC.
        image_sha256: SHA-256 of the file.
        image_bytes: Size of the file in bytes.
        failure: Why it could not be read.
    """

    id: str
    path: str
    created: str
    image_sha256: str
    image_bytes: int
    failure: Failure

    @classmethod
    def from_row(cls, row: Row) -> UnreadableFile:
        """Return the record in a row of the table."""
        failure = Failure(row["failure_code"], row["failure_message"], row["failure_hint"])
        return cls(row["id"], row["path"], row["created"], row["image_sha256"], row["image_bytes"], failure)


class PredictionStatistics(NamedTuple):
    """The fields of a prediction that the dashboard summarizes; `agrees` is None without a review."""

    created: str
    decision: Decision
    probability: float | None
    agrees: bool | None
    image_sha256: str
    image_statistics: ImageStatistics | None


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """A page of predictions.

    Attributes:
        predictions: In the order of the query.
        total: Number of matching predictions on all pages.
        next: Cursor of the next page; empty on the last page.
    """

    predictions: tuple[StoredPrediction, ...]
    total: int
    next: str


def is_id(text: str) -> bool:
    """Return whether a text has the form of a prediction's id."""
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None


def compute_id(row: Row) -> str:
    """Return the id of the prediction in a row, 32 hexadecimal digits.

    It is derived from the image's pixels, the model, its site profile, the operating point, the age that a person entered or whether
    the header states one, the overrides of the header that the prediction depends on, and a rejection by the header: such an image
    is predicted when the header is corrected or overridden, or the age is entered.
    """
    parts = [row["pixel_sha256"], row["model_sha256"], row["operating_point"]]
    if row["model_site"]:
        parts.append(f"site {row['model_site']}")
    if row["age_source"] == "entered":
        parts.append(f"age {row['age']}")
    elif row["age"] is not None:
        parts.append("age stated")
    if row["rejection_code"] in _HEADER_REJECTIONS:
        parts.append(row["rejection_code"])
    parts += [warning for warning in row["warnings"].split() if warning.startswith("assumed_")]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def format_time(time: datetime) -> str:
    """Return a time as the database stores it, so that times can be compared as text."""
    return f"{time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def new_row(prediction: Prediction, image: bytes) -> dict[str, Any]:
    """Return the row of a new prediction, all but `created`.

    Args:
        prediction: Of a readable image.
        image: The file's bytes.
    """
    if prediction.decision is None:
        raise ValueError("a prediction of an unreadable image cannot be stored")
    sha256 = content_hash(image)
    row = {name: value for name, value in prediction.to_row().items() if name in predictions.c}
    row |= {
        "image_sha256": sha256,
        "pixel_sha256": row["pixel_sha256"] or sha256,
        "age": None if row["age"] is None else float(row["age"]) + 0.0,
    }  # as it is read: no -0.0
    return row | {
        "id": compute_id(row),
        "image_bytes": len(image),
        "image_removed": None,
        "agrees": None,
        "note": "",
        "reviewed": None,
        "reviewer": None,
    }


def new_unreadable_row(prediction: Prediction, file: bytes) -> dict[str, Any]:
    """Return the row of a file that could not be read, all but `created`.

    Args:
        prediction: With a failure.
        file: Its bytes.
    """
    if prediction.failure is None:
        raise ValueError("the file was read")
    sha256, failure = content_hash(file), prediction.failure
    key = json.dumps([sha256, prediction.path, failure.code, failure.message])
    return {
        "id": hashlib.sha256(key.encode()).hexdigest()[:32],
        "path": prediction.path,
        "image_sha256": sha256,
        "image_bytes": len(file),
        "failure_code": failure.code,
        "failure_message": failure.message,
        "failure_hint": failure.hint,
    }


def select_one(connection: Connection, query: Executable, id: str) -> dict[str, Any]:
    """Return the row that a query by id selects, updates or deletes.

    Raises:
        UnknownNameError: There is no prediction with this id.
    """
    row = connection.execute(query).mappings().first() if is_id(id) else None
    if row is None:
        raise UnknownNameError("prediction", id, (), hint="It was deleted, or never existed here")
    return dict(row)


def has_image(connection: Connection, id: str) -> bool:
    """Return whether there is a prediction with this id whose image was not removed."""
    return _exists(connection, predictions.c.id == id)


def is_referenced(connection: Connection, sha256: str) -> bool:
    """Return whether there is a prediction with this image, and the image was not removed."""
    return _exists(connection, predictions.c.image_sha256 == sha256)


def _exists(connection: Connection, condition: ColumnElement[bool]) -> bool:
    query = select(predictions.c.id).where(condition, predictions.c.image_removed.is_(None)).limit(1)
    return connection.execute(query).first() is not None


def result_hash(row: Row) -> str:
    """Return the SHA-256 of the columns that never change and that the audit log does not contain itself.

    The image's name is not included: it could be guessed from a hash.
    """
    values = [row[name] for name in _RESULT_COLUMNS]
    if later := {name: row[name] for name in _LATER_RESULT_COLUMNS if row[name] not in (None, "")}:
        values.append(later)
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def find_page(
    connection: Connection, where: Filter, *, order: Order, limit: int, after: str, by_study: bool = False
) -> Page:
    """Return a page of predictions; see `PredictionRepository.find`.

    Raises:
        UsageError: `limit`, `after` or a time is invalid.
    """
    if not 1 <= limit <= _MAX_PAGE_SIZE:
        raise UsageError(f"limit is {limit}; a page has 1 to {_MAX_PAGE_SIZE} predictions")
    column, descending = {
        "newest": (predictions.c.created, True),
        "oldest": (predictions.c.created, False),
        "highest": (func.coalesce(predictions.c.probability, -1.0), True),
        "lowest": (func.coalesce(predictions.c.probability, 2.0), False),
        "urgency": (_URGENCY, False),
    }[order]
    conditions = _conditions(where)
    total = connection.execute(select(func.count()).select_from(_JOINED).where(*conditions)).scalar_one()
    group: ColumnElement[str] = func.coalesce(instances.c.study_key, predictions.c.id) if by_study else predictions.c.id
    first = func.max(column) if descending else func.min(column)
    keys = (
        select(
            predictions.c.id,
            (first.over(partition_by=group) if by_study else column).label("first"),
            group.label("group"),
            column.label("value"),
        )
        .select_from(_JOINED if by_study or conditions else predictions)
        .where(*conditions)
        .subquery()
    )
    # The rows of a group stand together, where its first one belongs. Their order is that of the values, then of the ids.
    sort_keys = ((keys.c.first, descending), (keys.c.group, False), (keys.c.value, descending), (keys.c.id, False))
    query = select_stored(keys.c.first, keys.c.group, keys.c.value).join(keys, keys.c.id == predictions.c.id)
    # Continue from the last row's keys, not from a count: insertions and deletions in between shift nothing.
    if after:
        beyond: ColumnElement[bool] | None = None
        for (key, is_descending), value in zip(
            reversed(sort_keys), reversed(_decode_cursor(after, order)), strict=True
        ):
            further = key < value if is_descending else key > value
            beyond = further if beyond is None else or_(further, and_(key == value, beyond))
        assert beyond is not None
        query = query.where(beyond)
    query = query.order_by(*(key.desc() if is_descending else key.asc() for key, is_descending in sort_keys))
    rows = [dict(row) for row in connection.execute(query.limit(limit + 1)).mappings()]
    cursor = _encode_cursor(order, rows[limit - 1]) if len(rows) > limit else ""
    return Page(tuple(StoredPrediction.from_row(row) for row in rows[:limit]), total, cursor)


def count_rejections(connection: Connection, where: Filter) -> dict[str, int]:
    """Return the number of predictions by rejection code, "" for those that are not rejected; see `find_page`."""
    query = select(predictions.c.rejection_code, func.count()).select_from(_JOINED).where(*_conditions(where))
    rows = connection.execute(query.group_by(predictions.c.rejection_code))
    return {code or "": count for code, count in rows}


def select_stored(*columns: ColumnElement[Any]) -> Select[Any]:
    """Select predictions with their identity: the columns of `StoredPrediction.fields_from_row`, and further ones."""
    return select(predictions, *IDENTITY_COLUMNS, *CONFLICT_COLUMNS, *columns).select_from(_JOINED)


def _conditions(where: Filter) -> list[ColumnElement[bool]]:
    return [
        *([instances.c.study_key == where.study_key] if where.study_key else []),
        *([studies.c.patient_key == where.patient_key] if where.patient_key else []),
        *([matches_search(where.search)] if where.search else []),
        *([predictions.c.decision == where.decision] if where.decision else []),
        *([(predictions.c.decision == "rejected") == where.rejected] if where.rejected is not None else []),
        *([predictions.c.reviewed.is_not(None) == where.reviewed] if where.reviewed is not None else []),
        *([predictions.c.created >= _parse_time(where.since, "since")] if where.since else []),
        *([predictions.c.created < _parse_time(where.until, "until")] if where.until else []),
    ]


def latest_statistics(
    connection: Connection, model: ModelInfo, operating_point: str, limit: int, since: str, until: str
) -> list[PredictionStatistics]:
    """Return the latest predictions of a model at an operating point; see `PredictionRepository.latest`."""
    c = predictions.c
    statistics = (c.image_brightness, c.image_contrast, c.image_sharpness, c.image_border)
    query = (
        select(c.created, c.decision, c.probability, c.agrees, c.image_sha256, *statistics)
        .where(
            c.model_sha256 == model.sha256,
            c.model_site == model.site,
            c.operating_point == operating_point,
            *([c.created >= since] if since else []),
            *([c.created < until] if until else []),
        )
        .order_by(c.created.desc(), c.id)
        .limit(limit)
    )
    return [
        PredictionStatistics(*row[:5], None if row[5] is None else ImageStatistics(*row[5:]))
        for row in connection.execute(query)
    ]


def _parse_time(text: str, name: str) -> str:
    """Return a date or a time in ISO 8601 as the database stores it.

    Raises:
        UsageError: The text is not a time; `name` is that of its parameter.
    """
    try:
        time = datetime.fromisoformat(text)
        return format_time(time if time.tzinfo else time.replace(tzinfo=UTC))
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{name} is {text!r}, which is not a time", hint=f"Write it as {TIME_FORMAT}") from error


def _encode_cursor(order: Order, row: Row) -> str:
    keys = [row[name] for name in ("first", "group", "value", "id")]
    return base64.urlsafe_b64encode(json.dumps([order, *keys]).encode()).decode().rstrip("=")


def _decode_cursor(cursor: str, order: Order) -> tuple[str | float, str, str | float, str]:
    """Return the sort keys of the last row of a page."""
    try:
        cursor_order, first, group, value, id = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if cursor_order != order or not is_id(id) or not is_id(group):
            raise ValueError
        first, value = (
            _parse_time(each, "after") if order in ("newest", "oldest") else float(each) for each in (first, value)
        )
        if not all(isinstance(each, str) or math.isfinite(each) for each in (first, value)):
            raise ValueError
    except (ValueError, TypeError, OverflowError, RecursionError, UsageError) as error:
        raise UsageError(
            f"after is {cursor[:64]!r}, which is not the `next` of a page in the order {order!r}",
            hint="Start again without it",
        ) from error
    return first, group, value, id

"""Queries for stored predictions that meet conditions: pages, counts and statistics."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, FromClause, and_, case, func, or_, select

from pneumoscope.core.errors import UsageError
from pneumoscope.core.prediction import ImageStatistics, ModelInfo
from pneumoscope.core.prediction_codes import Decision, RejectionCode
from pneumoscope.service.storage.current_prediction import is_current
from pneumoscope.service.storage.identity_columns import matches_search
from pneumoscope.service.storage.records import StoredPrediction, format_time, is_id
from pneumoscope.service.storage.reviews import Review, current_reviews
from pneumoscope.service.storage.stored_predictions import JOINED, JOINED_PATIENTS, read_rows, select_stored
from pneumoscope.service.storage.tables import instances, predictions, reviews, studies

__all__ = [
    "TIME_FORMAT",
    "Filter",
    "ImageCounts",
    "Order",
    "Page",
    "PredictionStatistics",
    "count_images",
    "find_page",
    "latest_statistics",
]

Order = Literal["newest", "oldest", "highest", "lowest", "urgency"]
TIME_FORMAT = "2026-01-31 or 2026-01-31T09:30:00Z, in UTC"
_MAX_PAGE_SIZE = 200
# Sort key of "urgency": pneumonia, uncertain, no pneumonia (each by falling probability), then rejected images;
# reviewed images come last.
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
class Filter:
    """Conditions on predictions; None means no condition.

    Attributes:
        decision: "no_pneumonia", "pneumonia", "uncertain" or "rejected".
        rejected: Whether the decision is "rejected".
        reviewed: Whether there is a review.
        reviewed_by: Reader who has reviewed the image.
        since: Earliest time, inclusive; ISO 8601 in UTC.
        until: Latest time, exclusive; ISO 8601 in UTC.
        study_key: Key of a study.
        patient_key: Key of a patient.
        search: Forms of each word, see `identity_columns.matches_search`; all words must match.
        latest: Whether to select only the current prediction of each image, such as the one with a corrected age; for
            an image of several patients, the current one under each header.
    """

    decision: Decision | None = None
    rejected: bool | None = None
    reviewed: bool | None = None
    reviewed_by: str | None = None
    since: str | None = None
    until: str | None = None
    study_key: str | None = None
    patient_key: str | None = None
    search: tuple[tuple[str, ...], ...] = ()
    latest: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ImageCounts:
    """Numbers of predictions.

    Attributes:
        decisions: Number by decision; decisions without predictions are missing.
        rejections: Number of rejected ones by code.
        unread: Number without a review.
    """

    decisions: Mapping[Decision, int]
    rejections: Mapping[RejectionCode, int]
    unread: int

    @property
    def images(self) -> int:
        """Total number of predictions."""
        return sum(self.decisions.values())

    @property
    def predicted(self) -> int:
        """Number of predictions that are not rejected."""
        return self.images - self.decisions.get("rejected", 0)


class PredictionStatistics(NamedTuple):
    """The fields of a prediction summarized on the dashboard."""

    created: str
    last_predicted: str
    decision: Decision
    probability: float | None
    pixel_sha256: str
    image_statistics: ImageStatistics | None
    reviews: tuple[Review, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """A page of predictions.

    Attributes:
        predictions: In the requested order.
        total: Number of matching predictions on all pages.
        next: Cursor of the next page; empty on the last page.
    """

    predictions: tuple[StoredPrediction, ...]
    total: int
    next: str


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
    conditions, source = _conditions(where), _source(where)
    total = connection.execute(select(func.count()).select_from(source).where(*conditions)).scalar_one()
    sort_keys: tuple[tuple[ColumnElement[Any], bool], ...]
    if by_study:
        # Group the rows of a study at the position of its first row.
        group = func.coalesce(instances.c.study_key, predictions.c.id)
        first = (func.max(column) if descending else func.min(column)).over(partition_by=group)
        columns = first.label("first"), group.label("group"), column.label("value"), predictions.c.id
        rows = select(*columns).select_from(_joined(where)).where(*conditions).subquery()
        sort_keys = ((rows.c.first, descending), (rows.c.group, False), (rows.c.value, descending), (rows.c.id, False))
        conditions = []
    else:
        sort_keys = ((column, descending), (predictions.c.id, False))
    query = select(*(key.label(f"key_{place}") for place, (key, _) in enumerate(sort_keys)))
    query = (query if by_study else query.select_from(source)).where(*conditions)
    if after:
        query = query.where(_is_beyond(sort_keys, _decode_cursor(after, order, len(sort_keys))))
    page = query.order_by(*map(_ordered, sort_keys)).limit(limit + 1).subquery()
    # Join identities only for the rows of this page.
    keys = [(key, is_descending) for key, (_, is_descending) in zip(page.c, sort_keys, strict=True)]
    stored = select_stored(*page.c, of_patients=_is_of_patient(where)).where(*_key_conditions(where))
    stored = stored.join(page, keys[-1][0] == predictions.c.id).order_by(*map(_ordered, keys))
    found = connection.execute(stored).mappings().all()
    last = [found[limit - 1][key.name] for key in page.c] if len(found) > limit else None
    cursor = _encode_cursor(order, last) if last else ""
    return Page(tuple(read_rows(connection, found[:limit])), total, cursor)


def _ordered(key: tuple[ColumnElement[Any], bool]) -> ColumnElement[Any]:
    column, is_descending = key
    return column.desc() if is_descending else column.asc()


def _is_beyond(keys: Sequence[tuple[ColumnElement[Any], bool]], values: Sequence[str | float]) -> ColumnElement[bool]:
    """Return the condition that a row follows the one with these sort keys.

    A page continues from the keys of the last row instead of a count, so insertions and deletions in between shift no
    other rows. A study that a new image moves before the page is not listed again.
    """
    (column, is_descending), *others = keys
    further = column < values[0] if is_descending else column > values[0]
    return or_(further, and_(column == values[0], _is_beyond(others, values[1:]))) if others else further


def _encode_cursor(order: Order, keys: Sequence[str | float]) -> str:
    return base64.urlsafe_b64encode(json.dumps([order, *keys]).encode()).decode().rstrip("=")


def _decode_cursor(cursor: str, order: Order, length: int) -> list[str | float]:
    """Return the sort keys of a page's last row: order values and ids, alternating."""
    try:
        cursor_order, *keys = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if cursor_order != order or len(keys) != length or not all(map(is_id, keys[1::2])):
            raise ValueError
        is_time = order in ("newest", "oldest")
        values = [_parse_time(each, "after") if is_time else _finite(each) for each in keys[::2]]
    except (ValueError, TypeError, OverflowError, RecursionError, UsageError) as error:
        raise UsageError(
            f"after is {cursor[:64]!r}, which is not the `next` of a page in the order {order!r}",
            hint="Start again without it",
        ) from error
    return [each for pair in zip(values, keys[1::2], strict=True) for each in pair]


def _finite(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError
    return float(value)


def _parse_time(text: str, name: str) -> str:
    """Return an ISO 8601 date or time in the database format.

    Raises:
        UsageError: The text is not a time; the message contains `name`, the parameter.
    """
    try:
        time = datetime.fromisoformat(text)
        return format_time(time if time.tzinfo else time.replace(tzinfo=UTC))
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{name} is {text!r}, which is not a time", hint=f"Write it as {TIME_FORMAT}") from error


def count_images(connection: Connection, where: Filter) -> ImageCounts:
    """Return the numbers of predictions; see `find_page`."""
    columns = predictions.c.decision, predictions.c.rejection_code, predictions.c.reviewed.is_(None).label("unread")
    query = select(*columns, func.count()).select_from(_source(where)).where(*_conditions(where)).group_by(*columns)
    decisions: Counter[Decision] = Counter()
    rejections: Counter[RejectionCode] = Counter()
    unread = 0
    for decision, code, is_unread, count in connection.execute(query):
        decisions[decision] += count
        if code:
            rejections[code] += count
        unread += count if is_unread else 0
    return ImageCounts(dict(decisions), dict(rejections), unread)


def _source(where: Filter) -> FromClause:
    """Return the tables needed for the conditions of a filter."""
    return _joined(where) if _is_of_patient(where) or where.search else predictions


def _joined(where: Filter) -> FromClause:
    """Return the joined tables; an image of several patients has the identity by which the filter selects it."""
    return JOINED_PATIENTS if _is_of_patient(where) else JOINED


def _is_of_patient(where: Filter) -> bool:
    return bool(where.study_key or where.patient_key)


def _key_conditions(where: Filter) -> list[ColumnElement[bool]]:
    return [
        *([instances.c.study_key == where.study_key] if where.study_key else []),
        *([studies.c.patient_key == where.patient_key] if where.patient_key else []),
    ]


def _conditions(where: Filter) -> list[ColumnElement[bool]]:
    return [
        *_key_conditions(where),
        *([matches_search(where.search)] if where.search else []),
        *([is_current(of_header=_is_of_patient(where))] if where.latest else []),
        *([predictions.c.decision == where.decision] if where.decision else []),
        *([(predictions.c.decision == "rejected") == where.rejected] if where.rejected is not None else []),
        *([predictions.c.reviewed.is_not(None) == where.reviewed] if where.reviewed is not None else []),
        *([_is_reviewed_by(where.reviewed_by)] if where.reviewed_by is not None else []),
        *([predictions.c.created >= _parse_time(where.since, "since")] if where.since else []),
        *([predictions.c.created < _parse_time(where.until, "until")] if where.until else []),
    ]


def _is_reviewed_by(reader: str) -> ColumnElement[bool]:
    """Return the condition that a reader has an active review of the image."""
    latest = select(func.max(reviews.c.number)).where(reviews.c.reviewer == reader).group_by(reviews.c.pixel_sha256)
    images = select(reviews.c.pixel_sha256).where(reviews.c.number.in_(latest), reviews.c.label.is_not(None))
    return predictions.c.pixel_sha256.in_(images)


def latest_statistics(
    connection: Connection, model: ModelInfo, operating_point: str, limit: int, since: str, until: str
) -> list[PredictionStatistics]:
    """Return the latest predictions of a model at an operating point; see `PredictionRepository.latest`."""
    c = predictions.c
    statistics = (c.image_brightness, c.image_contrast, c.image_sharpness, c.image_border)
    query = (
        select(c.created, c.last_predicted, c.decision, c.probability, c.pixel_sha256, c.reviewed, *statistics)
        .where(
            c.model_sha256 == model.sha256,
            c.model_site == model.site,
            c.model_prevalence == model.prevalence,
            c.operating_point == operating_point,
            *([c.created >= since] if since else []),
            *([c.created < until] if until else []),
        )
        .order_by(c.created.desc(), c.id)
        .limit(limit)
    )
    rows = connection.execute(query).all()
    reviews = current_reviews(connection, {row.pixel_sha256 for row in rows if row.reviewed})
    return [
        PredictionStatistics(
            created=row.created,
            decision=row.decision,
            probability=row.probability,
            last_predicted=row.last_predicted,
            pixel_sha256=row.pixel_sha256,
            image_statistics=None
            if row.image_brightness is None
            else ImageStatistics(row.image_brightness, row.image_contrast, row.image_sharpness, row.image_border),
            reviews=reviews.get(row.pixel_sha256, ()),
        )
        for row in rows
    ]

"""What is asked of the table of predictions: pages of it in some order, and the numbers that statistics need."""

from __future__ import annotations

import base64
import json
import math

from sqlalchemy import Connection, and_, case, func, or_, select

from pneumoscope.core.errors import UsageError
from pneumoscope.service.storage.records import Filter, Order, Page, PredictionStatistics, is_id, moment, of_row
from pneumoscope.service.storage.tables import predictions

__all__ = ["find", "latest"]

_MOST = 200  # records a page
# How little a record needs a person's eyes: read ones last, before them the others by probability, first what is left open.
_CALM = case((predictions.c.reviewed.is_not(None), 4.0), else_=0.0) + case(
    (predictions.c.decision.in_(("rejected", "uncertain")), 0.0),
    else_=2.0 - func.coalesce(predictions.c.probability, 0.0),
)


def find(connection: Connection, wanted: Filter, *, order: Order, limit: int, after: str) -> Page:
    """A page of records; see `PredictionRepository.find`.

    Raises:
        UsageError: `limit` or `after` is out of range.
    """
    if not 1 <= limit <= _MOST:
        raise UsageError(f"limit is {limit}; a page has 1 to {_MOST} records")
    column, falls = {
        "newest": (predictions.c.created, True),
        "oldest": (predictions.c.created, False),
        "highest": (func.coalesce(predictions.c.probability, -1.0), True),
        "lowest": (func.coalesce(predictions.c.probability, 2.0), False),
        "attention": (_CALM, False),
    }[order]
    matching = [
        *([predictions.c.decision == wanted.decision] if wanted.decision else []),
        *([predictions.c.reviewed.is_not(None) == wanted.reviewed] if wanted.reviewed is not None else []),
        *([predictions.c.created >= moment(wanted.since, "since")] if wanted.since else []),
        *([predictions.c.created < moment(wanted.until, "until")] if wanted.until else []),
    ]
    total = connection.execute(select(func.count()).select_from(predictions).where(*matching)).scalar_one()
    # From where the page before ended, not from a count: what is added, read or deleted meanwhile shifts nothing.
    if after:
        value, key = _place(after, order)
        beyond = column < value if falls else column > value
        matching.append(or_(beyond, and_(column == value, predictions.c.id > key)))
    rows = connection.execute(
        select(predictions, column.label("place"))
        .where(*matching)
        .order_by(column.desc() if falls else column.asc(), predictions.c.id)
        .limit(limit + 1)
    ).mappings()
    some = list(rows)
    following = _token(order, some[limit - 1]["place"], some[limit - 1]["id"]) if len(some) > limit else ""
    return Page(tuple(of_row(row) for row in some[:limit]), total, following)


def _token(order: Order, value: str | float, key: str) -> str:
    """A place in an order, as clients send it back."""
    return base64.urlsafe_b64encode(json.dumps([order, value, key]).encode()).decode().rstrip("=")


def _place(token: str, order: Order) -> tuple[str | float, str]:
    try:
        of, value, key = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if of != order or not is_id(key):
            raise ValueError
        value = moment(value, "after") if order in ("newest", "oldest") else float(value)
        if not isinstance(value, str) and not math.isfinite(value):
            raise ValueError
    except (ValueError, TypeError, OverflowError, RecursionError, UsageError) as error:
        raise UsageError(
            f"after is {token[:64]!r}, which is no `next` of a page in the order {order!r}",
            hint="Begin again without it",
        ) from error
    return value, key


def latest(connection: Connection, model_sha256: str, operating_point: str, most: int) -> list[PredictionStatistics]:
    """The images that a model judged last at an operating point; see `PredictionRepository.latest`."""
    columns = (predictions.c.created, predictions.c.decision, predictions.c.probability, predictions.c.agrees)
    asked = (
        select(*columns)
        .where(predictions.c.model_sha256 == model_sha256, predictions.c.operating_point == operating_point)
        .order_by(predictions.c.created.desc(), predictions.c.id)
        .limit(most)
    )
    return [PredictionStatistics(*row) for row in connection.execute(asked)]

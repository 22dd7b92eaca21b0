"""Determine the current prediction of an image: the latest one, for each header separately if there are several patients.

If an image was received under several patients, `header_predictions` has a row for each prediction and each header
under which it was made. Predictions are thus never shown for the wrong patient, whose header may contain another age or
cause a rejection. A header that a person decided against has no current prediction. Images of a single patient have no
such rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    RowMapping,
    Select,
    and_,
    case,
    delete,
    exists,
    insert,
    or_,
    select,
    update,
)

from pneumoscope.service.storage.identity_columns import ASSIGNED
from pneumoscope.service.storage.tables import header_predictions, instances, predictions

__all__ = [
    "HEADER_COLUMNS",
    "IS_OF_HEADER",
    "IS_SHOWN_HEADER",
    "all_have_entered_age",
    "assign_headers",
    "begin_headers",
    "header_of",
    "is_current",
    "latest_time",
    "mark_again",
    "mark_of_header",
    "mark_without_entered_age",
    "merge_header",
    "read_header_columns",
    "remove_headers",
    "remove_headers_of_predictions",
]

_Row = RowMapping | Mapping[str, Any]
_HEADERS = header_predictions.c
_COPIED = ("last_predicted", "age", "age_source", "rejection_parameters")  # columns that depend on the header
_later, _known, _instance = header_predictions.alias(), header_predictions.alias(), instances.alias()
_IS_LATEST_OF_HEADER = ~exists().where(
    _later.c.pixel_sha256 == _HEADERS.pixel_sha256,
    _later.c.number == _HEADERS.number,
    _later.c.last_predicted > _HEADERS.last_predicted,
).correlate(header_predictions)
_HAS_PATIENT = or_(  # no person has decided against the header
    _HEADERS.number == ASSIGNED,
    exists()
    .where(
        _instance.c.pixel_sha256 == _HEADERS.pixel_sha256,
        _instance.c.number == _HEADERS.number,
        _instance.c.study_key.is_not(None),
    )
    .correlate(header_predictions),
)
_SHOWN_NUMBER = case(
    (~exists().where(_known.c.prediction_id == predictions.c.id).correlate(predictions), ASSIGNED),
    else_=select(_HEADERS.number)
    .where(_HEADERS.prediction_id == predictions.c.id, _HAS_PATIENT)
    .order_by(case((_IS_LATEST_OF_HEADER, 0), else_=1), _HEADERS.number)
    .limit(1)
    .correlate(predictions)
    .scalar_subquery(),
)
# Conditions on a prediction joined with an instance of the same pixels. IS_SHOWN_HEADER: the prediction is shown with
# the identity of this instance. IS_OF_HEADER: the prediction was made under the header of this instance.
IS_SHOWN_HEADER: ColumnElement[bool] = instances.c.number == _SHOWN_NUMBER
IS_OF_HEADER: ColumnElement[bool] = or_(
    ~exists().where(_known.c.pixel_sha256 == predictions.c.pixel_sha256).correlate(predictions),
    exists()
    .where(_known.c.prediction_id == predictions.c.id, _known.c.number == instances.c.number)
    .correlate(predictions, instances),
)
# Header columns to select with a prediction; see `read_header_columns`.
HEADER_COLUMNS: tuple[ColumnElement[Any], ...] = tuple(_HEADERS[name].label(f"header_{name}") for name in _COPIED)


def read_header_columns(row: _Row) -> dict[str, Any]:
    """Return the columns of a prediction, updated with its header columns, from a row with `HEADER_COLUMNS`."""
    stated = {name: row[f"header_{name}"] for name in _COPIED} if row["header_last_predicted"] else {}
    return {**row, **stated}


def is_current(*, of_header: bool) -> ColumnElement[bool]:
    """Return the condition that a prediction is the current one of its image.

    Args:
        of_header: Whether it must be current under the header of the joined instance; otherwise, any header suffices.
    """
    later = predictions.alias()
    is_later = (
        later.c.pixel_sha256 == predictions.c.pixel_sha256,
        later.c.last_predicted > predictions.c.last_predicted,
    )
    current = exists().where(_HEADERS.prediction_id == predictions.c.id, _HAS_PATIENT, _IS_LATEST_OF_HEADER)
    if of_header:
        current = current.where(_HEADERS.number == instances.c.number).correlate(predictions, instances)
    else:
        current = current.correlate(predictions)
    has_headers = exists().where(_known.c.pixel_sha256 == predictions.c.pixel_sha256).correlate(predictions)
    return or_(current, and_(~has_headers, ~select(later.c.id).where(*is_later).correlate(predictions).exists()))


def latest_time(connection: Connection, row: _Row, new_rows: Sequence[_Row]) -> str:
    """Return the time of the latest prediction of an image, including unsaved new rows; there must be one."""
    query = select(predictions.c.last_predicted).where(predictions.c.pixel_sha256 == row["pixel_sha256"])
    same = [each["last_predicted"] for each in new_rows if each["pixel_sha256"] == row["pixel_sha256"]]
    times: list[str] = [*same, *connection.execute(query).scalars()]
    return max(times)


def mark_again(connection: Connection, stored: _Row, row: _Row, time: str, *, always: bool = False) -> dict[str, Any]:
    """Mark a repeated prediction as the current one; return the changed columns, or an empty dictionary if nothing changes.

    The header may contain another age or none, and the image may have had another prediction in the meantime.

    Args:
        connection: Connection in a write transaction.
        stored: The prediction as stored.
        row: The prediction as repeated.
        time: Current time.
        always: Whether to mark it even if nothing else changes.
    """
    changed = {name: row[name] for name in ("age", "age_source", "warnings") if row[name] != stored[name]}
    later = select(predictions.c.id).where(
        predictions.c.pixel_sha256 == row["pixel_sha256"], predictions.c.last_predicted > stored["last_predicted"]
    )
    if not changed and not always and connection.execute(later.limit(1)).first() is None:
        return {}
    changed["last_predicted"] = time
    connection.execute(update(predictions).where(predictions.c.id == stored["id"]).values(changed))
    return changed


def begin_headers(connection: Connection, pixel_sha256: str, new_rows: Sequence[_Row]) -> None:
    """Record that an image's predictions, including unsaved new rows, were made under the header of its only patient so far."""
    if _has_headers(connection, pixel_sha256):
        return
    known = select(predictions).where(predictions.c.pixel_sha256 == pixel_sha256)
    rows = {row["id"]: row for row in connection.execute(known).mappings()}
    rows |= {row["id"]: row for row in new_rows if row["pixel_sha256"] == pixel_sha256}
    for row in rows.values():
        connection.execute(insert(header_predictions), [_header_row(row, ASSIGNED, row["last_predicted"])])


def mark_of_header(connection: Connection, row: _Row, number: int, time: str) -> None:
    """Mark a prediction as the current one under a header; do nothing for an image of a single patient.

    Args:
        connection: Connection in a write transaction.
        row: Row of the prediction, with the values of the header.
        number: Number of the instance with the header.
        time: Time of the prediction.
    """
    if not _has_headers(connection, row["pixel_sha256"]):
        return
    of_header = _HEADERS.pixel_sha256 == row["pixel_sha256"], _HEADERS.number == number
    same = connection.execute(
        select(header_predictions, _IS_LATEST_OF_HEADER.label("is_latest")).where(
            *of_header, _HEADERS.prediction_id == row["id"]
        )
    ).mappings()
    found = same.first()
    values = _header_row(row, number, time)
    if found is None:
        connection.execute(insert(header_predictions), [values])
    elif not found["is_latest"] or any(found[name] != values[name] for name in _COPIED[1:]):
        connection.execute(update(header_predictions).where(*_key(row["id"], number)).values(values))


def header_of(connection: Connection, id: str) -> int:
    """Return the number of the instance whose identity is shown with a prediction."""
    return connection.execute(select(_SHOWN_NUMBER).where(predictions.c.id == id)).scalar() or ASSIGNED


def merge_header(connection: Connection, pixel_sha256: str, number: int) -> None:
    """Move a header's predictions to the patient assigned to the image, because the corrected header names this patient."""
    known = select(header_predictions).where(_HEADERS.pixel_sha256 == pixel_sha256)
    rows = connection.execute(known.order_by(_HEADERS.last_predicted)).mappings().all()
    of_image = {row["prediction_id"]: row for row in rows if row["number"] == ASSIGNED}
    for row in rows:
        if row["number"] != number:
            continue
        same = of_image.get(row["prediction_id"])
        if same is None:
            connection.execute(insert(header_predictions), [{**row, "number": ASSIGNED}])
        elif same["last_predicted"] < row["last_predicted"]:
            values = {name: row[name] for name in _COPIED}
            query = update(header_predictions).where(*_key(row["prediction_id"], ASSIGNED))
            connection.execute(query.values(values))
    connection.execute(delete(header_predictions).where(*_of(pixel_sha256, number)))


def assign_headers(connection: Connection, pixel_sha256: str, numbers: Sequence[int], time: str) -> None:
    """Make the predictions under the chosen headers those of the image, after a person's decision.

    Args:
        connection: Connection in a write transaction.
        pixel_sha256: Pixel hash of the image.
        numbers: Number of the chosen patient's instance; several if the chosen patient is none of theirs, in which case
            the current predictions under all these headers are kept.
        time: Time of the decision.
    """
    if len(numbers) > 1:
        of_headers = _HEADERS.pixel_sha256 == pixel_sha256, _HEADERS.number.in_(numbers)
        query = select(header_predictions).where(*of_headers, _IS_LATEST_OF_HEADER)
        current = {row["prediction_id"]: row for row in connection.execute(query).mappings()}
        connection.execute(delete(header_predictions).where(*_of(pixel_sha256, ASSIGNED)))
        rows = [{**row, "number": ASSIGNED, "last_predicted": time} for row in current.values()]
        if rows:
            connection.execute(insert(header_predictions), rows)
    elif numbers[0] != ASSIGNED:
        for before, after in ((ASSIGNED, -1), (numbers[0], ASSIGNED), (-1, numbers[0])):
            connection.execute(update(header_predictions).where(*_of(pixel_sha256, before)).values(number=after))
    current_ids = select(_HEADERS.prediction_id).where(*_of(pixel_sha256, ASSIGNED), _IS_LATEST_OF_HEADER)
    connection.execute(update(predictions).where(predictions.c.id.in_(current_ids)).values(last_predicted=time))


def mark_without_entered_age(connection: Connection, pixel_sha256: str, time: str) -> None:
    """Make the latest prediction without an entered age the current one, because the age belonged to another patient."""
    rows = _of_image(connection, pixel_sha256)
    entered = [row for row in rows if row.age_source == "entered" and row.last_predicted == rows[0].last_predicted]
    other = next((row for row in rows if row.age_source != "entered"), None)
    if not entered or other is None:
        return
    connection.execute(update(predictions).where(predictions.c.id == other.id).values(last_predicted=time))
    query = update(header_predictions).where(*_key(other.id, ASSIGNED))
    connection.execute(query.values(last_predicted=time))


def all_have_entered_age(connection: Connection, pixel_sha256: str) -> bool:
    """Return whether all predictions under the assigned header of an image use an entered age."""
    rows = _of_image(connection, pixel_sha256)
    return bool(rows) and all(row.age_source == "entered" for row in rows)


def _of_image(connection: Connection, pixel_sha256: str) -> Sequence[Row[Any]]:
    """Return the predictions under the assigned header of an image, latest first."""
    if _has_headers(connection, pixel_sha256):
        columns = (_HEADERS.prediction_id.label("id"), _HEADERS.age_source, _HEADERS.last_predicted)
        condition = and_(*_of(pixel_sha256, ASSIGNED))
    else:
        columns = (predictions.c.id.label("id"), predictions.c.age_source, predictions.c.last_predicted)
        condition = predictions.c.pixel_sha256 == pixel_sha256
    query: Select[Any] = select(*columns).where(condition).order_by(columns[-1].desc())
    return connection.execute(query).all()


def remove_headers(connection: Connection, hashes: Select[Any] | Sequence[str]) -> None:
    """Remove the rows of images, given their pixel hashes, because the patients are no longer known."""
    connection.execute(delete(header_predictions).where(_HEADERS.pixel_sha256.in_(hashes)))


def remove_headers_of_predictions(connection: Connection, ids: Sequence[str]) -> None:
    """Remove the rows of deleted predictions."""
    connection.execute(delete(header_predictions).where(_HEADERS.prediction_id.in_(ids)))


def _has_headers(connection: Connection, pixel_sha256: str) -> bool:
    query = select(_HEADERS.number).where(_HEADERS.pixel_sha256 == pixel_sha256)
    return connection.execute(query.limit(1)).first() is not None


def _header_row(row: _Row, number: int, time: str) -> dict[str, Any]:
    values = {name: row[name] for name in ("age", "age_source", "rejection_parameters")}
    key = {"prediction_id": row["id"], "number": number, "pixel_sha256": row["pixel_sha256"]}
    return {**key, **values, "last_predicted": time}


def _key(id: str, number: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return _HEADERS.prediction_id == id, _HEADERS.number == number


def _of(pixel_sha256: str, number: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return _HEADERS.pixel_sha256 == pixel_sha256, _HEADERS.number == number

"""Read predictions together with their identities, conflicts, headers and reviews."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, select

from pneumoscope.core.errors import UnknownNameError
from pneumoscope.service.storage.current_prediction import (
    HEADER_COLUMNS,
    IS_OF_HEADER,
    IS_SHOWN_HEADER,
    read_header_columns,
)
from pneumoscope.service.storage.identity_columns import (
    CONFLICT_COLUMNS,
    IDENTITY_COLUMNS,
    find_others,
    others_of_study,
)
from pneumoscope.service.storage.records import StoredPrediction, encode_others, encode_reviews, is_id
from pneumoscope.service.storage.reviews import current_reviews
from pneumoscope.service.storage.tables import header_predictions, instances, patients, predictions, studies

__all__ = [
    "JOINED",
    "JOINED_PATIENTS",
    "has_image",
    "is_referenced",
    "read_one",
    "read_rows",
    "read_stored",
    "select_stored",
]

_SAME_PIXELS = predictions.c.pixel_sha256 == instances.c.pixel_sha256
JOINED = predictions.outerjoin(instances, _SAME_PIXELS & IS_SHOWN_HEADER).outerjoin(studies).outerjoin(patients)
# For an image of several patients, with a row for each patient under whose header the prediction was made.
JOINED_PATIENTS = predictions.join(instances, _SAME_PIXELS & IS_OF_HEADER).join(studies).outerjoin(patients)
_SAME_HEADER = (header_predictions.c.prediction_id == predictions.c.id) & (
    header_predictions.c.number == instances.c.number
)


def select_stored(*columns: ColumnElement[Any], of_patients: bool = False) -> Select[Any]:
    """Select predictions with their identity and further columns; see `read_stored`.

    Args:
        columns: The further columns.
        of_patients: Whether to select a prediction under headers of several patients once for each of them, with that
            identity. Images without an identity are then not selected.
    """
    joined = (JOINED_PATIENTS if of_patients else JOINED).outerjoin(header_predictions, _SAME_HEADER)
    further = (*CONFLICT_COLUMNS, *HEADER_COLUMNS, *columns)
    return select(predictions, *IDENTITY_COLUMNS, *further).select_from(joined)


def read_stored(connection: Connection, query: Select[Any]) -> list[StoredPrediction]:
    """Return the predictions of a `select_stored` query, with their reviews and the identities of other patients."""
    rows = connection.execute(query).mappings().all()
    return read_rows(connection, rows)


def read_rows(connection: Connection, rows: Sequence[RowMapping]) -> list[StoredPrediction]:
    """Return the predictions in rows of a `select_stored` query; see `read_stored`."""
    found = current_reviews(connection, {row["pixel_sha256"] for row in rows})
    of_two = {row["pixel_sha256"] for row in rows if row["image_of_two_patients"]}
    others = find_others(connection, of_two) if of_two else {}
    stored = []
    for row in map(read_header_columns, rows):
        listed, count = others_of_study(others.get(row["pixel_sha256"]), row["study_key"])
        reviews = encode_reviews(found.get(row["pixel_sha256"], ()))
        row |= {"reviews": reviews, "other_identities": encode_others(listed), "other_identity_count": count}
        stored.append(StoredPrediction.from_row(row))
    return stored


def read_one(connection: Connection, id: str) -> StoredPrediction:
    """Return a prediction.

    Raises:
        UnknownNameError: There is no prediction with this id.
    """
    found = read_stored(connection, select_stored().where(predictions.c.id == id)) if is_id(id) else []
    if not found:
        raise UnknownNameError("prediction", id, (), hint="It was deleted, or never existed here")
    return found[0]


def has_image(connection: Connection, id: str) -> bool:
    """Return whether a prediction with this id exists and its image was not removed."""
    return _exists(connection, predictions.c.id == id)


def is_referenced(connection: Connection, sha256: str) -> bool:
    """Return whether any prediction refers to this image and the image was not removed."""
    return _exists(connection, predictions.c.image_sha256 == sha256)


def _exists(connection: Connection, condition: ColumnElement[bool]) -> bool:
    query = select(predictions.c.id).where(condition, predictions.c.image_removed.is_(None)).limit(1)
    return connection.execute(query).first() is not None

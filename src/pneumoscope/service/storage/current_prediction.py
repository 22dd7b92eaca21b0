"""Determine which prediction of an image counts: the latest one, or those of two patients until a person chooses one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select, update

from pneumoscope.service.storage.records import Row, StoredPrediction
from pneumoscope.service.storage.tables import predictions

__all__ = ["count_again", "count_chosen", "latest_time"]


def latest_time(connection: Connection, row: Row, new_rows: Sequence[Row]) -> str:
    """Return the time of the latest prediction of an image that has one, perhaps among new ones.

    It is that of a prediction under the header of another patient, such as a rejection: both are listed.
    """
    query = select(predictions.c.last_predicted).where(predictions.c.pixel_sha256 == row["pixel_sha256"])
    same = [each["last_predicted"] for each in new_rows if each["pixel_sha256"] == row["pixel_sha256"]]
    times: list[str] = [*same, *connection.execute(query).scalars()]
    return max(times)


def count_again(connection: Connection, stored: Row, row: Row, time: str) -> dict[str, Any]:
    """Update a prediction that is made again, and return the changed columns; none if nothing changes.

    The header may state another age, or less; and the image may have had another prediction since, which no longer counts.
    """
    changed = {name: row[name] for name in ("age", "age_source", "warnings") if row[name] != stored[name]}
    later = select(predictions.c.id).where(
        predictions.c.pixel_sha256 == row["pixel_sha256"], predictions.c.last_predicted > stored["last_predicted"]
    )
    if not changed and connection.execute(later.limit(1)).first() is None:
        return {}
    changed["last_predicted"] = time
    connection.execute(update(predictions).where(predictions.c.id == stored["id"]).values(changed))
    return changed


def count_chosen(connection: Connection, before: StoredPrediction, patient_key: str | None, time: str) -> None:
    """Count the prediction under the header of the patient that a person has chosen, if there was one for each of two.

    Args:
        connection: Of a write transaction.
        before: A prediction of the image before the choice, with the identity of the first patient.
        patient_key: Of the chosen patient; that of neither leaves both predictions.
        time: Of the choice.
    """
    keys = [before.patient_key, *(each.patient_key for each in before.other_identities)]
    if len(keys) != 2 or patient_key not in keys:
        return
    columns = predictions.c
    query = select(columns.id, columns.last_predicted).where(columns.pixel_sha256 == before.image_key)
    rows = connection.execute(query.order_by(columns.created, columns.id)).all()
    latest = [row.id for row in rows if row.last_predicted == max(each.last_predicted for each in rows)]
    if len(latest) > 1:  # in the order of the headers
        chosen = latest[0 if patient_key == keys[0] else -1]
        connection.execute(update(predictions).where(columns.id == chosen).values(last_predicted=time))

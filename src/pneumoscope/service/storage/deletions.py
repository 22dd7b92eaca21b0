"""Delete predictions with all related data: images, identities, reviews, results and records of received files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, delete

from pneumoscope.core.errors import ImageOfTwoPatientsError, StorageError
from pneumoscope.service.audit.log import append, prediction_entry
from pneumoscope.service.storage.current_prediction import remove_headers_of_predictions
from pneumoscope.service.storage.identities import remove_unused_identity
from pneumoscope.service.storage.identity_columns import has_other_patient
from pneumoscope.service.storage.image_storage import ImageStorage, raise_errors
from pneumoscope.service.storage.received_instances import remove_predictions
from pneumoscope.service.storage.results import withdraw as withdraw_results
from pneumoscope.service.storage.reviews import remove_unused_reviews
from pneumoscope.service.storage.study_events import enqueue_deletion
from pneumoscope.service.storage.tables import predictions

__all__ = ["delete_predictions"]


def delete_predictions(
    storage: ImageStorage, condition: ColumnElement[bool], user: str, of_patient: Select[Any] | None = None
) -> int:
    """Delete the predictions that meet a condition, with their images and identities; return their number.

    Args:
        storage: The database and the blob store.
        condition: Condition on predictions.
        user: User for the audit log.
        of_patient: Selects the pixel hashes whose images must not also belong to another patient.
    Raises:
        ImageOfTwoPatientsError: Nothing was deleted, because one of these images also belongs to another patient.
        StorageError: The predictions or their images cannot be deleted.
    """

    def delete_rows(connection: Connection) -> Sequence[RowMapping]:
        if of_patient is not None and has_other_patient(connection, of_patient):
            raise ImageOfTwoPatientsError(
                "nothing was deleted: an image was received under another patient as well",
                hint="Choose its patient first; its prediction has the conflict image_of_two_patients",
            )
        rows = connection.execute(delete(predictions).where(condition).returning(predictions)).mappings().all()
        hashes = [row["pixel_sha256"] for row in rows]
        remove_headers_of_predictions(connection, [row["id"] for row in rows])
        remove_unused_reviews(connection, hashes)
        remove_unused_identity(connection, hashes)
        ids = [row["id"] for row in rows]
        withdraw_results(connection, ids, storage.time())
        enqueue_deletion(connection, remove_predictions(connection, ids), storage.time())
        append(connection, [prediction_entry(row, storage.time(), user, "deleted") for row in rows])
        return rows

    rows = storage.delete(delete_rows)
    if rows:
        storage.notify()
    try:
        raise_errors(storage.remove_unreferenced([row["image_sha256"] for row in rows]))
    except StorageError as error:
        raise StorageError(
            f"the predictions are deleted, but not all images: {error.message}",
            hint="The service tries again every few minutes, and at the next start",
        ) from error
    finally:
        storage.directory.fill_reserve()
    return len(rows)

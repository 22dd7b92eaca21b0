"""Store predictions and their images: those submitted at the same time share a transaction.

`recovery` describes the order of writes, and how interrupted ones are completed or rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, insert

from pneumoscope.core.errors import StorageError, UnknownNameError
from pneumoscope.core.prediction import Prediction
from pneumoscope.service.audit.log import Entry, Event, append, prediction_entry
from pneumoscope.service.storage.current_prediction import (
    begin_headers,
    header_of,
    latest_time,
    mark_again,
    mark_of_header,
)
from pneumoscope.service.storage.identities import assign_identity, enter_age
from pneumoscope.service.storage.identity_columns import ASSIGNED
from pneumoscope.service.storage.image_storage import ImageStorage
from pneumoscope.service.storage.records import StoredPrediction, new_row, result_hash
from pneumoscope.service.storage.reviews import current_reviews, update_reviewed
from pneumoscope.service.storage.stored_predictions import read_one, read_stored, select_stored
from pneumoscope.service.storage.tables import predictions

__all__ = ["Addition", "TransactionCallback", "add_predictions"]

_SELECT_BY_IDS = select_stored().where(predictions.c.id.in_(bindparam("ids", expanding=True)))
_INSERT = insert(predictions)
TransactionCallback = Callable[
    [Connection, str], None
]  # called in a transaction with the id of the prediction; "" without one


class Addition(NamedTuple):
    """A prediction to store, its image, the user who sent the image, and a further change for the same transaction.

    For a repeated prediction, `earlier_id` is the id of the earlier one, whose patient the new prediction belongs to.
    """

    prediction: Prediction
    image: bytes
    user: str
    callback: TransactionCallback | None
    earlier_id: str = ""


def add_predictions(
    storage: ImageStorage, additions: Sequence[Addition]
) -> list[tuple[StoredPrediction, bool] | Exception]:
    """Store a batch in one transaction; committing many rows takes as long as committing one.

    Args:
        storage: The database and the blob store.
        additions: The batch.
    Returns:
        For each addition, its record and whether it is new, or its error; see `PredictionRepository.submit`.
    """
    storage.directory.check()
    rows = [new_row(each.prediction, each.image) for each in additions]
    content = {row["image_sha256"]: each.image for row, each in zip(rows, additions, strict=True)}
    staged, failed = storage.blobs.stage(content)  # before the transaction, because other writers wait for its end
    try:
        with storage.blob_lock:
            with storage.write_transaction() as connection:
                # Another request may have removed an image in the meantime; while the lock is held, none can.
                lost = {key: content[key] for key in content.keys() - failed.keys() if not storage.blobs.has(key)}
                again = storage.blobs.stage(lost)
                staged, failed = [*staged, *again.staged], failed | again.failed

                batch = _Batch(connection, storage, [row["id"] for row in rows], failed)
                results = [batch.add(row, each) for row, each in zip(rows, additions, strict=True)]
                batch.write()
                for each, result in zip(additions, results, strict=True):
                    if each.callback and not isinstance(result, Exception):
                        each.callback(connection, result[0])
                ids = [each[0] for each in results if not isinstance(each, Exception)]
                stored = {each.id: each for each in read_stored(connection, _SELECT_BY_IDS.params(ids=ids))}
            for sha256 in staged:
                storage.publish_or_discard(sha256, referenced=sha256 in batch.referenced)
        storage.notify()  # unconditionally: assigning a new identity adds no entry
    except Exception:
        storage.abandon(staged)
        raise
    return [each if isinstance(each, Exception) else (stored[each[0]], each[1]) for each in results]


class _Batch:
    """The rows and audit entries of a batch; `write` stores them in the transaction.

    Args:
        connection: Connection in a write transaction.
        storage: The storage, for its time.
        ids: Ids of the predictions in the batch.
        failed: Errors of images that could not be staged, by hash.

    Attributes:
        referenced: Hashes of images referenced by rows.
    """

    def __init__(
        self, connection: Connection, storage: ImageStorage, ids: Sequence[str], failed: Mapping[str, StorageError]
    ) -> None:
        self._connection, self._storage, self._failed = connection, storage, failed
        existing = connection.execute(_SELECT_BY_IDS, {"ids": ids})
        self._by_id = {row["id"]: dict(row) for row in existing.mappings()}
        self._new_rows: list[dict[str, Any]] = []
        self._entries: list[Entry] = []
        self.referenced: set[str] = set()

    def add(self, row: dict[str, Any], addition: Addition) -> tuple[str, bool] | Exception:
        """Add a row; return its id and whether it is new, or the error that prevents storing it."""
        connection, id, is_new = self._connection, row["id"], row["id"] not in self._by_id
        try:
            if addition.earlier_id:
                read_one(connection, addition.earlier_id)
        except UnknownNameError as error:  # it was deleted while its image was being predicted again
            return error
        if is_new or self._has_same_file(row):
            if row["image_sha256"] in self._failed:
                return self._failed[row["image_sha256"]]
            self.referenced.add(row["image_sha256"])
        time = self._storage.time()
        assigned = assign_identity(connection, row["pixel_sha256"], addition.prediction.identity)
        if assigned.fields:
            self._enter(row, time, addition.user, assigned.event, {"fields": assigned.fields})
        if assigned.event == "identity_conflict":
            begin_headers(connection, row["pixel_sha256"], self._new_rows)
        number = header_of(connection, addition.earlier_id) if addition.earlier_id else assigned.numbers[0]
        if row["age_source"] == "entered":
            enter_age(connection, row["pixel_sha256"], number, row["age"])
        if is_new:
            self._add_new(row, time, addition.user, number)
        elif number == ASSIGNED:
            # If an identity arrives again after its removal, it is kept from now on.
            is_kept = bool(self._by_id[id]["identity_removed"]) and assigned.is_first
            if repeated := mark_again(connection, self._by_id[id], row, time, always=is_kept):
                self._by_id[id] |= repeated
                details = {"result_sha256": result_hash(self._by_id[id])}
                self._enter(row, time, addition.user, "predicted_again", details)
        mark_of_header(connection, row, number, time)
        return id, is_new

    def write(self) -> None:
        """Write the new rows and the audit log entries."""
        if self._new_rows:
            self._connection.execute(_INSERT, self._new_rows)
            reviewed = current_reviews(self._connection, [row["pixel_sha256"] for row in self._new_rows])
            update_reviewed(self._connection, reviewed.keys())
        append(self._connection, self._entries)

    def _has_same_file(self, row: Mapping[str, Any]) -> bool:
        """Return whether the stored prediction has the same file: neither a removed image nor another file is stored again."""
        stored = self._by_id[row["id"]]
        return not stored["image_removed"] and bool(stored["image_sha256"] == row["image_sha256"])

    def _add_new(self, row: dict[str, Any], time: str, user: str, number: int) -> None:
        last = time if number == ASSIGNED else latest_time(self._connection, row, self._new_rows)
        self._by_id[row["id"]] = new = row | {"created": time, "last_predicted": last}
        self._new_rows.append(new)
        details = {
            "decision": row["decision"],
            "probability": row["probability"],
            "result_sha256": result_hash(row),
            **({"site": row["model_site"]} if row["model_site"] else {}),
            **({} if row["model_prevalence"] is None else {"prevalence": row["model_prevalence"]}),
        }
        self._enter(row, time, user, "predicted", details)

    def _enter(self, row: dict[str, Any], time: str, user: str, event: Event, details: Mapping[str, Any]) -> None:
        self._entries.append(prediction_entry(row, time, user, event, details))

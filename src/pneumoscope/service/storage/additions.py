"""Add predictions and their images: many that were submitted at the same time in one transaction.

`recovery` describes the order of writes, and how an interrupted one is completed or rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, insert

from pneumoscope.core.errors import UnknownNameError
from pneumoscope.core.prediction import Prediction
from pneumoscope.service.audit.log import Entry, append, prediction_entry
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

__all__ = ["Addition", "Also", "add_predictions"]

_SELECT_BY_IDS = select_stored().where(predictions.c.id.in_(bindparam("ids", expanding=True)))
_INSERT = insert(predictions)
Also = Callable[[Connection, str], None]  # called in a transaction, with the id of the prediction, or "" without one


class Addition(NamedTuple):
    """A prediction to store, its image, the user who sent the image, and what to do in the same transaction.

    `earlier_id` is that of the prediction that is made again, for the patient that it is shown with.
    """

    prediction: Prediction
    image: bytes
    user: str
    also: Also | None
    earlier_id: str = ""


def add_predictions(
    storage: ImageStorage, additions: Sequence[Addition]
) -> list[tuple[StoredPrediction, bool] | Exception]:
    """Store a batch in one transaction, which reaches the disk as fast with many rows as with one.

    Args:
        storage: The database and the blob store.
        additions: The batch.
    Returns:
        For each of them, its record and whether it is new, or its error; see `PredictionRepository.submit`.
    """
    storage.directory.check()
    rows = [new_row(each.prediction, each.image) for each in additions]
    content = {row["image_sha256"]: each.image for row, each in zip(rows, additions, strict=True)}
    staged, failed = storage.blobs.stage(content)  # before the transaction: other writers wait for its end
    referenced: set[str] = set()  # hashes of images that a row refers to
    try:
        with storage.blob_lock:
            with storage.write_transaction() as connection:
                # Another request may have removed an image since. None can while the lock is held.
                lost = {key: content[key] for key in content.keys() - failed.keys() if not storage.blobs.has(key)}
                again = storage.blobs.stage(lost)
                staged, failed = [*staged, *again.staged], failed | again.failed

                existing = connection.execute(_SELECT_BY_IDS, {"ids": [row["id"] for row in rows]})
                by_id = {row["id"]: dict(row) for row in existing.mappings()}
                results: list[tuple[str, bool] | Exception] = []
                new_rows: list[dict[str, Any]] = []
                entries: list[Entry] = []
                for row, each in zip(rows, additions, strict=True):
                    id, sha256, is_new = row["id"], row["image_sha256"], row["id"] not in by_id
                    try:
                        if each.earlier_id:
                            read_one(connection, each.earlier_id)
                    except UnknownNameError as error:  # it was deleted while its image was predicted again
                        results.append(error)
                        continue
                    # A removed image is not stored again, nor the same pixels in another file.
                    if is_new or (not by_id[id]["image_removed"] and by_id[id]["image_sha256"] == sha256):
                        if sha256 in failed:
                            results.append(failed[sha256])
                            continue
                        referenced.add(sha256)
                    time = storage.time()
                    assigned = assign_identity(connection, row["pixel_sha256"], each.prediction.identity)
                    if assigned.fields:
                        details = {"fields": assigned.fields}
                        entries.append(prediction_entry(row, time, each.user, assigned.event, details))
                    if assigned.event == "identity_conflict":
                        begin_headers(connection, row["pixel_sha256"], new_rows)
                    number = header_of(connection, each.earlier_id) if each.earlier_id else assigned.numbers[0]
                    if row["age_source"] == "entered":
                        enter_age(connection, row["pixel_sha256"], number, row["age"])
                    if is_new:
                        last = time if number == ASSIGNED else latest_time(connection, row, new_rows)
                        by_id[id] = row | {"created": time, "last_predicted": last}
                        new_rows.append(by_id[id])
                        details = {
                            "decision": row["decision"],
                            "probability": row["probability"],
                            "result_sha256": result_hash(row),
                            **({"site": row["model_site"]} if row["model_site"] else {}),
                        }
                        entries.append(prediction_entry(row, time, each.user, "predicted", details))
                    elif number == ASSIGNED:
                        # An identity that arrives again after its removal is kept from now on.
                        is_kept = bool(by_id[id]["identity_removed"]) and assigned.is_first
                        if repeated := mark_again(connection, by_id[id], row, time, always=is_kept):
                            by_id[id] |= repeated
                            details = {"result_sha256": result_hash(by_id[id])}
                            entries.append(prediction_entry(row, time, each.user, "predicted_again", details))
                    mark_of_header(connection, row, number, time)
                    results.append((id, is_new))
                if new_rows:
                    connection.execute(_INSERT, new_rows)
                    reviewed = current_reviews(connection, [row["pixel_sha256"] for row in new_rows])
                    update_reviewed(connection, reviewed.keys())
                append(connection, entries)
                for each, result in zip(additions, results, strict=True):
                    if each.also and not isinstance(result, Exception):
                        each.also(connection, result[0])
                ids = [each[0] for each in results if not isinstance(each, Exception)]
                stored = {each.id: each for each in read_stored(connection, _SELECT_BY_IDS.params(ids=ids))}
            for sha256 in staged:
                storage.publish_or_discard(sha256, referenced=sha256 in referenced)
        storage.notify()  # a new identity has no entry
    except Exception:
        storage.abandon(staged)
        raise
    return [each if isinstance(each, Exception) else (stored[each[0]], each[1]) for each in results]

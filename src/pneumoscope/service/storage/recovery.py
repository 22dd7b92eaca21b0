"""Make the blob store consistent with the database after a crash, before the service starts.

To store a prediction, the image is written to the staging area, the row is committed, and the image is moved into the
blob store. To delete it, the removal of the row is committed with its audit entry, and the file is removed. So after a
crash at any step

- a staged file with a committed row is moved into the blob store;
- any other staged file is removed, since its request was never answered;
- a file in the blob store whose removal is recorded in the audit log is removed.

A file that cannot be removed does not prevent the start; `ImageStorage.retry_failed` tries again.

A file with neither a row nor a recorded removal belongs to another database, or is newer than a restored backup. It is
never removed here.
"""

from __future__ import annotations

import logging
from datetime import datetime
from itertools import islice
from typing import NamedTuple

from sqlalchemy import Engine, select

from pneumoscope.core.errors import StorageError
from pneumoscope.service.storage.blob_store import BlobStore, is_content_hash
from pneumoscope.service.storage.database import read_transaction, write_transaction
from pneumoscope.service.storage.tables import audit_log, predictions

__all__ = ["RecoveryResult", "UnreferencedFiles", "find_unreferenced_files", "recover"]

_LOG = logging.getLogger("pneumoscope.service")
_BATCH = 500  # hashes per query


class UnreferencedFiles(NamedTuple):
    """Files in the blob store without a database record.

    Attributes:
        orphaned: Hash and time of files unknown to the database.
        deleted: Hashes of files whose removal is recorded in the audit log.
    """

    orphaned: dict[str, datetime]
    deleted: list[str]


class RecoveryResult(NamedTuple):
    """The files remaining after a recovery.

    Attributes:
        orphaned: Hash and time of files unknown to the database.
        unremoved: Hashes of files that could not be removed.
    """

    orphaned: dict[str, datetime]
    unremoved: list[str]


def recover(engine: Engine, blobs: BlobStore) -> RecoveryResult:
    """Complete or roll back interrupted operations; return the remaining files.

    Files that cannot be removed are logged.

    Args:
        engine: Engine of the database.
        blobs: The store. No other process may be using it.

    Raises:
        StorageError: The database cannot be reached, or a file cannot be moved.
    """
    unremoved: list[str] = []
    staged = blobs.staging_files()
    if staged:
        referenced = predictions.c.image_removed.is_(None), predictions.c.image_sha256.in_(staged)
        query = select(predictions.c.image_sha256).where(*referenced).distinct()
        # Wait for the write lock: the database may still be committing the killed process's last transaction.
        with write_transaction(engine) as connection:
            for sha256 in connection.execute(query).scalars():
                blobs.publish(sha256)
        try:
            blobs.empty_staging()
        except StorageError as error:
            unremoved += filter(is_content_hash, blobs.staging_files())
            _log_failure(error)
    unreferenced = find_unreferenced_files(engine, blobs)
    for sha256 in unreferenced.deleted:
        try:
            blobs.remove(sha256)
        except StorageError as error:
            unremoved.append(sha256)
            _log_failure(error)
    return RecoveryResult(unreferenced.orphaned, unremoved)


def _log_failure(error: StorageError) -> None:
    _LOG.error("A file could not be removed; the service tries again every few minutes: %s", error.message)


def find_unreferenced_files(engine: Engine, blobs: BlobStore) -> UnreferencedFiles:
    """Return the files in the blob store without a database record.

    A service may be running, because it commits rows before it moves files into the store.

    Raises:
        StorageError: The database cannot be reached.
    """
    result = UnreferencedFiles({}, [])
    stored = blobs.stored()
    while batch := dict(islice(stored, _BATCH)):
        with read_transaction(engine) as connection:
            condition = predictions.c.image_removed.is_(None), predictions.c.image_sha256.in_(batch)
            referenced = connection.execute(select(predictions.c.image_sha256).where(*condition)).scalars()
            rest = batch.keys() - set(referenced)
            removal = audit_log.c.event.in_(("deleted", "image_removed")), audit_log.c.image_sha256.in_(rest)
            removed = connection.execute(select(audit_log.c.image_sha256).where(*removal)).scalars() if rest else ()
            deleted = set(removed)
        result.deleted.extend(sorted(deleted))
        result.orphaned.update({sha256: batch[sha256] for sha256 in rest - deleted})
    return result

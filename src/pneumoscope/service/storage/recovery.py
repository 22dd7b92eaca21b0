"""Bring the blob store into agreement with the database after a crash, before the service starts.

A prediction is stored in this order: write the image to the staging area, commit the row, move the image into the blob store.
It is removed in this order: commit the removal of the row with its audit entry, remove the file. So after a crash at any step

- a staged file with a committed row belongs into the blob store, and is moved there;
- any other staged file was never answered, and is removed;
- a file in the blob store whose removal the audit log records is removed.

A file without either is from another database, or newer than a restored one. It is never removed here.
"""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import NamedTuple

from sqlalchemy import Engine, select

from pneumoscope.service.storage.blob_store import BlobStore
from pneumoscope.service.storage.database import reading, writing
from pneumoscope.service.storage.tables import predictions, trail

__all__ = ["UnreferencedFiles", "find_unreferenced_files", "recover"]

_BATCH = 500  # hashes in one query


class UnreferencedFiles(NamedTuple):
    """Files in the blob store without a database record.

    Attributes:
        orphaned: Hash and time of files that the database does not know.
        deleted: Hashes of files whose removal the audit log records.
    """

    orphaned: dict[str, datetime]
    deleted: list[str]


def recover(engine: Engine, blobs: BlobStore) -> dict[str, datetime]:
    """Complete or roll back what a killed process left, and return the orphaned files: hash and time.

    Args:
        engine: Of the database.
        blobs: The store. No other process may be using it.

    Raises:
        StorageError: The database cannot be reached, or a file cannot be moved or removed.
    """
    staged = blobs.staging_files()
    if staged:
        held = predictions.c.image_removed.is_(None), predictions.c.image_sha256.in_(staged)
        # The writer's lock: the database may still be committing the killed process's last transaction.
        with writing(engine) as connection:
            for sha256 in connection.execute(select(predictions.c.image_sha256).where(*held).distinct()).scalars():
                blobs.publish(sha256)
        blobs.empty_staging()
    found = find_unreferenced_files(engine, blobs)
    for sha256 in found.deleted:
        blobs.remove(sha256)
    return found.orphaned


def find_unreferenced_files(engine: Engine, blobs: BlobStore) -> UnreferencedFiles:
    """Return the files in the blob store without a database record.

    A service may be running: its rows are committed before their files are in the store.

    Raises:
        StorageError: The database cannot be reached.
    """
    found = UnreferencedFiles({}, [])
    stored = blobs.stored()
    while batch := dict(islice(stored, _BATCH)):
        with reading(engine) as connection:
            held = predictions.c.image_removed.is_(None), predictions.c.image_sha256.in_(batch)
            rest = batch.keys() - set(connection.execute(select(predictions.c.image_sha256).where(*held)).scalars())
            gone = trail.c.what.in_(("deleted", "image removed")), trail.c.image_sha256.in_(rest)
            deleted = set(connection.execute(select(trail.c.image_sha256).where(*gone)).scalars()) if rest else set()
        found.deleted.extend(sorted(deleted))
        found.orphaned.update({sha256: batch[sha256] for sha256 in rest - deleted})
    return found

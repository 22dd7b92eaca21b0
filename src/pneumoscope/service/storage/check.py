"""Check the consistency of the database and the blob store, without changing either."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Engine, Row, func, select

from pneumoscope.core.errors import StorageError
from pneumoscope.service.storage.blob_store import BLOBS, STAGING, BlobStore, FolderBlobStore
from pneumoscope.service.storage.data_directory import is_in_use
from pneumoscope.service.storage.database import read_transaction, write_transaction
from pneumoscope.service.storage.inbox import find_missing_files
from pneumoscope.service.storage.recovery import find_unreferenced_files
from pneumoscope.service.storage.tables import predictions

__all__ = ["BlobFault", "StorageReport", "check_blobs", "check_storage"]

_BATCH = 1000  # rows fetched at a time


class BlobFault(NamedTuple):
    """A missing or damaged blob that a prediction refers to.

    Attributes:
        sha256: Hash of the blob.
        prediction_id: Id of one of the predictions that refer to it.
        error: Read error or hash mismatch; empty if the blob is missing.
    """

    sha256: str
    prediction_id: str
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class StorageReport:
    """Result of `check_storage`; paths are relative to the data directory.

    Attributes:
        blobs: Number of blobs that predictions refer to.
        orphaned_files: Files in the blob store without a database record.
        missing_blobs: Missing blobs that a prediction refers to.
        damaged_blobs: Blobs that are unreadable or whose hash differs from their name.
        unexpected_files: Unused files in the blob store, with a name that is not a hash or in the wrong subdirectory.
        staging_files: Files left in the staging area; None if a service is running, because they are not checked then.
        missing_instances: Received instances waiting for a prediction whose file is missing or damaged; empty while a
            service is running, because it removes such files.
    """

    blobs: int
    orphaned_files: tuple[str, ...]
    missing_blobs: tuple[str, ...]
    damaged_blobs: tuple[str, ...]
    unexpected_files: tuple[str, ...]
    staging_files: tuple[str, ...] | None
    missing_instances: tuple[str, ...]

    @property
    def problems(self) -> int:
        """Total number of orphaned, missing, damaged, unexpected and staged files."""
        in_store = (
            self.orphaned_files, self.missing_blobs, self.damaged_blobs, self.unexpected_files, self.missing_instances,
        )  # fmt: skip
        return sum(map(len, in_store)) + len(self.staging_files or ())


def check_storage(folder: Path, engine: Engine) -> StorageReport:
    """Compare a data directory with its database; reads every blob.

    Files that a running service is currently adding or removing are not reported.

    Args:
        folder: The data directory.
        engine: Engine of its database.

    Raises:
        StorageError: The database cannot be reached, or the directory cannot be listed.
    """
    store = FolderBlobStore(folder)
    running = is_in_use(folder)
    staging = None if running else tuple(f"{STAGING}/{name}" for name in store.staging_files())
    unreferenced = find_unreferenced_files(engine, store)
    orphaned = [*unreferenced.orphaned, *([] if running else unreferenced.deleted)]
    count, faults = check_blobs(engine, store)
    return StorageReport(
        blobs=count,
        orphaned_files=_paths(orphaned),
        missing_blobs=_paths([fault.sha256 for fault in faults if not fault.error]),
        damaged_blobs=_paths([fault.sha256 for fault in faults if fault.error]),
        unexpected_files=tuple(store.unexpected_files()),
        staging_files=staging,
        missing_instances=() if running else tuple(find_missing_files(engine, folder)),
    )


def check_blobs(engine: Engine, blobs: BlobStore) -> tuple[int, list[BlobFault]]:
    """Read every blob that a prediction refers to; return the number of blobs and the missing or damaged ones.

    Args:
        engine: Engine of the database. Other processes may add and remove predictions during the check.
        blobs: The store.

    Raises:
        StorageError: The database cannot be reached.
    """
    count, suspects = 0, []
    with read_transaction(engine) as connection:
        for row in connection.execute(_referenced().execution_options(yield_per=_BATCH)):
            count += 1
            if _fault(blobs, row):
                suspects.append(row)
    faults = []
    for row in suspects:
        # It may have been removed in the meantime. The write lock excludes removals during the second check.
        with write_transaction(engine) as connection:
            current = connection.execute(_referenced(predictions.c.image_sha256 == row.image_sha256)).first()
            if current and (fault := _fault(blobs, current)):
                faults.append(fault)
    return count, faults


def _referenced(*conditions: ColumnElement[bool]) -> Any:
    """Select the blobs that predictions refer to, each with the id of one such prediction."""
    return (
        select(predictions.c.image_sha256, func.min(predictions.c.id).label("id"))
        .where(predictions.c.image_removed.is_(None), *conditions)
        .group_by(predictions.c.image_sha256)
    )


def _fault(blobs: BlobStore, row: Row[Any]) -> BlobFault | None:
    try:
        return None if blobs.get(row.image_sha256) is not None else BlobFault(row.image_sha256, row.id, "")
    except StorageError as error:
        return BlobFault(row.image_sha256, row.id, error.message)


def _paths(hashes: list[str]) -> tuple[str, ...]:
    return tuple(f"{BLOBS}/{sha256[:2]}/{sha256}" for sha256 in sorted(hashes))

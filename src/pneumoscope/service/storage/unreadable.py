"""Records of unreadable files. The files themselves are not stored."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Connection, delete, func, insert, select

from pneumoscope.core.errors import UnknownNameError
from pneumoscope.core.prediction import Prediction
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.service.audit.log import Entry, append
from pneumoscope.service.auth.users import RETENTION
from pneumoscope.service.storage.image_storage import ImageStorage
from pneumoscope.service.storage.records import UnreadableFile, format_time, new_unreadable_row
from pneumoscope.service.storage.tables import unreadable_files

__all__ = ["UnreadableFileRepository", "find_reason"]


def find_reason(connection: Connection, image_sha256: str, failure_code: str) -> UnreadableReason | None:
    """Return why a file could not be read, from its latest record; None if the record was deleted or has no reason."""
    columns = unreadable_files.c
    same = columns.image_sha256 == image_sha256, columns.failure_code == failure_code
    query = select(unreadable_files).where(*same).order_by(columns.created.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    return UnreadableFile.from_row(row).failure.reason if row else None


class UnreadableFileRepository:
    """The records of unreadable files.

    Args:
        storage: Storage of the service.
    """

    def __init__(self, storage: ImageStorage) -> None:
        self._storage = storage

    def add(
        self,
        prediction: Prediction,
        file: bytes,
        *,
        user: str,
        callback: Callable[[Connection, str], None] | None = None,
    ) -> None:
        """Record an unreadable file, unless it is already recorded; the file itself is not stored.

        Args:
            prediction: Prediction with a failure.
            file: Bytes of the file.
            user: Sender of the file.
            callback: See `PredictionRepository.submit`.
        Raises:
            StorageError: The record cannot be stored.
        """
        row = new_unreadable_row(prediction, file)
        with self._storage.write_transaction() as connection:
            if callback:
                callback(connection, "")
            if connection.execute(select(unreadable_files.c.id).where(unreadable_files.c.id == row["id"])).first():
                return
            time = self._storage.time()
            connection.execute(insert(unreadable_files), [row | {"created": time, "sender": user}])
            details = {"failure": row["failure_code"]}
            append(connection, [Entry(time, user, "unreadable", image_sha256=row["image_sha256"], details=details)])
        self._storage.notify()

    def find(self, limit: int = 200, *, since: str = "") -> tuple[list[UnreadableFile], int]:
        """Return the latest records of unreadable files, newest first, and the total number.

        Args:
            limit: Maximum number of records.
            since: Earliest time, inclusive: ISO 8601 in UTC, or a prefix of it; no limit if empty.
        """
        created = unreadable_files.c.created
        query = select(unreadable_files).where(created >= since).order_by(created.desc(), unreadable_files.c.id)
        count = select(func.count()).select_from(unreadable_files).where(created >= since)
        with self._storage.read_transaction() as connection:
            rows = connection.execute(query.limit(limit)).mappings()
            return [UnreadableFile.from_row(row) for row in rows], connection.execute(count).scalar_one()

    def remove(self, id: str, *, user: str) -> None:
        """Delete the record of an unreadable file.

        Raises:
            UnknownNameError: There is no record with this id.
            StorageError: The record cannot be deleted.
        """
        query = delete(unreadable_files).where(unreadable_files.c.id == id).returning(unreadable_files)

        def delete_row(connection: Connection) -> None:
            row = connection.execute(query).mappings().first()
            if row is None:
                raise UnknownNameError("record", id, (), hint="It was deleted, or never existed here")
            append(
                connection, [Entry(self._storage.time(), user, "unreadable_deleted", image_sha256=row["image_sha256"])]
            )

        self._storage.delete(delete_row)
        self._storage.notify()

    def expire(self, limit: datetime, batch: int, *, stopped: Callable[[], bool] = lambda: False) -> None:
        """Delete records of files that were sent before a time.

        Args:
            limit: The time.
            batch: Maximum number of records deleted in one transaction.
            stopped: Returns whether to leave the rest to the next call.
        Raises:
            StorageError: The records cannot be deleted.
        """
        old = select(unreadable_files.c.id).where(unreadable_files.c.created < format_time(limit)).limit(batch)
        query = (
            delete(unreadable_files).where(unreadable_files.c.id.in_(old)).returning(unreadable_files.c.image_sha256)
        )
        while not stopped():
            with self._storage.write_transaction() as connection:
                hashes, time = connection.execute(query).scalars().all(), self._storage.time()
                append(connection, [Entry(time, RETENTION, "unreadable_deleted", image_sha256=each) for each in hashes])
            if not hashes:
                break
            self._storage.notify()

"""The database and the blob store as a unit: transactions, and the images that belong to them.

`recovery` describes the order of writes, and how interrupted ones are completed or rolled back.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, delete, false

from pneumoscope.core.errors import StorageError
from pneumoscope.service.storage.blob_store import BlobStore, FolderBlobStore, MemoryBlobStore
from pneumoscope.service.storage.data_directory import DataDirectory
from pneumoscope.service.storage.database import DATABASE_FILE, open_database, read_transaction, write_transaction
from pneumoscope.service.storage.records import format_time
from pneumoscope.service.storage.recovery import recover
from pneumoscope.service.storage.stored_predictions import is_referenced
from pneumoscope.service.storage.tables import predictions

__all__ = ["ImageStorage", "raise_errors"]

_LOG = logging.getLogger("pneumoscope.service")
_Deleted = TypeVar("_Deleted")


class ImageStorage:
    """The database and the blob store of a service.

    Opening it completes or rolls back interrupted writes; see `recovery`.

    Args:
        folder: The data directory; None stores everything in memory.
        database: URL of a PostgreSQL database; SQLite in the data directory if empty.
        now: Returns the current time; replaceable in tests.

    Attributes:
        folder: The data directory.
        engine: Engine of the database.
        blobs: The images.
        directory: The identity of the data directory.
        now: Returns the current time.
        batch: Number of images that are removed in one transaction.
        orphaned: Files in the blob store without a database record: hash and time.
        blob_lock: Held from a commit until the images of its rows are published, so that none is removed in between. It
            must be acquired before the transaction begins.

    Raises:
        StorageError, UsageError: See `open_database` and `recover`.
    """

    def __init__(
        self, folder: Path | None, database: str = "", *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.folder, self.now, self.batch = folder, now, 500
        self.engine: Engine = open_database(folder, database)
        try:
            self.blobs: BlobStore = MemoryBlobStore() if folder is None else FolderBlobStore(folder)
            self.directory = DataDirectory(folder, DATABASE_FILE)
            self.blob_lock = threading.Lock()
            self.orphaned, unremoved = recover(self.engine, self.blobs)
        except BaseException:
            self.engine.dispose()
            raise
        self._change_listeners: list[Callable[[], None]] = []
        self._unsettled: set[str] = set()  # staged, but neither published nor discarded because of an error
        self._unremoved = set(unremoved)  # still to be removed because of an error

    def time(self) -> str:
        """Return the current time in the database format."""
        return format_time(self.now())

    def add_change_listener(self, listener: Callable[[], None]) -> None:
        """Call a function after each commit that may have changed predictions, reviews, identities or unreadable files.

        It is called in the thread of the change, and must neither block nor raise.
        """
        self._change_listeners.append(listener)

    def notify(self) -> None:
        """Call the change listeners."""
        for listener in self._change_listeners:
            listener()

    def read_transaction(self) -> contextlib.AbstractContextManager[Connection]:
        """See `database.read_transaction`."""
        return read_transaction(self.engine)

    @contextlib.contextmanager
    def write_transaction(self, *, wait: bool = True) -> Iterator[Connection]:
        """See `database.write_transaction`; also raises StorageError if the data directory was moved or replaced."""
        with write_transaction(self.engine, wait=wait) as connection:
            self.directory.check()
            yield connection

    def delete(self, change: Callable[[Connection], _Deleted]) -> _Deleted:
        """Return the result of a change that frees space; if the disk is full, its journal uses the reserve."""
        try:
            with self.write_transaction() as connection:
                return change(connection)
        except StorageError:
            if not self.directory.release_reserve():
                raise
            with self.write_transaction() as connection:
                return change(connection)
        finally:
            self.directory.fill_reserve()

    def abandon(self, staged: Sequence[str]) -> None:
        """Settle staged images after a failed transaction, whose rows may be committed anyway. `retry_failed` tries again."""
        self._unsettled.update(staged)
        with contextlib.suppress(StorageError):
            self.settle()

    def publish_or_discard(self, sha256: str, *, referenced: bool) -> None:
        """Publish a staged image if a committed row refers to it; otherwise, discard it.

        A failure is only logged, since the row is committed and the staged image can be read; `retry_failed` tries
        again.
        """
        try:
            if referenced:
                self.blobs.publish(sha256)
            else:
                self.blobs.discard(sha256)
        except StorageError as error:
            self._unsettled.add(sha256)
            _LOG.error("An image stays in the staging area until the next attempt: %s", error.message)

    def settle(self) -> None:
        """Publish or discard images left over from `abandon` or a failed move.

        Raises:
            StorageError: The database cannot be reached.
        """
        unsettled = list(self._unsettled)
        if not unsettled:
            return
        # Without waiting: after a timeout of the lock, the client would wait twice.
        with self.blob_lock, self.write_transaction(wait=False) as connection:
            for sha256 in unsettled:
                self._unsettled.discard(sha256)
                self.publish_or_discard(sha256, referenced=is_referenced(connection, sha256))

    def remove_unreferenced(self, hashes: Sequence[str]) -> list[StorageError]:
        """Remove images that no row refers to; return the errors, which can be retried."""
        self._unremoved.update(hashes)
        errors: list[StorageError] = []
        for start in range(0, len(hashes), self.batch):
            with self.blob_lock, self.write_transaction() as connection:
                for sha256 in hashes[start : start + self.batch]:
                    try:
                        if not is_referenced(connection, sha256):
                            self.blobs.remove(sha256)
                        self._unremoved.discard(sha256)
                    except StorageError as error:
                        errors.append(error)
        return errors

    def retry_failed(self) -> None:
        """Retry failed operations: moving images out of the staging area, and removing images.

        Raises:
            StorageError: An operation failed again; the others were retried.
        """
        self.settle()
        errors = self.remove_unreferenced(list(self._unremoved))
        self.directory.fill_reserve()
        raise_errors(errors)

    def check_writable(self) -> None:
        """Perform all steps of storing an image, without an image.

        Raises:
            StorageError: Images cannot be stored.
        """
        with self.write_transaction() as connection:
            connection.execute(delete(predictions).where(false()))  # SQLite detects a read-only file only here
            self.directory.check_room()
            self.blobs.check_writable()


def raise_errors(errors: Sequence[StorageError]) -> None:
    """Raise the first of several errors, with the number of the others; do nothing if there is none."""
    if errors:
        others = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise StorageError(f"{errors[0].message}{others}", hint=errors[0].hint)

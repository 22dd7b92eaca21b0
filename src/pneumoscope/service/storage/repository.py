"""Store predictions, reviews and images, with an audit entry for each change.

`recovery` describes the order of writing, and what becomes of it when the process is killed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Executable,
    RowMapping,
    bindparam,
    delete,
    insert,
    select,
    update,
)

from pneumoscope.core.errors import GoneError, StorageError, UnknownNameError
from pneumoscope.core.prediction import Prediction
from pneumoscope.service.audit.log import Entry, append
from pneumoscope.service.auth.tokens import RETENTION
from pneumoscope.service.storage.blob_store import BLOBS, BlobStore, FolderBlobStore, MemoryBlobStore, content_hash
from pneumoscope.service.storage.data_directory import DataDirectory
from pneumoscope.service.storage.database import DATABASE_FILE, open_database, reading, writing
from pneumoscope.service.storage.group_commit import GroupCommit
from pneumoscope.service.storage.queries import find, latest
from pneumoscope.service.storage.records import (
    Filter,
    Order,
    Page,
    PredictionStatistics,
    Row,
    StoredPrediction,
    is_id,
    new_row,
    of_row,
    rest_hash,
)
from pneumoscope.service.storage.recovery import recover
from pneumoscope.service.storage.tables import predictions

__all__ = ["PredictionRepository"]

_LOG = logging.getLogger("pneumoscope.service")
_BATCH = 500  # images that are removed in one transaction
_THERE = select(predictions).where(predictions.c.id.in_(bindparam("keys", expanding=True)))
_MAKE = insert(predictions)


class _Addition(NamedTuple):
    """A prediction to store, its image, and the user who asked for it."""

    prediction: Prediction
    image: bytes
    operating_point: str
    who: str


class PredictionRepository:
    """The predictions, reviews and images of one service.

    Opening it completes or rolls back what a killed process left; see `recovery`.

    Args:
        folder: The data directory; None stores everything in memory.
        database: URL of a PostgreSQL database; SQLite in the data directory if empty.
        now: Returns the time, for tests.

    Attributes:
        engine: Of the database.
        blobs: The images.
        orphaned: Files in the blob store that the database does not know: hash and time.

    Raises:
        StorageError, UsageError: See `open_database` and `recover`.
    """

    def __init__(
        self, folder: Path | None, database: str = "", *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.engine: Engine = open_database(folder, database)
        self.blobs: BlobStore = MemoryBlobStore() if folder is None else FolderBlobStore(folder)
        self._directory = DataDirectory(folder, DATABASE_FILE)
        self._now = now
        # In memory all threads share one connection.
        self._alone = threading.RLock() if folder is None and not database else contextlib.nullcontext()
        # No image is removed between the commit of its row and its move into the blob store. Taken before a transaction begins.
        self._blob_lock = threading.Lock()
        self.orphaned = recover(self.engine, self.blobs)
        self._unsettled: set[str] = set()  # staged, and neither published nor discarded because of an error
        self._unremoved: set[str] = set()  # to be removed, and not removed because of an error
        self._commits = GroupCommit(self._add, StorageError, name="group-commit")

    def close(self) -> None:
        """Store what was submitted, and close the connections."""
        self._commits.close()
        self.engine.dispose()

    def add(
        self, prediction: Prediction, image: bytes, *, operating_point: str, who: str
    ) -> tuple[StoredPrediction, bool]:
        """Store a prediction and its image, and wait for it; see `submit`.

        Raises:
            StorageError: It cannot be stored; nothing was.
        """
        return self.submit(prediction, image, operating_point=operating_point, who=who).result()

    def submit(
        self, prediction: Prediction, image: bytes, *, operating_point: str, who: str
    ) -> Future[tuple[StoredPrediction, bool]]:
        """Store a prediction and its image in one transaction with others that are submitted meanwhile.

        Args:
            prediction: Of a readable image.
            image: The file's bytes.
            operating_point: By name.
            who: The user, for the audit log.

        Returns:
            A future of the record and of whether it is new: the first prediction for the same image, model and operating point
            is kept. Its error is StorageError if nothing could be stored.
        """
        return self._commits.submit(_Addition(prediction, image, operating_point, who))

    def _add(self, additions: Sequence[_Addition]) -> list[tuple[StoredPrediction, bool] | Exception]:
        """Store a batch in one transaction, which reaches the disk as fast with many rows as with one."""
        self._directory.check()
        rows = [new_row(each.prediction, each.image, each.operating_point) for each in additions]
        content = {row["image_sha256"]: each.image for row, each in zip(rows, additions, strict=True)}
        staged, failed = self.blobs.stage(content)  # before the transaction: other writers wait for its end
        held: set[str] = set()  # hashes of images that a row refers to
        try:
            with self._alone, self._blob_lock:
                with self._writing() as connection:
                    # Another request may have removed an image since. None can while the lock is held.
                    lost = {key: content[key] for key in content.keys() - failed.keys() if not self.blobs.has(key)}
                    again = self.blobs.stage(lost)
                    staged, failed = [*staged, *again.staged], failed | again.failed

                    found = connection.execute(_THERE, {"keys": [row["id"] for row in rows]})
                    there = {row["id"]: dict(row) for row in found.mappings()}
                    added: list[tuple[StoredPrediction, bool] | Exception] = []
                    made, entries = [], []
                    for row, each in zip(rows, additions, strict=True):
                        key, sha256, new = row["id"], row["image_sha256"], row["id"] not in there
                        if new or not there[key]["image_removed"]:  # an image that was removed does not come back
                            if sha256 in failed:
                                added.append(failed[sha256])
                                continue
                            held.add(sha256)
                        if new:
                            there[key] = row | {"created": self._time()}
                            made.append(there[key])
                            said = {
                                "decision": row["decision"],
                                "probability": row["probability"],
                                "rest": rest_hash(row),
                            }
                            entries.append(_entry(there[key], there[key]["created"], each.who, "judged", said))
                        added.append((of_row(there[key]), new))
                    if made:
                        connection.execute(_MAKE, made)
                    append(connection, entries)
                for sha256 in staged:
                    self._place(sha256, held=sha256 in held)
        except Exception:
            self._unsettled.update(staged)
            with contextlib.suppress(StorageError):  # `tidy` tries again
                self._settle()
            raise
        return added

    def _place(self, sha256: str, *, held: bool) -> None:
        """Publish a staged image if a committed row refers to it; discard it otherwise.

        A failure is logged, and `tidy` tries again: the row is committed, and the staged image is on the disk and can be read.
        """
        try:
            if held:
                self.blobs.publish(sha256)
            else:
                self.blobs.discard(sha256)
        except StorageError as error:
            self._unsettled.add(sha256)
            _LOG.error("an image stays in the staging area for now: %s", error.message)

    def _settle(self) -> None:
        """Publish or discard staged images of which an error left open whether their rows are committed."""
        unsettled = list(self._unsettled)
        if not unsettled:
            return
        with self._alone, self._blob_lock, self._writing() as connection:
            for sha256 in unsettled:
                self._unsettled.discard(sha256)
                self._place(sha256, held=_has(connection, predictions.c.image_sha256 == sha256))

    def try_to_keep(self) -> None:
        """Do everything that storing an image takes, without an image.

        Raises:
            StorageError: No image could be stored.
        """
        with self._alone, self._writing():
            self._directory.check_room()
            self.blobs.check_writable()

    def get(self, key: str) -> StoredPrediction:
        """One record.

        Raises:
            UnknownNameError: there is none of that id.
        """
        with self._alone, reading(self.engine) as connection:
            return of_row(_found(connection, select(predictions).where(predictions.c.id == key), key))

    def image(self, record: StoredPrediction) -> bytes:
        """The file of a record's image.

        Raises:
            GoneError: it was removed.
            StorageError: it cannot be read, or is missing although nobody removed it.
        """
        content = None if record.image_removed else self.blobs.get(record.image_sha256)
        if content is not None:
            return content
        if record.image_removed or not self._is_kept(record):
            raise GoneError(f"the image of prediction {record.id!r} was removed", hint="Its numbers are kept")
        raise StorageError(
            f"the image of prediction {record.id!r} is missing, and nobody removed it here",
            hint=f"Restore {record.image_sha256[:2]}/{record.image_sha256} below {BLOBS}/ from a backup, or post the image again",
        )

    def find(self, wanted: Filter, *, order: Order = "newest", limit: int = 50, after: str = "") -> Page:
        """A page of records.

        Args:
            wanted: which.
            order: "newest" and "oldest" first, or by probability; records without one come last either way. "attention": what
                nobody has read, and of it what the model says nothing of or is not sure of, then by probability, highest first.
            limit: most of them, up to 200.
            after: `next` of the page before, in the same order.
        Raises:
            UsageError: `limit` or `after` is out of range.
        """
        with self._alone, reading(self.engine) as connection:
            return find(connection, wanted, order=order, limit=limit, after=after)

    def latest(self, model_sha256: str, operating_point: str, most: int) -> list[PredictionStatistics]:
        """The images that a model judged last at an operating point, newest first.

        Args:
            model_sha256: of its network file.
            operating_point: by name.
            most: images.
        Raises:
            StorageError: they cannot be read.
        """
        with self._alone, reading(self.engine) as connection:
            return latest(connection, model_sha256, operating_point, most)

    def review(self, key: str, *, agrees: bool, note: str, who: str) -> StoredPrediction:
        """Keep a person's reading; an earlier one is replaced, and stays in the trail.

        Raises:
            UnknownNameError: there is no such record.
            StorageError: it cannot be kept.
        """
        with self._alone, self._writing() as connection:
            at = self._time()
            said = {"agrees": agrees, "note": note, "reviewed": at, "reviewer": who}
            asked = update(predictions).where(predictions.c.id == key).values(said).returning(predictions)
            row = _found(connection, asked, key)
            details = {"agrees": agrees, "note": content_hash(note.encode())}
            append(connection, [_entry(row, at, who, "reviewed", details)])
            return of_row(row)

    def remove(self, key: str, *, who: str) -> None:
        """Remove a record and its image; that it was there stays in the trail.

        Raises:
            UnknownNameError: there is no such record.
            StorageError: it cannot be removed.
        """
        with self._alone:
            with self._writing() as connection:
                row = _found(connection, delete(predictions).where(predictions.c.id == key).returning(predictions), key)
                append(connection, [_entry(row, self._time(), who, "deleted")])
            try:
                self._remove_unheld([row["image_sha256"]])
            except StorageError as error:
                raise StorageError(
                    f"record {key!r} is deleted, but its image could not be: {error.message}",
                    hint="It is tried again every few minutes, and at the next start",
                ) from error

    def expire(self, age: timedelta, *, stopped: Callable[[], bool] = lambda: False) -> int:
        """Remove images older than this and keep their numbers; how many.

        Args:
            age: of an image, since it came.
            stopped: whether to leave the rest for another time.
        Raises:
            StorageError: they cannot be removed.
        """
        limit, removed = self._now() - age, 0
        while not stopped() and (some := self._expire(limit)):
            removed += len(some)
            self._remove_unheld(some)
        self._expire_orphaned(limit)
        return removed

    def tidy(self) -> None:
        """Retry what failed: moving images out of the staging area, and removing images.

        Raises:
            StorageError: It failed again.
        """
        self._settle()
        self._remove_unheld(list(self._unremoved))

    def _expire(self, limit: datetime) -> list[str]:
        """Write down that some images older than this are removed: few enough that nobody waits long; their hashes."""
        old = predictions.c.created < _text(limit), predictions.c.image_removed.is_(None)
        some = select(predictions.c.id).where(*old).limit(_BATCH).scalar_subquery()
        with self._alone, self._writing() as connection:
            at = self._time()
            asked = (
                update(predictions).where(predictions.c.id.in_(some)).values(image_removed=at).returning(predictions)
            )
            rows = connection.execute(asked).mappings().all()
            append(connection, [_entry(row, at, RETENTION, "image removed") for row in rows])
        return [row["image_sha256"] for row in rows]

    def _expire_orphaned(self, limit: datetime) -> None:
        """Remove orphaned files older than this, with an audit entry for each."""
        old = [sha256 for sha256, since in self.orphaned.items() if since < limit]
        for start in range(0, len(old), _BATCH):
            some = old[start : start + _BATCH]
            with self._alone, self._writing() as connection:
                gone = [sha256 for sha256 in some if not _has(connection, predictions.c.image_sha256 == sha256)]
                at = self._time()
                append(connection, [Entry(at, RETENTION, "image removed", image_sha256=sha256) for sha256 in gone])
            self._remove_unheld(gone)
            for sha256 in some:
                del self.orphaned[sha256]

    def _remove_unheld(self, images: Iterable[str]) -> None:
        """Remove images, except those that a record still refers to."""
        every = list(images)
        self._unremoved.update(every)
        for start in range(0, len(every), _BATCH):
            with self._alone, self._blob_lock, self._writing() as connection:
                for sha256 in every[start : start + _BATCH]:
                    if not _has(connection, predictions.c.image_sha256 == sha256):
                        self.blobs.remove(sha256)
                    self._unremoved.discard(sha256)

    def _is_kept(self, record: StoredPrediction) -> bool:
        with self._alone, reading(self.engine) as connection:
            return _has(connection, predictions.c.id == record.id)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        """See `database.writing`; in the place where all of it was opened."""
        with writing(self.engine) as connection:
            self._directory.check()
            yield connection

    def _time(self) -> str:
        return _text(self._now())


def _has(connection: Connection, which: ColumnElement[bool]) -> bool:
    """Whether there is a record with its image."""
    asked = select(predictions.c.id).where(which, predictions.c.image_removed.is_(None)).limit(1)
    return connection.execute(asked).first() is not None


def _entry(row: Row, at: str, who: str, what: str, details: Mapping[str, object] | None = None) -> Entry:
    return Entry(at, who, what, row["id"], row["image_sha256"], row["model_sha256"], details or {})


def _found(connection: Connection, asked: Executable, key: str) -> RowMapping:
    row = connection.execute(asked).mappings().first() if is_id(key) else None
    if row is None:
        raise UnknownNameError("prediction", key, (), hint="It was deleted, or never made here")
    return row


def _text(time: datetime) -> str:
    return f"{time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"

"""What a service keeps of every image: the prediction, a person's reading of it, and the image itself, with the audit log.

The order of writing makes a killed process harmless. An image is on the disk before its row is, and its row goes before it does:
at worst an image without a row is left (see `leftovers`).
"""

from __future__ import annotations

import contextlib
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
from pneumoscope.service.storage.blob_store import IMAGES, BlobStore, FolderBlobStore, MemoryBlobStore, content_hash
from pneumoscope.service.storage.data_directory import DataDirectory
from pneumoscope.service.storage.database import DATABASE_FILE, open_database, reading, writing
from pneumoscope.service.storage.group_commit import GroupCommit
from pneumoscope.service.storage.orphaned_files import clear
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
from pneumoscope.service.storage.tables import predictions

__all__ = ["PredictionRepository"]

_AT_ONCE = 500  # images whose removal is one transaction
_THERE = select(predictions).where(predictions.c.id.in_(bindparam("keys", expanding=True)))
_MAKE = insert(predictions)


class _Adding(NamedTuple):
    """An image to be kept, what was said of it, and who asked."""

    prediction: Prediction
    image: bytes
    operating_point: str
    who: str


class PredictionRepository:
    """Open records.

    Args:
        folder: of the data; None keeps everything in memory.
        database: address of a PostgreSQL database; SQLite in the folder where empty.
        now: the time, for tests.
    Raises:
        StorageError, UsageError: see `database.open_database`.
    """

    def __init__(
        self, folder: Path | None, database: str = "", *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.engine: Engine = open_database(folder, database)
        self.images: BlobStore = MemoryBlobStore() if folder is None else FolderBlobStore(folder / IMAGES)
        self._place = DataDirectory(folder, DATABASE_FILE)
        self._now = now
        # In memory all threads share one connection.
        self._alone = threading.RLock() if folder is None and not database else contextlib.nullcontext()
        self._unknown = clear(self.engine, self.images)
        self._left: set[str] = set()  # images that are to be removed, and could not be yet
        self._together = GroupCommit(self._add, StorageError, name="keeping")

    def close(self) -> None:
        """Keep what was submitted, and give back connections."""
        self._together.close()
        self.engine.dispose()

    def add(
        self, prediction: Prediction, image: bytes, *, operating_point: str, who: str
    ) -> tuple[StoredPrediction, bool]:
        """Keep an image and what was said of it; see `submit`.

        Raises:
            StorageError: it cannot be kept, and nothing of it was.
        """
        return self.submit(prediction, image, operating_point=operating_point, who=who).result()

    def submit(
        self, prediction: Prediction, image: bytes, *, operating_point: str, who: str
    ) -> Future[tuple[StoredPrediction, bool]]:
        """Keep an image and what was said of it, together with what others submit meanwhile.

        Args:
            prediction: of an image that could be read.
            image: the file's bytes.
            operating_point, who: for the record and the trail.
        Returns:
            The record, and whether it is new: the same image judged by the same model is kept once, as it was first. Or
            StorageError: it cannot be kept, and nothing of it was.
        """
        return self._together.submit(_Adding(prediction, image, operating_point, who))

    def _add(self, images: Sequence[_Adding]) -> list[tuple[StoredPrediction, bool] | Exception]:
        """Add images in one transaction, which reaches the disk as fast with many as with one."""
        self._place.check()
        rows = [new_row(each.prediction, each.image, each.operating_point) for each in images]
        content = {row["image_sha256"]: each.image for row, each in zip(rows, images, strict=True)}
        written, failed = self.images.keep(content)  # before the transaction: others wait for its end
        back: list[str] = []
        try:
            with self._alone, self._writing() as connection:
                # Another may have removed an image since. While this is the one writer, nobody does.
                lost = {key: content[key] for key in content.keys() - failed.keys() if not self.images.has(key)}
                again = self.images.keep(lost)
                written, failed = written + again.written, failed | again.failed

                found = connection.execute(_THERE, {"keys": [row["id"] for row in rows]})
                there = {row["id"]: dict(row) for row in found.mappings()}
                added: list[tuple[StoredPrediction, bool] | Exception] = []
                made, entries = [], []
                for row, each in zip(rows, images, strict=True):
                    key, sha256, new = row["id"], row["image_sha256"], row["id"] not in there
                    removed = not new and there[key]["image_removed"]
                    if removed:
                        back.append(sha256)
                    elif sha256 in failed:
                        added.append(failed[sha256])
                        continue
                    if new:
                        there[key] = row | {"created": self._time()}
                        made.append(there[key])
                        said = {"decision": row["decision"], "probability": row["probability"], "rest": rest_hash(row)}
                        entries.append(_entry(there[key], there[key]["created"], each.who, "judged", said))
                    added.append((of_row(there[key]), new))
                if made:
                    connection.execute(_MAKE, made)
                append(connection, entries)
        except Exception:
            self._try_to_remove(written)
            raise
        self._try_to_remove(back)  # what was removed does not come back
        return added

    def try_to_keep(self) -> None:
        """Do all that keeping an image takes, but for an image.

        Raises:
            StorageError: none could be kept.
        """
        with self._alone, self._writing():
            self._place.check_room()
            self.images.try_to_keep()

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
        content = None if record.image_removed else self.images.get(record.image_sha256)
        if content is not None:
            return content
        if record.image_removed or not self._is_kept(record):
            raise GoneError(f"the image of prediction {record.id!r} was removed", hint="Its numbers are kept")
        raise StorageError(
            f"the image of prediction {record.id!r} is missing, and nobody removed it here",
            hint=f"Restore {record.image_sha256[:2]}/{record.image_sha256} below {IMAGES}/ from a backup, or post the image again",
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
                self._remove_unwanted([row["image_sha256"]])
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
            self._remove_unwanted(some)
        old = [sha256 for sha256, since in self._unknown.items() if since < limit]
        self._remove_unwanted(old)
        for sha256 in old:
            del self._unknown[sha256]
        return removed

    def tidy(self) -> None:
        """Try again to remove images that could not be.

        Raises:
            StorageError: they still cannot be.
        """
        self._remove_unwanted(list(self._left))

    def _expire(self, limit: datetime) -> list[str]:
        """Write down that some images older than this are removed: few enough that nobody waits long; their hashes."""
        old = predictions.c.created < _text(limit), predictions.c.image_removed.is_(None)
        some = select(predictions.c.id).where(*old).limit(_AT_ONCE).scalar_subquery()
        with self._alone, self._writing() as connection:
            at = self._time()
            asked = (
                update(predictions).where(predictions.c.id.in_(some)).values(image_removed=at).returning(predictions)
            )
            rows = connection.execute(asked).mappings().all()
            append(connection, [_entry(row, at, RETENTION, "image removed") for row in rows])
        return [row["image_sha256"] for row in rows]

    def _remove_unwanted(self, images: Iterable[str]) -> None:
        """Remove images, but for those that a record holds: another model's, or one that came meanwhile."""
        every = list(images)
        self._left.update(every)
        for start in range(0, len(every), _AT_ONCE):
            with self._alone, self._writing() as connection:  # none comes to be held while this is the one writer
                for sha256 in every[start : start + _AT_ONCE]:
                    if not _has(connection, predictions.c.image_sha256 == sha256):
                        self.images.remove(sha256)
                    self._left.discard(sha256)

    def _try_to_remove(self, images: Sequence[str]) -> None:
        with contextlib.suppress(StorageError):  # `tidy` tries again
            self._remove_unwanted(images)

    def _is_kept(self, record: StoredPrediction) -> bool:
        with self._alone, reading(self.engine) as connection:
            return _has(connection, predictions.c.id == record.id)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        """See `database.writing`; in the place where all of it was opened."""
        with writing(self.engine) as connection:
            self._place.check()
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

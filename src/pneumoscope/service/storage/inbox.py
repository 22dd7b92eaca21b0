"""The inbox: DICOM instances from other nodes, stored until they are predicted, and recorded permanently.

An instance is acknowledged once its file and its row are on disk. It is predicted after the quiet period of its study,
a time without further instances. The transaction that stores the prediction updates the row; then the file is removed.
So after a crash at any step, an acknowledged instance is either waiting or predicted, and files without a waiting row
can be removed.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, delete, func, insert, or_, select, tuple_, update

from pneumoscope.core.errors import StorageError
from pneumoscope.service.storage.blob_store import STAGING, BlobStore, FolderBlobStore, MemoryBlobStore, content_hash
from pneumoscope.service.storage.database import read_transaction, write_transaction
from pneumoscope.service.storage.group_commit import GroupCommit
from pneumoscope.service.storage.received_instances import (
    NO_IDENTIFIERS,
    Outcome,
    ReceivedInstance,
    finish,
    instances_of,
)
from pneumoscope.service.storage.records import Row, format_time
from pneumoscope.service.storage.results import replace_header
from pneumoscope.service.storage.tables import predictions, received_instances, unreadable_files

__all__ = ["INBOX", "Inbox", "InboxStatus", "find_missing_files"]

INBOX = "inbox"  # in the data directory
_BATCH = 500  # files of failed batches settled in one transaction
_COLUMNS = received_instances.c
# Twice the longest quiet period. If an instance is due even later, the clock was set back.
_HORIZON = timedelta(hours=2)


@dataclasses.dataclass(frozen=True, slots=True)
class InboxStatus:
    """The instances waiting for a prediction.

    Attributes:
        instances: Number of instances.
        studies: Number of their studies.
        oldest: Time when the first one was received, ISO 8601 in UTC; None if there is none.
    """

    instances: int
    studies: int
    oldest: str | None


class _Arrival(NamedTuple):
    instance: ReceivedInstance
    content: bytes
    quiet: timedelta
    settings: str


class Inbox:
    """The received instances of a service. Opening the inbox removes files left by a killed process.

    Args:
        engine: Engine of the service's database.
        folder: The data directory; None keeps files in memory.
        now: Returns the current time; replaceable in tests.
        check: Raises StorageError if the data directory was moved or replaced.
    Attributes:
        files: The files of the instances, by hash.
        now: Returns the time.
    Raises:
        StorageError: The database or the files cannot be read.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path | None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self.now, self._check = engine, now, check
        self._unsettled: set[str] = set()  # hashes of written files that may have no row because of an error
        self.files: BlobStore = MemoryBlobStore() if folder is None else FolderBlobStore(folder / INBOX)
        self._file_lock = threading.Lock()  # prevents removing a file between its writing and the commit of its row
        with write_transaction(engine) as connection:  # waits for the last commit of a killed process
            waiting = (
                connection.execute(select(_COLUMNS.image_sha256).where(_COLUMNS.state == "waiting")).scalars().all()
            )
            self.files.empty_staging(keep=waiting)
        self._commits = GroupCommit(self._add, StorageError, name="inbox-commit")

    def close(self, timeout: float = 10) -> None:
        """Store the submitted instances, but wait at most `timeout` seconds."""
        self._commits.close(timeout)

    def submit(self, instance: ReceivedInstance, content: bytes, quiet: timedelta, settings: str) -> Future[bool]:
        """Store an instance until the quiet period of its study ends.

        Args:
            instance: Values from the header.
            content: The DICOM file.
            quiet: Time without a further instance after which the study is predicted.
            settings: Hash of the model, the operating point and other settings that affect the outcome. An instance
                that was processed with other settings, or whose prediction was deleted, waits again.
        Returns:
            A future that is True if the instance is now waiting, False if the sender has sent this file before. It may
            raise StorageError.
        """
        return self._commits.submit(_Arrival(instance, content, quiet, settings))

    def record_own_result(self, instance: ReceivedInstance, content: bytes) -> None:
        """Record that a node sent back a result of pneumoscope. Its file is not stored.

        Raises:
            StorageError: The record cannot be stored.
        """
        time = format_time(self.now())
        row = _new_row(instance, content, time, time) | {"state": "own_result", "processed": time, **NO_IDENTIFIERS}
        with write_transaction(self._engine) as connection:
            if _find(connection, [row]):
                return
            connection.execute(insert(received_instances), [row])

    def ready(self, limit: int, without: Collection[int] = ()) -> list[ReceivedInstance]:
        """Return instances whose quiet period has ended, first received first.

        Args:
            limit: Maximum number of instances.
            without: Numbers of instances to skip.
        Raises:
            StorageError: The database cannot be read.
        """
        now = self.now()
        latest = func.max(_COLUMNS.due)
        quiet = (
            select(_COLUMNS.study_instance_uid)
            .where(_COLUMNS.state == "waiting")
            .group_by(_COLUMNS.study_instance_uid)
            .having(or_(latest <= format_time(now), latest > format_time(now + _HORIZON)))
        )
        query = (
            select(received_instances)
            .where(_COLUMNS.state == "waiting", _COLUMNS.study_instance_uid.in_(quiet))
            .order_by(_COLUMNS.number)
            .limit(limit + len(without))
        )
        with read_transaction(self._engine) as connection:
            rows = [row for row in connection.execute(query).mappings() if row["number"] not in without]
            return [ReceivedInstance.from_row(row) for row in rows[:limit]]

    def begin_attempts(self, instances: Sequence[ReceivedInstance]) -> None:
        """Count an attempt for waiting instances before it begins, since it may kill the process.

        Raises:
            StorageError: The database cannot be written.
        """
        self._set_attempts(instances, 1)

    def cancel_attempts(self, instances: Sequence[ReceivedInstance]) -> None:
        """Undo the count of `begin_attempts`, because the attempt ended for reasons unrelated to the instances.

        Raises:
            StorageError: The database cannot be written.
        """
        self._set_attempts(instances, 0)

    def _set_attempts(self, instances: Sequence[ReceivedInstance], more: int) -> None:
        with write_transaction(self._engine) as connection:
            for attempts in {each.attempts for each in instances}:
                numbers = [each.number for each in instances if each.attempts == attempts]
                query = update(received_instances).where(_COLUMNS.number.in_(numbers), _COLUMNS.state == "waiting")
                connection.execute(query.values(attempts=attempts + more))

    def release(self, study_instance_uid: str = "") -> int:
        """End the quiet period of one study, or of all studies; return the number of waiting instances.

        Raises:
            StorageError: The database cannot be written.
        """
        query = update(received_instances).where(_COLUMNS.state == "waiting").values(due="")
        if study_instance_uid:
            query = query.where(_COLUMNS.study_instance_uid == study_instance_uid)
        with write_transaction(self._engine) as connection:
            return int(connection.execute(query).rowcount)

    def content(self, instance: ReceivedInstance) -> bytes | None:
        """Return the file of a waiting instance; None if it is missing. Raise StorageError if it is unreadable."""
        return self.files.get(instance.image_sha256)

    def finish_lost(
        self, instance: ReceivedInstance, settings: str, callback: Callable[[Connection, str], None]
    ) -> bytes | None:
        """Record that a waiting instance's file is missing; return the file instead if it has just been sent again.

        Args:
            instance: The instance.
            settings: See `Outcome`.
            callback: Called in the same transaction, with the time of the record.
        Raises:
            StorageError: The file is unreadable, or the database cannot be written.
        """
        with self._file_lock:
            content = self.files.get(instance.image_sha256)
            if content is None:
                with write_transaction(self._engine) as connection:
                    time = format_time(self.now())
                    finish(connection, instance, Outcome("lost", settings), time)
                    callback(connection, time)
            return content

    def instances_of(self, prediction_id: str) -> list[ReceivedInstance]:
        """Return the received instances of a prediction. Raise StorageError if the database cannot be read."""
        with read_transaction(self._engine) as connection:
            return instances_of(connection, prediction_id)

    def remove_file(self, instance: ReceivedInstance) -> None:
        """Remove the file of a processed instance, unless another sender's copy is waiting.

        The next start removes remaining files.

        Raises:
            StorageError: The file cannot be removed.
        """
        query = select(_COLUMNS.number).where(
            _COLUMNS.state == "waiting", _COLUMNS.image_sha256 == instance.image_sha256
        )
        with self._file_lock, read_transaction(self._engine) as connection:
            if connection.execute(query.limit(1)).first() is None:
                self.files.remove(instance.image_sha256)

    def status(self) -> InboxStatus:
        """Return the number and the age of the waiting instances.

        Raises:
            StorageError: The database cannot be read.
        """
        query = select(
            func.count(), func.count(_COLUMNS.study_instance_uid.distinct()), func.min(_COLUMNS.received)
        ).where(_COLUMNS.state == "waiting")
        with read_transaction(self._engine) as connection:
            return InboxStatus(*connection.execute(query).one())

    def _add(self, arrivals: Sequence[_Arrival]) -> list[bool | Exception]:
        """Store a batch of instances in one transaction."""
        now = self.now()
        # Instances without a study are due immediately; as one study, they might never be quiet.
        rows = [
            _new_row(
                each.instance,
                each.content,
                format_time(now),
                format_time(now + each.quiet if each.instance.study_instance_uid else now),
            )
            for each in arrivals
        ]
        results: list[bool | Exception] = []
        with self._file_lock:
            self._check()
            staged = self.files.stage(
                {row["image_sha256"]: each.content for row, each in zip(rows, arrivals, strict=True)}
            )
            self._unsettled.update(staged.staged)
            with write_transaction(self._engine) as connection:
                self._check()
                known = _find(connection, rows)
                for row, arrival in zip(rows, arrivals, strict=True):
                    key = row["image_sha256"], row["sender"]
                    if key in known and not _is_outdated(connection, known[key], arrival.settings):
                        results.append(False)
                        continue
                    if error := staged.failed.get(row["image_sha256"]):
                        results.append(error)
                        continue
                    if key in known:  # use a new number, because numbers order copies by time of reception
                        connection.execute(delete(received_instances).where(_COLUMNS.number == known[key]["number"]))
                    connection.execute(insert(received_instances), [row])
                    replace_header(connection, row["sop_instance_uid"], row["header"])
                    known |= _find(connection, [row])
                    results.append(True)
                settled = set(islice(self._unsettled, _BATCH)).union(staged.staged)
                needed = _COLUMNS.state == "waiting", _COLUMNS.image_sha256.in_(settled)
                waiting = set(connection.execute(select(_COLUMNS.image_sha256).where(*needed)).scalars())
            for sha256 in settled - waiting:  # from duplicates and failed batches
                self.files.remove(sha256)
            self._unsettled -= settled
        return results


def find_missing_files(engine: Engine, folder: Path) -> list[str]:
    """Return the paths of missing or damaged files of waiting instances, relative to the data directory.

    Raises:
        StorageError: The database cannot be reached.
    """
    files, found = FolderBlobStore(folder / INBOX), []
    with read_transaction(engine) as connection:
        waiting = connection.execute(select(_COLUMNS.image_sha256).where(_COLUMNS.state == "waiting").distinct())
        hashes = waiting.scalars().all()
    for sha256 in sorted(hashes):
        try:
            is_missing = files.get(sha256) is None
        except StorageError:
            is_missing = True
        if is_missing:
            found.append(f"{INBOX}/{STAGING}/{sha256}")
    return found


def _new_row(instance: ReceivedInstance, content: bytes, received: str, due: str) -> dict[str, Any]:
    row = dataclasses.asdict(instance)
    del row["number"]
    return row | {
        "image_sha256": content_hash(content), "image_bytes": len(content), "received": received, "due": due,
        "state": "waiting", "processed": None, "prediction_id": "", "failure_code": "", "settings": "",
    }  # fmt: skip


def _find(connection: Connection, rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    """Return the stored rows by file hash and sender."""
    keys = [(row["image_sha256"], row["sender"]) for row in rows]
    query = select(received_instances).where(tuple_(_COLUMNS.image_sha256, _COLUMNS.sender).in_(keys))
    return {(row["image_sha256"], row["sender"]): row for row in connection.execute(query).mappings()}


def _is_outdated(connection: Connection, row: Row, settings: str) -> bool:
    """Return whether an instance must be predicted again, because settings changed or its prediction was deleted.

    An instance that was given up is not attempted again when it is sent again, since a nightly pull would kill the
    process every night. Deleting its record allows new attempts.
    """
    if row["state"] in ("waiting", "own_result"):
        return False
    if row["settings"] != settings or row["state"] == "lost":
        return True
    if row["state"] == "predicted":
        query = select(predictions.c.id).where(predictions.c.id == row["prediction_id"])
    elif row["failure_code"] == "internal_error":
        query = select(unreadable_files.c.id).where(unreadable_files.c.image_sha256 == row["image_sha256"])
    else:
        return False
    return connection.execute(query.limit(1)).first() is None

"""Store predictions, reviews and images, with an audit log entry for each change.

`recovery` describes the order of writes, and how an interrupted one is completed or rolled back.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from pneumoscope.core.errors import ConflictError, GoneError, StorageError, UnknownNameError
from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import ModelInfo, Prediction
from pneumoscope.service.audit.log import Entry, Event, append
from pneumoscope.service.auth.users import RETENTION
from pneumoscope.service.storage import inbox, outbox
from pneumoscope.service.storage.blob_store import (
    BLOBS,
    BlobStore,
    FolderBlobStore,
    MemoryBlobStore,
)
from pneumoscope.service.storage.data_directory import DataDirectory
from pneumoscope.service.storage.database import DATABASE_FILE, open_database, read_transaction, write_transaction
from pneumoscope.service.storage.group_commit import GroupCommit
from pneumoscope.service.storage.identities import (
    assign_identity,
    remove_identity,
    remove_unused_identity,
    replace_identity,
)
from pneumoscope.service.storage.inbox import Inbox
from pneumoscope.service.storage.outbox import Outbox
from pneumoscope.service.storage.queries import (
    Filter,
    Order,
    Page,
    PredictionStatistics,
    count_rejections,
    find_page,
    has_image,
    is_referenced,
    latest_statistics,
    read_one,
    read_stored,
    select_stored,
)
from pneumoscope.service.storage.records import (
    Row,
    StoredPrediction,
    UnreadableFile,
    format_time,
    new_row,
    new_unreadable_row,
    result_hash,
)
from pneumoscope.service.storage.recovery import recover
from pneumoscope.service.storage.reviews import (
    Label,
    Review,
    add_review,
    current_reviews,
    remove_unused_reviews,
    review_hash,
    update_reviewed,
)
from pneumoscope.service.storage.studies import find_studies, find_studies_of_patients
from pneumoscope.service.storage.tables import instances, predictions, studies, unreadable_files

__all__ = ["Also", "PredictionRepository"]

_LOG = logging.getLogger("pneumoscope.service")
_BATCH = 500  # images removed in one transaction
REMOVED_NAME = "removed"  # of a file whose identity was removed
_SELECT_BY_IDS = select_stored().where(predictions.c.id.in_(bindparam("ids", expanding=True)))
_INSERT = insert(predictions)
_Deleted = TypeVar("_Deleted")
Also = Callable[[Connection, str], None]  # called in a transaction, with the id of the prediction, or "" without one


class _Addition(NamedTuple):
    """A prediction to store, its image, the user who sent the image, and what to do in the same transaction."""

    prediction: Prediction
    image: bytes
    user: str
    also: Also | None


class PredictionRepository:
    """The predictions, reviews and images of one service.

    Opening it completes or rolls back interrupted writes; see `recovery`.

    Args:
        folder: The data directory; None stores everything in memory.
        database: URL of a PostgreSQL database; SQLite in the data directory if empty.
        now: Returns the time, for tests.

    Attributes:
        engine: Engine of the database.
        blobs: The images.
        orphaned: Files in the blob store without a database record: hash and time.
        inbox, outbox: Received DICOM instances that are not predicted yet, and results that are not delivered yet.

    Raises:
        StorageError, UsageError: See `open_database` and `recover`.
    """

    def __init__(
        self, folder: Path | None, database: str = "", *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.engine: Engine = open_database(folder, database)
        try:
            self.blobs: BlobStore = MemoryBlobStore() if folder is None else FolderBlobStore(folder)
            self._directory = DataDirectory(folder, DATABASE_FILE)
            self._now = now
            # No image is removed between the commit of its row and its publication. Taken before a transaction begins.
            self._blob_lock = threading.Lock()
            self.orphaned, unremoved = recover(self.engine, self.blobs)
        except BaseException:
            self.engine.dispose()
            raise
        self._change_listeners: list[Callable[[], None]] = []
        self._unsettled: set[str] = set()  # staged, and neither published nor discarded because of an error
        self._unremoved = set(unremoved)  # to be removed, and not removed because of an error
        self._commits = GroupCommit(self._add, StorageError, name="group-commit")
        self.outbox = Outbox(self.engine)
        self.inbox = Inbox(self.engine, folder, now=now, check=self._directory.check)

    def close(self, timeout: float = 10) -> None:
        """Store what was submitted, but wait no longer than `timeout` seconds for it, and close the connections."""
        self.inbox.close(timeout)
        self._commits.close(timeout)
        self.engine.dispose()

    def add_change_listener(self, listener: Callable[[], None]) -> None:
        """Call a function after each commit that can have changed predictions, reviews, identities or unreadable files.

        It is called in the thread of the change, and must neither wait nor raise.
        """
        self._change_listeners.append(listener)

    def _notify(self) -> None:
        for listener in self._change_listeners:
            listener()

    def add(self, prediction: Prediction, image: bytes, *, user: str) -> tuple[StoredPrediction, bool]:
        """Store a prediction and its image, and wait for the commit; see `submit`.

        Raises:
            StorageError: It cannot be stored; nothing was changed.
        """
        return self.submit(prediction, image, user=user).result()

    def submit(
        self, prediction: Prediction, image: bytes, *, user: str, also: Also | None = None
    ) -> Future[tuple[StoredPrediction, bool]]:
        """Store a prediction and its image in one transaction with others that are submitted meanwhile.

        Args:
            prediction: Of a readable image.
            image: The file's bytes.
            user: For the audit log.
            also: Changes the database in the same transaction; called for a prediction that is not new, too.

        Returns:
            A future of the record and of whether it is new: the first prediction for the same image, model, operating point and
            entered age is kept. Its error is StorageError if nothing could be stored.
        """
        return self._commits.submit(_Addition(prediction, image, user, also))

    def get(self, id: str) -> StoredPrediction:
        """Return a prediction.

        Raises:
            UnknownNameError: There is no prediction with this id.
        """
        with read_transaction(self.engine) as connection:
            return read_one(connection, id)

    def image(self, prediction: StoredPrediction) -> bytes:
        """Return the file of a prediction's image.

        Raises:
            GoneError: The image was removed.
            StorageError: The image is unreadable, or missing although it was not removed.
        """
        content = None if prediction.image_removed else self.blobs.get(prediction.image_sha256)
        if content is not None:
            return content
        with read_transaction(self.engine) as connection:
            removed = prediction.image_removed or not has_image(connection, prediction.id)
        if removed:
            raise GoneError(
                f"the image of prediction {prediction.id!r} was removed",
                hint="The prediction is kept",
            )
        raise StorageError(
            f"the image of prediction {prediction.id!r} is missing",
            hint=f"Restore {prediction.image_sha256[:2]}/{prediction.image_sha256} below {BLOBS}/ from a backup, or post"
            " the image again",
        )

    def find(
        self, where: Filter, *, order: Order = "newest", limit: int = 50, after: str = "", by_study: bool = False
    ) -> Page:
        """Return a page of predictions.

        Args:
            where: Conditions.
            order: "newest" or "oldest" first, or "highest" or "lowest" probability first, with predictions without one
                last. "urgency": without a review first, and among them pneumonia, then uncertain, then no pneumonia, each by
                falling probability, then rejected images.
            limit: Size of the page, up to 200.
            after: `next` of the page before, in the same order.
            by_study: Whether images of one study stand together, in the place of the first of them.
        Raises:
            UsageError: `limit`, `after` or a time is invalid.
        """
        with read_transaction(self.engine) as connection:
            return find_page(connection, where, order=order, limit=limit, after=after, by_study=by_study)

    def count_rejections(self, where: Filter) -> dict[str, int]:
        """Return the number of predictions by rejection code, "" for those that are not rejected.

        Raises:
            UsageError: A time is invalid.
        """
        with read_transaction(self.engine) as connection:
            return count_rejections(connection, where)

    def latest(
        self, model: ModelInfo, operating_point: str, limit: int, *, since: str = "", until: str = ""
    ) -> list[PredictionStatistics]:
        """Return the latest predictions of a model at an operating point, newest first.

        Args:
            model: The model, with its site profile.
            operating_point: Name of the operating point.
            limit: Number of predictions.
            since, until: Earliest time, included, and latest time, excluded: ISO 8601 in UTC, or its beginning, such as
                "2026-01"; no limit if empty.
        Raises:
            StorageError: The database cannot be read.
        """
        with read_transaction(self.engine) as connection:
            return latest_statistics(connection, model, operating_point, limit, since, until)

    def add_unreadable(self, prediction: Prediction, file: bytes, *, user: str, also: Also | None = None) -> None:
        """Record a file that could not be read, unless there is a record of it; the file itself is not stored.

        Args:
            prediction: With a failure.
            file: Its bytes.
            user: For the audit log.
            also: See `submit`.
        Raises:
            StorageError: The record cannot be stored.
        """
        row = new_unreadable_row(prediction, file)
        with self._write_transaction() as connection:
            if also:
                also(connection, "")
            if connection.execute(select(unreadable_files.c.id).where(unreadable_files.c.id == row["id"])).first():
                return
            time = self._time()
            connection.execute(insert(unreadable_files), [row | {"created": time}])
            details = {"failure": row["failure_code"]}
            append(connection, [Entry(time, user, "unreadable", image_sha256=row["image_sha256"], details=details)])
        self._notify()

    def unreadable(self, limit: int = 200) -> tuple[list[UnreadableFile], int]:
        """Return the records of the latest files that could not be read, newest first, and the number of all records."""
        query = select(unreadable_files).order_by(unreadable_files.c.created.desc(), unreadable_files.c.id).limit(limit)
        count = select(func.count()).select_from(unreadable_files)
        with read_transaction(self.engine) as connection:
            rows = connection.execute(query).mappings()
            return [UnreadableFile.from_row(row) for row in rows], connection.execute(count).scalar_one()

    def remove_unreadable(self, id: str, *, user: str) -> None:
        """Delete the record of a file that could not be read.

        Raises:
            UnknownNameError: There is no record with this id.
            StorageError: It cannot be deleted.
        """
        query = delete(unreadable_files).where(unreadable_files.c.id == id).returning(unreadable_files)

        def delete_row(connection: Connection) -> None:
            row = connection.execute(query).mappings().first()
            if row is None:
                raise UnknownNameError("record", id, (), hint="It was deleted, or never existed here")
            append(connection, [Entry(self._time(), user, "unreadable_deleted", image_sha256=row["image_sha256"])])

        self._delete(delete_row)
        self._notify()

    def review(
        self, id: str, label: Label, *, finding: str = "", note: str = "", user: str, etags: Sequence[str] = ()
    ) -> StoredPrediction:
        """Store a review, which replaces an earlier one of the same user, and return the prediction with it.

        Args:
            id: Of the prediction that the user has seen.
            label, finding, note: See `Review`.
            user: Its author.
            etags: Entity tags, of which the stored prediction must have one; it may have any if there are none.
        Raises:
            UnknownNameError: There is no prediction with this id.
            ConflictError: The prediction has none of the entity tags.
            StorageError: It cannot be stored.
        """
        with self._write_transaction() as connection:
            prediction = read_one(connection, id)
            _require_etag(prediction, etags)
            row, time = prediction.to_row(), self._time()
            add_review(connection, row, Review(label, finding, note, time, user))
            details = {"label": label, "review_sha256": review_hash(label, finding, note)}
            append(connection, [_entry(row, time, user, "reviewed", details)])
            stored = read_one(connection, id)
        self._notify()
        return stored

    def withdraw_review(self, id: str, *, user: str) -> StoredPrediction:
        """Withdraw the review of a user, of which the earlier versions are kept, and return the prediction.

        Raises:
            UnknownNameError: There is no prediction with this id, or no review of the user.
            StorageError: It cannot be stored.
        """
        with self._write_transaction() as connection:
            prediction = read_one(connection, id)
            review = prediction.review_of(user)
            if review is None:
                raise UnknownNameError("review", user, (), hint="It was withdrawn, or never existed here")
            row, time = prediction.to_row(), self._time()
            add_review(connection, row, Review(review.label, "", "", time, user), withdrawn=True)
            append(connection, [_entry(row, time, user, "review_withdrawn")])
            stored = read_one(connection, id)
        self._notify()
        return stored

    def set_identity(self, id: str, identity: Identity, *, user: str, etags: Sequence[str] = ()) -> StoredPrediction:
        """Replace the identity of an image, which moves all its predictions, and return the prediction with it.

        Args:
            id: Of a prediction of the image.
            identity: The complete identity; empty fields remove values.
            user, etags: See `review`.
        Raises:
            UnknownNameError, ConflictError, StorageError: See `review`.
        """
        with self._write_transaction() as connection:
            prediction = read_one(connection, id)
            _require_etag(prediction, etags)
            row = prediction.to_row()
            if changed := replace_identity(connection, row["pixel_sha256"], identity):
                append(connection, [_entry(row, self._time(), user, "identity_changed", {"fields": changed})])
            stored = read_one(connection, id)
        self._notify()
        return stored

    def studies(self, keys: Collection[str]) -> dict[str, list[StoredPrediction]]:
        """Return the predictions of studies by key, oldest first; a key without a study is missing.

        Raises:
            StorageError: The database cannot be read.
        """
        with read_transaction(self.engine) as connection:
            return find_studies(connection, keys)

    def studies_of_patient(self, key: str) -> dict[str, list[StoredPrediction]]:
        """Return the predictions of the studies of a patient by the key of the study, oldest first.

        Raises:
            StorageError: The database cannot be read.
        """
        with read_transaction(self.engine) as connection:
            return find_studies_of_patients(connection, [key])

    def remove(self, id: str, *, user: str) -> None:
        """Delete a prediction and its image; the audit log keeps the events.

        Raises:
            UnknownNameError: There is no prediction with this id.
            StorageError: It cannot be deleted.
        """
        if not self._remove(predictions.c.id == id, user):
            raise UnknownNameError("prediction", id, (), hint="It was deleted, or never existed here")

    def remove_study(self, key: str, *, user: str) -> None:
        """Delete a study with its predictions and images; see `remove`.

        Raises:
            UnknownNameError: There is no study with this key.
            StorageError: It cannot be deleted.
        """
        hashes = select(instances.c.pixel_sha256).where(instances.c.study_key == key)
        if not self._remove(predictions.c.pixel_sha256.in_(hashes), user):
            raise UnknownNameError("study", key, (), hint="It was deleted, or never existed here")

    def remove_patient(self, key: str, *, user: str) -> None:
        """Delete a patient with all studies, predictions and images; see `remove`.

        Raises:
            UnknownNameError: There is no patient with this key.
            StorageError: It cannot be deleted.
        """
        hashes = select(instances.c.pixel_sha256).join(studies).where(studies.c.patient_key == key)
        if not self._remove(predictions.c.pixel_sha256.in_(hashes), user):
            raise UnknownNameError("patient", key, (), hint="It was deleted, or never existed here")

    def _remove(self, condition: ColumnElement[bool], user: str) -> int:
        """Delete the predictions that meet a condition, their images and identities, and return their number."""

        def delete_rows(connection: Connection) -> Sequence[RowMapping]:
            rows = connection.execute(delete(predictions).where(condition).returning(predictions)).mappings().all()
            hashes = [row["pixel_sha256"] for row in rows]
            remove_unused_reviews(connection, hashes)
            remove_unused_identity(connection, hashes)
            ids = [row["id"] for row in rows]
            outbox.withdraw(connection, ids, inbox.headers_of(connection, ids), self._time())
            inbox.forget_predictions(connection, ids)
            append(connection, [_entry(row, self._time(), user, "deleted") for row in rows])
            return rows

        rows = self._delete(delete_rows)
        if rows:
            self._notify()
        try:
            _raise_errors(self._remove_unreferenced([row["image_sha256"] for row in rows]))
        except StorageError as error:
            raise StorageError(
                f"the predictions are deleted, but not all images: {error.message}",
                hint="The service tries again every few minutes, and at the next start",
            ) from error
        finally:
            self._directory.fill_reserve()
        return len(rows)

    def _delete(self, change: Callable[[Connection], _Deleted]) -> _Deleted:
        """Return the result of a change that frees room; on a full disk, its journal uses the reserve."""
        try:
            with self._write_transaction() as connection:
                return change(connection)
        except StorageError:
            if not self._directory.release_reserve():
                raise
            with self._write_transaction() as connection:
                return change(connection)
        finally:
            self._directory.fill_reserve()

    def expire_identities(self, age: timedelta, *, stopped: Callable[[], bool] = lambda: False) -> int:
        """Remove the identities of images whose predictions are all older than an age, and return their number.

        The predictions are kept. The names of their files, which may name patients, become "removed"; records of unreadable files
        of that age are deleted.

        Args:
            age: Time since the prediction.
            stopped: Returns whether to leave the rest for the next call.
        Raises:
            StorageError: An identity cannot be removed.
        """
        limit, count = format_time(self._now() - age), 0
        newer = predictions.alias()
        is_used = (
            select(newer.c.id)
            .where(newer.c.pixel_sha256 == predictions.c.pixel_sha256, newer.c.last_predicted >= limit)
            .exists()
        )
        has_identity = (
            select(instances.c.study_key).where(instances.c.pixel_sha256 == predictions.c.pixel_sha256).exists()
        )
        old = predictions.c.last_predicted < limit, predictions.c.identity_removed.is_(None) | has_identity, ~is_used
        self._expire_unreadable(self._now() - age)
        while not stopped():
            with self._write_transaction() as connection:
                query = select(predictions).where(*old).limit(_BATCH)
                rows = connection.execute(query).mappings().all()
                if not rows:
                    break
                ids, hashes = [row["id"] for row in rows], [row["pixel_sha256"] for row in rows]
                time = self._time()
                values = {"path": REMOVED_NAME, "identity_removed": time}
                connection.execute(update(predictions).where(predictions.c.id.in_(ids)).values(values))
                remove_identity(connection, hashes)
                inbox.forget_headers(connection, limit)
                outbox.forget_headers(connection, limit)
                append(connection, [_entry(row, time, RETENTION, "identity_removed") for row in rows])
            count += len(rows)
            self._notify()
        return count

    def expire(self, age: timedelta, *, stopped: Callable[[], bool] = lambda: False) -> int:
        """Remove images older than an age, keep their predictions, and return the number of images.

        Records of unreadable files of that age are deleted; they are not counted.

        Args:
            age: Time since the prediction.
            stopped: Returns whether to leave the rest for the next call.
        Raises:
            StorageError: An image cannot be removed; all others were.
        """
        limit, count = self._now() - age, 0
        errors: list[StorageError] = []
        while not stopped() and (expired := self._expire_batch(limit)):
            count += len(expired)
            errors += self._remove_unreferenced(expired)
        errors += self._expire_orphaned(limit)
        self._expire_unreadable(limit)
        _raise_errors(errors)
        return count

    def retry_failed(self) -> None:
        """Retry what failed: moving images out of the staging area, and removing images.

        Raises:
            StorageError: An image failed again; the others were retried.
        """
        self._settle()
        errors = self._remove_unreferenced(list(self._unremoved))
        self._directory.fill_reserve()
        _raise_errors(errors)

    def check_writable(self) -> None:
        """Do everything that storing an image takes, without an image.

        Raises:
            StorageError: No image could be stored.
        """
        with self._write_transaction():
            self._directory.check_room()
            self.blobs.check_writable()

    def _add(self, additions: Sequence[_Addition]) -> list[tuple[StoredPrediction, bool] | Exception]:
        """Store a batch in one transaction, which reaches the disk as fast with many rows as with one."""
        self._directory.check()
        rows = [new_row(each.prediction, each.image) for each in additions]
        content = {row["image_sha256"]: each.image for row, each in zip(rows, additions, strict=True)}
        staged, failed = self.blobs.stage(content)  # before the transaction: other writers wait for its end
        referenced: set[str] = set()  # hashes of images that a row refers to
        try:
            with self._blob_lock:
                with self._write_transaction() as connection:
                    # Another request may have removed an image since. None can while the lock is held.
                    lost = {key: content[key] for key in content.keys() - failed.keys() if not self.blobs.has(key)}
                    again = self.blobs.stage(lost)
                    staged, failed = [*staged, *again.staged], failed | again.failed

                    existing = connection.execute(_SELECT_BY_IDS, {"ids": [row["id"] for row in rows]})
                    by_id = {row["id"]: dict(row) for row in existing.mappings()}
                    results: list[tuple[str, bool] | Exception] = []
                    new_rows: list[dict[str, Any]] = []
                    entries: list[Entry] = []
                    for row, each in zip(rows, additions, strict=True):
                        id, sha256, is_new = row["id"], row["image_sha256"], row["id"] not in by_id
                        # A removed image is not stored again, nor the same pixels in another file.
                        if is_new or (not by_id[id]["image_removed"] and by_id[id]["image_sha256"] == sha256):
                            if sha256 in failed:
                                results.append(failed[sha256])
                                continue
                            referenced.add(sha256)
                        time = self._time()
                        if changed := assign_identity(connection, row["pixel_sha256"], each.prediction.identity):
                            entries.append(_entry(row, time, each.user, "identity_changed", {"fields": changed}))
                        if is_new:
                            by_id[id] = row | {"created": time, "last_predicted": time}
                            new_rows.append(by_id[id])
                            details = {
                                "decision": row["decision"],
                                "probability": row["probability"],
                                "result_sha256": result_hash(row),
                                **({"site": row["model_site"]} if row["model_site"] else {}),
                            }
                            entries.append(_entry(row, time, each.user, "predicted", details))
                        elif repeated := self._repeat(connection, by_id[id], row, time):
                            by_id[id] |= repeated
                            details = {"result_sha256": result_hash(by_id[id])}
                            entries.append(_entry(row, time, each.user, "predicted_again", details))
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
                    self._publish_or_discard(sha256, referenced=sha256 in referenced)
            self._notify()  # a new identity has no entry
        except Exception:
            self._unsettled.update(staged)
            with contextlib.suppress(StorageError):  # `retry_failed` tries again
                self._settle()
            raise
        return [each if isinstance(each, Exception) else (stored[each[0]], each[1]) for each in results]

    def _repeat(self, connection: Connection, stored: Row, row: Row, time: str) -> dict[str, Any]:
        """Update a prediction that is made again, and return the changed columns; none if nothing changes.

        The header may state another age, or less; and the image may have had another prediction since, which no longer counts.
        """
        changed = {name: row[name] for name in ("age", "age_source", "warnings") if row[name] != stored[name]}
        later = select(predictions.c.id).where(
            predictions.c.pixel_sha256 == row["pixel_sha256"], predictions.c.last_predicted > stored["last_predicted"]
        )
        if not changed and connection.execute(later.limit(1)).first() is None:
            return {}
        changed["last_predicted"] = time
        connection.execute(update(predictions).where(predictions.c.id == stored["id"]).values(changed))
        return changed

    def _publish_or_discard(self, sha256: str, *, referenced: bool) -> None:
        """Publish a staged image if a committed row refers to it; discard it otherwise.

        A failure is logged, and `retry_failed` tries again: the row is committed, and the staged image can be read.
        """
        try:
            if referenced:
                self.blobs.publish(sha256)
            else:
                self.blobs.discard(sha256)
        except StorageError as error:
            self._unsettled.add(sha256)
            _LOG.error("An image stays in the staging area until the next attempt: %s", error.message)

    def _settle(self) -> None:
        """Publish or discard staged images whose transaction failed or whose move failed."""
        unsettled = list(self._unsettled)
        if not unsettled:
            return
        # Without waiting: after a failed wait for the lock, the client would wait twice.
        with self._blob_lock, self._write_transaction(wait=False) as connection:
            for sha256 in unsettled:
                self._unsettled.discard(sha256)
                self._publish_or_discard(sha256, referenced=is_referenced(connection, sha256))

    def _expire_batch(self, limit: datetime) -> list[str]:
        """Record the removal of images older than a limit, few enough for a short transaction; return their hashes."""
        old = predictions.c.created < format_time(limit), predictions.c.image_removed.is_(None)
        ids = select(predictions.c.id).where(*old).limit(_BATCH).scalar_subquery()

        def mark_removed(connection: Connection) -> list[str]:
            time = self._time()
            query = update(predictions).where(predictions.c.id.in_(ids)).values(image_removed=time)
            rows = connection.execute(query.returning(predictions)).mappings().all()
            append(connection, [_entry(row, time, RETENTION, "image_removed") for row in rows])
            return [row["image_sha256"] for row in rows]

        hashes = self._delete(mark_removed)
        if hashes:
            self._notify()
        return hashes

    def _expire_orphaned(self, limit: datetime) -> list[StorageError]:
        """Remove orphaned files older than a limit, with an audit log entry for each, and return the failures."""
        errors: list[StorageError] = []
        old = [sha256 for sha256, time in self.orphaned.items() if time < limit]
        for start in range(0, len(old), _BATCH):
            batch = old[start : start + _BATCH]
            with self._write_transaction() as connection:
                expired = [sha256 for sha256 in batch if not is_referenced(connection, sha256)]
                time = self._time()
                append(connection, [Entry(time, RETENTION, "image_removed", image_sha256=sha256) for sha256 in expired])
            for sha256 in batch:  # before the removal: a retried removal needs no second entry
                del self.orphaned[sha256]
            errors += self._remove_unreferenced(expired)
        return errors

    def _expire_unreadable(self, limit: datetime) -> None:
        old = unreadable_files.c.created < format_time(limit)
        query = delete(unreadable_files).where(old).returning(unreadable_files.c.image_sha256)
        with self._write_transaction() as connection:
            hashes, time = connection.execute(query).scalars().all(), self._time()
            append(connection, [Entry(time, RETENTION, "unreadable_deleted", image_sha256=each) for each in hashes])
        if hashes:
            self._notify()

    def _remove_unreferenced(self, hashes: Sequence[str]) -> list[StorageError]:
        """Remove images, except those that a row still refers to, and return the failures, which can be retried."""
        self._unremoved.update(hashes)
        errors: list[StorageError] = []
        for start in range(0, len(hashes), _BATCH):
            with self._blob_lock, self._write_transaction() as connection:
                for sha256 in hashes[start : start + _BATCH]:
                    try:
                        if not is_referenced(connection, sha256):
                            self.blobs.remove(sha256)
                        self._unremoved.discard(sha256)
                    except StorageError as error:
                        errors.append(error)
        return errors

    @contextlib.contextmanager
    def _write_transaction(self, *, wait: bool = True) -> Iterator[Connection]:
        """See `database.write_transaction`; raise StorageError if the data directory was moved or replaced."""
        with write_transaction(self.engine, wait=wait) as connection:
            self._directory.check()
            yield connection

    def _time(self) -> str:
        return format_time(self._now())


def _require_etag(prediction: StoredPrediction, etags: Sequence[str]) -> None:
    """Raise ConflictError if there are entity tags and a prediction has none of them."""
    if etags and prediction.etag not in etags:
        raise ConflictError(
            "the prediction was changed in the meantime", hint="Get it again, and compare its reviews and its identity"
        )


def _raise_errors(errors: Sequence[StorageError]) -> None:
    """Raise the first of several errors, with the number of the others; return if there is none."""
    if errors:
        others = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise StorageError(f"{errors[0].message}{others}", hint=errors[0].hint)


def _entry(row: Row, time: str, user: str, event: Event, details: Mapping[str, object] | None = None) -> Entry:
    return Entry(time, user, event, row["id"], row["image_sha256"], row["model_sha256"], details or {})

"""Retention: remove expired images and identities, and retry failed removals."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import Connection, select, update

from pneumoscope.core.errors import PneumoscopeError, StorageError
from pneumoscope.service.audit.log import Entry, append, prediction_entry
from pneumoscope.service.auth.users import RETENTION
from pneumoscope.service.storage import received_instances, results
from pneumoscope.service.storage.identities import remove_identity
from pneumoscope.service.storage.image_storage import raise_errors
from pneumoscope.service.storage.records import format_time
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.stored_predictions import is_referenced
from pneumoscope.service.storage.tables import instances, predictions

__all__ = ["REMOVED_NAME", "Retention"]

_LOG = logging.getLogger("pneumoscope.service")
REMOVED_NAME = "removed"  # of a file whose identity was removed


class Retention:
    """A thread that removes expired images and identities at the start and every few minutes.

    Args:
        repository: Storage of images and identities.
        keep: Age at which images are removed; None keeps them.
        keep_identities: Age at which patient identities are removed; None keeps them.
        interval_seconds: Time between two removals.
        batch: Number of images, received instances or results in one transaction.
    """

    def __init__(
        self,
        repository: PredictionRepository,
        keep: timedelta | None = None,
        keep_identities: timedelta | None = None,
        *,
        interval_seconds: float = 600,
        batch: int = 500,
    ) -> None:
        self._interval_seconds, self._batch = interval_seconds, batch
        self._storage, self._unreadable = repository.storage, repository.unreadable_files
        self._keep, self._keep_identities = keep, keep_identities
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop the thread, and wait at most `timeout` seconds for a removal in progress."""
        self._stopped.set()
        self._thread.join(timeout)

    def expire_identities(self, age: timedelta, *, stopped: Callable[[], bool] = lambda: False) -> int:
        """Remove the identities of images whose predictions are all older than an age; return the number of predictions.

        The predictions are kept. Their file names, which may identify patients, become "removed". Records of unreadable
        files of that age are deleted.

        Args:
            age: Time since the prediction.
            stopped: Returns whether to leave the rest to the next call.
        Raises:
            StorageError: An identity cannot be removed.
        """
        limit, count = format_time(self._storage.now() - age), 0
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
        self._unreadable.expire(self._storage.now() - age, self._batch, stopped=stopped)
        self._forget_headers(limit, stopped)
        while not stopped():
            with self._storage.write_transaction() as connection:
                query = select(predictions).where(*old).limit(self._batch)
                rows = connection.execute(query).mappings().all()
                if not rows:
                    break
                ids, hashes = [row["id"] for row in rows], [row["pixel_sha256"] for row in rows]
                time = self._storage.time()
                values = {"path": REMOVED_NAME, "identity_removed": time}
                connection.execute(update(predictions).where(predictions.c.id.in_(ids)).values(values))
                remove_identity(connection, hashes)
                append(connection, [prediction_entry(row, time, RETENTION, "identity_removed") for row in rows])
            count += len(rows)
            self._storage.notify()
        return count

    def _forget_headers(self, limit: str, stopped: Callable[[], bool]) -> None:
        """Remove the identifiers of received instances and results older than a limit, in small transactions."""
        after = 0
        while not stopped():
            with self._storage.read_transaction() as connection:
                numbers = received_instances.find_old_headers(connection, limit, self._batch, after)
            if not numbers:
                break
            after = numbers[-1]
            with self._storage.write_transaction() as connection:
                received_instances.remove_headers(connection, numbers, limit, self._storage.time())
        while not stopped():
            with self._storage.read_transaction() as connection:
                numbers = results.find_old_headers(connection, limit, self._batch)
            if not numbers:
                break
            with self._storage.write_transaction() as connection:
                results.remove_headers(connection, numbers, self._storage.time())

    def expire_images(self, age: timedelta, *, stopped: Callable[[], bool] = lambda: False) -> int:
        """Remove images older than an age, but keep their predictions; return the number of these predictions.

        Records of unreadable files of that age are deleted, but not counted.

        Args:
            age: Time since the prediction.
            stopped: Returns whether to leave the rest to the next call.
        Raises:
            StorageError: An image could not be removed; all others were.
        """
        limit, count = self._storage.now() - age, 0
        errors: list[StorageError] = []
        while not stopped() and (expired := self._expire_batch(limit)):
            count += len(expired)
            errors += self._storage.remove_unreferenced(expired)
        errors += self._expire_orphaned(limit)
        self._unreadable.expire(limit, self._batch, stopped=stopped)
        raise_errors(errors)
        return count

    def _expire_batch(self, limit: datetime) -> list[str]:
        """Record the removal of a small batch of images older than a limit; return their hashes."""
        old = predictions.c.created < format_time(limit), predictions.c.image_removed.is_(None)
        ids = select(predictions.c.id).where(*old).limit(self._batch).scalar_subquery()

        def mark_removed(connection: Connection) -> list[str]:
            time = self._storage.time()
            query = update(predictions).where(predictions.c.id.in_(ids)).values(image_removed=time)
            rows = connection.execute(query.returning(predictions)).mappings().all()
            append(connection, [prediction_entry(row, time, RETENTION, "image_removed") for row in rows])
            return [row["image_sha256"] for row in rows]

        hashes = self._storage.delete(mark_removed)
        if hashes:
            self._storage.notify()
        return hashes

    def _expire_orphaned(self, limit: datetime) -> list[StorageError]:
        """Remove orphaned files older than a limit, with an audit log entry for each; return the errors."""
        errors: list[StorageError] = []
        old = [sha256 for sha256, time in self._storage.orphaned.items() if time < limit]
        for start in range(0, len(old), self._batch):
            batch = old[start : start + self._batch]
            with self._storage.write_transaction() as connection:
                expired = [sha256 for sha256 in batch if not is_referenced(connection, sha256)]
                time = self._storage.time()
                append(connection, [Entry(time, RETENTION, "image_removed", image_sha256=sha256) for sha256 in expired])
            for sha256 in batch:  # before the removal, since a retried removal needs no second entry
                del self._storage.orphaned[sha256]
            errors += self._storage.remove_unreferenced(expired)
        return errors

    def _run(self) -> None:
        while True:
            self._attempt(self._storage.retry_failed)
            if self._keep is not None:
                self._attempt(partial(self.expire_images, self._keep, stopped=self._stopped.is_set))
            if self._keep_identities is not None:
                expire = partial(self.expire_identities, self._keep_identities)
                self._attempt(partial(expire, stopped=self._stopped.is_set))
            if self._stopped.wait(self._interval_seconds):
                return

    def _attempt(self, step: Callable[[], object]) -> None:
        """Run a step, and log its failure; the other steps still run, and the next run tries again."""
        try:
            step()
        except Exception as error:  # noqa: BLE001  the next run tries again
            # Messages of unexpected errors may contain patient names.
            reason = error.message if isinstance(error, PneumoscopeError) else type(error).__name__
            _LOG.error("Images or identities could not be removed; the next run tries again: %s", reason)

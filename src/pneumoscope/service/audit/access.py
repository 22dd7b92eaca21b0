"""Record access in the audit log: sign-ins, sign-outs, exports and viewed images.

Repeated views of an image by the same user within five minutes are recorded once, because the viewer loads several
files per image. If the log cannot be written, access is still granted, since an image may be needed urgently; the
service logs a warning.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import Engine, select

from pneumoscope.core.errors import StorageError
from pneumoscope.service.audit.log import Entry, append
from pneumoscope.service.storage.database import write_transaction
from pneumoscope.service.storage.records import format_time
from pneumoscope.service.storage.tables import predictions

__all__ = ["AccessLog", "SignInMethod"]

SignInMethod = Literal["token", "code", "openid_connect"]
_LOG = logging.getLogger("pneumoscope.service")
_REPEAT_SECONDS = 300
_MAX_VIEWS = 100_000  # number of recent views kept in memory


class AccessLog:
    """Recorder of access in the audit log.

    Args:
        engine: Engine of the database.
        now: Returns the current time; replaceable in tests.
        monotonic: Monotonic clock in seconds; replaceable in tests.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._now, self._monotonic = engine, now, monotonic
        self._views: OrderedDict[tuple[str, str], float] = OrderedDict()  # time of the last view by user and prediction
        self._lock = threading.Lock()

    def signed_in(self, user: str, role: str, method: SignInMethod) -> None:
        """Record that a user signed in to the web interface."""
        self._append(Entry(self._time(), user, "signed_in", details={"method": method, "role": role}))

    def signed_out(self, user: str) -> None:
        """Record that a user signed out."""
        self._append(Entry(self._time(), user, "signed_out"))

    def exported(self, user: str, count: int) -> None:
        """Record that a user exported predictions, and how many."""
        self._append(Entry(self._time(), user, "exported", details={"predictions": count}))

    def viewed(self, user: str, ids: Collection[str]) -> None:
        """Record that a user viewed the images of predictions; unknown ids are skipped."""
        new = [id for id in ids if self._is_new(user, id)]
        if not new:
            return
        time, recorded = self._time(), set[str]()
        query = select(predictions.c.id, predictions.c.image_sha256, predictions.c.model_sha256)
        query = query.where(predictions.c.id.in_(new)).order_by(predictions.c.id)
        with self._warn_if_unwritten():
            with write_transaction(self._engine) as connection:
                entries = [Entry(time, user, "viewed", *row) for row in connection.execute(query)]
                append(connection, entries)
            recorded = {entry.prediction_id for entry in entries}  # committed
        with self._lock:
            for id in set(new) - recorded:
                self._views.pop((user, id), None)

    def _is_new(self, user: str, id: str) -> bool:
        """Return whether the user has not viewed the image recently, and remember the view."""
        key, now = (user, id), self._monotonic()
        with self._lock:
            last = self._views.get(key)
            if last is not None and now - last < _REPEAT_SECONDS:
                return False
            self._views[key] = now
            self._views.move_to_end(key)
            while len(self._views) > _MAX_VIEWS:
                self._views.popitem(last=False)
        return True

    def _append(self, entry: Entry) -> None:
        with self._warn_if_unwritten(), write_transaction(self._engine) as connection:
            append(connection, [entry])

    @staticmethod
    @contextlib.contextmanager
    def _warn_if_unwritten() -> Iterator[None]:
        """Log a warning if the audit log cannot be written."""
        try:
            yield
        except StorageError as error:
            _LOG.warning("Access was not recorded in the audit log: %s", error.message)

    def _time(self) -> str:
        return format_time(self._now())

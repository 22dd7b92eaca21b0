"""Group commit: store all waiting items in one transaction, which takes as long as storing a single item."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

__all__ = ["GroupCommit"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Waiting(NamedTuple, Generic[_Item, _Result]):
    """A queued item, the future of its result, and the time of its submission."""

    item: _Item
    future: Future[_Result]
    since: float


class GroupCommit(Generic[_Item, _Result]):
    """A thread that commits waiting items in batches.

    While a batch is being written, further items queue up for the next one. A single item is committed immediately.

    Args:
        commit: Commits a batch; returns a result or an error for each item, in order. If it raises an exception, that
            is the error of all items.
        shared_error: Type of exceptions that are not caused by a single item. After any other exception, each item is
            committed separately.
        name: Name of the thread.
        max_batch: Maximum number of items in a batch.
        patience: Seconds. After a shared error, items that have waited longer fail with the same error; otherwise, each
            would wait for the failures of all items before it.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[_Item]], Sequence[_Result | Exception]],
        shared_error: type[Exception],
        *,
        name: str,
        max_batch: int = 64,
        patience: float = 0.5,
    ) -> None:
        self._commit, self._shared_error = commit, shared_error
        self._max_batch, self._patience = max_batch, patience
        self._queue: queue.SimpleQueue[_Waiting[_Item, _Result] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: _Item) -> Future[_Result]:
        """Return a future of the item's result. An item that is cancelled before its turn is not committed."""
        future: Future[_Result] = Future()
        self._queue.put(_Waiting(item, future, time.monotonic()))
        return future

    def close(self, timeout: float) -> None:
        """Wait up to `timeout` seconds until every submitted item is committed.

        No items may be submitted afterwards.
        """
        self._queue.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            while len(batch) < self._max_batch and not self._queue.empty():
                following = self._queue.get()  # this thread is the only reader
                if following is None:
                    self._queue.put(None)  # ends the next iteration
                    break
                batch.append(following)
            self._commit_batch([each for each in batch if each.future.set_running_or_notify_cancel()])

    def _commit_batch(self, batch: Sequence[_Waiting[_Item, _Result]]) -> None:
        if not batch:
            return
        try:
            results = self._commit([each.item for each in batch])
        except Exception as error:  # noqa: BLE001  every waiting caller must get an answer
            is_shared = isinstance(error, self._shared_error)
            if len(batch) > 1 and not is_shared:  # one item may be the cause
                for each in batch:
                    self._commit_batch([each])
                return
            for each in batch:
                each.future.set_exception(error)
            if is_shared:
                self._fail_waiting(error)
            return
        for each, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                each.future.set_exception(result)
            else:
                each.future.set_result(result)

    def _fail_waiting(self, error: Exception) -> None:
        """Set the error of items that have waited too long; they are at the front of the queue."""
        limit, others = time.monotonic() - self._patience, []
        with contextlib.suppress(queue.Empty):
            while True:
                waiting = self._queue.get_nowait()  # this thread is the only reader
                if waiting and waiting.since <= limit:
                    if waiting.future.set_running_or_notify_cancel():
                        waiting.future.set_exception(error)
                else:
                    others.append(waiting)
        for each in others:
            self._queue.put(each)

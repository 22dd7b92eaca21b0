"""Group commit: store everything that waits in one transaction, which costs as much as storing one item."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["GroupCommit"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class GroupCommit(Generic[_Item, _Result]):
    """A thread that commits waiting items in batches.

    While a batch is written, further items queue up and form the next one. A single item is committed at once.

    Args:
        commit: Commits a batch. It returns, in the same order, a result or an error for each item; an exception that it
            raises is the error of all items.
        shared_error: Exceptions that no single item causes. After any other exception, each item is committed alone.
        name: Name of the thread.
        max_batch: Items in a batch.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[_Item]], Sequence[_Result | Exception]],
        shared_error: type[Exception],
        *,
        name: str,
        max_batch: int = 64,
    ) -> None:
        self._commit, self._shared_error, self._max_batch = commit, shared_error, max_batch
        self._queue: queue.SimpleQueue[tuple[_Item, Future[_Result]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: _Item) -> Future[_Result]:
        """Return a future of the item's result; an item that is cancelled before its turn is not committed."""
        future: Future[_Result] = Future()
        self._queue.put((item, future))
        return future

    def close(self, timeout: float) -> None:
        """Wait until every submitted item is committed, but not longer than a number of seconds.

        Do not submit items afterwards.
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
            self._commit_batch([each for each in batch if each[1].set_running_or_notify_cancel()])

    def _commit_batch(self, batch: Sequence[tuple[_Item, Future[_Result]]]) -> None:
        if not batch:
            return
        try:
            results = self._commit([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001  every waiting caller must get an answer
            if len(batch) > 1 and not isinstance(error, self._shared_error):  # one item may be the cause
                for each in batch:
                    self._commit_batch([each])
            else:
                for _, future in batch:
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

"""Group commit: store everything that waits in one transaction, which costs as much as storing one item."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["GroupCommit"]

_Item = TypeVar("_Item")
_Done = TypeVar("_Done")


class GroupCommit(Generic[_Item, _Done]):
    """A thread that commits waiting items in batches.

    While a batch is written, further items load_run_data and form the next one. A single item waits for nothing.

    Args:
        commit: Commits a batch. It returns, in the same order, a result or an error for each item; an exception that it raises
            is the error of all items.
        common: An exception that no single item causes. After any other exception, each item is committed alone.
        name: Of the thread.
        most: Items in a batch.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[_Item]], Sequence[_Done | Exception]],
        common: type[Exception],
        *,
        name: str,
        most: int = 64,
    ) -> None:
        self._commit, self._common, self._most = commit, common, most
        self._waiting: queue.SimpleQueue[tuple[_Item, Future[_Done]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: _Item) -> Future[_Done]:
        """Return a future of the item's result; an item that is cancelled before its turn is not committed."""
        found: Future[_Done] = Future()
        self._waiting.put((item, found))
        return found

    def close(self) -> None:
        """Wait until every submitted item is committed; nothing may be submitted afterwards."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < self._most and not self._waiting.empty():
                following = self._waiting.get()  # this thread is the only reader
                if following is None:
                    self._waiting.put(None)  # for the next turn
                    break
                batch.append(following)
            self._try([each for each in batch if each[1].set_running_or_notify_cancel()])

    def _try(self, batch: Sequence[tuple[_Item, Future[_Done]]]) -> None:
        if not batch:
            return
        try:
            results = self._commit([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001  every waiting caller must get an answer
            if len(batch) > 1 and not isinstance(error, self._common):  # one item may be the cause
                for each in batch:
                    self._try([each])
            else:
                for _, found in batch:
                    found.set_exception(error)
            return
        for (_, found), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                found.set_exception(result)
            else:
                found.set_result(result)

"""Work that costs as much for many as for one, done once for all that wait for it."""

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
    """A thread that does what waits, all of it at once.

    A transaction takes as long to reach the disk with one row as with many. While one is on its way, others load_run_data, and go
    together next: alone an item waits for nothing, and under load each waits for few turns.

    Args:
        do: what is done with items. It gives one result for each, in their order, or the error of that one alone; what it
            raises befalls all of them.
        common: an error that none of the items is the cause of; after another, each is tried alone.
        name: of the thread.
        most: items at once.
    """

    def __init__(
        self,
        do: Callable[[Sequence[_Item]], Sequence[_Done | Exception]],
        common: type[Exception],
        *,
        name: str,
        most: int = 64,
    ) -> None:
        self._do, self._common, self._most = do, common, most
        self._waiting: queue.SimpleQueue[tuple[_Item, Future[_Done]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: _Item) -> Future[_Done]:
        """What becomes of an item; one that is cancelled before its turn is not done."""
        found: Future[_Done] = Future()
        self._waiting.put((item, found))
        return found

    def close(self) -> None:
        """Return when all that was submitted is done; nothing more may be."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < self._most and not self._waiting.empty():
                following = self._waiting.get()  # nobody else takes from it
                if following is None:
                    self._waiting.put(None)  # the end is for the next turn
                    break
                batch.append(following)
            self._try([each for each in batch if each[1].set_running_or_notify_cancel()])

    def _try(self, batch: Sequence[tuple[_Item, Future[_Done]]]) -> None:
        if not batch:
            return
        try:
            results = self._do([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait must be told
            if len(batch) > 1 and not isinstance(error, self._common):  # one keeps the others from being done
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

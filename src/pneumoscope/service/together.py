"""Work that costs as much for many as for one, done once for all who wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["Together"]

_Item = TypeVar("_Item")
_Done = TypeVar("_Done")


class Together(Generic[_Item, _Done]):
    """Calls of many threads, which one of them at a time does for all that wait by then.

    A transaction takes as long to reach the disk with one row as with many. While one is on its way, others gather, and go
    together next: alone a call waits for nothing, and under load each waits for two at most.

    Args:
        do: what is done with items, all or none; gives one result for each, in their order.
        common: an error that none of the items is the cause of; after another, each is tried alone.
        most: items at once.
    """

    def __init__(
        self, do: Callable[[Sequence[_Item]], Sequence[_Done]], common: type[Exception], most: int = 64
    ) -> None:
        self._do, self._common, self._most = do, common, most
        self._waiting: list[tuple[_Item, Future[_Done]]] = []
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def __call__(self, item: _Item) -> _Done:
        """The result for one item; raises what `do` raised for it."""
        found: Future[_Done] = Future()
        with self._lock:
            self._waiting.append((item, found))
        while not found.done():
            with self._turn:
                with self._lock:
                    batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                self._try(batch)
        return found.result()

    def _try(self, batch: Sequence[tuple[_Item, Future[_Done]]]) -> None:
        if not batch:  # whoever had the turn before did all of it
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
            found.set_result(result)

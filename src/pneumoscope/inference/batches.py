"""Process many items in batches, in threads, with the results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

__all__ = ["batched", "process_batches"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def process_batches(
    items: Iterable[_Item],
    process: Callable[[Sequence[_Item]], list[_Result]],
    *,
    batch_size: int,
    threads: int,
    ahead: int = 0,
) -> Generator[_Result]:
    """Yield the results of batches in the order of the items.

    Args:
        items: The items.
        process: Called in a thread, with a batch; its error is raised in the place of its results.
        batch_size: Items per batch.
        threads: Number of threads.
        ahead: Batches that are begun before the caller takes their results; two per thread if 0.
    """
    ahead = ahead or 2 * threads
    pending: deque[Future[list[_Result]]] = deque()
    with ThreadPoolExecutor(threads) as executor:
        try:
            for batch in batched(items, batch_size):
                pending.append(executor.submit(process, batch))
                if len(pending) > ahead:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:  # the consumer stopped, or a batch failed
            for future in pending:
                future.cancel()


def batched(items: Iterable[_Item], size: int) -> Iterator[tuple[_Item, ...]]:
    """Yield the items in tuples of this size; the last one may be shorter."""
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch

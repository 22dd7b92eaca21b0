"""Process items in batches in threads, keeping the order of the results."""

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
    """Yield the results of all batches in the order of the items.

    Args:
        items: Items to process.
        process: Called in a thread with each batch; its error is raised in place of the batch's results.
        batch_size: Items per batch.
        threads: Number of threads.
        ahead: Batches started before the caller consumes their results; 0 for two per thread.
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
    """Yield the items in tuples of the given size; the last one may be shorter."""
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch

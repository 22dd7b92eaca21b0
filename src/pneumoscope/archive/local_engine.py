"""Score shards in threads of this process; the images are decoded in worker processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from pneumoscope.archive.listing import ListedShard
from pneumoscope.archive.scoring import ShardResult

__all__ = ["run_locally"]


def run_locally(
    shards: Iterable[ListedShard],
    score: Callable[[ListedShard, threading.Event], ShardResult],
    *,
    workers: int = 0,
    stopping: threading.Event,
) -> Generator[ShardResult]:
    """Yield the results of shards as they are finished.

    Args:
        shards: The shards; read as threads become free.
        score: Scores one shard; stops soon after its event is set.
        workers: Threads, each with its own shard; 0 means one per core, and one more, which covers the hand-over between a
            thread and its worker process.
        stopping: When it is set, shards that are begun are finished, and no other is begun.
    """
    threads = workers or (os.cpu_count() or 1) + 1
    cancelled = threading.Event()
    pending: set[Future[ShardResult]] = set()
    waiting = iter(shards)
    executor = ThreadPoolExecutor(threads, thread_name_prefix="shard")
    try:
        while True:
            while len(pending) < threads and not stopping.is_set():
                shard = next(waiting, None)
                if shard is None:
                    break
                pending.add(executor.submit(score, shard, cancelled))
            if not pending:
                return
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:  # all is done, a shard failed, or the caller was interrupted
        cancelled.set()
        executor.shutdown(wait=not pending, cancel_futures=True)

"""Score shards in threads of this process, with images decoded in worker processes."""

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
    """Yield the results of shards as they finish.

    Args:
        shards: Shards to score; read as threads become free.
        score: Function that scores one shard and stops soon after its event is set.
        workers: Number of threads, each scoring one shard; 0 for one per core plus one, which covers the latency between
            threads and worker processes.
        stopping: Event after which started shards are finished but no new ones are started.
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
    finally:  # finished, a shard failed, or the caller was interrupted
        cancelled.set()
        executor.shutdown(wait=not pending, cancel_futures=True)

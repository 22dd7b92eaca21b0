"""Process-level helpers of commands: graceful Ctrl-C, and faster imports of large packages."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
from collections.abc import Iterator

__all__ = ["catch_interrupt", "garbage_collection_paused"]


@contextlib.contextmanager
def catch_interrupt(message: str = "") -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, which allows output to be completed; a second Ctrl-C interrupts at once.

    Args:
        message: Message for standard error after the first Ctrl-C; none if empty.
    """
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        if message:
            print(message, file=sys.stderr, flush=True)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Disable garbage collection while packages are imported, and exclude their objects from later collections.

    Training imports half a million objects and the service 200,000, which exist as long as the process. Scanning them
    repeatedly takes a fifth of the import time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

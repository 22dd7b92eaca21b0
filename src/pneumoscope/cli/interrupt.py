"""Graceful Ctrl-C handling."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

__all__ = ["catch_interrupt"]


@contextlib.contextmanager
def catch_interrupt(message: str = "") -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, so that output can be completed; a second Ctrl-C interrupts at once.

    Args:
        message: Printed on standard error after the first Ctrl-C; nothing if empty.
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

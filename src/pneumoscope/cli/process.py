"""The process of a command: graceful Ctrl-C, and faster imports of large packages."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
from collections.abc import Iterator

__all__ = ["catch_interrupt", "without_collections"]


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


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Collect no garbage while packages are imported, and exclude their objects from later collections.

    The packages of training are half a million objects, those of the service a fifth of a million, which last as long as the
    process. To examine them again and again takes a fifth of the time of their imports.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

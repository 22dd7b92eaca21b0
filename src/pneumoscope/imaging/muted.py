"""What decoders warn of stays inside, also while several threads decode."""

from __future__ import annotations

import threading
import warnings

__all__ = ["muted"]


class _Muted:
    """A context in which no warning is shown. The last thread to leave puts back what the first one found.

    `catch_warnings` alone puts back what its own thread found: of two that overlap, the later one would leave the earlier
    one's "ignore" behind for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught = warnings.catch_warnings(action="ignore")
                self._caught.__enter__()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


muted = _Muted()

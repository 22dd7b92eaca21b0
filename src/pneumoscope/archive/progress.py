"""The progress of a run: counts, rate and time left, for a bar, a log and metrics."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import NamedTuple

__all__ = ["Progress", "ProgressCounter"]

_WINDOW = 120.0  # seconds over which the rate is measured
_MIN_SECONDS = 1.0  # between two points of the window


class Progress(NamedTuple):
    """The state of a run.

    Attributes:
        done: Images that are scored, of earlier runs and of this one.
        total: Images of the archive.
        failed: Scored images that could not be read.
        rate: Images per second in the last two minutes, or since the last batch but one if it is longer ago.
        seconds_left: Estimated time to the end; None if nothing was scored yet.
    """

    done: int
    total: int
    failed: int
    rate: float
    seconds_left: float | None


class ProgressCounter:
    """Counts images in any number of threads.

    Args:
        total: Images of the archive.
        done, failed: Images of earlier runs that are scored, and that could not be read.
    """

    def __init__(self, total: int, done: int, failed: int) -> None:
        self._total, self._done, self._failed = total, done, failed
        self._lock = threading.Lock()
        self._points: deque[tuple[float, int]] = deque([(time.monotonic(), done)])

    def add(self, images: int, failed: int) -> None:
        """Count scored images and those of them that could not be read."""
        with self._lock:
            self._done += images
            self._failed += failed
            now = time.monotonic()
            if now - self._points[-1][0] >= _MIN_SECONDS:
                self._points.append((now, self._done))
                while now - self._points[1][0] > _WINDOW:  # one older point stays, so that a slow run has a rate
                    self._points.popleft()

    def progress(self) -> Progress:
        """Return the current state."""
        with self._lock:
            before, done_before = self._points[0]
            seconds = time.monotonic() - before
            rate = (self._done - done_before) / seconds if seconds > 0 else 0.0
            left = (self._total - self._done) / rate if rate > 0 else None
            return Progress(self._done, self._total, self._failed, rate, left)

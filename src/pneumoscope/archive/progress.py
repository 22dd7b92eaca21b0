"""Progress of a run: counts, rate and remaining time, for a progress bar, a log and metrics."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import NamedTuple

__all__ = ["Progress", "ProgressCounter"]

_WINDOW = 120.0  # seconds over which the rate is measured
_MIN_SECONDS = 1.0  # minimum time between two points of the window


class Progress(NamedTuple):
    """Progress of a run.

    Attributes:
        done: Images scored by earlier runs and this one.
        total: Images in the archive.
        failed: Scored images that could not be read.
        rate: Images per second over the last two minutes, or since the last batch but one if that is longer ago.
        seconds_left: Estimated remaining time; None if no image has been scored yet.
    """

    done: int
    total: int
    failed: int
    rate: float
    seconds_left: float | None


class ProgressCounter:
    """Thread-safe counter of scored images.

    Args:
        total: Images in the archive.
        done, failed: Images that earlier runs scored, and how many of them could not be read.
    """

    def __init__(self, total: int, done: int, failed: int) -> None:
        self._total, self._done, self._failed = total, done, failed
        self._lock = threading.Lock()
        self._points: deque[tuple[float, int]] = deque([(time.monotonic(), done)])

    def add(self, images: int, failed: int) -> None:
        """Count scored images and how many of them could not be read."""
        with self._lock:
            self._done += images
            self._failed += failed
            now = time.monotonic()
            if now - self._points[-1][0] >= _MIN_SECONDS:
                self._points.append((now, self._done))
                while now - self._points[1][0] > _WINDOW:  # keep one older point, so that slow runs have a rate
                    self._points.popleft()

    def progress(self) -> Progress:
        """Return the current progress."""
        with self._lock:
            before, done_before = self._points[0]
            seconds = time.monotonic() - before
            rate = (self._done - done_before) / seconds if seconds > 0 else 0.0
            left = (self._total - self._done) / rate if rate > 0 else None
            return Progress(self._done, self._total, self._failed, rate, left)

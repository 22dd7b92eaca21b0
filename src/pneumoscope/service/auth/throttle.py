"""Throttle failed sign-in attempts."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from pneumoscope.core.errors import TooManyRequestsError

__all__ = ["SignInThrottle"]

_FREE_FAILURES = 5  # failures without a delay
_MAX_DELAY = 60.0  # seconds
_MEMORY = 900.0  # seconds until failures are forgotten


class SignInThrottle:
    """Delays between sign-in attempts from an address: 1 second after five failures, doubled with each further one.

    The maximum is a minute. A success, or 15 minutes without a failure, resets the delay.

    Args:
        now: Monotonic clock in seconds; replaceable in tests.
        max_addresses: Number of addresses above which the oldest are forgotten.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, *, max_addresses: int = 10_000) -> None:
        self._now, self._max_addresses = now, max_addresses
        self._failures: OrderedDict[str, tuple[int, float]] = (
            OrderedDict()
        )  # failures and time of the last one, by address
        self._lock = threading.Lock()

    def check(self, address: str) -> None:
        """Raise TooManyRequestsError if an address must wait."""
        with self._lock:
            count, last = self._failures.get(address, (0, 0.0))
        if count < _FREE_FAILURES:
            return
        remaining = last + min(2.0 ** (count - _FREE_FAILURES), _MAX_DELAY) - self._now()
        if remaining > 0:
            raise TooManyRequestsError(
                "too many failed attempts to sign in from this address", retry_seconds=math.ceil(remaining)
            )

    def record_failure(self, address: str) -> None:
        """Count a failed attempt."""
        with self._lock:
            count, last = self._failures.pop(address, (0, 0.0))
            now = self._now()
            self._failures[address] = ((count if now - last <= _MEMORY else 0) + 1, now)
            while len(self._failures) > self._max_addresses:
                self._failures.popitem(last=False)

    def record_success(self, address: str) -> None:
        """Forget the failures of an address."""
        with self._lock:
            self._failures.pop(address, None)

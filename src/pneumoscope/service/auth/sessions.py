"""Who sits at the page: a token is given once, and a cookie stands for it until it ends.

Sessions live in memory alone: after a restart people sign in again. The cookie holds a random number, never the token.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

from pneumoscope.core.errors import AuthenticationError

__all__ = ["COOKIE", "SECONDS", "Sessions"]

COOKIE = "pneumoscope"
SECONDS = 12 * 3600  # a working day
_MOST = 1000  # at once; the oldest end


class Sessions:
    """Open sessions.

    Args:
        now: seconds on a clock that never goes back, for tests.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._open: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def begin(self, who: str) -> str:
        """The cookie's value for somebody whose token was known."""
        value = secrets.token_urlsafe(32)
        with self._lock:
            now = self._now()
            self._open = {key: each for key, each in self._open.items() if each[1] > now}
            while len(self._open) >= _MOST:
                del self._open[next(iter(self._open))]
            self._open[value] = (who, now + SECONDS)
        return value

    def who(self, value: str) -> str:
        """The name behind a cookie.

        Raises:
            AuthenticationError: it stands for nobody, or no longer.
        """
        with self._lock:
            # Looked up as a key of 256 random bits: no time that this takes tells anything of another.
            name, until = self._open.get(value, ("", 0.0))
            if not name or until <= self._now():
                raise AuthenticationError("nobody is signed in", hint="Sign in again")
            return name

    def end(self, value: str) -> None:
        """Sign out; nothing happens where nobody was signed in."""
        with self._lock:
            self._open.pop(value, None)

"""Sign-in sessions of the web UI: a cookie replaces the token until the session expires.

Sessions are kept in memory only: after a restart, users sign in again. The cookie is a random value, never the token.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

from pneumoscope.core.errors import AuthenticationError

__all__ = ["COOKIE", "SESSION_SECONDS", "Sessions"]

COOKIE = "pneumoscope"
SESSION_SECONDS = 12 * 3600  # a working day
_MAX_SESSIONS = 1000  # beyond this, the oldest ones end


class Sessions:
    """Open sessions.

    Args:
        now: Monotonic clock in seconds, for tests.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._sessions: dict[str, tuple[str, float]] = {}  # user and expiry by cookie
        self._lock = threading.Lock()

    def begin(self, user: str) -> str:
        """Start a session for an authenticated user and return its cookie."""
        cookie = secrets.token_urlsafe(32)
        with self._lock:
            now = self._now()
            self._sessions = {key: session for key, session in self._sessions.items() if session[1] > now}
            while len(self._sessions) >= _MAX_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[cookie] = (user, now + SESSION_SECONDS)
        return cookie

    def user(self, cookie: str) -> str:
        """Return the user of a session.

        Raises:
            AuthenticationError: There is no such session, or it has expired.
        """
        with self._lock:
            # A dictionary lookup is safe: the time it takes reveals nothing about 256 random bits.
            user, expiry = self._sessions.get(cookie, ("", 0.0))
            if not user or expiry <= self._now():
                raise AuthenticationError("not signed in, or the session has expired", hint="Sign in again")
            return user

    def end(self, cookie: str) -> None:
        """End a session, if there is one."""
        with self._lock:
            self._sessions.pop(cookie, None)

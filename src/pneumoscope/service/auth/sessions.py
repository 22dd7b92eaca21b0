"""Sign-in sessions of the web interface, and codes that start a session on another device.

Both are kept only in memory: after a restart, users must sign in again. The cookie is a random value, never the token.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from pneumoscope.core.errors import AuthenticationError
from pneumoscope.service.auth.users import AuthenticatedUser

__all__ = ["CODE_SECONDS", "COOKIE", "SESSION_SECONDS", "Session", "Sessions", "SignInCodes"]

COOKIE = "pneumoscope"
SESSION_SECONDS = 12 * 3600  # a working day
CODE_SECONDS = 120
_MAX_CODES = 100
_CODE_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # without ambiguous letters (Crockford's base 32)
_LOOKALIKES = str.maketrans({"O": "0", "I": "1", "L": "1", " ": "", "-": ""})
_CODE_LENGTH = 8  # 40 bits, valid for two minutes; failed attempts are throttled
_Value = TypeVar("_Value")


class _ExpiringValues(Generic[_Value]):
    """Values by random key. Above the maximum number of values, the oldest are dropped.

    Dictionary lookups are safe here, because their timing reveals nothing about random keys.
    """

    def __init__(self, max_values: int, now: Callable[[], float]) -> None:
        self._max_values, self._now = max_values, now
        self._values: dict[str, tuple[_Value, float]] = {}  # value and expiry by key
        self._lock = threading.Lock()

    def add(self, key: str, value: _Value, expiry: float) -> None:
        with self._lock:
            now = self._now()
            self._values = {name: each for name, each in self._values.items() if each[1] > now}
            while len(self._values) >= self._max_values:
                del self._values[next(iter(self._values))]
            self._values[key] = (value, expiry)

    def get(self, key: str) -> tuple[_Value, float] | None:
        with self._lock:
            found = self._values.get(key)
            return found if found and found[1] > self._now() else None

    def pop(self, key: str) -> _Value | None:
        with self._lock:
            found = self._values.pop(key, None)
            return found[0] if found and found[1] > self._now() else None


class Session(NamedTuple):
    """An open session: its user and its expiry on the monotonic clock."""

    user: AuthenticatedUser
    expiry: float


class Sessions:
    """Open sessions.

    Args:
        now: Monotonic clock in seconds; replaceable in tests.
        max_sessions: Number of sessions beyond which the oldest ones end.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, *, max_sessions: int = 1000) -> None:
        self._now = now
        self._sessions: _ExpiringValues[AuthenticatedUser] = _ExpiringValues(max_sessions, now)

    def begin(self, user: AuthenticatedUser, *, until: float | None = None) -> str:
        """Start a session for an authenticated user and return its cookie.

        Args:
            user: The user.
            until: Expiry on the monotonic clock; 12 hours from now if None.
        """
        cookie = secrets.token_urlsafe(32)
        self._sessions.add(cookie, user, self._now() + SESSION_SECONDS if until is None else until)
        return cookie

    def get(self, cookie: str) -> Session | None:
        """Return a session; None if it does not exist or has expired."""
        found = self._sessions.get(cookie)
        return Session(*found) if found else None

    def user(self, cookie: str) -> AuthenticatedUser:
        """Return the user of a session.

        Raises:
            AuthenticationError: The session does not exist or has expired.
        """
        session = self.get(cookie)
        if session is None:
            raise AuthenticationError("not signed in, or the session has expired", hint="Sign in again")
        return session.user

    def end(self, cookie: str) -> AuthenticatedUser | None:
        """End a session; return its user if it was open."""
        return self._sessions.pop(cookie)


class SignInCodes:
    """Single-use codes that sign a user in on another device within two minutes, while the original session is open.

    Args:
        now: Monotonic clock in seconds; replaceable in tests.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._codes: _ExpiringValues[str] = _ExpiringValues(_MAX_CODES, now)

    def create(self, cookie: str) -> str:
        """Return a new code, such as "7K3M-9QXB", for the session with a cookie."""
        code = "".join(secrets.choice(_CODE_ALPHABET) for _ in range(_CODE_LENGTH))
        self._codes.add(code, cookie, self._now() + CODE_SECONDS)
        return f"{code[:4]}-{code[4:]}"

    def redeem(self, code: str) -> str | None:
        """Use up a code and return the cookie of its session; None if the code is unknown, expired or already used.

        Case, spaces and hyphens are ignored; O, I and L are read as digits.
        """
        return self._codes.pop(code.upper().translate(_LOOKALIKES))

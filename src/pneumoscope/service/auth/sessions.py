"""Sign-in sessions of the web UI, and the codes that start one on another device.

Both are kept in memory only: after a restart, users sign in again. The cookie is a random value, never the token.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from pneumoscope.core.errors import AuthenticationError
from pneumoscope.service.auth.users import AuthenticatedUser

__all__ = ["CODE_SECONDS", "COOKIE", "SESSION_SECONDS", "Sessions", "SignInCodes"]

COOKIE = "pneumoscope"
SESSION_SECONDS = 12 * 3600  # a working day
CODE_SECONDS = 120
_MAX_SESSIONS = 1000  # beyond this, the oldest ones end
_MAX_CODES = 100
_CODE_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # without letters that look like others (Crockford's base 32)
_LOOKALIKES = str.maketrans({"O": "0", "I": "1", "L": "1", " ": "", "-": ""})
_CODE_LENGTH = 8  # 40 bits, for two minutes, with failed attempts slowed down
_Value = TypeVar("_Value")


class _ExpiringValues(Generic[_Value]):
    """Values by random keys, each for the same time; beyond a number of values, the oldest ones are dropped.

    A dictionary lookup is safe: the time it takes reveals nothing about a random key.
    """

    def __init__(self, seconds: float, max_values: int, now: Callable[[], float]) -> None:
        self._seconds, self._max_values, self._now = seconds, max_values, now
        self._values: dict[str, tuple[_Value, float]] = {}  # value and expiry
        self._lock = threading.Lock()

    def add(self, key: str, value: _Value) -> None:
        with self._lock:
            now = self._now()
            self._values = {name: each for name, each in self._values.items() if each[1] > now}
            while len(self._values) >= self._max_values:
                del self._values[next(iter(self._values))]
            self._values[key] = (value, now + self._seconds)

    def get(self, key: str) -> _Value | None:
        with self._lock:
            value, expiry = self._values.get(key, (None, 0.0))
            return value if expiry > self._now() else None

    def pop(self, key: str) -> _Value | None:
        with self._lock:
            value, expiry = self._values.pop(key, (None, 0.0))
            return value if expiry > self._now() else None


class Sessions:
    """Open sessions.

    Args:
        now: Monotonic clock in seconds, for tests.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._sessions: _ExpiringValues[AuthenticatedUser] = _ExpiringValues(SESSION_SECONDS, _MAX_SESSIONS, now)

    def begin(self, user: AuthenticatedUser) -> str:
        """Start a session for an authenticated user and return its cookie."""
        cookie = secrets.token_urlsafe(32)
        self._sessions.add(cookie, user)
        return cookie

    def user(self, cookie: str) -> AuthenticatedUser:
        """Return the user of a session.

        Raises:
            AuthenticationError: There is no such session, or it has expired.
        """
        user = self._sessions.get(cookie)
        if user is None:
            raise AuthenticationError("not signed in, or the session has expired", hint="Sign in again")
        return user

    def end(self, cookie: str) -> AuthenticatedUser | None:
        """End a session, and return its user if it was open."""
        return self._sessions.pop(cookie)


class SignInCodes:
    """Codes that sign a user in on another device, once, within two minutes.

    Args:
        now: Monotonic clock in seconds, for tests.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._codes: _ExpiringValues[AuthenticatedUser] = _ExpiringValues(CODE_SECONDS, _MAX_CODES, now)

    def create(self, user: AuthenticatedUser) -> str:
        """Return a new code for a user, such as "7K3M-9QXB"."""
        code = "".join(secrets.choice(_CODE_ALPHABET) for _ in range(_CODE_LENGTH))
        self._codes.add(code, user)
        return f"{code[:4]}-{code[4:]}"

    def redeem(self, code: str) -> AuthenticatedUser | None:
        """Return the user of a code, which is then used up; None if it is unknown, expired or used.

        Case, spaces and hyphens do not matter, and O, I and L are read as digits.
        """
        return self._codes.pop(code.upper().translate(_LOOKALIKES))

"""Bearer tokens, stored as hashes, so that a copy of the database contains no usable token.

A token has 256 random bits, so its SHA-256 can be neither inverted nor guessed and needs no salt. Tokens are looked up
by hash; the timing of the lookup reveals nothing about a token.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import Engine, insert, select, update

from pneumoscope.core.errors import StorageError, UnknownNameError
from pneumoscope.service.audit.log import Entry, append
from pneumoscope.service.auth.users import ROLES, AuthenticatedUser, Role, validate_name
from pneumoscope.service.storage.database import read_transaction, write_transaction
from pneumoscope.service.storage.records import format_time
from pneumoscope.service.storage.tables import tokens

__all__ = ["Token", "TokenRepository"]

_SECRET_BYTES = 32
_ID_BYTES = 4
_REFRESH_SECONDS = 2  # delay until changes by another process take effect


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret.

    Attributes:
        id: Identifies the token to administrators; 8 hexadecimal digits.
        user, role: See `AuthenticatedUser`.
        created: ISO 8601 in UTC.
        created_by: User who added it.
        last_used: Date of last use in UTC; None if never used.
        revoked: Time of revocation; None if active.
    """

    id: str
    user: str
    role: Role
    created: str
    created_by: str
    last_used: str | None = None
    revoked: str | None = None


_COLUMNS = [tokens.c[field.name] for field in dataclasses.fields(Token)]


class TokenRepository:
    """The tokens in the service's database. Changes by other processes take effect at the next `refresh`.

    Args:
        engine: Engine of the database.
        now: Returns the current time; replaceable in tests.
        monotonic: Monotonic clock in seconds; replaceable in tests.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._now, self._monotonic = engine, now, monotonic
        self._lock = threading.Lock()
        self._active: dict[str, Token] = {}  # by hash
        self._loaded: float | None = None
        self._used: set[str] = set()  # ids of tokens whose last use is not yet stored

    def add(self, user: str, role: Role, *, created_by: str) -> tuple[Token, str]:
        """Add a token; return it and its secret, which is not stored.

        Raises:
            UsageError: The name or the role is invalid.
            StorageError: The token cannot be stored.
        """
        validate_name(user)
        if role not in ROLES:
            raise UnknownNameError("role", role, ROLES)
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        token = Token(secrets.token_hex(_ID_BYTES), user, role, format_time(self._now()), created_by)
        details = {"token": token.id, "user": user, "role": role}
        with write_transaction(self._engine) as connection:
            connection.execute(insert(tokens), [dataclasses.asdict(token) | {"secret_sha256": _hash(secret)}])
            append(connection, [Entry(token.created, created_by, "token_added", details=details)])
        self._reload()
        return token, secret

    def revoke(self, id: str, *, user: str) -> Token:
        """Revoke a token, which also ends its sessions, and return it.

        Args:
            id: Id of an active token.
            user: User for the audit log.
        Raises:
            UnknownNameError: There is no active token with this id.
            StorageError: The change cannot be stored.
        """
        time = format_time(self._now())
        query = update(tokens).where(tokens.c.id == id, tokens.c.revoked.is_(None)).values(revoked=time)
        with write_transaction(self._engine) as connection:
            row = connection.execute(query.returning(*_COLUMNS)).mappings().first()
            if row is None:
                raise UnknownNameError("active token", id[:80], (), hint="List the tokens: pneumoscope tokens list")
            token = Token(**row)
            details = {"token": token.id, "user": token.user}
            append(connection, [Entry(time, user, "token_revoked", details=details)])
        self._reload()
        return token

    def list(self) -> list[Token]:
        """Return all tokens, active ones first, each group sorted by user and time."""
        query = select(*_COLUMNS).order_by(tokens.c.revoked.is_not(None), tokens.c.user, tokens.c.created, tokens.c.id)
        with read_transaction(self._engine) as connection:
            return [Token(**row) for row in connection.execute(query).mappings()]

    @property
    def is_stale(self) -> bool:
        """Whether the next `refresh` will read the database."""
        return self._loaded is None or self._monotonic() - self._loaded > _REFRESH_SECONDS

    def find(self, secret: str) -> AuthenticatedUser | None:
        """Return the user of a token that was active at the last `refresh`; None if there is none."""
        token = self._active.get(_hash(secret))
        if token is None:
            return None
        if (token.last_used or "") < self._today():
            self._used.add(token.id)
        return AuthenticatedUser(token.user, token.role, token.id)

    def is_active(self, id: str) -> bool:
        """Return whether a token with this id was active at the last `refresh`."""
        return any(token.id == id for token in self._active.values())

    def refresh(self) -> None:
        """Load the active tokens if the last load was more than two seconds ago.

        Raises:
            StorageError: The database cannot be read.
        """
        with self._lock:
            if not self.is_stale:
                return
            loaded = self._monotonic()
            self._store_use()
            query = select(tokens.c.secret_sha256, *_COLUMNS).where(tokens.c.revoked.is_(None))
            with read_transaction(self._engine) as connection:
                rows = [dict(row) for row in connection.execute(query).mappings()]
            self._active = {row.pop("secret_sha256"): Token(**row) for row in rows}
            self._loaded = loaded

    def _reload(self) -> None:
        """Load the active tokens immediately, after a change."""
        self._loaded = None
        self.refresh()

    def _store_use(self) -> None:
        """Store today's date for tokens used for the first time today; retry later if the database is busy."""
        if not self._used:
            return
        used = set(self._used)
        try:
            with write_transaction(self._engine, wait=False) as connection:
                connection.execute(update(tokens).where(tokens.c.id.in_(used)).values(last_used=self._today()))
        except StorageError:  # the date is informative only; the request must not fail
            return
        self._used -= used

    def _today(self) -> str:
        return format_time(self._now())[:10]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.strip().encode(errors="surrogatepass")).hexdigest()

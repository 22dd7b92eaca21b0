"""Authentication by bearer tokens from a token file, or by the cookie of a session."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request

from pneumoscope.core.errors import AuthenticationError, UsageError
from pneumoscope.service.auth.sessions import COOKIE, Sessions

__all__ = ["LOCAL", "RETENTION", "Authenticator", "is_loopback", "read_tokens"]

LOCAL = "local"  # the user of a service without authentication
RETENTION = "retention"  # the service itself, when it removes expired images
_MIN_LENGTH = 16  # characters of a token
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")


def read_tokens(file: Path) -> dict[str, str]:
    """Return the tokens in a file by name: a line "name token" for each; empty lines and lines with "#" are skipped.

    Raises:
        UsageError: The file cannot be read, is readable by others, or has an invalid line. No token is shown.
    """
    try:
        mode, lines = file.stat().st_mode, file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the token file {str(file)!r}: {reason}") from error
    if mode & 0o077:
        raise UsageError(f"the token file {str(file)!r} is readable by other users", hint=f"chmod 600 {file}")
    tokens: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        place = f"line {number} of the token file {str(file)!r}"
        name, _, token = line.strip().partition(" ")
        token = token.strip()
        if not _NAME.fullmatch(name) or len(token) < _MIN_LENGTH or not token.isascii() or " " in token:
            raise UsageError(
                f"{place} is not a name and a token",
                hint=f"Write a name (letters, digits, _ . @ -), a space, and a token of at least {_MIN_LENGTH} characters,"
                " such as from: openssl rand -hex 32",
            )
        if name in (LOCAL, RETENTION):
            raise UsageError(f"{place} has the reserved name {name!r}", hint="Choose another name")
        if name in tokens or token in tokens.values():
            repeated = "name" if name in tokens else "token"
            raise UsageError(
                f"{place} repeats a {repeated}", hint=f"Choose another {repeated}: the audit log identifies users by it"
            )
        tokens[name] = token
    if not tokens:
        raise UsageError(
            f"the token file {str(file)!r} has no token", hint="Add one, such as: echo me $(openssl rand -hex 32)"
        )
    return tokens


def is_loopback(host: str) -> bool:
    """Return whether an address can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Authenticator:
    """Determines the user of a request.

    Args:
        tokens: Tokens by name. Without tokens, every client is the user `LOCAL`.

    Attributes:
        sessions: Sessions of users who signed in to the web UI.
    """

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._tokens = {name: token.encode() for name, token in tokens.items()}
        self.sessions = Sessions()

    @property
    def required(self) -> bool:
        """Whether clients must authenticate."""
        return bool(self._tokens)

    def authenticate_request(self, request: Request, token: str) -> str:
        """Return the user of a request's token or session cookie.

        Args:
            request: May have a cookie.
            token: From the header Authorization; empty if there is none.
        Raises:
            AuthenticationError: Neither is known, or a request with a cookie changes something without an Origin.
        """
        cookie = request.cookies.get(COOKIE, "")
        if not self._tokens or not cookie or "Authorization" in request.headers:
            return self.authenticate(token)
        # Browsers send the cookie with requests of other sites, too; `RequestMiddleware` compares the origin.
        if request.method not in ("GET", "HEAD") and not request.headers.get("Origin"):
            raise AuthenticationError(
                "a request with a session cookie needs the header Origin", hint="Send a token instead"
            )
        return self.sessions.user(cookie)

    def authenticate(self, token: str) -> str:
        """Return the user of a token.

        Raises:
            AuthenticationError: The token is empty or unknown.
        """
        if not self._tokens:
            return LOCAL
        given = token.strip().encode(errors="surrogatepass")
        # Compare with every token, so that the time does not reveal which one matches.
        matching = [name for name, known in self._tokens.items() if hmac.compare_digest(given, known)]
        if not matching:
            raise AuthenticationError(
                "unknown token" if token else "a token is required",
                hint="Send the header: Authorization: Bearer TOKEN",
            )
        return matching[0]

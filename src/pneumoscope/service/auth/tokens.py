"""Who may ask: names and tokens in a file, compared in constant time."""

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

LOCAL = "local"  # whoever asks where no token is asked for
RETENTION = "retention"  # the service itself, which removes images that are old
_LEAST = 16  # characters of a token
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")


def read_tokens(file: Path) -> dict[str, str]:
    """Tokens by the name of whoever holds one: a line "name token" for each; empty lines and those with "#" do not count.

    Raises:
        UsageError: the file cannot be read, others may read it, or a line is no name and token. No token is ever shown.
    """
    try:
        mode, lines = file.stat().st_mode, file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else "it is no text in UTF-8"
        raise UsageError(f"cannot read the tokens in {str(file)!r}: {why}") from error
    if mode & 0o077:
        raise UsageError(f"others may read the tokens in {str(file)!r}", hint=f"chmod 600 {file}")
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, token = line.strip().partition(" ")
        token = token.strip()
        if not _NAME.fullmatch(name) or len(token) < _LEAST or not token.isascii() or " " in token or name in found:
            raise UsageError(
                f"line {number} of {str(file)!r} is no name and token",
                hint=f"One name (letters, digits, _ . @ -), a space, and a token of {_LEAST} characters or more, such as"
                " from: openssl rand -hex 32",
            )
        if name in (LOCAL, RETENTION) or token in found.values():
            what = (
                "a token that stands there already" if token in found.values() else f"the name {name!r}, which is ours"
            )
            raise UsageError(
                f"line {number} of {str(file)!r} has {what}",
                hint="The audit log could not tell who it was: choose another",
            )
        found[name] = token
    if not found:
        raise UsageError(f"there is no token in {str(file)!r}", hint="Write one: echo me $(openssl rand -hex 32)")
    return found


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Authenticator:
    """Tells who asks by the token.

    Attributes:
        sessions: of people who gave their token to the page.

    Args:
        tokens: by name; where there are none, all who can reach the service are `LOCAL`.
    """

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._tokens = {name: token.encode() for name, token in tokens.items()}
        self.sessions = Sessions()

    @property
    def asks(self) -> bool:
        """Whether a token is asked for."""
        return bool(self._tokens)

    def of_request(self, request: Request, token: str) -> str:
        """Return the name behind a request's token or session cookie.

        Args:
            request: with the cookie, if any.
            token: from the header Authorization; empty if there is none.
        Raises:
            AuthenticationError: Neither is known; or a request with a cookie changes something without an Origin.
        """
        cookie = request.cookies.get(COOKIE, "")
        if not self._tokens or not cookie or "Authorization" in request.headers:
            return self.who(token)
        # A browser sends the cookie by itself, so another site's page could make it act; `watching` compares the origin.
        if request.method not in ("GET", "HEAD") and not request.headers.get("Origin"):
            raise AuthenticationError("the request does not say from which page it comes", hint="Send a token instead")
        return self.sessions.who(cookie)

    def who(self, token: str) -> str:
        """Return the name of a token's holder.

        Raises:
            AuthenticationError: The token is empty or not known.
        """
        if not self._tokens:
            return LOCAL
        given = token.strip().encode(errors="surrogatepass")
        # All are compared, so that the time tells nothing of which.
        known = [name for name, own in self._tokens.items() if hmac.compare_digest(given, own)]
        if not known:
            raise AuthenticationError(
                "the token is not known" if token else "a token is needed",
                hint="Send the header: Authorization: Bearer TOKEN",
            )
        return known[0]

"""Authenticated sessions with DICOMweb servers."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import requests
from requests.auth import HTTPBasicAuth

__all__ = [
    "CONNECT_SECONDS",
    "HTTP_SECONDS",
    "Access",
    "AnswerTooLongError",
    "open_session",
    "read_credential",
]

CONNECT_SECONDS = 10
HTTP_SECONDS = 60  # timeout without a byte from the server
MAX_ANSWER_BYTES = 64 * 2**20  # maximum size of a response that is not streamed: about 13,000 search results


class AnswerTooLongError(requests.RequestException):
    """Raised when a response has more than `MAX_ANSWER_BYTES`."""


class Access(Protocol):
    """Settings for access to a server.

    Attributes:
        user, password_file: Credentials for basic authentication.
        token_file: File with a bearer token.
        ca_file: PEM file with the certificate authorities of the server; None for those of the system.
    """

    @property
    def user(self) -> str: ...  # noqa: D102
    @property
    def password_file(self) -> Path | None: ...  # noqa: D102
    @property
    def token_file(self) -> Path | None: ...  # noqa: D102
    @property
    def ca_file(self) -> Path | None: ...  # noqa: D102


def open_session(server: Access) -> requests.Session:
    """Return a session that authenticates as configured; the caller must close it.

    Requests raise requests.HTTPError for redirects, and AnswerTooLongError.

    Raises:
        OSError, ValueError: A file with a secret or certificates cannot be read, or contains no valid secret.
    """
    session = requests.Session()
    session.trust_env = False  # ignore .netrc files and proxies set in the environment
    session.hooks["response"] = [_reject_redirect, _limit_answer]
    if server.ca_file:
        server.ca_file.read_bytes()  # otherwise each request would fail without naming the file
        session.verify = str(server.ca_file)
    if server.password_file:
        session.auth = HTTPBasicAuth(server.user, read_credential(server.password_file))
    if server.token_file:
        session.headers["Authorization"] = f"Bearer {read_credential(server.token_file)}"
    return session


def _reject_redirect(response: requests.Response, *_: Any, **__: Any) -> None:
    """Raise HTTPError for a redirect, because patient data may only be exchanged with the configured address."""
    if 300 <= response.status_code < 400:
        response.close()
        raise requests.HTTPError("redirect", response=response)


class _LimitedBody:
    """Body of a response that raises an error after `MAX_ANSWER_BYTES`."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def stream(self, *arguments: Any, **options: Any) -> Iterator[bytes]:
        """Yield the decoded body."""
        n_bytes = 0
        for chunk in self._raw.stream(*arguments, **options):
            n_bytes += len(chunk)
            if n_bytes > MAX_ANSWER_BYTES:
                self._raw.close()
                raise AnswerTooLongError(f"the answer has more than {MAX_ANSWER_BYTES:,} bytes")
            yield chunk


def _limit_answer(response: requests.Response, *_: Any, stream: bool = False, **__: Any) -> None:
    """Limit the body of a response unless the caller streams it."""
    if not stream:
        response.raw = _LimitedBody(response.raw)


def read_credential(file: Path) -> str:
    """Return the content of a file without surrounding white space.

    Raises:
        OSError, ValueError: The file cannot be read, is not UTF-8, or has several lines.
    """
    credential = file.read_text(encoding="utf-8").strip()
    if any(unicodedata.category(character) == "Cc" for character in credential):
        # Errors raised by requests would quote the secret.
        raise ValueError(f"{str(file)!r} has several lines or a control character")
    return credential

"""Sessions with other DICOMweb servers."""

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
HTTP_SECONDS = 60  # without a byte from the server
MAX_ANSWER_BYTES = 64 * 2**20  # of an answer that is not streamed: about 13,000 results of a search


class AnswerTooLongError(requests.RequestException):
    """An answer has more than `MAX_ANSWER_BYTES`."""


class Access(Protocol):
    """The access to a server.

    Attributes:
        user, password_file: For basic authentication.
        token_file: File with a bearer token.
        ca_file: Certificates of the authorities that sign the server's certificate, PEM; those of the system if None.
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
    """Return a session that authenticates as configured; the caller closes it.

    Its requests raise requests.HTTPError if the server redirects them, and AnswerTooLongError.

    Raises:
        OSError, ValueError: A file with a secret or certificates cannot be read, or has no valid secret.
    """
    session = requests.Session()
    session.trust_env = False  # a .netrc or a proxy of the environment must not get images and results
    session.hooks["response"] = [_reject_redirect, _limit_answer]
    if server.ca_file:
        server.ca_file.read_bytes()  # else each request fails, without the name of the file
        session.verify = str(server.ca_file)
    if server.password_file:
        session.auth = HTTPBasicAuth(server.user, read_credential(server.password_file))
    if server.token_file:
        session.headers["Authorization"] = f"Bearer {read_credential(server.token_file)}"
    return session


def _reject_redirect(response: requests.Response, *_: Any, **__: Any) -> None:
    """Raise HTTPError for a redirect: patient data comes from, and goes to, the stated address only."""
    if 300 <= response.status_code < 400:
        response.close()
        raise requests.HTTPError("redirect", response=response)


class _LimitedBody:
    """The body of an answer, which ends with an error after `MAX_ANSWER_BYTES`."""

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
    """Limit the body of an answer, unless the caller reads it in chunks."""
    if not stream:
        response.raw = _LimitedBody(response.raw)


def read_credential(file: Path) -> str:
    """Return the content of a file without surrounding white space.

    Raises:
        OSError, ValueError: It cannot be read, is not UTF-8, or has several lines.
    """
    credential = file.read_text(encoding="utf-8").strip()
    if any(unicodedata.category(character) == "Cc" for character in credential):
        # Errors of requests would have the secret.
        raise ValueError(f"{str(file)!r} has several lines or a control character")
    return credential

"""Sessions with other DICOMweb servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import requests
from requests.auth import HTTPBasicAuth

__all__ = ["CONNECT_SECONDS", "HTTP_SECONDS", "Access", "open_session", "read_credential"]

CONNECT_SECONDS = 10
HTTP_SECONDS = 60  # without a byte from the server


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
    """Return a session that authenticates as the server asks; the caller closes it.

    Its requests raise requests.HTTPError if the server redirects them.

    Raises:
        OSError, UnicodeDecodeError: A file with a secret cannot be read.
    """
    session = requests.Session()
    session.trust_env = False  # a .netrc or a proxy of the environment must not get images and results
    session.hooks["response"] = [_reject_redirect]
    if server.ca_file:
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


def read_credential(file: Path) -> str:
    """Return the content of a file without surrounding white space."""
    return file.read_text(encoding="utf-8").strip()

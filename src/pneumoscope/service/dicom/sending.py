"""How the results in the outbox are sent: what a sender does, and how it fails."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Protocol

import requests
from urllib3.exceptions import MaxRetryError, ProtocolError, ReadTimeoutError

from pneumoscope.service.storage.outbox_records import Delivery

__all__ = [
    "UNCERTAIN_STATUSES",
    "DeliveryError",
    "Sender",
    "UnconfirmedError",
    "UnreachableError",
    "connection_error_code",
    "may_have_arrived",
]

# HTTP statuses of a server that may have stored what was sent: it failed meanwhile, or is behind a gateway that waited in vain
# (520 to 527 are Cloudflare's). Not 503: a server that is overloaded or under maintenance sends it before it processes a request.
UNCERTAIN_STATUSES = (500, 502, 504, *range(520, 528))

# Codes of the errors of a connection, the first that holds; none of them states an address.
_CONNECTION_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "name_not_resolved"),
    (UnicodeError, "name_not_resolved"),  # the name has an empty or too long label
    (ssl.SSLError, "tls_failed"),
    (ConnectionRefusedError, "connection_refused"),
    (TimeoutError, "timeout"),
)


class _SendingError(Exception):
    """A destination did not confirm an object. The message is a stable code.

    Attributes:
        maybe_delivered: Whether the destination may have the object nevertheless.
    """

    def __init__(self, code: str, *, maybe_delivered: bool = False) -> None:
        super().__init__(code)
        self.maybe_delivered = maybe_delivered


class DeliveryError(_SendingError):
    """A destination refused an object, or its response does not confirm it."""


class UnconfirmedError(_SendingError):
    """A destination did not answer, and may have the object."""

    def __init__(self, code: str) -> None:
        super().__init__(code, maybe_delivered=True)


class UnreachableError(_SendingError):
    """A destination cannot be reached, or cannot accept any object."""


class Sender(Protocol):
    """Sends to one destination."""

    def send(self, delivery: Delivery, content: bytes) -> None:
        """Send an object or an event.

        Raises:
            DeliveryError, UnconfirmedError, UnreachableError: The destination does not confirm that it has it.
        """


def connection_error_code(error: BaseException) -> str:
    """Return the code of an error that prevented a connection; "unreachable" for an error without a specific code."""
    causes = list(_causes(error))
    found = (code for kind, code in _CONNECTION_CODES if any(isinstance(each, kind) for each in causes))
    return next(found, "unreachable")


def may_have_arrived(error: Exception) -> bool:
    """Return whether the server may have got an HTTP request that failed."""
    cause = error.args[0] if isinstance(error, requests.ConnectionError) and error.args else None
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return False
    if isinstance(error, requests.exceptions.SSLError):  # MaxRetryError: before the response; others: in its body
        return not isinstance(cause, MaxRetryError)
    return isinstance(cause, ProtocolError | ReadTimeoutError) or isinstance(
        error, requests.Timeout | requests.exceptions.ChunkedEncodingError
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and what caused it; requests and urllib3 state causes as arguments and as attributes."""
    pending, seen = [error], set[int]()
    while pending:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        causes = (each.__cause__, each.__context__, getattr(each, "reason", None), *each.args)
        pending += [cause for cause in causes if isinstance(cause, BaseException)]

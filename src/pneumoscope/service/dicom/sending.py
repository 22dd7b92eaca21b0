"""Interface and errors of the senders that deliver the results in the outbox."""

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

# HTTP statuses after which a server may have stored the object: it failed while processing it, or a gateway timed out
# (520 to 527 are Cloudflare's). Excludes 503, which overloaded servers send before processing a request.
UNCERTAIN_STATUSES = (500, 502, 504, *range(520, 528))

# Codes of connection errors; the first match applies. They contain no addresses.
_CONNECTION_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "name_not_resolved"),
    (UnicodeError, "name_not_resolved"),  # the host name has an empty or overlong label
    (ssl.SSLError, "tls_failed"),
    (ConnectionRefusedError, "connection_refused"),
    (TimeoutError, "timeout"),
)


class _SendingError(Exception):
    """A destination did not confirm an object. The message is a stable code.

    Attributes:
        maybe_delivered: Whether the destination may have stored the object anyway.
    """

    def __init__(self, code: str, *, maybe_delivered: bool = False) -> None:
        super().__init__(code)
        self.maybe_delivered = maybe_delivered


class DeliveryError(_SendingError):
    """A destination refused an object, or its response does not confirm it."""


class UnconfirmedError(_SendingError):
    """A destination did not respond, but may have stored the object."""

    def __init__(self, code: str) -> None:
        super().__init__(code, maybe_delivered=True)


class UnreachableError(_SendingError):
    """A destination cannot be reached, or currently accepts no objects."""


class Sender(Protocol):
    """A sender of objects or events to one destination."""

    def send(self, delivery: Delivery, content: bytes) -> None:
        """Send an object or an event.

        Raises:
            DeliveryError, UnconfirmedError, UnreachableError: The destination did not confirm receipt.
        """


def connection_error_code(error: BaseException) -> str:
    """Return the code of a connection error; "unreachable" if there is no specific code."""
    causes = list(_causes(error))
    found = (code for kind, code in _CONNECTION_CODES if any(isinstance(each, kind) for each in causes))
    return next(found, "unreachable")


def may_have_arrived(error: Exception) -> bool:
    """Return whether a failed HTTP request may have reached the server."""
    cause = error.args[0] if isinstance(error, requests.ConnectionError) and error.args else None
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return False
    if isinstance(error, requests.exceptions.SSLError):  # MaxRetryError: before the response; others: in its body
        return not isinstance(cause, MaxRetryError)
    return isinstance(cause, ProtocolError | ReadTimeoutError) or isinstance(
        error, requests.Timeout | requests.exceptions.ChunkedEncodingError
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, which requests and urllib3 also store in arguments and attributes."""
    pending, seen = [error], set[int]()
    while pending:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        causes = (each.__cause__, each.__context__, getattr(each, "reason", None), *each.args)
        pending += [cause for cause in causes if isinstance(cause, BaseException)]

"""How the results in the outbox are sent: what a sender does, and how it fails."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Protocol

from pneumoscope.service.storage.deliveries import Delivery

__all__ = ["DeliveryError", "Sender", "UnconfirmedError", "UnreachableError", "connection_error_code"]

# Codes of the errors of a connection, the first that holds; none of them states an address.
_CONNECTION_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "name_not_resolved"),
    (UnicodeError, "name_not_resolved"),  # the name has an empty or too long label
    (ssl.SSLError, "tls_failed"),
    (ConnectionRefusedError, "connection_refused"),
    (TimeoutError, "timeout"),
)


class DeliveryError(Exception):
    """A destination refused an object. The message is a stable code."""


class UnconfirmedError(Exception):
    """A destination did not answer, and may have the object. The message is a stable code."""


class UnreachableError(Exception):
    """A destination cannot be reached. The message is a stable code."""


class Sender(Protocol):
    """Sends to one destination."""

    def send(self, delivery: Delivery, content: bytes) -> None:
        """Send an object or an event.

        Raises:
            DeliveryError, UnconfirmedError, UnreachableError: The destination does not confirm that it has it.
        """


def connection_error_code(error: BaseException) -> str:
    """Return the code of an error that prevented a connection; "unreachable" for an error without a code of its own."""
    causes = list(_causes(error))
    found = (code for kind, code in _CONNECTION_CODES if any(isinstance(each, kind) for each in causes))
    return next(found, "unreachable")


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

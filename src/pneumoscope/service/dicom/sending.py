"""How the results in the outbox are sent: what a sender does, and how it fails."""

from __future__ import annotations

from typing import Protocol

from pneumoscope.service.storage.outbox import Delivery

__all__ = ["DeliveryError", "Sender", "UnconfirmedError", "UnreachableError"]


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

    def close(self) -> None:
        """Close the connections."""

"""Deliver the results in the outbox: to DICOM nodes by C-STORE, to DICOMweb servers by STOW-RS.

Each destination has a thread of its own, so that one that is away delays no other. An object is sent until the destination
confirms that it has it; an object that was sent before the process was killed is sent again, with the same UID and content.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from pneumoscope.core.errors import GoneError, PneumoscopeError, StorageError, UnknownNameError
from pneumoscope.service.dicom.configuration import Destination, DicomConfiguration
from pneumoscope.service.dicom.results import SOP_CLASSES
from pneumoscope.service.dicom.settings import DicomPeer, DicomSettings
from pneumoscope.service.dicom.web_session import HTTP_SECONDS, open_session
from pneumoscope.service.storage.outbox import Delivery, Outbox

if TYPE_CHECKING:
    from pneumoscope.service.rendering import ImageRenderer

__all__ = ["DeliveryError", "ResultDelivery", "UnreachableError"]

_LOG = logging.getLogger("pneumoscope.service")
_POLL_SECONDS = 1.0
_BATCH = 20  # objects on one association
_ALL = 100_000  # objects whose next attempt is delayed together
_DUPLICATE = 0x0111  # SOP instance exists (PS3.7 C.5.7)
_WARNINGS = range(0xB000, 0xC000)  # stored, with a remark (PS3.4 B.2.3)


class DeliveryError(Exception):
    """A destination refused an object. The message is a stable code."""


class UnreachableError(Exception):
    """A destination cannot be reached. The message is a stable code."""


class _Sender(Protocol):
    def send(self, instance: Dataset) -> None:
        """Send an object. Raise DeliveryError or UnreachableError if the destination does not confirm that it has it."""


class ResultDelivery:
    """Threads that deliver the results of one service.

    Args:
        configuration: Destinations and the DICOM node.
        outbox: The results.
        renderer: Writes the objects.
        now: Returns the time, for tests.
    """

    def __init__(
        self,
        configuration: DicomConfiguration,
        outbox: Outbox,
        renderer: ImageRenderer,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._configuration, self._outbox, self._renderer, self._now = configuration, outbox, renderer, now
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(name, receiver), name=f"delivery-{name}", daemon=True)
            for name, receiver in configuration.receivers.items()
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> None:
        """Stop the threads after the objects that are being sent, but wait no longer than a number of seconds for each."""
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout)

    def _run(self, name: str, receiver: DicomPeer | Destination) -> None:
        while not self._stopped.is_set():
            try:
                delivered = self.deliver_due(name, receiver)
            except StorageError as error:
                _LOG.warning("Results cannot be delivered to %s; the next attempt follows: %s", name, error.message)
                delivered = 0
            except Exception as error:  # noqa: BLE001  the thread must survive; the message may contain anything
                _LOG.error("Results cannot be delivered to %s: unexpected %s", name, type(error).__name__)
                delivered = 0
            if not delivered:
                self._stopped.wait(_POLL_SECONDS)

    def deliver_due(self, name: str, receiver: DicomPeer | Destination) -> int:
        """Try to deliver some objects that are due for a destination, and return the number of those that it confirmed.

        Raises:
            StorageError: The database cannot be used.
        """
        deliveries = self._outbox.due(name, self._now(), _BATCH)
        if not deliveries:
            return 0
        count = 0
        try:
            with _open_sender(receiver, self._configuration.node) as sender:
                for delivery in deliveries:
                    if self._stopped.is_set():
                        break
                    count += self._deliver(delivery, sender)
        except UnreachableError as error:
            _LOG.warning("Results cannot be delivered to %s: %s", name, error)
            self._outbox.record_failure(self._outbox.due(name, self._now(), _ALL), str(error), self._now())
        return count

    def _deliver(self, delivery: Delivery, sender: _Sender) -> bool:
        """Deliver an object, and return whether it was confirmed."""
        if not self._outbox.is_waiting(delivery.number):
            return False
        try:
            content = self._renderer.result_object(delivery)
        except (UnknownNameError, GoneError) as error:  # the prediction was deleted, or its image removed
            self._outbox.record_cancelled(delivery, error.code, self._now())
            return False
        except PneumoscopeError as error:
            self._outbox.record_failure([delivery], error.code, self._now())
            return False
        try:
            sender.send(dcmread(io.BytesIO(content)))
        except DeliveryError as error:
            _LOG.warning("Result %d was refused by %s: %s", delivery.number, delivery.destination, error)
            self._outbox.record_failure([delivery], str(error), self._now())
            return False
        self._outbox.record_delivered([delivery], self._now())
        return True


@contextlib.contextmanager
def _open_sender(receiver: DicomPeer | Destination, node: DicomSettings | None) -> Iterator[_Sender]:
    """Yield what sends objects to a destination. Raise UnreachableError if it cannot be reached."""
    if isinstance(receiver, Destination):
        with contextlib.closing(_WebSender(receiver)) as web_sender:
            yield web_sender
        return
    assert node  # a peer is one of a node
    with contextlib.closing(_DicomSender(receiver, node)) as sender:
        yield sender


class _DicomSender:
    """Sends objects by C-STORE on one association."""

    def __init__(self, peer: DicomPeer, node: DicomSettings) -> None:
        ae = AE(node.ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = node.timeout
        for sop_class in SOP_CLASSES.values():
            ae.add_requested_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        options: dict[str, Any] = {"tls_args": (node.client_tls, peer.host)} if node.client_tls else {}
        # Without it, a peer that stops reading would block the thread for ever.
        limit_time = (evt.EVT_CONN_OPEN, lambda event: event.assoc.dul.socket.socket.settimeout(node.timeout))
        self._association = ae.associate(
            peer.host, peer.port, ae_title=peer.ae_title, evt_handlers=[limit_time], **options
        )
        if not self._association.is_established:
            code = "association_rejected" if self._association.is_rejected else "unreachable"
            self._close_socket()
            raise UnreachableError(code)

    def send(self, instance: Dataset) -> None:
        """See `_Sender`."""
        try:
            response = self._association.send_c_store(instance)
        except ValueError as error:  # no presentation context for the class
            raise DeliveryError("sop_class_not_accepted") from error
        except RuntimeError as error:  # the association was closed
            raise UnreachableError("association_aborted") from error
        if "Status" not in response:
            raise UnreachableError("association_aborted")
        status = int(response.Status)
        if status not in (0x0000, _DUPLICATE) and status not in _WARNINGS:
            raise DeliveryError(f"status_{status:04x}")

    def close(self) -> None:
        """Release the association."""
        if self._association.is_established:
            self._association.release()
        self._close_socket()

    def _close_socket(self) -> None:
        transport = self._association.dul.socket
        if transport and transport.socket:  # left open if the peer has closed the connection
            transport.socket.close()


class _WebSender:
    """Sends objects by STOW-RS."""

    def __init__(self, destination: Destination) -> None:
        try:
            self._session = open_session(destination)
        except (OSError, UnicodeDecodeError) as error:
            raise UnreachableError("secret_unreadable") from error
        self._client = DICOMwebClient(destination.url or "", session=self._session, timeout=HTTP_SECONDS)
        self._client.set_http_retry_params(retry=False)

    def send(self, instance: Dataset) -> None:
        """See `_Sender`."""
        try:
            response = self._client.store_instances([instance])
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if error.response is None or status != 409:
                unreachable = status in (401, 403, 404, 429) or status >= 500
                raise (UnreachableError if unreachable else DeliveryError)(f"http_{status}") from error
            response = _parse(error.response)
        except (requests.RequestException, OSError) as error:
            raise UnreachableError("unreachable") from error
        failed, stored = (response.get(name) or [] for name in ("FailedSOPSequence", "ReferencedSOPSequence"))
        reasons = {int(item.get("FailureReason") or 0) for item in failed} - {_DUPLICATE}
        if reasons:
            raise DeliveryError(f"status_{min(reasons):04x}")
        if not failed and not stored:
            raise DeliveryError("response_not_understood")

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def _parse(response: requests.Response) -> Dataset:
    """Return the body of a response; empty if it is not DICOM JSON."""
    try:
        return Dataset.from_json(response.json())
    except Exception:  # noqa: BLE001  a server may send anything
        return Dataset()

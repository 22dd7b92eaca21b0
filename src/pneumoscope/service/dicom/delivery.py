"""Deliver the results in the outbox: to DICOM nodes by C-STORE, to DICOMweb servers by STOW-RS, to webhooks by HTTP.

Each destination has its own thread, so an unreachable one does not delay the others. An object is sent until the
destination confirms it. If the process is killed before the confirmation, the object is sent again with the same UID
and content.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from pneumoscope.core.addresses import origin
from pneumoscope.core.errors import GoneError, PneumoscopeError, StorageError, UnknownNameError
from pneumoscope.dicomweb.session import HTTP_SECONDS, AnswerTooLongError, open_session
from pneumoscope.service.dicom.commitment import CommitmentRequester
from pneumoscope.service.dicom.configuration import Destination, DicomConfiguration, Webhook
from pneumoscope.service.dicom.node_settings import DicomPeer, DicomSettings
from pneumoscope.service.dicom.outgoing_associations import open_association
from pneumoscope.service.dicom.results import SOP_CLASSES
from pneumoscope.service.dicom.sending import (
    UNCERTAIN_STATUSES,
    DeliveryError,
    Sender,
    UnconfirmedError,
    UnreachableError,
    connection_error_code,
    may_have_arrived,
)
from pneumoscope.service.dicom.webhooks import WebhookSender, study_event
from pneumoscope.service.storage.outbox_records import Delivery
from pneumoscope.service.storage.resending import is_unchanged

if TYPE_CHECKING:
    from pneumoscope.service.rendering import ImageRenderer
    from pneumoscope.service.storage.repository import PredictionRepository

__all__ = ["TRANSFER_SYNTAXES", "ResultDelivery"]

TRANSFER_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)  # proposed transfer syntaxes
_LOG = logging.getLogger("pneumoscope.service")
_POLL_SECONDS = 1.0  # interval for checking for retries and for changes made by commands
_UNEXPECTED_SECONDS = 60.0  # delay after an unexpected error
_BATCH = 20  # objects per association
_DUPLICATE = 0x0111  # SOP Instance already exists (PS3.7 C.5.7)
_WARNINGS = range(0xB000, 0xC000)  # stored with a warning (PS3.4 B.2.3)
_UNAVAILABLE = (401, 403, 404, 429, 502, 503, 504)  # HTTP statuses that concern the whole server, not one object


_Receiver = DicomPeer | Destination | Webhook


class ResultDelivery:
    """Threads that deliver the results of a service.

    Args:
        configuration: Destinations, webhooks and the DICOM node.
        repository: Repository with the results.
        renderer: Creates the objects.
        notice: Returns the notice that the event of given predictions contains.
        now: Returns the current time; replaceable in tests.
    """

    def __init__(
        self,
        configuration: DicomConfiguration,
        repository: PredictionRepository,
        renderer: ImageRenderer,
        notice: Callable[..., str],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._configuration, self._renderer, self._notice, self._now = configuration, renderer, notice, now
        self._repository, self._outbox = repository, repository.outbox
        self._stopped = threading.Event()
        self._unreachable: set[str] = set()  # names of destinations
        receivers: dict[str, _Receiver] = {
            **configuration.receivers,
            **{each.name: each for each in configuration.webhooks},
        }
        self._changed = {name: threading.Event() for name in receivers}  # set when the outbox may have changed
        self._threads = [
            threading.Thread(target=self._run, args=(name, receiver), name=f"delivery-{name}", daemon=True)
            for name, receiver in receivers.items()
        ]
        self._threads += CommitmentRequester(configuration, repository.engine, self._stopped, now=now).threads

    def start(self) -> None:
        """Start the threads, including those for storage commitment."""
        self._repository.storage.add_change_listener(self._wake)
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> None:
        """Stop the threads once the current objects are sent, and wait at most `timeout` seconds."""
        self._stopped.set()
        self._wake()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _wake(self) -> None:
        for changed in self._changed.values():
            changed.set()

    def _run(self, name: str, receiver: _Receiver) -> None:
        changed = self._changed[name]
        while not self._stopped.is_set():
            changed.clear()  # before reading the outbox, so that no change is missed
            try:
                delivered = self.deliver_due(name, receiver)
            except StorageError as error:
                _LOG.warning("Results cannot be delivered to %s; the next attempt follows: %s", name, error.message)
                delivered = 0
            except Exception as error:  # noqa: BLE001  the thread must survive; the message may contain anything
                _LOG.error("Results cannot be delivered to %s: unexpected %s", name, type(error).__name__)
                self._stopped.wait(_UNEXPECTED_SECONDS)
                continue
            if not delivered and not self._stopped.is_set():
                changed.wait(_POLL_SECONDS)

    def deliver_due(self, name: str, receiver: _Receiver) -> int:
        """Try to deliver a batch of due objects to a destination; return the number that it confirmed.

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
                    count += self._deliver(delivery.number, receiver, sender)
        except UnconfirmedError as error:  # this object may be the cause; the next attempt starts with the others
            _LOG.warning("A result was sent to %s without an answer: %s", name, error)
        except UnreachableError as error:
            self._unreachable.add(name)
            place = str(receiver) if isinstance(receiver, DicomPeer) else f"{name} ({origin(receiver.url or '')})"
            _LOG.warning("Results cannot be delivered to %s: %s", place, error)
            self._outbox.record_unreachable(name, str(error), self._now())
        if count and name in self._unreachable:
            self._unreachable.remove(name)
            _LOG.info("Results are delivered to %s again", name)
        return count

    def _deliver(self, number: int, receiver: _Receiver, sender: Sender) -> bool:
        """Deliver an object or an event; return whether it was confirmed."""
        delivery = self._outbox.begin(number)
        if delivery is None:
            return False
        try:
            content = self._write(delivery, receiver)
        except (UnknownNameError, GoneError) as error:  # the prediction was deleted or its image removed
            self._outbox.record_cancelled(delivery, error.code, self._now())
            return False
        except Exception as error:  # noqa: BLE001  the others must not wait; the message may contain anything
            code = error.code if isinstance(error, PneumoscopeError) else "internal_error"
            _LOG.warning("Result %d cannot be written: %s", number, type(error).__name__)
            self._outbox.record_failure([delivery], code, self._now())
            return False
        sha256 = hashlib.sha256(content).hexdigest()
        if not is_unchanged(self._repository.engine, delivery, sha256):
            _LOG.warning("Result %d is not sent to %s again: it would differ", number, delivery.destination)
            self._outbox.record_cancelled(delivery, "content_changed", self._now())
            return False
        try:
            sender.send(delivery, content)
        except (DeliveryError, UnconfirmedError, UnreachableError) as error:
            self._outbox.record_failure([delivery], str(error), self._now(), maybe_delivered=error.maybe_delivered)
            if not isinstance(error, DeliveryError):
                raise
            _LOG.warning("Result %d was refused by %s: %s", number, delivery.destination, error)
            return False
        except Exception as error:  # noqa: BLE001  untrusted response; the others must not wait
            _LOG.warning("Result %d: the response of %s: %s", number, delivery.destination, type(error).__name__)
            self._outbox.record_failure([delivery], "response_not_understood", self._now(), maybe_delivered=True)
            return False
        requests_commitment = delivery.destination in self._configuration.commitments
        self._outbox.record_delivered(
            [delivery], self._now(), requests_commitment=requests_commitment, hashes={number: sha256}
        )
        return True

    def _write(self, delivery: Delivery, receiver: _Receiver) -> bytes:
        if isinstance(receiver, Webhook):
            return study_event(self._repository, delivery, self._notice, identifiers=receiver.identifiers)
        return self._renderer.result_object(delivery)


@contextlib.contextmanager
def _open_sender(receiver: _Receiver, node: DicomSettings | None) -> Iterator[Sender]:
    """Yield a sender for a destination. Raise UnreachableError if the destination cannot be reached."""
    if isinstance(receiver, DicomPeer):
        assert node  # peers require a node
        contexts = [build_context(sop_class, list(TRANSFER_SYNTAXES)) for sop_class in SOP_CLASSES.values()]
        with open_association(receiver, node, contexts) as association:
            yield _DicomSender(association)
        return
    sender = WebhookSender(receiver) if isinstance(receiver, Webhook) else _WebSender(receiver)
    with contextlib.closing(sender):
        yield sender


class _DicomSender:
    """A sender of objects by C-STORE on one association."""

    def __init__(self, association: Association) -> None:
        self._association = association

    def send(self, delivery: Delivery, content: bytes) -> None:
        """Send an object; see `sending.Sender`."""
        try:
            response = self._association.send_c_store(dcmread(io.BytesIO(content)))
        except ValueError as error:  # no presentation context for the SOP class
            raise DeliveryError("sop_class_not_accepted") from error
        except RuntimeError as error:  # the association was closed
            raise UnconfirmedError("association_aborted") from error
        if "Status" not in response:
            raise UnconfirmedError("association_aborted")
        status = int(response.Status)
        if status not in (0x0000, _DUPLICATE) and status not in _WARNINGS:
            raise DeliveryError(f"status_{status:04x}")


class _WebSender:
    """A sender of objects by STOW-RS."""

    def __init__(self, destination: Destination) -> None:
        try:
            self._session = open_session(destination)
        except (OSError, ValueError) as error:
            raise UnreachableError("secret_unreadable") from error
        self._session.hooks["response"].append(_strip_parameters)
        self._client = DICOMwebClient(destination.url or "", session=self._session, timeout=HTTP_SECONDS)
        self._client.set_http_retry_params(retry=False)

    def send(self, delivery: Delivery, content: bytes) -> None:
        """Send an object; see `sending.Sender`."""
        is_conflict = False
        try:
            response = self._client.store_instances([dcmread(io.BytesIO(content))])
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if error.response is None or status != 409:
                is_unavailable = status in _UNAVAILABLE or 300 <= status < 400  # redirects are not followed
                error_class = UnreachableError if is_unavailable else DeliveryError
                raise error_class(f"http_{status}", maybe_delivered=status in UNCERTAIN_STATUSES) from error
            is_conflict, response = True, _parse(error.response)
        except (
            requests.exceptions.InvalidJSONError,
            requests.exceptions.ContentDecodingError,
            AnswerTooLongError,
        ) as error:
            raise DeliveryError("response_not_understood", maybe_delivered=True) from error
        except (requests.RequestException, OSError) as error:
            if may_have_arrived(error):
                raise UnconfirmedError("association_aborted") from error
            raise UnreachableError(connection_error_code(error)) from error
        failed, stored = (response.get(name) or [] for name in ("FailedSOPSequence", "ReferencedSOPSequence"))
        reasons = {int(item.get("FailureReason") or 0) for item in failed} - {_DUPLICATE}
        if reasons:
            raise DeliveryError(f"status_{min(reasons):04x}")
        if not failed and not stored:  # a server that reports a conflict stored nothing (PS3.18 10.5.3.1)
            raise DeliveryError("response_not_understood", maybe_delivered=not is_conflict)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def _strip_parameters(response: requests.Response, *_: Any, **__: Any) -> None:
    """Remove parameters such as charset from the Content-Type, because DICOMwebClient compares it with the bare media types."""
    if "Content-Type" in response.headers:
        response.headers["Content-Type"] = response.headers["Content-Type"].partition(";")[0].strip().lower()


def _parse(response: requests.Response) -> Dataset:
    """Return the data set in a response; empty if it is not DICOM JSON."""
    try:
        return Dataset.from_json(response.json())
    except Exception:  # noqa: BLE001  untrusted response
        return Dataset()

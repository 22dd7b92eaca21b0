"""Receiver of the DICOM node: SCP of C-ECHO and C-STORE, and recipient of storage commitment reports.

An instance is acknowledged only after it is on disk. Instances with an invalid header are recorded as unreadable files.
Log lines contain no data sent by peers, except AE titles.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from pydicom import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE, N_EVENT_REPORT
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # the module creates its names when it is imported
    Comprehensive3DSRStorage,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
    StorageCommitmentPushModel,
    Verification,
)
from pynetdicom.transport import ThreadedAssociationServer

from pneumoscope.core.errors import UsageError
from pneumoscope.service.dicom.commitment import UNKNOWN_REPORT, answer_report
from pneumoscope.service.dicom.node_settings import (
    PROCESSING_FAILURE,
    SUCCESS,
    DicomPeer,
    DicomSettings,
    image_name,
)

if TYPE_CHECKING:
    from pynetdicom.events import Event

    from pneumoscope.service.dicom.processing import InstanceProcessor
    from pneumoscope.service.storage.commitments import Commitments

__all__ = ["RESULT_SOP_CLASSES", "SOP_CLASSES", "DicomReceiver", "transfer_syntaxes"]

_LOG = logging.getLogger("pneumoscope.service")
_COMMAND_BYTES = 4096  # upper limit for the command messages of an instance
_HANDSHAKE_SECONDS = 10
# Linux only: a sender that coalesces small packets would wait up to 40 ms for each acknowledgment.
_QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)
_CONNECTIONS = 2  # open connections per permitted association
_MAX_PDU_BYTES = 2**20  # for association requests with many presentation contexts; data PDUs have at most 16 KiB
# Rejection of an association: permanent, by the service user, calling AE title not recognized (PS3.8 9.3.4).
_UNKNOWN_CALLER = (0x01, 0x01, 0x03)
_UNRECOGNIZED_OPERATION = 0x0211  # PS3.7 C.5.22

SOP_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,  # received, but rejected instead of predicted: raw values are not for display
    SecondaryCaptureImageStorage,
)
# SOP classes of our results, besides Secondary Capture. A PACS that routes whole studies sends results back, and may
# stop at the first instance that is not accepted, before it sends the images.
RESULT_SOP_CLASSES = (
    Comprehensive3DSRStorage,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
    GrayscaleSoftcopyPresentationStateStorage,
)
_NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
_LISTEN_HINTS = {
    errno.EADDRINUSE: "Stop the program that listens there, or choose another port of the DICOM node",
    errno.EACCES: "Choose a port of the DICOM node above 1023",
}


def transfer_syntaxes() -> list[str]:
    """Return the UIDs of the transfer syntaxes that this installation can decode, uncompressed ones first."""
    compressed = []
    for uid in AllTransferSyntaxes:
        if uid in _NATIVE or uid == DeflatedExplicitVRLittleEndian:
            continue
        with contextlib.suppress(NotImplementedError):  # no decoder for this syntax
            if get_decoder(uid).is_available:
                compressed.append(uid)
    return [str(uid) for uid in [*_NATIVE, *compressed]]


class DicomReceiver:
    """A DICOM server that accepts associations from the configured peers and stores their instances.

    The socket is bound on construction; `start` begins to accept associations.

    Args:
        settings: Settings of the node.
    Raises:
        UsageError: The address cannot be bound.
    """

    def __init__(self, settings: DicomSettings) -> None:
        self._settings = settings
        self._ae = AE(settings.ae_title)
        self._ae.require_called_aet = True
        self._ae.maximum_associations = settings.max_associations
        for name in ("acse_timeout", "dimse_timeout", "network_timeout"):
            setattr(self._ae, name, settings.timeout)
        self._ae.add_supported_context(Verification)
        for sop_class in SOP_CLASSES:
            self._ae.add_supported_context(sop_class, transfer_syntaxes())
        for sop_class in RESULT_SOP_CLASSES:
            self._ae.add_supported_context(sop_class, list(map(str, _NATIVE)))
        # For commitment reports, the connecting peer is the SCP.
        self._ae.add_supported_context(
            StorageCommitmentPushModel, list(map(str, _NATIVE[:2])), scu_role=False, scp_role=True
        )
        self._commitments: Commitments | None = None
        self._peers: dict[int, DicomPeer] = {}  # by association id
        self._unprocessed: dict[int, int] = {}  # bytes received but not yet stored, by association id
        self._count_lock = threading.Lock()
        self._storing: set[int] = set()  # ids of associations that are storing an instance
        self._processor: InstanceProcessor | None = None
        self._stopped = False
        self._server = self._listen()
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """Listening port."""
        return int(self._server.server_address[1])

    def start(self, processor: InstanceProcessor, commitments: Commitments | None = None) -> None:
        """Accept associations.

        Args:
            processor: Processes the instances.
            commitments: Records storage commitment reports; None refuses them.
        """
        self._processor, self._commitments = processor, commitments
        self._thread = threading.Thread(target=self._server.serve_forever, name="dicom-receiver", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop accepting associations, wait up to `timeout` seconds for instances in progress, then abort all associations."""
        if self._stopped:
            return
        self._stopped = True
        if self._thread is None:
            self._server.server_close()
            return
        self._server.shutdown()
        deadline = time.monotonic() + timeout
        while self._storing and time.monotonic() < deadline:
            time.sleep(0.05)
        for association in self._ae.active_associations:
            association.abort()
        self._thread.join(timeout)

    def _listen(self) -> ThreadedAssociationServer:
        host = self._settings.host.strip("[]")
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, _limit_pdus),
            (evt.EVT_CONN_OPEN, _end_with_connection),
            (evt.EVT_REQUESTED, self._authorize),
            (evt.EVT_DATA_RECV, self._count_bytes),
            (evt.EVT_C_ECHO, lambda _: SUCCESS),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_EVENT_REPORT, self._answer_report),
            (
                evt.EVT_N_ACTION,
                lambda _: (_UNRECOGNIZED_OPERATION, None),
            ),  # the service is not an SCP of storage commitment
            (evt.EVT_CONN_CLOSE, self._forget),
        ]
        try:
            server = self._ae.make_server(
                (host, self._settings.port), evt_handlers=handlers, server_class=_Server, settings=self._settings
            )
        except OSError as error:
            raise UsageError(
                f"cannot listen for DICOM on {host}, port {self._settings.port}: {error.strerror or error}",
                hint=_LISTEN_HINTS.get(error.errno or 0, "Set host of the DICOM node to an address of this machine"),
            ) from error
        self._ae._servers.append(server)  # as `AE.start_server` would do; `shutdown` removes it
        return server

    # --- associations ----------------------------------------------------------------------------------------------------

    def _authorize(self, event: Event) -> None:
        """Reject an association unless its calling AE title and address match a peer."""
        association = event.assoc
        request = cast(A_ASSOCIATE, association.requestor.primitive)
        title, address = request.calling_ae_title.strip(), str(association.requestor.address)
        peer = next((peer for peer in self._settings.peers if peer.ae_title == title and _is_at(peer, address)), None)
        if peer is None:
            _LOG.warning("Rejected a DICOM association of %s from %s: not a configured peer", ascii(title), address)
            association.acse.send_reject(*_UNKNOWN_CALLER)
            evt.trigger(association, evt.EVT_REJECTED, {})
            association.kill()
            return
        if request.called_ae_title.strip() != self._settings.ae_title:  # pynetdicom rejects it
            called, known = ascii(request.called_ae_title.strip()), self._settings.ae_title
            _LOG.warning("Rejected a DICOM association of %s: it calls %s, not %s", peer.name, called, known)
        self._peers[id(association)] = peer

    def _count_bytes(self, event: Event) -> None:
        """Abort an association that exceeds the limit for one instance, or all associations' total limit.

        A peer can send further instances while one is being stored.
        """
        key = id(event.assoc)
        with self._count_lock:
            before = self._unprocessed.get(key, 0)
            self._unprocessed[key] = after = before + len(event.data)
            total = sum(self._unprocessed.values())
        limit = self._settings.max_bytes
        if before <= limit < after:
            _LOG.warning("Aborted a DICOM association: it sent more than %d bytes that are not stored", limit)
            event.assoc.abort(block=False)
        elif total > self._settings.max_total_bytes:
            _LOG.warning("Aborted a DICOM association: all hold more than %d bytes", self._settings.max_total_bytes)
            event.assoc.abort(block=False)

    def _count_processed(self, key: int, size: int) -> None:
        """Subtract an instance, including its PDU headers, from an association's unprocessed bytes."""
        with self._count_lock:
            if key in self._unprocessed:
                self._unprocessed[key] = max(0, self._unprocessed[key] - round(1.01 * size) - _COMMAND_BYTES)

    def _forget(self, event: Event) -> None:
        self._peers.pop(id(event.assoc), None)
        with self._count_lock:
            self._unprocessed.pop(id(event.assoc), None)

    # --- C-STORE ---------------------------------------------------------------------------------------------------------

    def _store(self, event: Event) -> Dataset:
        """Store an instance; return the status of the response."""
        assert self._processor
        key, instance = id(event.assoc), event.encoded_dataset()
        peer = self._peers.get(key)
        if peer is None:  # the association was closed
            return _status(PROCESSING_FAILURE)
        self._storing.add(key)
        try:
            name = image_name(str(cast(C_STORE, event.request).AffectedSOPInstanceUID))
            return _status(*self._processor.receive(instance, name, peer.name, reply_to=peer.name))
        finally:
            self._storing.discard(key)
            self._count_processed(key, len(instance))

    # --- Storage commitment ----------------------------------------------------------------------------------------------

    def _answer_report(self, event: Event) -> tuple[int, None]:
        """Record a storage commitment report; return the status of the response."""
        key = id(event.assoc)
        information = cast(N_EVENT_REPORT, event.request).EventInformation
        self._count_processed(key, len(information.getvalue()) if information else 0)
        peer = self._peers.get(key)
        if peer is None or self._commitments is None:
            return UNKNOWN_REPORT, None
        return answer_report(event, peer.name, self._commitments, datetime.now(UTC)), None


def _status(status: int, code: str = "") -> Dataset:
    response = Dataset()
    response.Status = status
    if code:
        response.ErrorComment = code[:64]
    return response


def _limit_pdus(event: Event) -> None:
    """Limit the size of the PDUs that an association's socket reads, and the time that each may take.

    pynetdicom would read up to 4 GB into memory, and would wait forever for a peer that sends a byte now and then.
    """
    association_socket: Any = event.assoc.dul.socket
    seconds = float(event.assoc.network_timeout or 0)
    association_socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    association_socket.recv = partial(_receive, association_socket, seconds)


def _receive(association_socket: Any, seconds: float, n_bytes: int) -> bytearray:
    """Return the next bytes of a connection; fewer only at its end.

    Raises:
        OSError: The size exceeds that of a PDU, or the bytes do not arrive within `seconds`.
    """
    if n_bytes > _MAX_PDU_BYTES:
        raise OSError(errno.EMSGSIZE, "the PDU is too long")
    deadline, found = time.monotonic() + seconds, bytearray()
    while len(found) < n_bytes:
        if time.monotonic() > deadline:
            raise TimeoutError("the PDU is not complete")
        if _QUICK_ACK:  # the option is not permanent and must be set each time
            association_socket.socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)
        part = association_socket.socket.recv(n_bytes - len(found))
        if not part:
            break
        found += part
    return found


def _end_with_connection(event: Event) -> None:
    """End an association when its connection ends, or when the peer sends a malformed or unexpected PDU.

    If a connection closes before the association request, pynetdicom would count it as an association until the
    timeout. After a bad PDU, its thread would end with a traceback and leave the connection open.
    """
    association: Any = event.assoc
    machine = association.dul.state_machine
    machine.do_action = partial(_act, association, machine.do_action)


def _act(association: Any, act: Callable[[str], None], name: str) -> None:
    """Run an action of an association's state machine; end the association if the action fails or the connection is closed."""
    machine = association.dul.state_machine
    try:
        act(name)
    except Exception as error:  # noqa: BLE001  untrusted bytes; the message may contain anything
        _LOG.warning("Aborted a DICOM association: unexpected %s", type(error).__name__)
        association.is_aborted, association.is_established = True, False
        association.dul.socket.close()
        machine.current_state = "Sta1"  # idle
        association.dul._kill_thread = association._kill = True
    if machine.current_state == "Sta1" and association.requestor.primitive is None:
        association.dul.to_user_queue.put(None)  # unblocks the thread that waits for the request


def _is_at(peer: DicomPeer, address: str) -> bool:
    """Return whether a peer's host resolves to an address."""
    with contextlib.suppress(OSError, UnicodeError):
        found = {str(info[4][0]) for info in socket.getaddrinfo(peer.host, None)}
        return bool({address, address.removeprefix("::ffff:")} & found)
    return False


class _Server(ThreadedAssociationServer):
    """A server that checks client addresses and performs the TLS handshake in the thread of the connection.

    In the accepting thread, a single silent client would block all others.

    Args:
        arguments, options: Arguments of the base class; see `pynetdicom.AE.make_server`.
        settings: Settings of the node.
    """

    def __init__(self, *arguments: Any, settings: DicomSettings, **options: Any) -> None:
        self._settings, self._starting = settings, threading.Lock()
        super().__init__(*arguments, **options)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Process a connection; see `socketserver.ThreadingMixIn`."""
        address, settings = client_address[0], self._settings
        if not any(_is_at(peer, address) for peer in settings.peers):
            _LOG.warning("Rejected a DICOM connection from %s: the address is not that of a peer", address)
            self.shutdown_request(request)
            return
        if settings.tls:
            try:
                request.settimeout(min(settings.timeout, _HANDSHAKE_SECONDS))
                request = settings.tls.wrap_socket(request, server_side=True)
            except OSError:  # includes SSLError
                _LOG.warning("Rejected a DICOM connection from %s: TLS handshake failed", address)
                self.shutdown_request(request)
                return
        request.settimeout(settings.timeout)  # applies to incomplete PDUs
        with self._starting:
            # Connections above the association limit are rejected on request; until then, each occupies two threads.
            if len(self.active_associations) < _CONNECTIONS * settings.max_associations:
                super().process_request_thread(request, client_address)
                return
        _LOG.warning("Rejected a DICOM connection from %s: too many are open", address)
        self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a failed connection without its traceback."""
        _LOG.warning("A DICOM connection from %s failed", client_address[0])

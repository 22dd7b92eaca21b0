"""Open associations with a peer for delivery or retrieval, and translate failures into codes."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from pneumoscope.service.dicom.node_settings import DicomPeer, DicomSettings
from pneumoscope.service.dicom.sending import UnreachableError, connection_error_code

__all__ = ["REJECTIONS", "open_association"]

# Reasons for a permanent rejection by the service user (PS3.8 9.3.4).
_TITLES = {3: "calling_ae_title_not_recognized", 7: "called_ae_title_not_recognized"}
_REJECTED, _REJECTED_FOR_NOW = "association_rejected", "association_rejected_for_now"
REJECTIONS = (*_TITLES.values(), _REJECTED, _REJECTED_FOR_NOW)  # codes
_PERMANENT, _SERVICE_USER = 1, 1


class _Socket(AssociationSocket):
    """A socket that keeps the error of a failed connection, which pynetdicom only logs.

    This class and `_Requestor` override private methods of pynetdicom 3; pyproject.toml excludes the next major
    version.
    """

    error: BaseException | None = None

    def _shutdown_socket(self) -> None:
        """Shut the socket down; pynetdicom calls this while handling the error."""
        self.error = self.error or sys.exc_info()[1]
        super()._shutdown_socket()


class _Requestor(AE):
    def _create_socket(self, assoc: Association, address: AddressInformation, tls_args: Any) -> AssociationSocket:
        created = _Socket(assoc, address=address)
        created.tls_args = tls_args
        return created


@contextlib.contextmanager
def open_association(
    peer: DicomPeer,
    node: DicomSettings,
    contexts: Sequence[PresentationContext],
    handlers: Sequence[Any] = (),
    *,
    network_timeout: float | None = None,
) -> Iterator[Association]:
    """Yield an association with a peer, and release it afterwards.

    Args:
        peer: The peer.
        node: The local node.
        contexts: Presentation contexts to propose.
        handlers: Handlers of pynetdicom events.
        network_timeout: Seconds of silence after which the association ends; the node's timeout if None.
    Raises:
        UnreachableError: The association cannot be established; the message is a code.
    """
    ae = _Requestor(node.ae_title)
    ae.acse_timeout = ae.dimse_timeout = ae.connection_timeout = node.timeout
    ae.network_timeout = network_timeout or node.timeout
    options: dict[str, Any] = {"tls_args": (node.client_tls, peer.host)} if node.client_tls else {}

    def prepare(event: Any) -> None:
        opened = event.assoc.dul.socket.socket
        opened.settimeout(node.timeout)  # otherwise, a peer that stops reading would block the thread forever
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # an object begins with a small packet

    rejections: list[A_ASSOCIATE_RJ] = []

    def keep_rejection(event: Any) -> None:
        # If the rejection arrives before its thread waits for the answer, pynetdicom reports an abort instead.
        if isinstance(event.pdu, A_ASSOCIATE_RJ):
            rejections.append(event.pdu)

    began = time.monotonic()
    try:
        association = ae.associate(
            peer.host,
            peer.port,
            contexts=list(contexts),
            ae_title=peer.ae_title,
            evt_handlers=[(evt.EVT_CONN_OPEN, prepare), (evt.EVT_PDU_RECV, keep_rejection), *handlers],
            **options,
        )
    except (OSError, UnicodeError) as error:  # invalid or unknown host name
        raise UnreachableError(connection_error_code(error)) from error
    try:
        if not association.is_established:
            if rejections:
                raise UnreachableError(_rejection_code(rejections[0]))
            is_late = time.monotonic() - began >= node.timeout
            raise UnreachableError(_reason(association, is_late=is_late, has_tls=bool(node.client_tls)))
        yield association
    finally:
        if association.is_established:
            association.release()
        transport = association.dul.socket
        if transport and transport.socket:  # left open if the peer closed the connection
            transport.socket.close()


def _rejection_code(answer: A_ASSOCIATE_RJ) -> str:
    """Return the code of a rejection."""
    if (answer.result, answer.source) == (_PERMANENT, _SERVICE_USER):
        return _TITLES.get(answer.reason_diagnostic or 0, _REJECTED)
    return _REJECTED if answer.result == _PERMANENT else _REJECTED_FOR_NOW


def _reason(association: Association, *, is_late: bool, has_tls: bool) -> str:
    """Return the code for an association that failed without a rejection."""
    if association.rejected_contexts:
        return "sop_class_not_accepted"
    error = getattr(association.dul.socket, "error", None)
    if error:
        # A peer may close the connection instead of completing the handshake.
        return "tls_failed" if has_tls and isinstance(error, ConnectionResetError) else connection_error_code(error)
    return "timeout" if is_late else "association_aborted"

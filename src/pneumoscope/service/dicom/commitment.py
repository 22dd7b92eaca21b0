"""Request storage commitment for delivered results: Storage Commitment Push Model (PS3.4 annex J), as SCU.

Each peer has its own thread. The report arrives on the association of the request, or later on an association that the
peer opens to the receiver; `answer_report` answers both.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # the module creates its names when it is imported
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from pneumoscope.core.errors import StorageError
from pneumoscope.service.dicom.configuration import DicomConfiguration
from pneumoscope.service.dicom.node_settings import PROCESSING_FAILURE, SUCCESS, DicomPeer
from pneumoscope.service.dicom.outgoing_associations import open_association
from pneumoscope.service.dicom.results import SOP_CLASSES
from pneumoscope.service.dicom.sending import UnconfirmedError, UnreachableError
from pneumoscope.service.storage.commitments import CommitmentReport, CommitmentRequest, Commitments
from pneumoscope.service.storage.outbox_records import retry_delay

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = [
    "MAX_OBJECTS",
    "MAX_REPORT_BYTES",
    "NO_SUCH_EVENT_TYPE",
    "NO_SUCH_INSTANCE",
    "REPORT_SECONDS",
    "SOP_CLASS",
    "TRANSFER_SYNTAXES",
    "UNKNOWN_REPORT",
    "CommitmentRequester",
    "answer_report",
]

SOP_CLASS = UID(StorageCommitmentPushModel)
TRANSFER_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)  # proposed transfer syntaxes
_LOG = logging.getLogger("pneumoscope.service")
_POLL_SECONDS = 1.0
_MAX_REJECTIONS = 6  # each one doubles the delay until the next request
MAX_OBJECTS = 100  # objects per request
REPORT_SECONDS = 5.0  # maximum wait for a report on the association of the request
_REQUEST = 1  # action type ID of a request (PS3.4 J.3.2.1)
_EVENT_TYPES = (1, 2)  # event type IDs: all committed, some failed (PS3.4 J.3.3.1)
# Status codes of N-EVENT-REPORT (PS3.7 10.1.1.1.8).
NO_SUCH_INSTANCE, NO_SUCH_EVENT_TYPE, UNKNOWN_REPORT = 0x0112, 0x0113, 0x0115
# Size limit of a report. A report on all objects of a request needs at most 290 bytes for each: two UIDs, the failure reason,
# and where the object can be retrieved (PS3.4 table J.3.3-1). It is parsed in this process: 1 MiB could take 9 seconds.
MAX_REPORT_BYTES = 2**16
_MAX_SEPARATORS = 2_000  # of values: pydicom looks up each value of a character set
_UID = re.compile(r"[0-9.]{1,64}")
_UNSPECIFIED = PROCESSING_FAILURE  # used if the report gives no failure reason


class _RejectedError(Exception):
    """A peer rejected a request (N-ACTION) with a failure status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class CommitmentRequester:
    """Threads that request storage commitment for results delivered to peers.

    Args:
        configuration: Destinations and the DICOM node.
        engine: Engine of the service's database.
        stopped: Event that ends the threads.
        now: Returns the current time; replaceable in tests.
    Attributes:
        threads: One thread per peer with storage commitment.
    """

    def __init__(
        self,
        configuration: DicomConfiguration,
        engine: Engine,
        stopped: threading.Event,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._configuration, self._stopped, self._now = configuration, stopped, now
        self._commitments = Commitments(engine)
        self._rejections: dict[str, int] = {}  # number of consecutive rejections by peer
        # Number of consecutive failures and time of the next request, by peer.
        self._waits: dict[str, tuple[int, datetime]] = {}
        self.threads = [
            threading.Thread(target=self._run, args=(peer,), name=f"commitment-{peer.name}", daemon=True)
            for peer in configuration.peers
            if peer.name in configuration.commitments
        ]

    def _run(self, peer: DicomPeer) -> None:
        while not self._stopped.is_set():
            try:
                has_requested = self.request_due(peer)
            except StorageError as error:
                _LOG.warning("Storage commitment cannot be requested from %s: %s", peer.name, error.message)
                has_requested = False
            except Exception as error:  # noqa: BLE001  the thread must survive; the message may contain anything
                _LOG.error(
                    "Storage commitment cannot be requested from %s: unexpected %s", peer.name, type(error).__name__
                )
                has_requested = False
            if not has_requested:
                # Peers that keep rejecting requests are asked less often.
                self._stopped.wait(_POLL_SECONDS * 2 ** min(self._rejections.get(peer.name, 0), _MAX_REJECTIONS))

    def request_due(self, peer: DicomPeer) -> bool:
        """Request commitment of the objects that are due; return whether the peer accepted the request.

        Raises:
            StorageError: The database cannot be used.
        """
        wait = self._configuration.commitments[peer.name]
        failures, next_time = self._waits.get(peer.name, (0, self._now()))
        if timedelta(0) < next_time - self._now() <= retry_delay(failures):  # longer: the clock was set back
            return False
        request = self._commitments.begin(peer.name, self._now(), wait, MAX_OBJECTS)
        if request is None:
            self._rejections.pop(peer.name, None)
            return False
        try:
            self._send(peer, request, wait)
        except _RejectedError as error:
            _LOG.warning(
                "%s rejected a request for storage commitment of %d results: status_%04x",
                peer, len(request.deliveries), error.status,
            )  # fmt: skip
            self._rejections[peer.name] = self._rejections.get(peer.name, 0) + 1
            self._commitments.record_rejected(request.transaction_uid, error.status, self._now())
            return False
        except (UnconfirmedError, UnreachableError) as error:
            code = "commitment_not_offered" if str(error) == "sop_class_not_accepted" else str(error)
            if code == "commitment_not_offered":
                _LOG.warning(
                    "%s does not support storage commitment, which its destination requires: its results are delivered, but not"
                    " committed. Enable it in %s, or remove storage_commitment",
                    peer,
                    peer.name,
                )
            else:
                _LOG.warning("Storage commitment cannot be requested from %s: %s", peer, code)
            # All other objects are postponed as well, because their requests would also fail.
            self._waits[peer.name] = failures + 1, self._now() + retry_delay(failures + 1)
            self._commitments.postpone(request.transaction_uid, code, self._waits[peer.name][1])
            return False
        self._rejections.pop(peer.name, None)
        self._waits.pop(peer.name, None)
        return True

    def _send(self, peer: DicomPeer, request: CommitmentRequest, wait: timedelta) -> None:
        """Send a request (N-ACTION), and wait briefly for its report."""
        node = self._configuration.node
        assert node  # peers require a node
        reported, answered = threading.Event(), threading.Event()

        def answer(event: Any) -> tuple[int, None]:
            status = answer_report(event, peer.name, self._commitments, self._now())
            reported.set()
            return status, None

        def note_answer(event: Any) -> None:
            if reported.is_set() and isinstance(event.pdu, P_DATA_TF):
                answered.set()

        contexts = [build_context(SOP_CLASS, list(TRANSFER_SYNTAXES))]
        handlers = [(evt.EVT_N_EVENT_REPORT, answer), (evt.EVT_PDU_SENT, note_answer)]
        with open_association(peer, node, contexts, handlers) as association:
            status = _request(association, request)
            if status != SUCCESS:
                raise _RejectedError(status)
            self._commitments.record_accepted(request.transaction_uid, self._now(), wait)
            # pynetdicom aborts an association that is idle for the timeout.
            deadline = time.monotonic() + min(REPORT_SECONDS, node.timeout / 2)
            while association.is_established and time.monotonic() < deadline and not self._stopped.is_set():
                if answered.wait(0.05):  # the association must stay open until then
                    break


def _request(association: Association, request: CommitmentRequest) -> int:
    """Send the N-ACTION and return its status.

    Raises:
        UnconfirmedError: There is no response.
    """
    information = Dataset()
    information.TransactionUID = request.transaction_uid
    information.ReferencedSOPSequence = []
    for delivery in request.deliveries:
        assert delivery.kind != "webhook"
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = SOP_CLASSES[delivery.kind], delivery.result_uid
        information.ReferencedSOPSequence.append(item)
    try:
        response, _ = association.send_n_action(information, _REQUEST, SOP_CLASS, StorageCommitmentPushModelInstance)
    except RuntimeError as error:  # the association was closed
        raise UnconfirmedError("association_aborted") from error
    if "Status" not in response:
        raise UnconfirmedError("association_aborted")
    return int(response.Status)


def answer_report(event: Any, destination: str, commitments: Commitments, time: datetime) -> int:
    """Record the report in an N-EVENT-REPORT, and return the status of the response.

    Args:
        event: Event of pynetdicom. Its content is untrusted.
        destination: Name of the peer that sent it.
        commitments: Records the report.
        time: The current time.
    """
    request = cast(N_EVENT_REPORT, event.request)
    if request.AffectedSOPInstanceUID != StorageCommitmentPushModelInstance:
        return NO_SUCH_INSTANCE
    if request.EventTypeID not in _EVENT_TYPES:
        return NO_SUCH_EVENT_TYPE
    try:
        encoded = request.EventInformation.getvalue() if request.EventInformation else b""
        if not 0 < len(encoded) <= MAX_REPORT_BYTES or encoded.count(b"\\") > _MAX_SEPARATORS:
            raise ValueError("the report has no information, or too much of it")
        report = _read_report(event.event_information)
    except Exception as error:  # noqa: BLE001  untrusted bytes; the message may contain anything
        _LOG.warning("A storage commitment report of %s is not understood: %s", destination, type(error).__name__)
        return UNKNOWN_REPORT
    try:
        is_known = commitments.record_report(destination, report, time)
    except StorageError as error:
        _LOG.warning("A storage commitment report of %s is not recorded: %s", destination, error.code)
        return PROCESSING_FAILURE
    if not is_known:
        _LOG.warning("A storage commitment report of %s is not about the last request for its objects", destination)
        return UNKNOWN_REPORT
    if report.failed:
        reasons = ", ".join(sorted({f"{each:04x}" for each in report.failed.values()}))
        _LOG.warning("Storage commitment of %d results failed at %s: %s", len(report.failed), destination, reasons)
    return SUCCESS


def _read_report(information: Dataset) -> CommitmentReport:
    """Return the report in a data set (PS3.4 J.3.3.1.1).

    Raises:
        ValueError: The transaction UID is invalid, there are too many objects, or one is both committed and failed.
    """
    referenced, failed = (list(information.get(name) or []) for name in ("ReferencedSOPSequence", "FailedSOPSequence"))
    if len(referenced) + len(failed) > MAX_OBJECTS:
        raise ValueError("too many objects")
    transaction_uid = str(information.TransactionUID)
    committed = frozenset(str(item.ReferencedSOPInstanceUID) for item in referenced)
    reasons = {
        str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", _UNSPECIFIED) or _UNSPECIFIED) & 0xFFFF
        for item in failed
    }
    if not _UID.fullmatch(transaction_uid) or committed & set(reasons):
        raise ValueError("no valid transaction UID, or an object that is committed and is not")
    return CommitmentReport(transaction_uid, committed, reasons)

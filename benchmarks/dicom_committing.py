"""The storage commitment of the PACS of `dicom_nodes`: it commits itself to objects, at once or later, or refuses each first."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pydicom import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

LOG = "commitments.jsonl"
NO_SUCH_OBJECT, REFUSED = 0x0112, 0x0110  # failure reasons (PS3.3 C.14.1.1)
_REPORT_SECONDS, _TIMEOUT = 60, 30


class CommittingPacs:
    """Answers requests for storage commitment.

    Args:
        folder: Of the PACS, with the objects that it stored. Each answer about an object is recorded there.
        title: Its AE title.
        called: AE title of the node to which it reports.
        report_to: Port of that node, on which it opens an association for each report; 0: it reports on that of the request.
        refuses_first: Whether it refuses each object the first time that it is asked for it.
    """

    def __init__(self, folder: Path, title: str, called: str, report_to: int, *, refuses_first: bool) -> None:
        self._folder, self._title, self._called, self._report_to = folder, title, called, report_to
        self._refuses_first, self._lock = refuses_first, threading.Lock()

    def act(self, event: evt.Event) -> tuple[int, None]:
        """Accept a request (N-ACTION), and report in a thread."""
        request = event.action_information
        threading.Thread(target=self._report, args=(event.assoc, request), daemon=True).start()
        return 0x0000, None

    def _report(self, association: Association, request: Dataset) -> None:
        information = self._decide(request)
        if not self._report_to:
            time.sleep(0.2)  # until the response is sent
            with contextlib.suppress(RuntimeError):  # the association was closed
                _send(association, information)
            return
        deadline = time.monotonic() + _REPORT_SECONDS
        while time.monotonic() < deadline and not self._report_on_own(information):
            time.sleep(0.3)

    def _report_on_own(self, information: Dataset) -> bool:
        """Report on a new association, and return whether the node answered."""
        ae = AE(self._title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = _TIMEOUT
        ae.add_requested_context(StorageCommitmentPushModel)
        roles = [build_role(StorageCommitmentPushModel, scp_role=True)]
        opened = ae.associate("127.0.0.1", self._report_to, ae_title=self._called, ext_neg=roles)
        if not opened.is_established:
            return False
        try:
            return _send(opened, information)
        except RuntimeError:  # the association was closed
            return False
        finally:
            if opened.is_established:
                opened.release()

    def _decide(self, request: Dataset) -> Dataset:
        """Return the report about a request, and record what it states about each object."""
        information = Dataset()
        information.TransactionUID = request.TransactionUID
        committed, failed = list[Dataset](), list[Dataset]()
        with self._lock:
            refused = {uid for uid, reason in answers(self._folder) if reason == REFUSED}
            lines = []
            for item in request.ReferencedSOPSequence:
                uid, reason = str(item.ReferencedSOPInstanceUID), 0
                if not (self._folder / f"{uid}.dcm").exists():
                    reason = NO_SUCH_OBJECT
                elif self._refuses_first and uid not in refused:
                    reason = REFUSED
                answer = Dataset()
                answer.ReferencedSOPClassUID, answer.ReferencedSOPInstanceUID = item.ReferencedSOPClassUID, uid
                if reason:
                    answer.FailureReason = reason
                (failed if reason else committed).append(answer)
                lines.append(json.dumps([uid, reason]) + "\n")
            with (self._folder / LOG).open("a") as file:
                file.writelines(lines)
        information.ReferencedSOPSequence = committed
        if failed:
            information.FailedSOPSequence = failed
        return information


def answers(folder: Path) -> Sequence[tuple[str, int]]:
    """Return what a PACS stated: UIDs of objects, each with the reason of a failure, or 0 for a commitment."""
    with contextlib.suppress(FileNotFoundError):
        return [tuple(json.loads(line)) for line in (folder / LOG).read_text().splitlines()]
    return []


def _send(association: Association, information: Dataset) -> bool:
    event_type = 2 if "FailedSOPSequence" in information else 1
    status, _ = association.send_n_event_report(
        information, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )
    return "Status" in status

"""Pull images from a DICOM node: search for them (C-FIND) and have the node send them to the running service (C-MOVE)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from pydicom import Dataset
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # the module creates its names when it is imported
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from pneumoscope.core.errors import PullError
from pneumoscope.dicomweb.client import MODALITIES
from pneumoscope.service.dicom.node_settings import DicomPeer, DicomSettings
from pneumoscope.service.dicom.outgoing_associations import REJECTIONS, open_association
from pneumoscope.service.dicom.selection import Progress, PullReport, StudySelection
from pneumoscope.service.dicom.sending import UnreachableError

__all__ = ["pull_by_move"]

FIND, MOVE = StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelMove
STUDY_KEYS, SERIES_KEYS = ("StudyInstanceUID", "StudyDate", "AccessionNumber"), ("Modality", "SeriesInstanceUID")
MOVE_SECONDS = 600  # maximum silence: some nodes respond only after sending all instances
_CONNECT_SECONDS = 5
PENDING = (0xFF00, 0xFF01)
UNKNOWN_DESTINATION = 0xA801  # PS3.4 C.4.2.1.5


def pull_by_move(
    peer: DicomPeer, node: DicomSettings, selection: StudySelection, report: PullReport, progress: Progress | None
) -> None:
    """Pull the images of studies; see `pull.pull`.

    Raises:
        PullError: The search failed, or no image was sent for a known reason.
    """
    with _association(peer, node, FIND) as association:
        found = _find(association, peer, "STUDY", selection.keys, STUDY_KEYS)
        studies = [study for study in found if selection.contains(study)]
        series = [
            (study.StudyInstanceUID, each.SeriesInstanceUID)
            for study in studies
            for each in _find(association, peer, "SERIES", {"StudyInstanceUID": study.StudyInstanceUID}, SERIES_KEYS)
            if each.get("Modality") in MODALITIES and each.get("SeriesInstanceUID")
        ]
    report.studies, report.series = len(studies), len(series)
    for number, (study_uid, series_uid) in enumerate(series):
        if progress:
            progress(number, len(series))
        try:
            with _association(peer, node, MOVE) as association:
                association.dimse_timeout = MOVE_SECONDS
                _move(association, peer, node.ae_title, study_uid, series_uid, report)
        except PullError as error:
            report.end_early(error, len(series) - number)
            break
    if progress:
        progress(len(series), len(series))
    has_failed = report.failed_instances or report.failed_series
    if has_failed and not report.instances and not _listens(node):
        raise PullError(
            f"{peer.name} sent no image, and no program listens for DICOM on {node.host}, port {node.port}",
            hint="Start the service; if it runs on another machine, see its log and that of the peer",
        )


def _listens(node: DicomSettings) -> bool:
    """Return False if the service's address refuses connections; True otherwise, since other failures have other causes."""
    if not node.port:  # the service chose a free port
        return True
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(node.host, node.host)  # noqa: S104  a listening address cannot be connected to
    try:
        socket.create_connection((host, node.port), timeout=_CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        return False
    except (OSError, UnicodeError):
        return True
    return True


@contextlib.contextmanager
def _association(peer: DicomPeer, node: DicomSettings, sop_class: str) -> Iterator[Association]:
    """Yield an association with a peer for one SOP class.

    Raises:
        PullError: The association cannot be established.
    """
    try:
        with open_association(peer, node, [build_context(sop_class)], network_timeout=MOVE_SECONDS) as association:
            yield association
    except UnreachableError as error:
        if str(error) in REJECTIONS:
            raise PullError(
                f"{peer} rejected the association: {error}",
                hint=f"Add the AE title {node.ae_title} to its known nodes, and check its own AE title in the configuration",
            ) from error
        raise PullError(
            f"cannot reach {peer}: {error}",
            hint="Check its address and port, that it runs, and that it offers query and retrieve",
        ) from error


def _find(
    association: Association, peer: DicomPeer, level: str, keys: dict[str, str], returned: tuple[str, ...]
) -> list[Dataset]:
    """Return the matching studies or series (C-FIND).

    Raises:
        PullError: The peer did not complete the search.
    """
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword in returned:
        setattr(query, keyword, "")
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    found: list[Dataset] = []
    for response, identifier in association.send_c_find(query, FIND):
        status = response.get("Status")
        if status in PENDING and identifier is not None:
            found.append(identifier)
        elif status != 0x0000:
            reason = "it ended the association" if status is None else f"status {status:04x}"
            raise PullError(
                f"{peer.name} did not complete the search (C-FIND): {reason}", hint="See the log of the peer"
            )
    return [each for each in found if each.get("StudyInstanceUID") or level == "SERIES"]


def _move(
    association: Association, peer: DicomPeer, destination: str, study_uid: str, series_uid: str, report: PullReport
) -> None:
    """Have the peer send a series to the service (C-MOVE), and count its instances.

    Raises:
        PullError: The peer does not know the service.
    """
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID, query.SeriesInstanceUID = "SERIES", study_uid, series_uid
    done = failed = 0
    status = None
    for response, _ in association.send_c_move(query, destination, MOVE):
        status = response.get("Status")
        done = max(done, _count(response, "Completed") + _count(response, "Warning"))
        failed = max(failed, _count(response, "Failed"))
    if status == UNKNOWN_DESTINATION:
        raise PullError(
            f"{peer.name} does not know the AE title {destination}, to which it should send the images (status a801)",
            hint=f"Add {destination} with the address and the DICOM port of the service to the nodes of {peer.name}",
        )
    report.instances += done
    report.failed_instances += failed
    report.failed_series += status not in (0x0000, 0xB000) and not failed


def _count(response: Dataset, name: str) -> int:
    return int(response.get(f"NumberOf{name}Suboperations") or 0)

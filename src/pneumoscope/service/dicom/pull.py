"""Pull images from a PACS into the running service: by C-MOVE, or by WADO-RS and STOW-RS.

The images always pass through the network interfaces of the running service. A second process could not write into its
inbox safely: the service may remove a file before the commit of its record, and it empties the staging area on
start-up.
"""

from __future__ import annotations

from pathlib import Path

from pneumoscope.core.errors import PullError, UnknownNameError
from pneumoscope.service.dicom.configuration import DicomConfiguration
from pneumoscope.service.dicom.node_settings import DicomPeer
from pneumoscope.service.dicom.pull_move import pull_by_move
from pneumoscope.service.dicom.pull_web import pull_by_web
from pneumoscope.service.dicom.selection import Progress, PullReport, StudySelection

__all__ = ["pull"]


def pull(
    configuration: DicomConfiguration,
    name: str,
    selection: StudySelection,
    *,
    service_url: str,
    token_file: Path | None = None,
    progress: Progress | None = None,
) -> PullReport:
    """Pull the images of studies from a node into a running service.

    Args:
        configuration: Configuration of the service.
        name: Name of a peer, which sends the images to the service, or of a DICOMweb server.
        selection: The studies.
        service_url: URL of the service, to which images from a DICOMweb server are sent.
        token_file: File with a token of the role sender for the service; None without authentication.
        progress: Called with the number of finished series and the total.
    Raises:
        UnknownNameError: The configuration contains no such node.
        PullError: A node cannot be reached or responds incorrectly, or the UID or accession number matches no study.
    """
    sources = configuration.pull_sources
    if name not in sources:
        raise UnknownNameError(
            "source", name, sources, hint="Add a [[peers]] or [[sources]] entry to the DICOM configuration"
        )
    source, report = sources[name], PullReport(name)
    if isinstance(source, DicomPeer):
        assert configuration.node  # peers require a node
        pull_by_move(source, configuration.node, selection, report, progress)
    else:
        pull_by_web(source, selection, report, service_url, token_file, progress)
    if not report.studies and not selection.since:
        (keyword,) = selection.keys
        raise PullError(f"{name} has no study with this {keyword}", hint="Check the number, and the source with --from")
    return report

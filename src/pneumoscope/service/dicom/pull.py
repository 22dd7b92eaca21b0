"""Pull images from a PACS: let it send them to the running service (C-MOVE), or carry them there (WADO-RS, STOW-RS).

The images always go through the front door of the running service. Writing into its inbox from a second process would not be
safe: the service may remove a file between its writing and the commit of its record, and empties the staging area when it starts.
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
        configuration: That of the service.
        name: Name of a peer, which sends the images to the service; or of a DICOMweb server.
        selection: The studies.
        service_url: Address of the service, to which images of a DICOMweb server are sent.
        token_file: File with a token of the role sender for it; None without authentication.
        progress: Called with the number of series that are done, and of all.
    Raises:
        UnknownNameError: The configuration names no such node.
        PullError: A node cannot be reached or does not answer as it must; or no study was found by UID or accession number.
    """
    sources = configuration.pull_sources
    if name not in sources:
        raise UnknownNameError(
            "source", name, sources, hint="Add a [[peers]] or [[sources]] entry to the DICOM configuration"
        )
    source, report = sources[name], PullReport(name)
    if isinstance(source, DicomPeer):
        assert configuration.node  # a peer is one of a node
        pull_by_move(source, configuration.node, selection, report, progress)
    else:
        pull_by_web(source, selection, report, service_url, token_file, progress)
    if not report.studies and not selection.since:
        (keyword,) = selection.keys
        raise PullError(f"{name} has no study with this {keyword}", hint="Check the number, and the source with --from")
    return report

"""Pull images from a DICOMweb server: search by QIDO-RS, retrieve by WADO-RS, and store in the service by STOW-RS.

Files are transferred unchanged, one at a time. Pulling them again sends the same bytes, which are not predicted again.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from pathlib import Path

import requests
from pydicom import Dataset

from pneumoscope.core.addresses import require_base_url
from pneumoscope.core.errors import PullError, UsageError
from pneumoscope.dicomweb.client import MODALITIES, DicomWebError, Level, WebArchive, instance_path
from pneumoscope.dicomweb.session import CONNECT_SECONDS, HTTP_SECONDS, open_session, read_credential
from pneumoscope.service.dicom.configuration import WebServer
from pneumoscope.service.dicom.selection import Progress, PullReport, StudySelection
from pneumoscope.service.dicom.start_checks import require_server_files

__all__ = ["pull_by_web"]

_ROLE_HINT = "Pass --token-file with a token of the role sender; see `pneumoscope tokens add`"


def pull_by_web(
    source: WebServer,
    selection: StudySelection,
    report: PullReport,
    service_url: str,
    token_file: Path | None,
    progress: Progress | None,
) -> None:
    """Pull the images of studies; see `pull.pull`."""
    try:
        service_url = require_base_url(service_url)
    except ValueError as error:
        raise UsageError(f"--service {error}") from error
    with contextlib.ExitStack() as stack:
        require_server_files(source)
        session = stack.enter_context(open_session(source))
        service = stack.enter_context(requests.Session())
        try:
            service.trust_env = False
            if token_file:
                service.headers["Authorization"] = f"Bearer {read_credential(token_file)}"
        except (OSError, ValueError) as error:
            raise UsageError(f"the token file cannot be read: {error}", hint="Check --token-file") from error
        archive = _Archive(source, session)
        studies = archive.studies(selection)
        series = [(study, each) for study in studies for each in archive.series(study)]
        report.studies, report.series = len(studies), len(series)
        for number, (study_uid, series_uid) in enumerate(series):
            if progress:
                progress(number, len(series))
            try:
                for path in archive.instances(study_uid, series_uid):
                    if (content := archive.retrieve(path)) and _store(service, service_url, content):
                        report.instances += 1
                    else:
                        report.failed_instances += 1
            except PullError as error:
                report.end_early(error, len(series) - number)
                break
        report.incomplete_searches = archive.incomplete_searches
        if progress:
            progress(len(series), len(series))


class _Archive:
    """The DICOMweb server to pull from.

    Its methods raise PullError if it cannot be reached or rejects a search.
    """

    def __init__(self, source: WebServer, session: requests.Session) -> None:
        self._name, self._url = source.name, source.url
        self._archive = WebArchive(source.url or "", session)

    @property
    def incomplete_searches(self) -> int:
        """Number of searches that may have returned only part of the results."""
        return self._archive.incomplete_searches

    def studies(self, selection: StudySelection) -> list[str]:
        """Return the UIDs of the selected studies."""
        found = self._search("studies", selection.keys)
        return [str(study.StudyInstanceUID) for study in found if selection.contains(study)]

    def series(self, study: str) -> list[str]:
        """Return the UIDs of a study's series with a modality in `MODALITIES`."""
        found = self._search("series", study=study)
        return [str(series.SeriesInstanceUID) for series in found if series.get("Modality") in MODALITIES]

    def instances(self, study: str, series: str) -> list[str]:
        """Return the paths of a series' instances."""
        found = self._search("instances", study=study, series=series)
        return [instance_path(study, series, str(instance.SOPInstanceUID)) for instance in found]

    def retrieve(self, path: str) -> bytes:
        """Return the file of an instance; empty if it cannot be retrieved."""
        try:
            return self._archive.retrieve(path)
        except DicomWebError:
            return b""

    def _search(
        self, level: Level, filters: Mapping[str, str] | None = None, *, study: str = "", series: str = ""
    ) -> list[Dataset]:
        place = f"{self._name} ({self._url})"
        try:
            return list(self._archive.search(level, filters, study=study, series=series))
        except DicomWebError as error:
            if error.is_unreachable:
                hint = "Check url and ca_file, and that it runs"
                raise PullError(f"cannot reach {place}: {error}", hint=hint) from error
            hint = "Check url in the configuration"
            if error.status in (401, 403):
                hint = "Check user, password_file and token_file"
            raise PullError(f"the search of {place} failed (QIDO-RS): {error}", hint=hint) from error


def _store(service: requests.Session, url: str, content: bytes) -> bool:
    """Send a file to the service; return whether it was stored.

    Raises:
        PullError: The service cannot be reached, or rejects the token.
    """
    boundary = secrets.token_hex(16)
    body = b"".join(
        [f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(), content, f"\r\n--{boundary}--\r\n".encode()]
    )  # fmt: skip
    headers = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}'}
    try:
        response = service.post(
            f"{url}/dicom-web/studies", data=body, headers=headers, allow_redirects=False,
            timeout=(CONNECT_SECONDS, 2 * HTTP_SECONDS),
        )  # fmt: skip
    except (requests.RequestException, OSError) as error:
        raise PullError(
            f"cannot reach the service at {url}: {type(error).__name__}",
            hint="Start it, or pass its address with --service",
        ) from error
    if response.status_code in (401, 403, 404) or 300 <= response.status_code < 400:
        hint = _ROLE_HINT if response.status_code in (401, 403) else "Pass the address of the service with --service"
        raise PullError(
            f"the service at {url} does not store the images: HTTP status {response.status_code}", hint=hint
        )
    return response.status_code == 200

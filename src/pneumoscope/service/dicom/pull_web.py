"""Pull images from a DICOMweb server: search with QIDO-RS, retrieve with WADO-RS, and store in the service with STOW-RS.

Files are carried as they are, one at a time, so that a second pull sends the same bytes, which are not predicted again.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset

from pneumoscope.core.errors import PullError, UsageError
from pneumoscope.service.dicom.configuration import WebServer, require_base_url
from pneumoscope.service.dicom.selection import MODALITIES, Progress, PullReport, StudySelection
from pneumoscope.service.dicom.start_checks import require_server_files
from pneumoscope.service.dicom.web_session import HTTP_SECONDS, open_session, read_credential

__all__ = ["pull_by_web"]

PAGE = 100
MAX_BYTES = 256 * 2**20  # of an instance, as the service accepts
_CHUNK_BYTES = 2**20
_CONNECT_SECONDS = 10
ANY_SYNTAX = 'multipart/related; type="application/dicom"; transfer-syntax=*'
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
        except (OSError, UnicodeDecodeError) as error:
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
    """A DICOMweb server that is searched.

    Its methods raise PullError if it cannot be reached, or does not do a search.

    Attributes:
        incomplete_searches: Number of searches whose last page had a warning of the server: it may not have returned all results.
    """

    def __init__(self, source: WebServer, session: requests.Session) -> None:
        self._name, self._url, self._session = source.name, source.url, session
        self._client = DICOMwebClient(source.url or "", session=session, timeout=HTTP_SECONDS)
        self._client.set_http_retry_params(retry=False)
        self._has_warning = False  # of the last response
        self.incomplete_searches = 0
        session.hooks["response"].append(self._note_warning)

    def studies(self, selection: StudySelection) -> list[str]:
        """Return the UIDs of studies."""
        filters = {"search_filters": selection.keys}
        found = self._search_all(self._client.search_for_studies, "StudyInstanceUID", **filters)
        return [uid for uid, study in found.items() if selection.contains(study)]

    def series(self, study: str) -> list[str]:
        """Return the UIDs of the series of `MODALITIES` of a study."""
        found = self._search_all(self._client.search_for_series, "SeriesInstanceUID", study_instance_uid=study)
        return [uid for uid, series in found.items() if series.get("Modality") in MODALITIES]

    def instances(self, study: str, series: str) -> list[str]:
        """Return the paths of the instances of a series."""
        where = {"study_instance_uid": study, "series_instance_uid": series}
        found = self._search_all(self._client.search_for_instances, "SOPInstanceUID", **where)
        return [f"studies/{study}/series/{series}/instances/{uid}" for uid in found]

    def retrieve(self, path: str) -> bytes:
        """Return the file of an instance; empty if it cannot be retrieved."""
        body = bytearray()
        try:
            with self._session.get(
                f"{self._url}/{path}", headers={"Accept": ANY_SYNTAX}, stream=True, timeout=(_CONNECT_SECONDS, HTTP_SECONDS)
            ) as response:  # fmt: skip
                if response.status_code != 200:
                    return b""
                for chunk in response.iter_content(_CHUNK_BYTES):
                    body += chunk
                    if len(body) > MAX_BYTES:
                        return b""
                return _only_part(response.headers.get("Content-Type", ""), bytes(body))
        except (requests.RequestException, OSError):
            return b""

    def _search_all(self, search: Callable[..., Any], keyword: str, **arguments: Any) -> dict[str, Dataset]:
        """Return the results of all pages of a search by UID."""
        found: dict[str, Dataset] = {}
        offset = 0
        while True:
            page = list(self._search(search, offset=offset, limit=PAGE, **arguments))
            new = {uid: each for each in page if (uid := str(each.get(keyword) or "")) and uid not in found}
            if not new:  # a server may send fewer than `limit`, or ignore `limit` and `offset`
                # A page with new results has a warning, too, if there are further pages (PS3.18 8.3.4.4).
                self.incomplete_searches += self._has_warning
                return found
            found |= new
            offset += len(page)

    def _note_warning(self, response: requests.Response, *_: Any, **__: Any) -> None:
        # Code 299 stands for any warning, and servers word it in their own ways. A complete search that is reported as incomplete
        # is the smaller harm. The other warning that the standard has is about fuzzy matching, which is not asked for.
        self._has_warning = response.headers.get("Warning", "").lstrip().startswith("299")

    def _search(self, search: Callable[..., Any], **arguments: Any) -> Iterator[Dataset]:
        place = f"{self._name} ({self._url})"
        try:
            documents = search(**arguments)
            yield from [Dataset.from_json(each) for each in documents]
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else "unknown"
            hint = (
                "Check user, password_file and token_file" if status in (401, 403) else "Check url in the configuration"
            )
            raise PullError(f"{place} did not do the search (QIDO-RS): HTTP status {status}", hint=hint) from error
        except (requests.ConnectionError, requests.Timeout) as error:
            reason = type(error).__name__
            raise PullError(
                f"cannot reach {place}: {reason}", hint="Check url and ca_file, and that it runs"
            ) from error
        except Exception as error:  # a server may send anything
            raise PullError(
                f"{place} sent a response that is not DICOM JSON", hint="Check url in the configuration"
            ) from error


def _only_part(content_type: str, body: bytes) -> bytes:
    """Return the content of the only part of a multipart body; empty if it is malformed."""
    message = Message()
    message["Content-Type"] = content_type
    delimiter = f"--{message.get_param('boundary')}".encode()
    first = body.find(delimiter)
    header_end = body.find(b"\r\n\r\n", first)
    end = body.rfind(b"\r\n" + delimiter)
    return body[header_end + 4 : end] if 0 <= first < header_end < end else b""


def _store(service: requests.Session, url: str, content: bytes) -> bool:
    """Store a file in the service, and return whether it is stored.

    Raises:
        PullError: The service cannot be reached, or does not accept the token.
    """
    boundary = secrets.token_hex(16)
    body = b"".join(
        [f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(), content, f"\r\n--{boundary}--\r\n".encode()]
    )  # fmt: skip
    headers = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}'}
    try:
        response = service.post(
            f"{url}/dicom-web/studies", data=body, headers=headers, allow_redirects=False,
            timeout=(_CONNECT_SECONDS, 2 * HTTP_SECONDS),
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

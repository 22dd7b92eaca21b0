"""Search a DICOMweb server with QIDO-RS (PS3.18 10.6) and retrieve instances with WADO-RS (PS3.18 10.4)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from email.message import Message
from typing import Any, Literal

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset

from pneumoscope.dicomweb.session import CONNECT_SECONDS, HTTP_SECONDS, AnswerTooLongError

__all__ = ["ANY_SYNTAX", "MAX_BYTES", "MODALITIES", "PAGE", "DicomWebError", "Level", "WebArchive", "instance_path"]

MODALITIES = ("CR", "DX")  # modalities of chest radiographs; other series are ignored
PAGE = 100
MAX_BYTES = 256 * 2**20  # maximum size of an instance, the same as in the service
ANY_SYNTAX = 'multipart/related; type="application/dicom"; transfer-syntax=*'
Level = Literal["studies", "series", "instances"]
_CHUNK_BYTES = 2**20
_UID_KEYWORDS = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*")  # validated because UIDs become part of addresses


class DicomWebError(Exception):
    """Raised when a request failed. The message contains no patient data and no UID.

    Attributes:
        status: HTTP status of the response; 0 if there was none.
        is_unreachable: Whether there was no response, or it was incomplete.
    """

    def __init__(self, text: str, *, status: int = 0, is_unreachable: bool = False) -> None:
        super().__init__(text)
        self.status, self.is_unreachable = status, is_unreachable


class WebArchive:
    """Client of a DICOMweb server. Its methods raise `DicomWebError`.

    Attributes:
        incomplete_searches: Number of searches that may not have returned all results: the last page had a server warning,
            pages repeated results of other pages, or a result had no UID.
    """

    def __init__(self, url: str, session: requests.Session) -> None:
        self._url, self._session = url, session
        self._client = DICOMwebClient(url, session=session, timeout=HTTP_SECONDS)
        self._client.set_http_retry_params(retry=False)
        self._has_warning = False  # whether the last response had a warning
        self.incomplete_searches = 0
        session.hooks["response"].append(self._note_warning)

    def search(
        self, level: Level, filters: Mapping[str, str] | None = None, *, study: str = "", series: str = ""
    ) -> Iterator[Dataset]:
        """Yield all results page by page, skipping those with a repeated or missing UID.

        Study, series and instance UIDs in results are well-formed, and the UID of the searched level is present.

        Args:
            level: Level of the search.
            filters: Keywords or tags, and the values to match.
            study, series: UIDs that restrict the search.
        """
        search = {
            "studies": self._client.search_for_studies,
            "series": self._client.search_for_series,
            "instances": self._client.search_for_instances,
        }[level]
        where = {"study_instance_uid": study, "series_instance_uid": series}
        arguments: dict[str, Any] = {name: uid for name, uid in where.items() if uid}
        keyword = _UID_KEYWORDS[level]
        found: set[str] = set()
        offset = 0
        is_incomplete = False
        while True:
            page = self._page(search, offset=offset, limit=PAGE, search_filters=dict(filters or {}), **arguments)
            results = {str(each.get(keyword) or ""): each for each in page}
            new = {uid: each for uid, each in results.items() if uid and uid not in found}
            # A server that ignores `limit` and `offset` repeats all results. A server that only ignores `offset`
            # repeats the first page, and one without a stable order repeats some results and omits as many.
            repeats_all = found <= results.keys() and len(found) != PAGE
            is_incomplete |= "" in results or not (repeats_all or found.isdisjoint(results))
            if not new:  # a short page is not the end: servers may send fewer than `limit`
                # Pages with new results also have a warning if there are further pages (PS3.18 8.3.4.4).
                self.incomplete_searches += is_incomplete or self._has_warning
                return
            yield from new.values()
            found.update(new)
            offset += len(page)

    def retrieve(self, path: str, *, max_bytes: int = MAX_BYTES) -> bytes:
        """Return the file of an instance as stored.

        Args:
            path: See `instance_path`.
            max_bytes: Maximum size of the response.
        """
        body = bytearray()
        try:
            with self._session.get(
                f"{self._url}/{path}", headers={"Accept": ANY_SYNTAX}, stream=True, timeout=(CONNECT_SECONDS, HTTP_SECONDS)
            ) as response:  # fmt: skip
                if response.status_code != 200:
                    raise DicomWebError(f"HTTP status {response.status_code}", status=response.status_code)
                for chunk in response.iter_content(_CHUNK_BYTES):
                    body += chunk
                    if len(body) > max_bytes:
                        raise DicomWebError(f"more than {max_bytes:,} bytes", status=200)
                content = _only_part(response.headers.get("Content-Type", ""), bytes(body))
        except requests.HTTPError as error:  # a redirect
            status = error.response.status_code if error.response is not None else 0
            raise DicomWebError(f"HTTP status {status}", status=status) from error
        except (requests.RequestException, OSError) as error:
            raise DicomWebError(type(error).__name__, is_unreachable=True) from error
        if not content:
            raise DicomWebError("the answer is not one DICOM file", status=200)
        return content

    def _note_warning(self, response: requests.Response, *_: Any, **__: Any) -> None:
        # Code 299 covers any warning, and its wording depends on the server. Reporting a complete search as incomplete
        # does less harm than the reverse. The only other warning in the standard concerns fuzzy matching, which is not
        # requested.
        self._has_warning = response.headers.get("Warning", "").lstrip().startswith("299")

    def _page(self, search: Any, **arguments: Any) -> list[Dataset]:
        try:
            page = [Dataset.from_json(each) for each in search(**arguments)]
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            raise DicomWebError(f"HTTP status {status or 'unknown'}", status=status) from error
        except AnswerTooLongError as error:
            raise DicomWebError(str(error), status=200) from error
        except requests.JSONDecodeError as error:
            raise DicomWebError("the answer is not DICOM JSON", status=200) from error
        except (requests.RequestException, OSError) as error:
            raise DicomWebError(type(error).__name__, is_unreachable=True) from error
        except Exception as error:  # servers may send anything
            raise DicomWebError("the answer is not DICOM JSON", status=200) from error
        uids = (str(each.get(keyword) or "") for each in page for keyword in _UID_KEYWORDS.values())
        if any(uid and not _UID.fullmatch(uid) for uid in uids):
            raise DicomWebError("the answer has an invalid UID", status=200)
        return page


def instance_path(study: str, series: str, instance: str) -> str:
    """Return the path of an instance below the address of the server."""
    return f"studies/{study}/series/{series}/instances/{instance}"


def _only_part(content_type: str, body: bytes) -> bytes:
    """Return the content of the only part in a multipart body, or empty bytes if malformed."""
    message = Message()
    message["Content-Type"] = content_type
    delimiter = f"--{message.get_param('boundary')}".encode()
    first = body.find(delimiter)
    header_end = body.find(b"\r\n\r\n", first)
    end = body.rfind(b"\r\n" + delimiter)
    return body[header_end + 4 : end] if 0 <= first < header_end < end else b""

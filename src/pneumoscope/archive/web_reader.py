"""Read the images of a DICOMweb server: QIDO-RS lists them, WADO-RS retrieves each.

The address of a source is that of a search, with `dicomweb+` before it: `dicomweb+https://pacs.example/dicom-web/studies?StudyDate=2019-`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args
from urllib.parse import parse_qsl, urlsplit

from pydicom.datadict import tag_for_keyword

from pneumoscope.archive.readers import SourceImage, repeat_request
from pneumoscope.core.addresses import require_base_url
from pneumoscope.core.errors import StorageError, UnreadableImageError, UsageError
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.dicomweb.client import MODALITIES, DicomWebError, Level, WebArchive, instance_path
from pneumoscope.dicomweb.session import open_session
from pneumoscope.imaging.decode import MAX_BYTES

__all__ = ["PREFIX", "WebQuery", "WebReader", "parse_query"]

PREFIX = "dicomweb+"
_UID = re.compile(r"[0-9.]{1,64}")
_PATIENT_GROUP = 0x0010
_ACCESSION_NUMBER = 0x00080050
_GONE = (404, 410)
# The server, or the way to it, has a problem that is not one of the image.
_SERVER_STATUSES = (401, 403, 407, 408, 429, 502, 503, 504)
_ENVIRONMENT = "PNEUMOSCOPE_DICOMWEB_"
_EXAMPLE = "Give it as in dicomweb+https://pacs.example/dicom-web/studies?StudyDate=20190101-20191231"
_local = threading.local()  # the archives of a thread by address: a session is for one thread


class WebQuery(NamedTuple):
    """A search for images.

    Attributes:
        root: Address of the DICOMweb service.
        level: What is searched; all images of CR and DX series in it are the source.
        filters: Keywords or tags, and the values that match.
    """

    root: str
    level: Level
    filters: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class _Environment:
    """The access to a server, which the environment of each machine states; see `dicomweb.session.Access`."""

    user: str
    password_file: Path | None
    token_file: Path | None
    ca_file: Path | None

    @classmethod
    def read(cls) -> _Environment:
        def file(name: str) -> Path | None:
            value = os.environ.get(_ENVIRONMENT + name, "")
            return Path(value) if value else None

        user = os.environ.get(f"{_ENVIRONMENT}USER", "")
        return cls(user, file("PASSWORD_FILE"), file("TOKEN_FILE"), file("CA_FILE"))


@dataclasses.dataclass(frozen=True, slots=True)
class WebReader:
    """Reads instances by their path below the address of a DICOMweb service.

    Attributes:
        root: Address of the service.
    """

    root: str

    def read(self, name: str) -> bytes:
        """Return the file of an instance; see `readers.Reader`."""

        def retrieve() -> bytes:
            try:
                return self._archive().retrieve(name, max_bytes=MAX_BYTES)
            except DicomWebError as error:
                if error.is_unreachable or error.status in _SERVER_STATUSES:
                    raise
                reason = UnreadableReason("file_not_accessible", {"error": str(error)})
                if error.status in _GONE:
                    reason = UnreadableReason("file_not_found")
                raise UnreadableImageError(name, reason) from error

        return repeat_request(self.root, retrieve, str)

    def is_available(self) -> bool:
        """Return False if the server does not answer a search."""
        try:
            next(self._archive().search("studies", {}), None)
        except DicomWebError:
            return False
        return True

    def images(self, query: WebQuery) -> Iterator[tuple[SourceImage, str]]:
        """Yield the images of a search sorted by UIDs, each with the reason to skip it, or "". Servers state no sizes.

        Raises:
            StorageError: The server does not answer, or does not return all results.
        """
        for study, series, instance, reason in self._instances(query):
            yield SourceImage(instance_path(study, series, instance), -1, 0), reason

    def _instances(self, query: WebQuery) -> Iterator[tuple[str, str, str, str]]:
        if query.level == "instances":
            yield from sorted(
                {(*self._uids(each), _skip_reason(each)) for each in self._search("instances", query.filters)}
            )
            return
        if query.level == "series":
            found = self._search("series", query.filters)
            series = sorted({(*self._uids(each)[:2], _skip_reason(each, stated=True)) for each in found})
            yield from self._of_series(series)
            return
        for study in sorted({self._uids(each)[0] for each in self._search("studies", query.filters)}):
            found = self._search("series", study=study)
            yield from self._of_series(
                sorted({(study, self._uids(each)[1], _skip_reason(each, stated=True)) for each in found})
            )

    def _of_series(self, series: list[tuple[str, str, str]]) -> Iterator[tuple[str, str, str, str]]:
        for study, uid, reason in series:
            if reason:
                yield study, uid, "", reason
                continue
            found = self._search("instances", study=study, series=uid)
            for instance in sorted({self._uids(each)[2] for each in found}):
                yield study, uid, instance, ""

    def _search(
        self, level: Level, filters: Mapping[str, str] | None = None, *, study: str = "", series: str = ""
    ) -> list[Any]:
        archive = self._archive()

        def search() -> list[Any]:
            try:
                return list(archive.search(level, filters, study=study, series=series))
            except DicomWebError as error:
                if error.is_unreachable or error.status in _SERVER_STATUSES:
                    raise
                raise StorageError(f"{self.root!r} did not do the search (QIDO-RS): {error}", hint=_EXAMPLE) from error

        before = archive.incomplete_searches
        found = repeat_request(self.root, search, str)
        if archive.incomplete_searches > before:
            raise StorageError(
                f"{self.root!r} did not return all results of a search (HTTP header Warning 299)",
                hint="Search for less at a time, such as one year with StudyDate, into an archive of its own",
            )
        return found

    def _uids(self, result: Any) -> tuple[str, str, str]:
        """Return the UIDs of study, series and instance; "" if the result does not state one.

        Raises:
            StorageError: The server states something else, which must not become part of an address.
        """
        uids = [str(result.get(name) or "") for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
        if any(uid and not _UID.fullmatch(uid) for uid in uids):
            raise StorageError(f"{self.root!r} returned a UID that is none", hint="Check the address")
        return uids[0], uids[1], uids[2]

    def _archive(self) -> WebArchive:
        """Return the archive of this thread.

        Raises:
            UsageError: A file that the environment names cannot be read.
        """
        archives: dict[str, WebArchive] = _local.__dict__.setdefault("archives", {})
        if self.root not in archives:
            try:
                session = open_session(_Environment.read())
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(
                    f"a file for the access to {self.root!r} cannot be read: {error}",
                    hint=f"Check {_ENVIRONMENT}PASSWORD_FILE and {_ENVIRONMENT}TOKEN_FILE",
                ) from error
            archives[self.root] = WebArchive(self.root, session)
        return archives[self.root]


def parse_query(location: str) -> WebQuery:
    """Return the search of an address.

    Raises:
        UsageError: The address is not one of https, or of a search; or it names a patient, since it is stored and printed.
    """
    parts = urlsplit(location.removeprefix(PREFIX))
    base, _, level = parts.path.rstrip("/").rpartition("/")
    try:
        root = require_base_url(f"{parts.scheme}://{parts.netloc}{base}")
    except ValueError as error:
        raise UsageError(f"the address of the DICOMweb server {error}", hint=_EXAMPLE) from error
    levels: tuple[Level, ...] = get_args(Level)
    found = next((each for each in levels if each == level), None)
    if found is None:
        raise UsageError(f"the address ends in {level!r}, not in {', '.join(levels)}", hint=_EXAMPLE)
    filters = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in filters:
        tag = tag_for_keyword(name) or (int(name, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", name) else None)
        if tag is None:
            raise UsageError(f"{name!r} is no attribute of DICOM to search for", hint=_EXAMPLE)
        if tag >> 16 == _PATIENT_GROUP or tag == _ACCESSION_NUMBER:
            raise UsageError(
                f"the address searches for {name}, and it would be stored and printed",
                hint="Search by study date, modality or station, or give a list of files",
            )
    return WebQuery(root, found, filters)


def _skip_reason(result: Any, *, stated: bool = False) -> str:
    """Return why a series or an instance is not read, or "".

    Args:
        result: What the search found.
        stated: Whether a modality that is not stated is a reason.
    """
    modality = str(result.get("Modality") or "")
    if modality in MODALITIES or not (modality or stated):
        return ""
    return f"not {' or '.join(MODALITIES)}"

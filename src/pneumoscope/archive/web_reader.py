"""Read the images of a DICOMweb server: list them with QIDO-RS and retrieve each with WADO-RS.

The location is a search address prefixed with `dicomweb+`: `dicomweb+https://pacs.example/dicom-web/studies?StudyDate=2019-`.
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

from pydicom.datadict import keyword_for_tag, tag_for_keyword

from pneumoscope.archive.readers import DICOMWEB_PREFIX, SourceImage, repeat_request
from pneumoscope.core.addresses import require_base_url
from pneumoscope.core.errors import StorageError, UnreadableImageError, UsageError
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.dicomweb.client import MODALITIES, DicomWebError, Level, WebArchive, instance_path
from pneumoscope.dicomweb.session import open_session
from pneumoscope.imaging.decode import MAX_BYTES

__all__ = ["WebQuery", "WebReader", "parse_query"]

# The address is stored and printed, and other attributes may identify a patient.
_SEARCHED = frozenset(
    {
        "StudyDate",
        "StudyTime",
        "SeriesDate",
        "ContentDate",
        "AcquisitionDate",
        "Modality",
        "ModalitiesInStudy",
        "SOPClassUID",
        "BodyPartExamined",
        "ViewPosition",
        "InstitutionName",
        "StationName",
        "Manufacturer",
        "ManufacturerModelName",
        "DeviceSerialNumber",
    }
)
_UID_KEYWORDS = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}
_NOT_FOUND_STATUSES = (404, 410)
# Problems of the server or the connection rather than the image, which may be temporary.
_SERVER_STATUSES = (407, 408, 429, 502, 503, 504)
_ENVIRONMENT = "PNEUMOSCOPE_DICOMWEB_"
_EXAMPLE = "Give it as in dicomweb+https://pacs.example/dicom-web/studies?StudyDate=20190101-20191231"
_ACCESS_HINT = f"Check user, password or token: {_ENVIRONMENT}USER, PASSWORD_FILE and TOKEN_FILE"
_local = threading.local()  # archives by address, per thread, because sessions are not thread-safe


class WebQuery(NamedTuple):
    """Search for images.

    Attributes:
        root: Address of the DICOMweb service.
        level: Level of the search; the source consists of all images in CR and DX series found.
        filters: Keywords or tags, and the values to match.
    """

    root: str
    level: Level
    filters: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class _Environment:
    """Access to a server from environment variables, which each machine sets; see `dicomweb.session.Access`."""

    user: str
    password_file: Path | None
    token_file: Path | None
    ca_file: Path | None

    @classmethod
    def read(cls) -> _Environment:
        """Read the access settings from the environment.

        Raises:
            UsageError: The credentials are incomplete or given twice.
        """

        def file(name: str) -> Path | None:
            value = os.environ.get(_ENVIRONMENT + name, "")
            return Path(value) if value else None

        user = os.environ.get(f"{_ENVIRONMENT}USER", "")
        stated = cls(user, file("PASSWORD_FILE"), file("TOKEN_FILE"), file("CA_FILE"))
        if bool(user) != bool(stated.password_file) or (user and stated.token_file):
            raise UsageError(
                "the DICOMweb credentials are incomplete, or given twice",
                hint=f"Set {_ENVIRONMENT}USER and {_ENVIRONMENT}PASSWORD_FILE, or {_ENVIRONMENT}TOKEN_FILE alone",
            )
        return stated


class _Found(NamedTuple):
    """Relevant fields of a search result.

    Attributes:
        study, series, instance: UIDs; "" below the level of the search.
        modality: Modality of the series; "" if missing.
    """

    study: str
    series: str
    instance: str
    modality: str

    def skip_reason(self) -> str:
        """Return the reason to skip this series or instance, or ""."""
        # Servers may omit the modality of instances.
        if self.modality in MODALITIES or (self.instance and not self.modality):
            return ""
        return f"not {' or '.join(MODALITIES)}"


@dataclasses.dataclass(frozen=True, slots=True)
class WebReader:
    """Reader of instances by their path below the address of a DICOMweb service.

    Attributes:
        query: Search that finds the instances.
    """

    query: WebQuery

    @property
    def root(self) -> str:
        """Address of the service."""
        return self.query.root

    def read(self, name: str) -> bytes:
        """Return the file of an instance; see `readers.Reader`.

        Raises:
            StorageError: The server does not respond or rejects the credentials.
        """

        def retrieve() -> bytes:
            try:
                return self._archive().retrieve(name, max_bytes=MAX_BYTES)
            except DicomWebError as error:
                self._require_access(error)
                if error.is_unreachable or error.status in _SERVER_STATUSES:
                    raise
                reason = UnreadableReason("file_not_accessible", {"error": str(error)})
                if error.status in _NOT_FOUND_STATUSES:
                    reason = UnreadableReason("file_not_found")
                elif error.status == 403:
                    reason = UnreadableReason("permission_denied")
                raise UnreadableImageError(name, reason) from error

        return repeat_request(self.root, retrieve, str)

    def is_available(self) -> bool:
        """Return False if the server does not answer the search.

        Raises:
            StorageError: The server rejects the credentials.
        """
        try:
            # Keep the filters, because servers may refuse unrestricted searches.
            next(self._archive().search(self.query.level, self.query.filters), None)
        except DicomWebError as error:
            self._require_access(error)
            return False
        return True

    def images(self) -> Iterator[tuple[SourceImage, str]]:
        """Yield the images sorted by UID, each with the reason to skip it, or ""; sizes are unknown.

        Raises:
            StorageError: The server does not respond, or does not return all results.
        """
        for found in self._instances():
            name = instance_path(found.study, found.series, found.instance)
            yield SourceImage(name, -1, 0), found.skip_reason()

    def _instances(self) -> Iterator[_Found]:
        """Yield the instances, or for a skipped series, the series itself."""
        _, level, filters = self.query
        found = self._search(level, filters)
        if level == "studies":
            for study in found:
                yield from self._of_series(self._search("series", study=study.study))
        elif level == "series":
            yield from self._of_series(found)
        else:
            yield from found

    def _of_series(self, series: list[_Found]) -> Iterator[_Found]:
        for each in series:
            if each.skip_reason():
                yield each
                continue
            for instance in self._search("instances", study=each.study, series=each.series):
                yield instance._replace(modality=each.modality)

    def _search(
        self, level: Level, filters: Mapping[str, str] | None = None, *, study: str = "", series: str = ""
    ) -> list[_Found]:
        """Return the results sorted by UID, keeping only the relevant fields because a result may have thousands of bytes."""
        archive = self._archive()

        def search() -> list[_Found]:
            try:
                results = archive.search(level, filters, study=study, series=series)
                return sorted({self._found(each, level, study, series) for each in results})
            except DicomWebError as error:
                self._require_access(error)
                if error.is_unreachable or error.status in _SERVER_STATUSES:
                    raise
                problem = "did not answer" if error.status == 200 else "rejected"
                raise StorageError(
                    f"{self.root!r} {problem} the search (QIDO-RS): {error}",
                    hint=_ACCESS_HINT if error.status == 403 else _EXAMPLE,
                ) from error

        before = archive.incomplete_searches
        found = repeat_request(self.root, search, str)
        if archive.incomplete_searches > before:
            raise StorageError(
                f"{self.root!r} did not return all results of a search (HTTP header Warning 299, or pages that repeat results)",
                hint="Search for less at a time, such as one month with StudyDate, into a separate archive",
            )
        return found

    def _found(self, result: Any, level: Level, study: str, series: str) -> _Found:
        """Return the relevant fields of a search result.

        Args:
            result: Search result.
            level: Level of the search.
            study, series: UIDs that the search was restricted to.

        Raises:
            StorageError: A UID needed for the address of an instance is missing.
        """
        uids = {"studies": study, "series": series, "instances": ""}
        for each, keyword in _UID_KEYWORDS.items():
            uids[each] = uids[each] or str(result.get(keyword) or "")
            if not uids[each]:
                raise StorageError(
                    f"{self.root!r} returned a result without {keyword}",
                    hint="Search by studies: the address then ends in studies",
                )
            if each == level:
                break
        return _Found(uids["studies"], uids["series"], uids["instances"], str(result.get("Modality") or ""))

    def _require_access(self, error: DicomWebError) -> None:
        """Raise StorageError if the server rejects the credentials, because no image can be read then."""
        if error.status == 401:
            raise StorageError(
                f"{self.root!r} does not accept the configured access: HTTP status 401", hint=_ACCESS_HINT
            ) from error

    def _archive(self) -> WebArchive:
        """Return the archive of this thread.

        Raises:
            UsageError: A file named by an environment variable cannot be read.
        """
        archives: dict[str, WebArchive] = _local.__dict__.setdefault("archives", {})
        if self.root not in archives:
            try:
                session = open_session(_Environment.read())
            except (OSError, ValueError) as error:
                raise UsageError(
                    f"a file for the access to {self.root!r} cannot be used: {error}",
                    hint=f"Check {_ENVIRONMENT}PASSWORD_FILE, {_ENVIRONMENT}TOKEN_FILE and {_ENVIRONMENT}CA_FILE",
                ) from error
            archives[self.root] = WebArchive(self.root, session)
        return archives[self.root]


def parse_query(location: str) -> WebQuery:
    """Parse the address of a search.

    Raises:
        UsageError: The address is not a valid https address or search, or contains an attribute that may identify a patient.
    """
    try:
        parts = urlsplit(location.removeprefix(DICOMWEB_PREFIX))
        _ = parts.port  # may not be a number
    except ValueError as error:
        raise UsageError(f"the address of the DICOMweb server cannot be parsed: {error}", hint=_EXAMPLE) from error
    base, _, level = parts.path.rstrip("/").rpartition("/")
    try:
        root = require_base_url(f"{parts.scheme}://{parts.netloc}{base}")
    except ValueError as error:
        raise UsageError(f"the address of the DICOMweb server {error}", hint=_EXAMPLE) from error
    levels: tuple[Level, ...] = get_args(Level)
    found = next((each for each in levels if each == level), None)
    if found is None:
        raise UsageError(f"the address ends in {level!r}, not in {', '.join(levels)}", hint=_EXAMPLE)
    return WebQuery(root, found, _filters(parts.query))


def _filters(query: str) -> dict[str, str]:
    """Return the attributes of a search and their values."""
    filters: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        keyword = keyword_for_tag(int(name, 16)) if re.fullmatch(r"[0-9A-Fa-f]{8}", name) else name
        if tag_for_keyword(keyword) is None:
            raise UsageError(f"{name!r} is not a DICOM attribute that can be searched for", hint=_EXAMPLE)
        if keyword not in _SEARCHED:
            raise UsageError(
                f"the address searches for {name}, and it would be stored and printed",
                hint=f"Search by {', '.join(sorted(_SEARCHED))}, or give a list of files",
            )
        if keyword in filters:
            raise UsageError(
                f"the address has {name} more than once",
                hint="Score each search into a separate archive",
            )
        filters[keyword] = value
    return filters

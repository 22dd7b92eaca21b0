"""Attribute matching for QIDO-RS (PS3.18 8.3.4 and 10.6, PS3.4 C.2.2.2)."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.multival import MultiValue

from pneumoscope.core.errors import UsageError
from pneumoscope.core.identity import search_words
from pneumoscope.service.storage.dicom_files import StudyFilter

__all__ = ["ATTRIBUTES", "DEFAULT_LIMIT", "MAX_LIMIT", "Level", "SearchQuery", "parse_query"]

Level = Literal["study", "series", "instance"]
LEVELS: tuple[Level, ...] = ("study", "series", "instance")
DEFAULT_LIMIT, MAX_LIMIT = 100, 500
# Attributes that can be matched and are returned, by level (PS3.18 tables 10.6.3-3 to 10.6.3-5).
ATTRIBUTES: Mapping[Level, tuple[str, ...]] = {
    "study": (
        "StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName", "PatientName",
        "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID",
        "StudyDescription", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances",
    ),
    "series": (
        "Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "SeriesDate", "SeriesTime",
        "BodyPartExamined", "Laterality", "StationName", "Manufacturer", "NumberOfSeriesRelatedInstances",
    ),
    "instance": (
        "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames",
        "ViewPosition",
    ),
}  # fmt: skip
COUNTS = ("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "NumberOfSeriesRelatedInstances")
_LISTS = ("UI", "CS")  # value representations whose query may be a list of values
_RANGES = ("DA", "TM")
_SEPARATORS = re.compile(r"[\\,]")
_WILDCARDS = re.compile(r"[*?]+")
_DATE = re.compile(r"([0-9]{4})-?([0-9]{2})-?([0-9]{2})")
_TAG = re.compile(r"[0-9A-Fa-f]{8}")


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class SearchQuery:
    """A search.

    Attributes:
        conditions: Values by keyword; all must match.
        limit, offset: Number of results to return and to skip.
        is_fuzzy: Whether the client requested fuzzy matching, which is not supported.
    """

    conditions: Mapping[str, str]
    limit: int = DEFAULT_LIMIT
    offset: int = 0
    is_fuzzy: bool = False

    def matches(self, attributes: Dataset) -> bool:
        """Return whether all conditions hold."""
        return all(_matches(attributes, keyword, value) for keyword, value in self.conditions.items())

    def study_filter(self, study_uid: str = "") -> StudyFilter:
        """Return necessary conditions of a match, for the database query.

        Args:
            study_uid: Study UID in the path; empty if there is none.
        """
        stated = self.conditions
        name = _WILDCARDS.split(stated.get("PatientName", ""))
        first, last = _bounds(stated.get("StudyDate", ""))
        return StudyFilter(
            study_uids=(study_uid,) if study_uid else tuple(_values(stated.get("StudyInstanceUID", ""))),
            patient_id=_literal(stated.get("PatientID", "")),
            accession_number=_literal(stated.get("AccessionNumber", "")),
            patient_words=tuple(word for part in name for word in search_words(part)),
            first_date=_iso(first),
            last_date=_iso(last),
        )


def parse_query(parameters: Iterable[tuple[str, str]], level: Level) -> SearchQuery:
    """Return the search described by query parameters.

    Args:
        parameters: Names and values.
        level: Level of the resources to search for.
    Raises:
        UsageError: A parameter is unknown, repeated or invalid. The message contains no value, since values may
            identify patients.
    """
    conditions: dict[str, str] = {}
    seen: set[str] = set()
    limit, offset, is_fuzzy = DEFAULT_LIMIT, 0, False
    for name, value in parameters:
        if name in ("includefield", "accept"):  # all attributes are always returned; for `accept`, see `media_types`
            continue
        if name not in ("limit", "offset", "fuzzymatching"):
            name = _keyword(name, level)
        if name in seen:
            raise UsageError(f"the query parameter {name} is repeated", hint="Send it once")
        seen.add(name)
        if name == "limit":
            limit = min(_number(name, value), MAX_LIMIT)
        elif name == "offset":
            offset = _number(name, value)
        elif name == "fuzzymatching":
            is_fuzzy = value.lower() == "true"
        elif value and value.strip("*"):  # empty values and "*" match everything
            conditions[name] = _checked(name, value)
    return SearchQuery(conditions, limit, offset, is_fuzzy)


def _keyword(name: str, level: Level) -> str:
    """Return the keyword of a matchable attribute, given its keyword or tag."""
    tag = int(name, 16) if _TAG.fullmatch(name) else tag_for_keyword(name)
    keyword = keyword_for_tag(tag) if tag is not None else ""
    levels = LEVELS[: LEVELS.index(level) + 1]
    known = [each for upper in levels for each in ATTRIBUTES[upper] if each not in COUNTS]
    if keyword not in known:
        raise UsageError(
            "a query parameter is not an attribute that can be matched at this level", hint=f"Known: {', '.join(known)}"
        )
    return keyword


def _number(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise UsageError(f"{name} is not a number", hint="Write a number of 0 or more")
    return int(value)


def _checked(keyword: str, value: str) -> str:
    """Return a value after checking its format against the value representation."""
    kind = dictionary_VR(keyword)
    if kind == "DA" and not all(part == "" or _DATE.fullmatch(part) for part in _split_range(value)):
        raise UsageError(f"{keyword} is not a date or a range of dates", hint="Write 20260131, or 20260101-20260131")
    if kind == "UI" and not all(re.fullmatch(r"[0-9.]{1,64}", each) for each in _values(value)):
        raise UsageError(f"{keyword} is not a UID or a list of UIDs", hint="Separate UIDs by commas")
    return value


def _matches(attributes: Dataset, keyword: str, value: str) -> bool:
    element = attributes.get(keyword)
    stated = [str(each) for each in element] if isinstance(element, MultiValue | list) else [str(element or "")]
    kind = dictionary_VR(keyword)
    if kind in _RANGES:
        first, last = (re.sub("[-:]", "", part) for part in _split_range(value))
        # Compare prefixes, because times may have fewer digits.
        return any(each and each[: len(first)] >= first and (not last or each[: len(last)] <= last) for each in stated)
    if kind in _LISTS:
        return any(fnmatch.fnmatchcase(each, _pattern(one)) for each in stated for one in _values(value))
    if kind == "PN":
        pattern = _pattern(value.casefold().strip("^"))
        forms = {form.strip("^") for each in stated for form in (each.casefold(), *each.casefold().split("="))}
        return any(fnmatch.fnmatchcase(form, pattern) for form in forms)
    if kind in ("IS", "US"):
        return value.strip() in stated
    return any(fnmatch.fnmatchcase(each, _pattern(value)) for each in stated)


def _pattern(value: str) -> str:
    """Convert DICOM wildcards to an `fnmatch` pattern. `fnmatch` does not backtrack on them."""
    return value.replace("[", "[[]")


def _values(value: str) -> list[str]:
    return [each.strip() for each in _SEPARATORS.split(value) if each.strip()]


def _literal(value: str) -> str:
    """Return a value without wildcards; empty if it has any."""
    return "" if _WILDCARDS.search(value) else value


def _split_range(value: str) -> tuple[str, str]:
    """Return the first and last value of a range; empty for an open end, and twice the same for a single value.

    Hyphenated dates such as 2026-01-31 are also accepted.
    """
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        return value, value
    if match := re.fullmatch(r"([0-9]{4}-[0-9]{2}-[0-9]{2})?-([0-9]{4}-[0-9]{2}-[0-9]{2})?", value):
        return match[1] or "", match[2] or ""
    first, hyphen, last = value.partition("-")
    return (first, last) if hyphen else (first, first)


def _bounds(value: str) -> tuple[str, str]:
    return _split_range(value) if value else ("", "")


def _iso(value: str) -> str:
    match = _DATE.fullmatch(value)
    return "-".join(match.groups()) if match else ""

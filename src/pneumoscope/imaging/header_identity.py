"""Read the identity of an image (patient, study, series and instance) from a DICOM header."""

from __future__ import annotations

import contextlib
from typing import Any

from pydicom import Dataset
from pydicom.multival import MultiValue

from pneumoscope.core.identity import Identity, normalize_field, normalize_text
from pneumoscope.imaging.patient_age import parse_date

__all__ = ["IDENTITY_ELEMENTS", "read_identity", "repair_text"]

_DATES = ("PatientBirthDate", "StudyDate")
_FIELDS = {
    "patient_id": "PatientID",
    "issuer_of_patient_id": "IssuerOfPatientID",
    "patient_name": "PatientName",
    "patient_birth_date": "PatientBirthDate",
    "patient_sex": "PatientSex",
    "accession_number": "AccessionNumber",
    "study_instance_uid": "StudyInstanceUID",
    "study_date": "StudyDate",
    "study_description": "StudyDescription",
    "series_instance_uid": "SeriesInstanceUID",
    "sop_instance_uid": "SOPInstanceUID",
    "station_name": "StationName",
}
_GB_2312_ESCAPE = "\x1b$)A"  # ISO 2022 IR 58 (PS3.5 K)
IDENTITY_ELEMENTS = tuple(_FIELDS.values())


def read_identity(header: Dataset) -> Identity | None:
    """Return the identity in a header, or None if all its fields are missing."""
    values = {name: normalize_field(name, _text(header, keyword)) for name, keyword in _FIELDS.items()}
    return Identity(**values) if any(values.values()) else None


def repair_text(text: str, character_set: object) -> str:
    """Return a text that pydicom decoded incorrectly as the file intends it.

    Software often writes UTF-8 without declaring a character set, which pydicom then decodes as Latin-1. pydicom also leaves
    the GB 2312 escape sequence in the text.

    Args:
        text: Text as decoded by pydicom.
        character_set: SpecificCharacterSet of the header; None or empty if missing.
    """
    if not text.isascii() and not character_set:
        with contextlib.suppress(UnicodeError):
            text = text.encode("latin-1").decode("utf-8")
    return text.replace(_GB_2312_ESCAPE, "")


def _text(header: Dataset, keyword: str) -> str:
    """Return the text of an element, with understood dates in ISO 8601 and names without trailing empty components."""
    value: Any = header.get(keyword)
    if value is None:
        return ""
    text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    text = normalize_text(repair_text(text, header.get("SpecificCharacterSet")))
    if keyword in _DATES and (date := parse_date(text)):
        return date.isoformat()
    if keyword == "PatientName":
        return "=".join(form.strip(" ^") for form in text.split("=")).rstrip("=")
    return text

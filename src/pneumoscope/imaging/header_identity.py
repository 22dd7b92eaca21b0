"""Read the identity of an image from a DICOM header: patient, study, series and instance."""

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
    """Return the identity that a header states, or None if it states none of its fields."""
    values = {name: normalize_field(name, _text(header, keyword)) for name, keyword in _FIELDS.items()}
    return Identity(**values) if any(values.values()) else None


def repair_text(text: str, character_set: object) -> str:
    """Return a text that pydicom decoded as the file means it.

    Software that does not state a character set often writes UTF-8, which pydicom then reads as Latin-1. And pydicom leaves the
    escape sequence of GB 2312 in the text.

    Args:
        text: As pydicom decoded it.
        character_set: SpecificCharacterSet of the header; None or empty if it states none.
    """
    if not text.isascii() and not character_set:
        with contextlib.suppress(UnicodeError):
            text = text.encode("latin-1").decode("utf-8")
    return text.replace(_GB_2312_ESCAPE, "")


def _text(header: Dataset, keyword: str) -> str:
    """Return the text of an element; a date that is understood in ISO 8601, a name without empty parts at its end."""
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

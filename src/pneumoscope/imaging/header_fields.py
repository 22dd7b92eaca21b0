"""Read header fields for subgroup analyses, and how an image was acquired."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope.core.prediction import PatientAge
from pneumoscope.imaging.file_type import identify_file
from pneumoscope.imaging.image import Acquisition

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["ACQUISITION_ELEMENTS", "HeaderFields", "read_acquisition", "read_header_fields"]

ACQUISITION_ELEMENTS = ("ViewPosition", "Manufacturer")
_MAX_LENGTH = 64  # maximum characters of a value, as in the standard
_PATIENT_ELEMENTS = ("PatientID", "IssuerOfPatientID")
_PSEUDONYM_LENGTH = 16  # hexadecimal digits


@dataclasses.dataclass(frozen=True, slots=True)
class HeaderFields:
    """Header fields of one image; "" if missing.

    Attributes:
        age: Age of the patient; None if missing.
        sex: "F", "M" or "O".
        view: View, such as "AP" or "PA".
        manufacturer: Manufacturer of the device.
        patient: Hash of PatientID and IssuerOfPatientID, used to keep images of a patient together. It is only a pseudonym:
            anyone who knows an identifier can compute its hash.
    """

    age: PatientAge | None = None
    sex: str = ""
    view: str = ""
    manufacturer: str = ""
    patient: str = ""


def read_header_fields(path: Path) -> HeaderFields | None:
    """Return the fields of a DICOM file, or None for other files and unreadable headers."""
    try:
        if identify_file(path).name != "DICOM":
            return None
        from pneumoscope.imaging.dicom_elements import read_elements
        from pneumoscope.imaging.patient_age import AGE_ELEMENTS, read_age

        header = read_elements(path, ["PatientSex", *ACQUISITION_ELEMENTS, *_PATIENT_ELEMENTS, *AGE_ELEMENTS])
        sex, view, manufacturer = (_text(header, name) for name in ("PatientSex", *ACQUISITION_ELEMENTS))
        identifier, issuer = (str(header.get(name) or "").strip() for name in _PATIENT_ELEMENTS)
        pseudonym = hashlib.sha256(f"{issuer}\\{identifier}".encode()).hexdigest()[:_PSEUDONYM_LENGTH]
        return HeaderFields(read_age(header), sex, view, manufacturer, pseudonym if identifier else "")
    except Exception:  # noqa: BLE001  untrusted bytes can make a parser fail in any way; decoding reports the error
        return None


def read_acquisition(header: Dataset) -> Acquisition | None:
    """Return how an image was acquired according to its header, or None if both elements are missing."""
    view, manufacturer = (_text(header, name) for name in ACQUISITION_ELEMENTS)
    return Acquisition(view, manufacturer) if view or manufacturer else None


def _text(header: Dataset, keyword: str) -> str:
    """Return the text of an element in upper case with single spaces and limited length, or "" if it is missing or empty."""
    return " ".join(str(header.get(keyword) or "").split())[:_MAX_LENGTH].upper()

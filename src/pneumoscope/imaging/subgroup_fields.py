"""Read the header fields that a subgroup analysis uses, and a pseudonym of the patient."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from pneumoscope.core.prediction import PatientAge
from pneumoscope.imaging.file_type import identify_file

__all__ = ["HeaderFields", "read_header_fields"]

_ELEMENTS = ("PatientSex", "ViewPosition", "Manufacturer")
_PATIENT_ELEMENTS = ("PatientID", "IssuerOfPatientID")
_PSEUDONYM_LENGTH = 16  # hexadecimal digits


@dataclasses.dataclass(frozen=True, slots=True)
class HeaderFields:
    """Header fields of one image; "" where the header states none.

    Attributes:
        age: Age of the patient; None if not stated.
        sex: "F", "M" or "O".
        view: View, such as "AP" or "PA".
        manufacturer: Manufacturer of the device.
        patient: Hash of PatientID and IssuerOfPatientID, which keeps images of one patient together. It is a pseudonym: anyone
            who knows an identifier can compute its hash.
    """

    age: PatientAge | None = None
    sex: str = ""
    view: str = ""
    manufacturer: str = ""
    patient: str = ""


def read_header_fields(path: Path) -> HeaderFields | None:
    """Return the fields of a DICOM file, or None for other files and headers that cannot be read."""
    try:
        if identify_file(path).name != "DICOM":
            return None
        from pneumoscope.imaging.acquisition import acquisition_text
        from pneumoscope.imaging.dicom_elements import read_elements
        from pneumoscope.imaging.patient_age import AGE_ELEMENTS, read_age

        header = read_elements(path, [*_ELEMENTS, *_PATIENT_ELEMENTS, *AGE_ELEMENTS])
        sex, view, manufacturer = (acquisition_text(header, name) for name in _ELEMENTS)
        identifier, issuer = (str(header.get(name) or "").strip() for name in _PATIENT_ELEMENTS)
        pseudonym = hashlib.sha256(f"{issuer}\\{identifier}".encode()).hexdigest()[:_PSEUDONYM_LENGTH]
        return HeaderFields(read_age(header), sex, view, manufacturer, pseudonym if identifier else "")
    except Exception:  # noqa: BLE001  untrusted bytes can make a parser fail in any way; decoding reports the error
        return None

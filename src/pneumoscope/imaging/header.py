"""Read the header fields that a subgroup analysis uses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pneumoscope.core.prediction import PatientAge
from pneumoscope.imaging.decode import has_dicom_prefix

__all__ = ["HeaderFields", "read_header_fields"]

_ELEMENTS = ("PatientSex", "ViewPosition", "Manufacturer")
_MAX_LENGTH = 64  # characters of a value, as in the standard


@dataclasses.dataclass(frozen=True, slots=True)
class HeaderFields:
    """Header fields of one image; "" where the header states none.

    Attributes:
        age: Age of the patient; None if not stated.
        sex: "F", "M" or "O".
        view: View, such as "AP" or "PA".
        manufacturer: Manufacturer of the device.
    """

    age: PatientAge | None = None
    sex: str = ""
    view: str = ""
    manufacturer: str = ""


def read_header_fields(path: Path) -> HeaderFields | None:
    """Return the fields of a DICOM file, or None for other files and headers that cannot be read."""
    try:
        if not has_dicom_prefix(path):
            return None
        from pydicom import dcmread

        from pneumoscope.imaging.patient_age import AGE_ELEMENTS, read_age

        header = dcmread(path, stop_before_pixels=True, specific_tags=[*_ELEMENTS, *AGE_ELEMENTS])
        sex, view, manufacturer = (" ".join(str(header.get(name) or "").split())[:_MAX_LENGTH] for name in _ELEMENTS)
        return HeaderFields(read_age(header), sex.upper(), view.upper(), manufacturer.upper())
    except Exception:  # noqa: BLE001  untrusted bytes can make a parser fail in any way; decoding reports the error
        return None

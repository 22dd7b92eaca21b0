"""Read from a DICOM header how an image was acquired."""

from __future__ import annotations

from pydicom import Dataset

from pneumoscope.imaging.image import Acquisition

__all__ = ["ACQUISITION_ELEMENTS", "acquisition_text", "read_acquisition"]

_MAX_LENGTH = 64  # characters of a value, as in the standard
ACQUISITION_ELEMENTS = ("ViewPosition", "Manufacturer")


def read_acquisition(header: Dataset) -> Acquisition | None:
    """Return what a header states, or None if it states neither element."""
    view, manufacturer = (acquisition_text(header, name) for name in ACQUISITION_ELEMENTS)
    return Acquisition(view, manufacturer) if view or manufacturer else None


def acquisition_text(header: Dataset, keyword: str) -> str:
    """Return the text of an element in capitals, with single spaces and limited length; "" if it is missing or empty."""
    return " ".join(str(header.get(keyword) or "").split())[:_MAX_LENGTH].upper()

"""Read parts of untrusted DICOM files for the service: the header, the frame, and the description of gray levels.

pydicom parses every element before a part, and a malicious file can make this slow. The service therefore reads parts in worker
processes, see `imaging.sandbox`.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRBigEndian

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.unreadable import UnreadableCode, UnreadableReason
from pneumoscope.imaging.decode import read_file
from pneumoscope.imaging.dicom_elements import MAX_HEADER_BYTES, read_elements
from pneumoscope.imaging.image import MAX_PART_BYTES, DicomPart

__all__ = ["DISPLAY_ELEMENTS", "MAX_INLINE", "read_part"]

MAX_INLINE = 1024  # bytes of a binary value in a header as DICOM JSON
_BINARY = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
# Elements that describe gray levels (PS3.3 C.11.1, C.11.2, C.7.6.3).
DISPLAY_ELEMENTS = (
    "PhotometricInterpretation", "SamplesPerPixel", "RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction", "VOILUTSequence",
)  # fmt: skip
_LUTS = ("ModalityLUTSequence", "VOILUTSequence")
_LUT_ELEMENTS = ("LUTDescriptor", "LUTExplanation", "ModalityLUTType", "LUTData")
_MAX_LUTS = 16
_MAX_VALUES = 100  # values of one element, such as window centers


def read_part(source: Path | bytes, part: DicomPart, name: str = "") -> bytes:
    """Return a part of a DICOM file.

    Args:
        source: Path of the file, or its content; all parts except "frame" need only the first 4 MiB.
        part: "header" is the header as DICOM JSON (PS3.18 F), without pixels and other long binary values. "frame" is the
            single frame as stored, little-endian, or empty without pixels. "display" contains the elements that describe gray
            levels as DICOM JSON, without contradictory ones.
        name: Name of the file in messages.

    Raises:
        UnreadableImageError: The part cannot be read or is too long.
    """
    content = source if isinstance(source, bytes) else read_file(source, name)
    code: UnreadableCode = "dicom_file_not_readable" if part == "frame" else "dicom_header_not_readable"
    try:
        found = _read_frame(content) if part == "frame" else _read_json(content[:MAX_HEADER_BYTES], part)
        if len(found) > MAX_PART_BYTES[part]:
            raise ValueError("the part is too long")
    except Exception as error:  # untrusted bytes: the library raises errors of any type
        raise UnreadableImageError(name, UnreadableReason(code, {"error": type(error).__name__})) from error
    return found


def _read_json(content: bytes, part: DicomPart) -> bytes:
    dataset = _read_header(content) if part == "header" else _read_display(content)
    return json.dumps(dataset.to_json_dict(suppress_invalid_tags=True)).encode()


def _read_header(content: bytes) -> Dataset:
    header = dcmread(io.BytesIO(content), stop_before_pixels=True)
    _remove_unsuitable(header)
    header.decode()
    header.SpecificCharacterSet = "ISO_IR 192"  # DICOM JSON is UTF-8
    return header


def _remove_unsuitable(header: Dataset) -> None:
    """Remove long binary values and invalid elements."""
    for tag in list(header.keys()):
        try:
            element = header[tag]
            if element.VR == "SQ":
                for item in element.value:
                    _remove_unsuitable(item)
            elif element.VR in _BINARY and len(element.value or b"") > MAX_INLINE:
                del header[tag]
        except Exception:  # noqa: BLE001  untrusted bytes: the library raises errors of any type
            del header[tag]


def _read_frame(content: bytes) -> bytes:
    dataset = dcmread(io.BytesIO(content))
    if "PixelData" not in dataset:
        return b""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        return get_frame(dataset.PixelData, 0, number_of_frames=1)
    bits = int(dataset.BitsAllocated)
    size = (dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * bits + 7) // 8
    pixels: bytes = dataset.PixelData[:size]
    if syntax == ExplicitVRBigEndian and bits == 16:
        return np.frombuffer(pixels, ">u2").astype("<u2").tobytes()
    return pixels


def _read_display(content: bytes) -> Dataset:
    """Return the elements that describe gray levels.

    Windows are kept only if they have a width (PS3.3 C.11.2.1.2) and there is no VOI lookup table.
    """
    found = read_elements(content, list(DISPLAY_ELEMENTS))
    found.decode()
    for name in (*DISPLAY_ELEMENTS, "SpecificCharacterSet"):  # text values are already decoded
        if name not in found:
            continue
        is_long = isinstance(found[name].value, MultiValue) and len(found[name].value) > _MAX_VALUES
        if name not in DISPLAY_ELEMENTS or found[name].is_empty or is_long:
            delattr(found, name)
    for name in _LUTS:
        if name in found:
            setattr(found, name, [_lut(item) for item in found[name].value[:_MAX_LUTS]])
    widths = found.get("WindowWidth")
    is_window = widths is not None and all(float(width) > 0 for width in np.atleast_1d(widths))
    if found.get("VOILUTSequence") or not is_window or found.get("WindowCenter") is None:
        for name in ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction"):
            if name in found:
                delattr(found, name)
    return found


def _lut(item: Dataset) -> Dataset:
    """Return a copy of a lookup table with its relevant elements."""
    copied = Dataset()
    for name in _LUT_ELEMENTS:
        if name in item:
            copied[name] = item[name]
    return copied

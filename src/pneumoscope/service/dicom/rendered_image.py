"""The forms in which DICOMweb returns a stored file: its header as DICOM JSON, its frame, and a rendered image."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.uid import ExplicitVRBigEndian

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.service.dicom.header import MAX_HEADER_BYTES

__all__ = ["MAX_INLINE", "convert_image", "draw_capture", "header_json", "read_frame"]

MAX_INLINE = 1024  # bytes of a binary value in metadata
_JPEG_QUALITY = 90
_BINARY = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")


def header_json(file: BinaryIO) -> dict[str, Any]:
    """Return the header of a file as DICOM JSON, without pixels and other long binary values.

    Raises:
        UnreadableImageError: It cannot be read.
    """
    try:
        header = dcmread(io.BytesIO(file.read(MAX_HEADER_BYTES)), stop_before_pixels=True)
        _remove_unsuitable(header)
        header.decode()
        header.SpecificCharacterSet = "ISO_IR 192"  # of JSON
        return header.to_json_dict(suppress_invalid_tags=True)
    except Exception as error:  # untrusted bytes: the library raises errors of any type
        raise UnreadableImageError(
            "", UnreadableReason("dicom_header_not_readable", {"error": type(error).__name__})
        ) from error


def _remove_unsuitable(header: Dataset) -> None:
    """Remove long binary values, and elements that are invalid."""
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


def read_frame(file: BinaryIO) -> bytes | None:
    """Return the only frame of a file as it is stored, little-endian; None if it has no pixels.

    Raises:
        UnreadableImageError: It cannot be read.
    """
    try:
        dataset = dcmread(file)
        if "PixelData" not in dataset:
            return None
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax.is_encapsulated:
            return get_frame(dataset.PixelData, 0, number_of_frames=1)
        bits = int(dataset.BitsAllocated)
        size = (dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * bits + 7) // 8
        pixels: bytes = dataset.PixelData[:size]
        if syntax == ExplicitVRBigEndian and bits == 16:
            return np.frombuffer(pixels, ">u2").astype("<u2").tobytes()
        return pixels
    except Exception as error:  # untrusted bytes: the library raises errors of any type
        raise UnreadableImageError(
            "", UnreadableReason("dicom_file_not_readable", {"error": type(error).__name__})
        ) from error


def draw_capture(file: BinaryIO, media_type: str) -> bytes:
    """Return a Secondary Capture of this package as image/png or image/jpeg."""
    capture = dcmread(file)
    return _encode(Image.frombytes("RGB", (capture.Columns, capture.Rows), capture.PixelData), media_type)


def convert_image(png: bytes, media_type: str) -> bytes:
    """Return a PNG as an image of another type."""
    with Image.open(io.BytesIO(png)) as opened:
        return _encode(opened, media_type)


def _encode(image: Image.Image, media_type: str) -> bytes:
    file = io.BytesIO()
    image.save(file, media_type.partition("/")[2].upper(), quality=_JPEG_QUALITY)
    return file.getvalue()

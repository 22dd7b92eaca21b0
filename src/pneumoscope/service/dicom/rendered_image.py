"""Encode rendered images for DICOMweb."""

from __future__ import annotations

import io
from typing import BinaryIO

from PIL import Image
from pydicom import dcmread

__all__ = ["convert_image", "draw_capture"]

_JPEG_QUALITY = 90


def draw_capture(file: BinaryIO, media_type: str) -> bytes:
    """Return the pixels of one of our Secondary Captures as image/png or image/jpeg."""
    capture = dcmread(file)
    return _encode(Image.frombytes("RGB", (capture.Columns, capture.Rows), capture.PixelData), media_type)


def convert_image(png: bytes, media_type: str) -> bytes:
    """Convert a PNG to another image type."""
    with Image.open(io.BytesIO(png)) as opened:
        return _encode(opened, media_type)


def _encode(image: Image.Image, media_type: str) -> bytes:
    file = io.BytesIO()
    image.save(file, media_type.partition("/")[2].upper(), quality=_JPEG_QUALITY)
    return file.getvalue()

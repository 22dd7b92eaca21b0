"""A malicious reader of DICOM files for decode workers: the bytes of the file are the part that it returns."""

from __future__ import annotations

from pneumoscope.imaging import dicom_parts
from pneumoscope.imaging.image import MAX_PART_BYTES


def _read_part(source: bytes, part: str, name: str = "") -> bytes:
    return b" " * MAX_PART_BYTES["display"] + b"{}" if source == b"long" else source


dicom_parts.read_part = _read_part  # type: ignore[assignment]

"""What compressed pixels really are: how large, and in how many scans.

A decoder makes room for what the compressed data say of themselves, whatever the DICOM header around them says: some hundred
bytes can ask for gigabytes. So the two are compared before anything is decoded.
"""

from __future__ import annotations

import struct

from pydicom import Dataset
from pydicom.uid import RLELossless

from pneumoscope.imaging.scans import MAX_SCANS, scans_of_jpeg

__all__ = ["refuse_another_size"]

_JPEG, _JPEG_2000, _SIZ = b"\xff\xd8", b"\xff\x4f", b"\xff\x51"
_BOXED = b"\x00\x00\x00\x0cjP  "  # JPEG 2000 in a file format of its own
# Start of frame: JPEG's kinds (C4, C8 and CC are tables), and JPEG-LS's.
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


def refuse_another_size(frame: bytes, dataset: Dataset) -> None:
    """Compare a compressed frame with its header.

    Args:
        frame: compressed, as DICOM encapsulates it.
        dataset: with Rows, Columns, BitsAllocated and the transfer syntax.
    Raises:
        ValueError: the frame is larger or smaller than the header says, does not say how large it is, or has more scans than
            `MAX_SCANS`.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        _refuse_long_runs(frame, rows * columns, int(dataset.BitsAllocated) // 8)
        return
    if frame.startswith(_JPEG) and (scans := scans_of_jpeg(frame)) > MAX_SCANS:
        raise ValueError(f"compressed it has {scans:,} scans")
    found = _of_jpeg(frame) if frame.startswith(_JPEG) else _of_jpeg_2000(frame)
    if found != (rows, columns):
        said = f"{found[1]} x {found[0]}" if found else "no size"
        raise ValueError(f"compressed it says {said}, and its header {columns} x {rows}")


def _of_jpeg(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns of JPEG and JPEG-LS."""
    place = 2
    while place + 4 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker == 0xFF or marker in _ALONE:  # padding
            place += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAMES and place + 9 <= len(frame):
            rows, columns = struct.unpack_from(">HH", frame, place + 5)
            return rows, columns
        place += 2 + struct.unpack_from(">H", frame, place + 2)[0]
    return None


def _of_jpeg_2000(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns of JPEG 2000."""
    start = frame.find(_JPEG_2000 + _SIZ) if frame.startswith(_BOXED) else 0
    if start < 0 or not frame.startswith(_JPEG_2000 + _SIZ, start) or len(frame) < start + 24:
        return None
    width, height, left, top = struct.unpack_from(">IIII", frame, start + 8)
    return height - top, width - left


def _refuse_long_runs(frame: bytes, pixels: int, bytes_a_pixel: int) -> None:
    """Run-length coding: a segment for each byte of a pixel, none of them longer than the image (PS3.5 annex G)."""
    if len(frame) < 64:
        raise ValueError("its run-length coding has no header")
    count, *starts = struct.unpack_from("<16I", frame)
    if count != bytes_a_pixel:
        raise ValueError(f"it is run-length coded in {count} segments, not {bytes_a_pixel}")
    for start, end in zip(starts[:count], [*starts[1:count], len(frame)], strict=True):
        if not 64 <= start <= end <= len(frame):
            raise ValueError("its run-length coding begins beyond its end")
        place, length = start, 0
        while place < end and length <= pixels:
            step = frame[place]
            length += step + 1 if step < 128 else 257 - step if step > 128 else 0
            place += step + 2 if step < 128 else 2 if step > 128 else 1
        # One byte more may fill a segment up to an even number.
        if length > pixels + 1:
            raise ValueError(f"its run-length coding holds more than the {pixels} pixels of its header")

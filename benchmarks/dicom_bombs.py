"""DICOM data that takes long to parse: headers, images and reports of storage commitment. `dicom_hostile` sends them."""

from __future__ import annotations

import io
import struct

import pydicom
from pydicom.uid import generate_uid

from pneumoscope.evaluation.image_variants import encode_dicom
from pneumoscope.imaging.phantom import draw_phantom

EXPLICIT, IMPLICIT = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0"
_MIB = 2**20
_UNDEFINED = 0xFFFFFFFF


def _element(tag: int, vr: bytes, value: bytes) -> bytes:
    """Return an element in Explicit VR Little Endian."""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    if vr in (b"OB", b"SQ", b"UN"):
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def implicit_element(tag: int, value: bytes) -> bytes:
    """Return an element in Implicit VR Little Endian."""
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


def _file(body: bytes, syntax: bytes = EXPLICIT) -> bytes:
    meta = _element(0x00020010, b"UI", syntax)
    return bytes(128) + b"DICM" + _element(0x00020000, b"UL", struct.pack("<I", len(meta))) + meta + body


def header_bombs(*, after_columns: bool = False) -> dict[str, bytes]:
    """Return files of up to 4 MiB whose headers take long to parse, or are too much for what stores them.

    Args:
        after_columns: Whether they begin with the elements of an image up to Columns (0028,0011), at which `read_header` stops.
    """
    item, end_of_item, end = (struct.pack("<HHI", 0xFFFE, tag, size) for tag, size in (
        (0xE000, _UNDEFINED), (0xE00D, 0), (0xE0DD, 0)
    ))  # fmt: skip
    empty_item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    sequence = struct.pack("<HH", 8, 0x1140) + b"SQ\0\0" + struct.pack("<I", _UNDEFINED)
    private = struct.pack("<HH", 9, 0x1010) + b"UN\0\0" + struct.pack("<I", _UNDEFINED)
    size = 4 * _MIB - 500
    charset = _element(0x00080005, b"CS", b"A\\" * 32_000)
    explicit = {
        "empty elements": b"".join(struct.pack("<HH", 9, n & 0xFFFF) + b"LO\0\0" for n in range(size // 8)),
        "nested sequences": (sequence + item) * (size // 20),
        "sequence of empty items": sequence + empty_item * (size // 8),
        "empty sequences": (sequence + end) * (size // 20),
        "private sequence of empty items": private + empty_item * (size // 8),
        "nested character sets": (sequence + item + charset + end_of_item + end) * 64,
    }
    implicit = {
        "empty implicit elements": b"".join(
            struct.pack("<HHI", 8 + 2 * (n >> 16), n & 0xFFFF, 0) for n in range(size // 8)
        ),
        "character sets": implicit_element(0x00080005, b"A\\" * (size // 2)),
        "escape sequences": implicit_element(0x00100010, b"\x1b$B!!" * (size // 5)),
        "values of a name": implicit_element(0x00100010, b"\\" * size),
        "values of other patient IDs": implicit_element(0x00101000, b"\\" * size),
        "long name": implicit_element(0x00100010, b"A" * size),
    }
    # pydicom reads elements in any order.
    uids = implicit_element(0x00080016, b"1.2 ") + implicit_element(0x00080018, b"1.3 ")
    number = struct.pack("<H", 8)
    image = uids + b"".join(implicit_element(tag, number) for tag in (0x00280010, 0x00280011, 0x00280100))
    explicit_image = _element(0x00080016, b"UI", b"1.2 ") + _element(0x00080018, b"UI", b"1.3 ") + b"".join(
        _element(tag, b"US", number) for tag in (0x00280010, 0x00280011, 0x00280100)
    )  # fmt: skip
    return {name: _file((explicit_image if after_columns else b"") + body) for name, body in explicit.items()} | {
        name: _file((image if after_columns else uids) + body, IMPLICIT) for name, body in implicit.items()
    }


def image_bomb(items: int, *, level: int = 0) -> bytes:
    """Return an image that can be predicted, with a sequence of empty items after Columns, which `read_header` does not reach.

    Its metadata and its frame take long to read.

    Args:
        items: Number of items, 8 bytes each.
        level: Seed of the phantom: another image is another prediction.
    """
    dataset = pydicom.dcmread(io.BytesIO(encode_dicom(draw_phantom(level, pneumonia=False, size=64))))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.PatientAge = generate_uid(), generate_uid(), "003Y"
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    content = file.getvalue()
    sequence = struct.pack("<HH", 0x29, 0x1010) + b"SQ\0\0" + struct.pack("<I", _UNDEFINED)
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    at = content.index(struct.pack("<HH", 0x7FE0, 0x0010))
    return content[:at] + sequence + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * items + end + content[at:]


def report_bombs(size: int) -> dict[str, bytes]:
    """Return reports of storage commitment, Implicit VR Little Endian, of at most `size` bytes, that take long to parse."""
    transaction, referenced, referenced_uid = implicit_element(0x00081195, b"1.2.3\0"), 0x00081199, 0x00081155

    def delimited(tag: int, items: bytes) -> bytes:
        end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, _UNDEFINED) + items + end

    def item(content: bytes) -> bytes:
        return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content

    rest = size - 100
    short = item(implicit_element(referenced_uid, b"1\0"))
    nested = b""
    for _ in range(50):
        nested = delimited(referenced, item(nested))
    nested = item(nested)
    wide = item(b"".join(implicit_element(0x00090000 + n, b"") for n in range(rest // 8 // 90 - 1)))
    charset = item(implicit_element(0x00080005, b"A\\" * 50) + implicit_element(referenced_uid, b"1\0"))
    return {
        "empty items": transaction + delimited(referenced, item(b"") * (rest // 8)),
        "empty items of a sequence with a length": transaction + implicit_element(referenced, item(b"") * (rest // 8)),
        "many objects": transaction + delimited(referenced, short * (rest // len(short))),
        "many elements": b"".join(implicit_element(0x00070000 + n, b"") for n in range(rest // 8)) + transaction,
        "many elements of objects": transaction + delimited(referenced, wide * 90),
        "nested sequences": transaction + delimited(referenced, nested * (rest // len(nested))),
        "nested sequences without an end": transaction
        + (struct.pack("<HHI", 8, 0x1199, _UNDEFINED) + struct.pack("<HHI", 0xFFFE, 0xE000, _UNDEFINED)) * (rest // 16),
        "values of the transaction": implicit_element(0x00081195, b"1\\" * (rest // 2)),
        "values of an object": transaction
        + delimited(referenced, item(implicit_element(referenced_uid, b"\\" * (rest // 2 * 2)))),
        "character sets": implicit_element(0x00080005, b"A\\" * (rest // 2)) + transaction,
        "character sets of objects": transaction + delimited(referenced, charset * (rest // len(charset))),
    }

"""Decompression bombs: a limit stops each of them, and the next image is decoded."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, Sequence, uid
from pydicom.encaps import encapsulate
from tests.imaging.dicom_images import image, written

from pneumoscope.core.errors import DecodeCrashedError, DecodeMemoryError, DecodeTimeoutError, UnreadableImageError
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.sandbox.pool import DecodePool, Limits

pytestmark = pytest.mark.slow  # each image runs into a limit of time or memory

LIMITS = Limits(memory=2**30, cpu_seconds=1, wall_seconds=60)
GRAY = Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64).astype(np.uint8))
OVER_A_LIMIT = (DecodeCrashedError, DecodeMemoryError, DecodeTimeoutError)


def saved(pillow_image: Image.Image = GRAY, kind: str = "TIFF", **options: Any) -> bytes:
    file = io.BytesIO()
    pillow_image.save(file, kind, **options)
    return file.getvalue()


def with_scans(count: int, pillow_image: Image.Image = GRAY) -> bytes:
    """Return a progressive JPEG that repeats its second scan; a decoder processes all pixels for each."""
    whole = saved(pillow_image, "JPEG", progressive=True)
    second = whole.index(b"\xff\xda", whole.index(b"\xff\xda") + 2)
    third = whole.index(b"\xff\xc4", second)
    return whole[:second] + whole[second:third] * count + whole[third:]


def many_scans() -> bytes:
    return with_scans(20_000, GRAY.resize((4096, 4096), Image.Resampling.NEAREST))


def many_scans_in_dicom() -> bytes:
    pillow_image = GRAY.resize((4096, 4096), Image.Resampling.NEAREST)
    dataset = image(np.zeros((4096, 4096), np.uint8), 8, syntax=uid.JPEGExtended12Bit)
    dataset.PixelData = encapsulate([with_scans(20_000, pillow_image)])
    dataset["PixelData"].is_undefined_length = True
    return written(dataset)


def tiled(width: int, height: int, tile: int) -> bytes:
    """Return an uncompressed TIFF of one tile."""
    content = bytes(tile * tile if tile <= 64 else 4096)
    fields = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, 322: tile, 323: tile, 324: 0, 325: len(content)}
    at = 8 + 2 + 12 * len(fields) + 4
    fields[324] = at
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + content


def compressed_tile() -> bytes:
    """Return a TIFF of 600 x 600 pixels with a few kilobytes that inflate to a tile of 2 GB."""
    content = zlib.compress(bytes(2**20))
    fields = {256: 600, 257: 600, 258: 8, 259: 8, 262: 1, 277: 1, 322: 45_008, 323: 45_008, 324: 0, 325: len(content)}
    fields[324] = 8 + 2 + 12 * len(fields) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + content


def many_entries() -> bytes:
    """Return a BigTIFF whose directory has three million entries."""
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 3_000_000) + bytes(20 * 3_000_000)


def with_parts(kind: str, count: int) -> bytes:
    """Return a file with `count` empty segments or chunks before its pixels."""
    whole = saved(kind=kind)
    chunk = bytes(4) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
    at, part = (2, b"\xff\xe5\0\2") if kind == "JPEG" else (33, chunk)
    return whole[:at] + part * count + whole[at:]


def fax() -> bytes:
    """Return a large fax page of invalid codes, after which a decoder resumes."""
    whole = bytearray(saved(Image.new("1", (8000, 9000)), compression="group3"))
    at = whole.index(b"II*\0") + 8
    whole[at : at + 400] = b"\xa5" * 400
    return bytes(whole)


def many_elements(count: int = 2_000_000) -> bytes:
    """Return a DICOM file with empty private elements: 8 bytes each in the file, hundreds in memory."""
    content = written(image())
    at = content.index(struct.pack("<HH", 0x0008, 0x0060))
    return content[:at] + b"\x07\0\x01\x10LO\0\0" * count + content[at:]


def many_items(count: int = 1_000_000) -> bytes:
    content = written(image())
    at = content.index(b"\xe0\x7f\x10\0")
    items = b"\xfe\xff\0\xe0\0\0\0\0" * count
    return content[:at] + b"\x28\0\x10\x30SQ\0\0" + struct.pack("<I", len(items)) + items + content[at:]


def many_numbers() -> bytes:
    """Return a DICOM file with windows of millions of numbers, which implicit VR allows."""
    content = written(image(syntax=uid.ImplicitVRLittleEndian))
    at = content.index(b"\xe0\x7f\x10\0")
    numbers = b"1\\" * 5_000_000 + b"1 "
    center, width = (struct.pack("<HHI", 0x0028, element, len(numbers)) + numbers for element in (0x1050, 0x1051))
    return content[:at] + center + width + content[at:]


def many_names() -> bytes:
    content = written(image())
    at = content.index(b"\x08\0\x60\0")
    names = b"\\" * 20_000_000
    return content[:at] + b"\x08\0\x05\0UC\0\0" + struct.pack("<I", len(names)) + names + content[at:]


def many_fragments() -> bytes:
    dataset = image(np.zeros((64, 64), np.uint8), 8, syntax=uid.JPEGBaseline8Bit)
    whole = saved(kind="JPEG")
    empty = b"\xfe\xff\0\xe0\0\0\0\0"
    dataset.PixelData = (
        empty + b"\xfe\xff\0\xe0" + struct.pack("<I", len(whole) + len(whole) % 2) + whole + b"\0" * (len(whole) % 2)
    ) + empty * 200_000
    dataset["PixelData"].is_undefined_length = True
    return written(dataset)


def long_runs() -> bytes:
    """Return an RLE-compressed image of 9 x 35 pixels that unpacks to gigabytes."""
    dataset = image()
    dataset.compress(uid.RLELossless)
    runs = b"\x81\x00" * 16_000_000
    dataset.PixelData = encapsulate([struct.pack("<16I", 2, 64, 64 + len(runs), *[0] * 13) + runs * 2])
    return written(dataset)


def enormous_codestream() -> bytes:
    """Return a JPEG 2000 frame of 60,000 x 60,000 pixels with a DICOM header that states 64 x 64."""
    pillow_image = io.BytesIO()
    GRAY.save(pillow_image, "JPEG2000", no_jp2=True)
    frame = bytearray(pillow_image.getvalue())
    at = frame.index(b"\xff\x4f\xff\x51") + 8
    frame[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    dataset = image(np.zeros((64, 64), np.uint8), 8, syntax=uid.JPEG2000Lossless)
    dataset.PixelData = encapsulate([bytes(frame)])
    return written(dataset)


def deflated() -> bytes:
    """Return a deflated DICOM file whose header inflates to a gigabyte."""
    whole = written(image(syntax=uid.DeflatedExplicitVRLittleEndian))
    length = struct.unpack_from("<I", whole, 140)[0]
    bomb = zlib.compressobj(wbits=-15)
    return whole[: 144 + length] + b"".join(bomb.compress(bytes(2**20)) for _ in range(1024)) + bomb.flush()


def huge_tile() -> bytes:
    return tiled(600, 600, 45_000)


def many_segments() -> bytes:
    return with_parts("JPEG", 300_000)


def many_chunks() -> bytes:
    return with_parts("PNG", 2_000_000)


# Their headers are plausible, but without limits they take minutes or gigabytes.
STOPPED_BY_A_LIMIT = [
    many_scans,
    many_scans_in_dicom,
    many_entries,
    many_chunks,
    many_elements,
    many_items,
    many_numbers,
    many_names,
]
# Depending on the versions of the libraries, these are decoded, rejected, or stopped by a limit.
OTHERS = [huge_tile, compressed_tile, many_segments, fax, many_fragments, long_runs, enormous_codestream, deflated]


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, limits=LIMITS) as decode_pool:
        yield decode_pool


def bomb_name(bomb: Callable[[], bytes]) -> str:
    return bomb.__name__


@pytest.mark.parametrize("bomb", STOPPED_BY_A_LIMIT, ids=bomb_name)
def test_a_limit_stops_a_bomb_and_the_next_image_is_decoded(pool: DecodePool, bomb: Callable[[], bytes]) -> None:
    with pytest.raises(OVER_A_LIMIT):
        pool.decode(bomb())
    assert np.array_equal(pool.decode(saved(kind="PNG")).pixels, np.asarray(GRAY))


@pytest.mark.parametrize("bomb", OTHERS, ids=bomb_name)
def test_other_bombs_are_decoded_or_rejected(pool: DecodePool, bomb: Callable[[], bytes]) -> None:
    with contextlib.suppress(UnreadableImageError):
        assert pool.decode(bomb()).pixels.size <= 8000 * 9000
    assert np.array_equal(pool.decode(saved(kind="PNG")).pixels, np.asarray(GRAY))


def test_deflated_dicom_is_rejected_without_inflation(pool: DecodePool) -> None:
    with pytest.raises(UnreadableImageError, match="deflated DICOM is not supported"):
        pool.decode(deflated())


# --- Harmless files with the same features -----------------------------------------------------------------------------


def test_a_jpeg_with_several_scans_is_decoded() -> None:
    for options in ({"progressive": True}, {}, {"restart_marker_blocks": 1}):
        assert decode(saved(kind="JPEG", **options)).pixels.shape == (64, 64)
    assert (decode(with_scans(50)).pixels == decode(with_scans(1)).pixels).all()


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits"])
def test_lossless_tiff_compressions_are_decoded_exactly(compression: str | None) -> None:
    assert (decode(saved(compression=compression)).pixels == np.asarray(GRAY)).all()


def test_a_tiled_tiff_is_decoded() -> None:
    assert decode(tiled(64, 64, 64)).pixels.shape == (64, 64)


def test_a_bigtiff_is_decoded() -> None:
    assert (decode(saved(big_tiff=True, compression="tiff_lzw")).pixels == np.asarray(GRAY)).all()


def test_luts_with_too_many_entries_are_rejected() -> None:
    def with_table(entries: int) -> bytes:
        table, dataset = Dataset(), image()
        table.LUTDescriptor = [0, 0, 16]
        table.add_new("LUTData", "OW", bytes(2 * entries))
        dataset.VOILUTSequence = Sequence([table])
        return written(dataset)

    assert decode(with_table(65_536)).height == 9
    with pytest.raises(UnreadableImageError, match="a LUT is too long"):
        decode(with_table(65_537))


def test_pixel_data_with_a_text_value_representation_is_rejected() -> None:
    content = written(image())
    at = content.index(b"\xe0\x7f\x10\0OW")
    with pytest.raises(UnreadableImageError, match="its value representation is invalid"):
        decode(content[: at + 4] + b"UC" + content[at + 6 :])


def test_unused_elements_may_be_long_and_nested() -> None:
    dataset = image()
    expected = decode(written(dataset)).pixels
    dataset.add_new(0x00091001, "OB", bytes(1_000_000))
    dataset.add_new(0x00091002, "SQ", Sequence([Dataset() for _ in range(20_000)]))
    icon = Dataset()
    icon.add_new("PixelData", "OB", bytes(40_000))
    dataset.IconImageSequence = Sequence([icon] * 100)
    dataset["IconImageSequence"].is_undefined_length = True
    assert (decode(written(dataset)).pixels == expected).all()

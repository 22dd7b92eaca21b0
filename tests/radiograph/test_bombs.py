"""Small files that would cost far more than their pixels are refused before anything is decoded; their harmless kin are not."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from pydicom import Dataset, Sequence, uid
from tests.radiograph.test_dicom import film, written

from pneumoscope.errors import UnreadableFilmError
from pneumoscope.radiograph.decode import decode
from pneumoscope.radiograph.elements import has_too_many_elements
from pneumoscope.radiograph.scans import MAX_SCANS

GREY = Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64).astype(np.uint8))


@pytest.fixture
def _nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


def saved(picture: Image.Image = GREY, kind: str = "TIFF", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def with_scans(count: int, picture: Image.Image = GREY) -> bytes:
    """A progressive film whose second scan is there so many times."""
    whole = saved(picture, "JPEG", progressive=True)
    second = whole.index(b"\xff\xda", whole.index(b"\xff\xda") + 2)
    third = whole.index(b"\xff\xc4", second)
    return whole[:second] + whole[second:third] * count + whole[third:]


@pytest.mark.usefixtures("_nothing_is_decoded")
@pytest.mark.parametrize("picture", [GREY, GREY.convert("RGB")])
@pytest.mark.parametrize("count", [MAX_SCANS, 5000])
def test_a_jpeg_of_very_many_scans_is_refused(count: int, picture: Image.Image) -> None:
    with pytest.raises(UnreadableFilmError, match=r"it has [\d,]+ scans; 100 are the most"):
        decode(with_scans(count, picture))


@pytest.mark.usefixtures("_nothing_is_decoded")
def test_a_jpeg_in_colour_that_is_not_progressive_may_have_very_many_scans_too() -> None:
    whole = saved(GREY.convert("RGB"), "JPEG")
    start = whole.index(b"\xff\xda")
    with pytest.raises(UnreadableFilmError, match="scans; 100 are the most"):
        decode(whole[:start] + whole[start:-2] * (MAX_SCANS + 1) + whole[-2:])


def test_of_grey_that_is_not_progressive_a_second_scan_is_a_fault() -> None:
    whole = saved(kind="JPEG")
    start = whole.index(b"\xff\xda")
    with pytest.raises(UnreadableFilmError, match="broken data stream"):
        decode(whole[:start] + whole[start:-2] * 2 + whole[-2:])


def test_a_jpeg_of_some_scans_is_read() -> None:
    for options in ({"progressive": True}, {}, {"restart_marker_blocks": 1}):
        assert decode(saved(kind="JPEG", **options)).pixels.shape == (64, 64)
    assert (decode(with_scans(50)).pixels == decode(with_scans(1)).pixels).all()


def test_a_jpeg_of_very_many_scans_is_refused_within_dicom() -> None:
    from pydicom.encaps import encapsulate

    dataset = film(np.zeros((64, 64), np.uint8), 8, syntax=uid.JPEGExtended12Bit)
    dataset.PixelData = encapsulate([with_scans(MAX_SCANS)])
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(UnreadableFilmError, match=r"compressed it has \d+ scans"):
        decode(written(dataset))


@pytest.mark.usefixtures("_nothing_is_decoded")
@pytest.mark.parametrize(
    ("compression", "said"),
    [("group3", "group3"), ("group4", "group4"), ("tiff_ccitt", "tiff_ccitt"), ("jpeg", "jpeg"), ("lzma", "lzma")],
)
def test_a_tiff_in_a_compression_that_no_radiograph_has_is_refused(compression: str, said: str) -> None:
    picture = GREY if compression in ("jpeg", "lzma") else GREY.convert("1")
    with pytest.raises(UnreadableFilmError, match=f"a TIFF with the compression {said}; known are none, LZW"):
        decode(saved(picture, compression=compression))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits"])
def test_a_tiff_in_the_others_is_read_as_it_was(compression: str | None) -> None:
    assert (decode(saved(compression=compression)).pixels == np.asarray(GREY)).all()


def tiled(width: int, height: int, tile: int) -> bytes:
    """An uncompressed TIFF of one tile."""
    content = bytes(tile * tile if tile <= 64 else 4096)
    fields = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, 322: tile, 323: tile, 324: 0, 325: len(content)}
    at = 8 + 2 + 12 * len(fields) + 4
    fields[324] = at
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + content


def test_a_tiff_of_a_tile_is_read() -> None:
    assert decode(tiled(64, 64, 64)).pixels.shape == (64, 64)


@pytest.mark.usefixtures("_nothing_is_decoded")
@pytest.mark.parametrize("tile", [45_000, 0, 2**31])
def test_a_tiff_whose_tiles_are_far_larger_than_it_is_is_refused(tile: int) -> None:
    with pytest.raises(UnreadableFilmError, match="its tiles hold more than 75,000,000 pixels"):
        decode(tiled(600, 600, tile))


SYNTAXES = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian]


def many(count: int, group: int = 0x0009) -> Dataset:
    """Private elements of nothing."""
    dataset = Dataset()
    for number in range(count):
        dataset.add_new((group + 2 * (number // 0xF000), 0x1000 + number % 0xF000), "LO", "")
    return dataset


def placed(where: str, syntax: uid.UID, count: int) -> bytes:
    """A film with so many elements in some place of its header."""
    dataset = film(syntax=syntax)
    if where == "at the top":
        dataset.update(many(count))
        return written(dataset)
    if where == "repeated":
        order = ">HH" if syntax == uid.ExplicitVRBigEndian else "<HH"
        one = struct.pack(order, 0x0009, 0x1000) + (bytes(4) if syntax == uid.ImplicitVRLittleEndian else b"LO\0\0")
        content = written(dataset)
        at = content.index(struct.pack(order, 0x0008, 0x0060))
        return content[:at] + one * count + content[at:]
    if where == "in many items":
        dataset.VOILUTSequence = Sequence([Dataset() for _ in range(count)])
    else:
        dataset.VOILUTSequence = Sequence([many(count)])
    dataset["VOILUTSequence"].is_undefined_length = where != "in an item with a length"
    return written(dataset)


PLACES = ["at the top", "repeated", "in many items", "in an item", "in an item with a length"]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("where", PLACES)
def test_a_header_of_very_many_elements_is_refused(
    monkeypatch: pytest.MonkeyPatch, where: str, syntax: uid.UID
) -> None:
    monkeypatch.setattr("pneumoscope.radiograph.elements.MAX_ELEMENTS", 1000)
    assert not has_too_many_elements(placed(where, syntax, 300))
    content = placed(where, syntax, 1100)
    assert has_too_many_elements(content)
    with pytest.raises(UnreadableFilmError, match="more than 20,000 elements"):
        decode(content)


def test_a_header_of_meta_elements_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumoscope.radiograph.elements.MAX_ELEMENTS", 1000)
    content = written(film())
    one = struct.pack("<HH", 0x0002, 0x0200) + b"LO\0\0"
    assert has_too_many_elements(content[:132] + one * 1001 + content[132:])


@pytest.mark.parametrize("count", [900, 1100])
def test_elements_behind_a_picture_in_a_sequence_are_counted_and_its_bytes_are_not(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """An icon has pixels of its own, as they are or in fragments."""
    monkeypatch.setattr("pneumoscope.radiograph.elements.MAX_ELEMENTS", 1000)
    for icon in (b"\0" * 40_000, b"\xfe\xff\0\xe0\0\0\0\0\xfe\xff\0\xe0\x40\x9c\0\0" + b"\0" * 40_000):
        inner, dataset = Dataset(), film()
        inner.PixelData = icon
        inner["PixelData"].VR = "OB"
        inner["PixelData"].is_undefined_length = icon.startswith(b"\xfe")
        dataset.IconImageSequence = Sequence([inner, many(count)])
        dataset["IconImageSequence"].is_undefined_length = True
        assert has_too_many_elements(written(dataset)) == (count > 1000)


def test_lengths_that_look_like_letters_are_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumoscope.radiograph.elements.MAX_ELEMENTS", 1000)
    dataset = film(syntax=uid.ImplicitVRLittleEndian)
    dataset.add_new(0x00091000, "UN", bytes(0x4142))
    assert not has_too_many_elements(written(dataset))


def test_a_sequence_of_unknown_kind_has_no_kinds_within(monkeypatch: pytest.MonkeyPatch) -> None:
    """PS3.5 6.2.2: else a length within it could be taken for a kind, and the count be led past all that comes."""
    monkeypatch.setattr("pneumoscope.radiograph.elements.MAX_ELEMENTS", 1000)
    content = written(film())
    at = content.index(b"\x08\0\x60\0")
    past = b"\x09\0\x02\x10UT\0\0\xff\xff\xff\x7f"
    element = b"\x09\0\x01\x10AA\0\0" + past + bytes(0x4141 - len(past))
    inside = b"\xfe\xff\0\xe0\xff\xff\xff\xff" + element + b"\x09\0\x03\x10\0\0\0\0" * 1000
    assert has_too_many_elements(content[:at] + b"\x09\0\0\x10UN\0\0\xff\xff\xff\xff" + inside + content[at:])


@pytest.mark.parametrize("level", range(0, 256, 15))
def test_no_pixels_are_taken_for_elements(level: int) -> None:
    assert not has_too_many_elements(written(film(np.full((600, 600), level, np.uint16))))

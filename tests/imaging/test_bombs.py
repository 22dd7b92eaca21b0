"""Small files that would cost far more than their pixels are refused before anything is decoded; their harmless kin are not."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from pydicom import Dataset, Sequence, uid
from tests.imaging.test_dicom import image, written

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.scans import MAX_SCANS

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
    """A progressive image whose second scan is there so many times."""
    whole = saved(picture, "JPEG", progressive=True)
    second = whole.index(b"\xff\xda", whole.index(b"\xff\xda") + 2)
    third = whole.index(b"\xff\xc4", second)
    return whole[:second] + whole[second:third] * count + whole[third:]


@pytest.mark.usefixtures("_nothing_is_decoded")
@pytest.mark.parametrize("picture", [GREY, GREY.convert("RGB")])
@pytest.mark.parametrize("count", [MAX_SCANS, 5000])
def test_a_jpeg_of_very_many_scans_is_refused(count: int, picture: Image.Image) -> None:
    with pytest.raises(UnreadableImageError, match=r"it has [\d,]+ scans; 100 are the most"):
        decode(with_scans(count, picture))


@pytest.mark.usefixtures("_nothing_is_decoded")
def test_a_jpeg_in_colour_that_is_not_progressive_may_have_very_many_scans_too() -> None:
    whole = saved(GREY.convert("RGB"), "JPEG")
    start = whole.index(b"\xff\xda")
    with pytest.raises(UnreadableImageError, match="scans; 100 are the most"):
        decode(whole[:start] + whole[start:-2] * (MAX_SCANS + 1) + whole[-2:])


def test_of_grey_that_is_not_progressive_a_second_scan_is_a_fault() -> None:
    whole = saved(kind="JPEG")
    start = whole.index(b"\xff\xda")
    with pytest.raises(UnreadableImageError, match="broken data stream"):
        decode(whole[:start] + whole[start:-2] * 2 + whole[-2:])


def test_a_jpeg_of_some_scans_is_read() -> None:
    for options in ({"progressive": True}, {}, {"restart_marker_blocks": 1}):
        assert decode(saved(kind="JPEG", **options)).pixels.shape == (64, 64)
    assert (decode(with_scans(50)).pixels == decode(with_scans(1)).pixels).all()


def test_a_jpeg_of_very_many_scans_is_refused_within_dicom() -> None:
    from pydicom.encaps import encapsulate

    dataset = image(np.zeros((64, 64), np.uint8), 8, syntax=uid.JPEGExtended12Bit)
    dataset.PixelData = encapsulate([with_scans(MAX_SCANS)])
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(UnreadableImageError, match=r"compressed it has \d+ scans"):
        decode(written(dataset))


@pytest.mark.usefixtures("_nothing_is_decoded")
@pytest.mark.parametrize(
    ("compression", "said"),
    [("group3", "group3"), ("group4", "group4"), ("tiff_ccitt", "tiff_ccitt"), ("jpeg", "jpeg"), ("lzma", "lzma")],
)
def test_a_tiff_in_a_compression_that_no_radiograph_has_is_refused(compression: str, said: str) -> None:
    picture = GREY if compression in ("jpeg", "lzma") else GREY.convert("1")
    with pytest.raises(UnreadableImageError, match=f"a TIFF with the compression {said}; known are none, LZW"):
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
    with pytest.raises(UnreadableImageError, match="its tiles hold more than 75,000,000 pixels"):
        decode(tiled(600, 600, tile))


def with_entry_before(tag: int, kind: int, value: int, content: bytes) -> bytes:
    """A little-endian TIFF with one more entry, before that of the same tag, and of any type."""
    (count,) = struct.unpack_from("<H", content, 8)
    entries = [struct.unpack_from("<HHII", content, 10 + 12 * number) for number in range(count)]
    at = next(number for number, entry in enumerate(entries) if entry[0] == tag)
    end = 10 + 12 * (count + 1) + 4
    moved = [(*entry[:3], entry[3] + 20) if entry[0] in {273, 324} else entry for entry in entries]
    inline = value if kind in {3, 4} else end  # 8 bytes do not fit within an entry
    moved.insert(at, (tag, kind, 1, inline))
    directory = b"".join(struct.pack("<HHII", *entry) for entry in moved)
    return (
        content[:8]
        + struct.pack("<H", count + 1)
        + directory
        + bytes(4)
        + struct.pack("<Q", value)
        + content[end - 12 :]
    )


@pytest.mark.usefixtures("_nothing_is_decoded")
@pytest.mark.parametrize("kind", [3, 4, 17, 18, 0])  # short, long, and types that Pillow leaves out
@pytest.mark.parametrize(("tag", "value"), [(259, 2), (322, 45_000), (323, 45_000), (277, 60_000)])
def test_a_tiff_that_pillow_and_libtiff_would_read_differently_is_refused(tag: int, value: int, kind: int) -> None:
    with pytest.raises(UnreadableImageError, match=f"its directory has tag {tag} twice, or of a type"):
        decode(with_entry_before(tag, kind, value, tiled(64, 64, 64)))


@pytest.mark.usefixtures("_nothing_is_decoded")
@pytest.mark.parametrize("tag", [259, 322, 277])
def test_an_entry_that_pillow_would_leave_out_is_refused_alone_too(tag: int) -> None:
    content = tiled(64, 64, 64)
    entry = struct.pack("<HHI", tag, 4, 1)
    with pytest.raises(UnreadableImageError, match=f"its directory has tag {tag} twice, or of a type"):
        decode(content.replace(entry, struct.pack("<HHI", tag, 17, 1)))


def test_an_entry_that_sizes_nothing_may_be_of_any_type() -> None:
    content = tiled(64, 64, 64)
    assert (decode(with_entry_before(262, 17, 1, content)).pixels == decode(content).pixels).all()


@pytest.mark.usefixtures("_nothing_is_decoded")
def test_a_tiff_of_very_many_entries_is_refused() -> None:
    with pytest.raises(UnreadableImageError, match="its directory has 3,000,000 entries; 4,096 are the most"):
        decode(b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 3_000_000) + bytes(20 * 10))


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_either_kind_is_read(big: bool) -> None:
    assert (decode(saved(big_tiff=big, compression="tiff_lzw")).pixels == np.asarray(GREY)).all()


def with_parts(kind: str, count: int) -> bytes:
    """An image with so many empty segments or chunks in front of its pixels."""
    whole = saved(kind=kind)
    chunk = bytes(4) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
    at, part = (2, b"\xff\xe5\0\2") if kind == "JPEG" else (33, chunk)
    return whole[:at] + part * count + whole[at:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_image_of_very_many_empty_parts_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumoscope.imaging.decode._MAX_READS", 3000)
    assert decode(with_parts(kind, 300)).pixels.shape == (64, 64)
    with pytest.raises(UnreadableImageError, match="it has far too many parts: more than 3,000 reads"):
        decode(with_parts(kind, 3000))


SYNTAXES = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian]
TOO_MANY = "far too many"


@pytest.fixture
def _few_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumoscope.imaging.elements.MAX_READS", 2000)


def refusal(content: bytes) -> str:
    """Why an image is refused; empty where it is read."""
    try:
        decode(content)
    except UnreadableImageError as error:
        return str(error)
    return ""


def many(count: int, group: int = 0x0009) -> Dataset:
    """Private elements of nothing."""
    dataset = Dataset()
    for number in range(count):
        dataset.add_new((group + 2 * (number // 0xF000), 0x1000 + number % 0xF000), "LO", "")
    return dataset


def placed(where: str, syntax: uid.UID, count: int) -> bytes:
    """An image with so many elements in some place of its header."""
    dataset = image(syntax=syntax)
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


@pytest.mark.usefixtures("_few_reads")
@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("where", PLACES)
def test_a_header_of_very_many_elements_is_refused(where: str, syntax: uid.UID) -> None:
    assert TOO_MANY not in refusal(placed(where, syntax, 100))
    assert TOO_MANY in refusal(placed(where, syntax, 2100))


PAST = b"\x09\0\x02\x10UT\0\0\xff\xff\xff\x7f"  # an element that claims to be longer than the file
END = b"\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.mark.usefixtures("_few_reads")
@pytest.mark.parametrize(
    "hides",
    [
        b"\x28\0\x10\x30OB\0\0\x0c\0\0\0" + PAST,
        b"\x09\0\x01\x10UT\0\0\xff\xff\xff\xff" + PAST + END,
        b"\x09\0\x01\x10OB\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\x7f" + END,
    ],
    ids=["bytes under the tag of a table", "text without a length", "a fragment beyond the end"],
)
def test_nothing_hides_elements_from_being_counted(hides: bytes) -> None:
    content = written(image())
    at = content.index(b"\xe0\x7f\x10\0")
    assert TOO_MANY in refusal(content[:at] + hides + b"\x09\0\x03\x10LO\0\0" * 2100 + content[at:])


@pytest.mark.usefixtures("_few_reads")
@pytest.mark.parametrize("head", [b"\x08\0\x05\0CS", b"\x08\0\x05\0UC\0\0"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_character_set_of_very_many_names_is_refused(head: bytes, inside: bool) -> None:
    """pydicom takes it apart while it reads the header."""

    def with_set(names: bytes) -> bytes:
        element = head + struct.pack("<H" if head.endswith(b"CS") else "<I", len(names)) + names
        if inside:
            element = (
                b"\x09\0\x01\x10SQ\0\0"
                + b"\xff" * 4
                + b"\xfe\xff\0\xe0"
                + struct.pack("<I", len(element))
                + element
                + END
            )
        content = written(image())
        at = content.index(b"\x08\0\x60\0")
        return content[:at] + element + content[at:]

    assert not refusal(with_set(b"ISO_IR 100"))
    assert TOO_MANY in refusal(with_set(b"\\" * 2100))


def test_a_character_set_without_a_length_is_refused() -> None:
    content = written(image())
    at = content.index(b"\x08\0\x60\0")
    inside = b"\xfe\xff\0\xe0\x10\x27\0\0" + b"\\" * 10_000 + END
    assert TOO_MANY in refusal(content[:at] + b"\x08\0\x05\0UC\0\0\xff\xff\xff\xff" + inside + content[at:])


@pytest.mark.parametrize(("element", "tag"), [("WindowCenter", "(0028,1050)"), ("Modality", "(0008,0060)")])
def test_a_value_of_very_many_numbers_or_words_is_refused(element: str, tag: str) -> None:
    """In implicit VR any value may have gigabytes."""
    dataset = image(syntax=uid.ImplicitVRLittleEndian)
    setattr(dataset, element, ["1"] * 2049)
    assert f"its element {tag} has 4,098 bytes; 4,096 are the most" in refusal(written(dataset))


def test_tables_beyond_what_tables_can_be_are_refused() -> None:
    def with_table(entries: int) -> bytes:
        table, dataset = Dataset(), image()
        table.LUTDescriptor = [0, 0, 16]
        table.add_new("LUTData", "OW", bytes(2 * entries))
        dataset.VOILUTSequence = Sequence([table])
        return written(dataset)

    assert not refusal(with_table(65_536))
    assert "a look-up table is too long" in refusal(with_table(65_537))
    assert "its element (0028,3010) has 2,09" in refusal(with_table(2**20))


@pytest.mark.parametrize("added", [b"\x02\0\2\1OB\0\0\0\0\1\0" + bytes(2**16), b"\x02\0\2\1ZZ\0\0"])
def test_meta_elements_that_are_long_or_of_no_known_kind_are_refused(added: bytes) -> None:
    content = written(image())
    assert "the DICOM header cannot be read" in refusal(content[:132] + added + content[132:])


def encapsulated(offsets: int, fragments: list[bytes]) -> bytes:
    dataset = image(np.zeros((64, 64), np.uint8), 8, syntax=uid.JPEGBaseline8Bit)
    parts = [bytes(4 * offsets), *fragments]
    dataset.PixelData = b"".join(b"\xfe\xff\0\xe0" + struct.pack("<I", len(part)) + part for part in parts)
    dataset["PixelData"].is_undefined_length = True
    return written(dataset)


@pytest.mark.usefixtures("_few_reads")
def test_meta_elements_of_very_many_are_refused() -> None:
    content = written(image())
    assert TOO_MANY in refusal(content[:132] + b"\x02\0\2\1LO\0\0" * 2100 + content[132:])


@pytest.mark.usefixtures("_few_reads")
def test_a_image_in_very_many_fragments_or_of_very_many_offsets_is_refused() -> None:
    whole = saved(kind="JPEG")
    pieces = [whole[at : at + 100] for at in range(0, len(whole) - len(whole) % 2, 100)]
    assert not refusal(encapsulated(0, pieces)), "some fragments are one image"
    assert "it is in far too many fragments" in refusal(encapsulated(0, pieces + [b""] * 900))
    assert "it has a table of many frames" in refusal(encapsulated(2**15, pieces))


def test_pixels_that_claim_to_be_words_are_refused() -> None:
    content = written(image())
    at = content.index(b"\xe0\x7f\x10\0OW")
    assert "they are not bytes" in refusal(content[: at + 4] + b"UC" + content[at + 6 :])


def test_what_is_not_used_may_be_long_and_of_many_parts() -> None:
    dataset = image()
    expected = decode(written(dataset)).pixels
    dataset.add_new(0x00091001, "OB", bytes(1_000_000))
    dataset.add_new(0x00091002, "SQ", Sequence([Dataset() for _ in range(20_000)]))
    icon = Dataset()
    icon.add_new("PixelData", "OB", bytes(40_000))
    dataset.IconImageSequence = Sequence([icon] * 100)
    dataset["IconImageSequence"].is_undefined_length = True
    assert (decode(written(dataset)).pixels == expected).all()


@pytest.mark.usefixtures("_few_reads")
@pytest.mark.parametrize("level", range(0, 256, 15))
def test_no_pixels_are_taken_for_elements(level: int) -> None:
    assert not refusal(written(image(np.full((600, 600), level, np.uint16))))

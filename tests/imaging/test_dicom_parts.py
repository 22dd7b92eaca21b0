"""Parts of DICOM files: the same in a worker process as in this one, and limited in time and length."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pydicom
import pytest
from tests.imaging.dicom_images import image, written

from pneumoscope.core.errors import DecodeCrashedError, UnreadableImageError
from pneumoscope.imaging.dicom_parts import MAX_INLINE, read_part
from pneumoscope.imaging.image import DicomPart
from pneumoscope.imaging.sandbox.pool import DecodePool, Limits

LIMITS = Limits(memory=2**30, part_cpu_seconds=10, wall_seconds=60)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, limits=LIMITS) as made:
        yield made


def lut(**elements: object) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [4, 0, 16], bytes(8)
    item.update({pydicom.tag.Tag(name): pydicom.DataElement(pydicom.tag.Tag(name), "LO", value)
                 for name, value in elements.items()})  # fmt: skip
    return item


@pytest.mark.parametrize("part", ["header", "frame", "display"])
def test_a_worker_returns_the_same_part_as_this_process(pool: DecodePool, part: DicomPart) -> None:
    data = written(image(PatientName="Doe^Jane", WindowCenter="40", WindowWidth="80"))
    assert pool.read_part(data, part) == read_part(data, part) != b""


def test_a_file_without_pixels_has_an_empty_frame(pool: DecodePool) -> None:
    dataset = image()
    del dataset.PixelData
    assert pool.read_part(written(dataset), "frame") == b""


@pytest.mark.parametrize(("part", "code"), [
    ("header", "dicom_header_not_readable"), ("frame", "dicom_file_not_readable"), ("display", "dicom_header_not_readable"),
])  # fmt: skip
def test_a_damaged_file_has_a_reason(pool: DecodePool, part: DicomPart, code: str) -> None:
    data = bytes(128) + b"DICM" + b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xff" * 64
    with pytest.raises(UnreadableImageError) as caught:
        pool.read_part(data, part)
    assert caught.value.reason is not None
    assert caught.value.reason.code == code


def test_a_part_that_is_too_long_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumoscope.imaging.dicom_parts.MAX_PART_BYTES", {"header": 100})
    with pytest.raises(UnreadableImageError, match="the DICOM header cannot be read"):
        read_part(written(image()), "header")


@pytest.mark.parametrize(("content", "part"), [
    (b"no JSON", "header"), (b"[]", "header"), (b"{", "display"), (b"long", "display"),
])  # fmt: skip
def test_an_invalid_part_is_a_crash_of_the_decoder(content: bytes, part: DicomPart) -> None:
    with (
        DecodePool(1, limits=LIMITS, preload=["tests.imaging.hostile_parts"]) as hostile_pool,
        pytest.raises(DecodeCrashedError, match="the decoder sent an invalid reply"),
    ):
        hostile_pool.read_part(content, part)


def test_a_header_has_no_long_binary_values() -> None:
    dataset = image()
    dataset.add_new(0x00091001, "OB", bytes(MAX_INLINE + 2))
    dataset.add_new(0x00091002, "OB", bytes(MAX_INLINE))
    header = json.loads(read_part(written(dataset), "header"))
    assert "00091002" in header
    assert {"00091001", "7FE00010"}.isdisjoint(header)


def test_display_keeps_lookup_tables_without_their_other_elements_and_no_window_beside_them() -> None:
    dataset = image(WindowCenter="40", WindowWidth="80", PatientName="Doe^Jane")
    dataset.VOILUTSequence = [lut(PatientID="7")]
    display = pydicom.Dataset.from_json(read_part(written(dataset), "display").decode())
    assert {"WindowCenter", "WindowWidth", "PatientName"}.isdisjoint(each.keyword for each in display)
    (item,) = display.VOILUTSequence
    assert (list(item.LUTDescriptor), item.LUTData) == ([4, 0, 16], bytes(8))
    assert [each.keyword for each in item] == ["LUTDescriptor", "LUTData"]


def test_display_has_no_elements_with_many_values() -> None:
    for count, kept in ((100, True), (101, False)):
        data = written(image(WindowCenter=["40"] * count, WindowWidth=["80"] * count))
        display = pydicom.Dataset.from_json(read_part(data, "display").decode())
        assert ("WindowCenter" in display) is kept

"""Decoding of DICOM files, checked against the standard by hand and against pydicom."""

from __future__ import annotations

import io
import math
import struct
import sys
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, Sequence, dcmread, uid
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_voi_lut
from pydicom.pixels.decoders.base import Decoder
from tests.imaging.dicom_images import NAME, RAMP, image, written

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.prediction import PatientAge, Rejection
from pneumoscope.core.rejection_messages import rejection_message
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.image import MAX_PIXELS


def gray(dataset: Dataset) -> npt.NDArray[np.uint8]:
    return decode(written(dataset), name="image").pixels


def row(*values: int, dtype: Any = np.uint16) -> npt.NDArray[Any]:
    return np.array([values], dtype=dtype)


def test_the_image_states_its_format_and_mode() -> None:
    radiograph = decode(written(image()), name="a.dcm")
    assert (radiograph.width, radiograph.height) == (35, 9)
    assert (radiograph.source, radiograph.format, radiograph.mode) == ("a.dcm", "DICOM", "MONOCHROME2, 12 bits")
    assert not radiograph.pixels.flags.writeable


# PS3.3 C.11.2.1.2.1 with c = 2048, w = 4096: y = ((x - 2047.5) / 4095 + 0.5) * 255 = x / 4095 * 255
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (1000, 62), (2048, 128), (4095, 255)])
def test_linear_window_by_hand(value: int, expected: int) -> None:
    assert gray(image(row(value), WindowCenter=2048, WindowWidth=4096)) == expected


# c = 100, w = 11: black up to 99.5 - 5 = 94.5, white above 104.5; 97 -> ((97 - 99.5) / 10 + 0.5) * 255 = 63.75
@pytest.mark.parametrize(("value", "expected"), [(94, 0), (95, 13), (97, 64), (104, 242), (105, 255)])
def test_a_narrow_linear_window_clips_on_both_sides(value: int, expected: int) -> None:
    assert gray(image(row(value), WindowCenter=100, WindowWidth=11)) == expected


def test_the_narrowest_linear_window_is_a_step_below_its_center() -> None:
    assert gray(image(row(99, 100), WindowCenter=100, WindowWidth=1)).tolist() == [[0, 255]]


# LINEAR_EXACT, c = 100, w = 10: 98 -> ((98 - 100) / 10 + 0.5) * 255 = 76.5 (to even); LINEAR would give 99.2
# SIGMOID: 102 -> 255 / (1 + exp(-4 * 2 / 10)) = 175.9
@pytest.mark.parametrize(("function", "value", "expected"), [("LINEAR_EXACT", 98, 76), ("SIGMOID", 102, 176)])
def test_other_window_functions_by_hand(function: str, value: int, expected: int) -> None:
    assert gray(image(row(value), WindowCenter=100, WindowWidth=10, VOILUTFunction=function)) == expected


def test_the_first_of_several_windows_is_applied() -> None:
    several = image(WindowCenter=[1900, 2100], WindowWidth=[3600, 3000])
    assert np.array_equal(gray(several), gray(image(WindowCenter=1900, WindowWidth=3600)))
    assert not np.array_equal(gray(several), gray(image(WindowCenter=2100, WindowWidth=3000)))


def test_monochrome1_is_255_minus_monochrome2() -> None:
    window = {"WindowCenter": 1500, "WindowWidth": 1000}
    inverted = gray(image(PhotometricInterpretation="MONOCHROME1", **window))
    assert np.array_equal(inverted, 255 - gray(image(**window)))
    assert inverted[0, 0] == 255


def test_without_a_window_the_range_of_the_image_is_used() -> None:
    # The full range of the bit depth: 300 / 2047 * 255 = 37.4, 1200 / 2047 * 255 = 149.5
    assert gray(image(row(200, 300, 700, 1200))).tolist() == [[25, 37, 87, 149]]
    # With an offset, the range of the values: (30300 - 30200) / (31200 - 30200) * 255 = 25.5, to even
    assert gray(image(row(30200, 30300, 30700, 31200), 16)).tolist() == [[0, 26, 128, 255]]
    assert gray(image(row(7, 7))).tolist() == [[7, 7]]
    assert gray(image(row(200, 1200), WindowCenter=5)).tolist() == [[25, 149]], (
        "a center without a width is not a window"
    )


def test_slope_and_intercept_are_applied_before_the_window() -> None:
    # 500 * 2 - 1000 = 0; c = 0.5, w = 256: ((0 - 0) / 255 + 0.5) * 255 = 127.5 (to even)
    assert gray(image(row(500), RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=0.5, WindowWidth=256)) == 128
    assert gray(image(row(0, 10), RescaleSlope=-1, RescaleIntercept=0)).tolist() == [[255, 0]], "a falling slope"


def test_signed_12_bit_pixels() -> None:
    pixels = row(-2048, -1, 0, 2047, dtype=np.int16)
    # (x + 2048) / 4095 * 255: -1 -> 127.47, 0 -> 127.53
    assert gray(image(pixels)).tolist() == [[0, 127, 128, 255]]


def test_bits_above_the_stored_ones_are_ignored() -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    assert np.array_equal(gray(image(RAMP | np.uint16(0xA000), **window)), gray(image(RAMP, **window)))
    # signed: 0xA7FF is 2047 in the lowest 12 bits, 0xA800 is -2048
    signed = np.array([[0xA7FF, 0xA800]], dtype=np.uint16).view(np.int16)
    assert gray(image(signed, WindowCenter=0, WindowWidth=4096)).tolist() == [[255, 0]]


def test_8_bit_pixels() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(gray(image(pixels, stored=8)), pixels)


def table(entries: npt.NDArray[Any], first: int, bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 2**16, first, bits])
    item.add_new("LUTData", "OW", entries.tobytes())
    return Sequence([item])


def test_a_voi_lut_takes_precedence_over_a_window() -> None:
    # the table is for 10, 11, 12; below and above it, its ends; 511 / 1023 * 255 = 127.4
    voi = table(np.array([0, 511, 1023], dtype="<u2"), 10, 10)
    dataset = image(row(3, 10, 11, 12, 900), VOILUTSequence=voi, WindowCenter=2048, WindowWidth=4096)
    assert gray(dataset).tolist() == [[0, 0, 127, 255, 255]]


def test_a_lut_of_65536_entries_has_the_count_0() -> None:
    voi = table(np.arange(65536, dtype="<u2"), 0, 16)
    assert voi[0].LUTDescriptor[0] == 0
    pixels = row(0, 30000, 65535)  # 30000 / 257 = 116.7
    assert gray(image(pixels, stored=16, VOILUTSequence=voi)).tolist() == [[0, 117, 255]]


def test_a_modality_lut_is_applied_before_the_window() -> None:
    modality = table(np.array([100, 40, 20], dtype="<u2"), 0, 16)
    dataset = image(row(0, 1, 2), ModalityLUTSequence=modality, WindowCenter=60.5, WindowWidth=81)
    dataset.ModalityLUTSequence[0].ModalityLUTType = "US"
    # (x - 60) / 80 + 0.5 for 100, 40, 20 is 1, 0.25, 0
    assert gray(dataset).tolist() == [[255, 64, 0]]


def test_8_bit_lut_entries_may_be_packed_two_to_a_word() -> None:
    entries = np.array([0, 50, 100, 255], dtype=np.uint8)
    assert gray(image(row(0, 1, 2, 3), VOILUTSequence=table(entries, 0, 8))).tolist() == [[0, 50, 100, 255]]


def test_lut_entries_may_be_numbers() -> None:
    voi = table(np.array([0, 128], dtype="<u2"), 0, 8)
    voi[0].add_new("LUTData", "US", [0, 128])
    assert gray(image(row(0, 1), VOILUTSequence=voi)).tolist() == [[0, 128]]


def brightness(x: float, center: float, width: float, function: str) -> float:
    """Return the window functions of PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2 for an output range of 0 to 1."""
    if function == "SIGMOID":
        return 1 / (1 + math.exp(-4 * (x - center) / width))
    c, w = (center - 0.5, width - 1) if function == "LINEAR" else (center, width)
    if x <= c - w / 2:
        return 0
    if x > c + w / 2:
        return 1
    return (x - c) / w + 0.5


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("slope", [1.5, -0.25])
def test_windows_follow_the_standard(function: str, photometric: str, signed: bool, slope: float) -> None:
    pixels = (RAMP.astype(np.int16) - 2048) if signed else RAMP
    center, width = slope * int(pixels[5, 9]) - 300, abs(slope) * 2000  # about half of the range of the pixels
    dataset = image(
        pixels,
        PhotometricInterpretation=photometric,
        RescaleSlope=slope,
        RescaleIntercept=-300,
        WindowCenter=center,
        WindowWidth=width,
        VOILUTFunction=function,
    )
    expected = np.array(
        [[brightness(slope * x - 300, center, width, function) for x in line] for line in pixels.tolist()]
    )
    if photometric == "MONOCHROME1":
        expected = 1 - expected
    assert np.abs(gray(dataset) - 255 * expected).max() <= 0.5 + 1e-6


def test_voi_lut_agrees_with_pydicom() -> None:
    curve = np.round(65535 * np.linspace(0, 1, 3000) ** 2.2).astype("<u2")
    dataset = image(VOILUTSequence=table(curve, 400, 16))
    reference = apply_voi_lut(RAMP, dataset) / 65535 * 255
    assert np.abs(gray(dataset) - reference).max() <= 0.5


# Tables are applied here and not by pydicom's apply_modality_lut and apply_voi, because these are wrong or fail below.
# If this test fails with a newer pydicom, use pydicom for tables, too.
@pytest.mark.parametrize(
    ("voi", "slope"),
    [
        pytest.param(table((np.arange(4096) // 16).astype("<u2"), 0, 8), 1, id="8-bit entries, more than 256"),
        pytest.param(table(np.repeat(np.arange(256, dtype=np.uint8), 16), 0, 8), 1, id="8-bit entries, packed"),
        pytest.param(table(np.arange(65536, dtype="<u2"), 0, 16), 17, id="values above 65,535"),
    ],
)
def test_luts_that_pydicom_applies_incorrectly(voi: Sequence, slope: int) -> None:
    dataset = image(VOILUTSequence=voi, RescaleSlope=slope, RescaleIntercept=0)
    entries = np.frombuffer(voi[0].LUTData, np.uint8 if len(voi[0].LUTData) == 4096 else "<u2").tolist()
    largest = 2 ** voi[0].LUTDescriptor[2] - 1
    expected = np.array([[entries[min(slope * x, len(entries) - 1)] for x in line] for line in RAMP.tolist()])
    assert np.abs(gray(dataset) - 255 * expected / largest).max() <= 0.5
    try:
        reference = apply_voi_lut(RAMP.astype(np.int64) * slope, dataset)
    except struct.error:
        return
    assert not np.array_equal(reference, expected)


def test_padding_is_black_and_not_part_of_the_range() -> None:
    pixels = row(4000, 100, 150, 200, 3990)
    assert gray(image(pixels, PixelPaddingValue=4000, PixelPaddingRangeLimit=3900)).tolist() == [[0, 100, 150, 200, 0]]
    inverted = image(
        pixels, PixelPaddingValue=4000, PixelPaddingRangeLimit=3900, PhotometricInterpretation="MONOCHROME1"
    )
    assert gray(inverted).tolist() == [[0, 155, 105, 55, 0]]


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.RLELossless])
def test_transfer_syntaxes_give_the_same_image(syntax: uid.UID) -> None:
    dataset = image()
    if syntax == uid.RLELossless:
        dataset.compress(syntax)
    dataset.file_meta.TransferSyntaxUID = syntax
    assert np.array_equal(gray(dataset), gray(image()))


def test_big_endian() -> None:
    dataset = image(RAMP.astype(">u2"), syntax=uid.ExplicitVRBigEndian)
    dataset.VOILUTSequence = table(np.where(np.arange(4096) <= 1000, 257, 40000).astype(">u2"), 0, 16)
    # 257 / 65535 * 255 = 1; 40000 / 65535 * 255 = 155.6
    assert np.array_equal(gray(dataset), np.where(RAMP <= 1000, 1, 156))


def test_jpeg_baseline_is_decoded_by_pillow() -> None:
    from PIL import Image

    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(smooth).save(file, "JPEG", quality=95)
    dataset = image(smooth, stored=8, syntax=uid.JPEGBaseline8Bit, PixelData=encapsulate([file.getvalue()]))
    dataset["PixelData"].VR = "OB"
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    assert np.array_equal(gray(dataset), np.asarray(Image.open(file)))


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Modality": "CT"}, "the modality is CT; only projection radiography"),
        ({"NumberOfFrames": 7}, "the file has 7 frames"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, r"it is in color \(RGB, 3 samples per pixel\)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, r"it is in color \(PALETTE COLOR, 1 "),
        ({"Rows": None}, "its header has no Rows"),
        ({"PixelRepresentation": None}, "its header has no PixelRepresentation"),
        ({"Rows": 0}, r"it has no pixels \(35 x 0\)"),
        ({"Rows": 60000, "Columns": 50000}, rf"the image has more than {MAX_PIXELS:,} pixels \(50000 x 60000\)"),
        (
            {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31},
            r"its pixel format is not supported \(32 bits allocated, 32 stored, high bit 31\)",
        ),
        ({"BitsStored": 4, "HighBit": 3}, r"not supported \(16 bits allocated, 4 stored, high bit 3\)"),
        ({"HighBit": 15}, r"not supported \(16 bits allocated, 12 stored, high bit 15\)"),
        ({"PixelData": None}, r"the pixel data cannot be decoded \(the element is missing\)"),
        ({"PixelData": RAMP.tobytes()[:-40]}, "the pixel data cannot be decoded .*590 .*630 bytes"),
        ({"PixelData": RAMP.tobytes() * 2}, "the file has 2 frames, not 1"),
        ({"WindowCenter": 5, "WindowWidth": 0.5}, "invalid LINEAR window: center 5, width 0.5"),
        (
            {"WindowCenter": 5, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
            "invalid SIGMOID window: center 5, width 0",
        ),
        ({"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "CURVED"}, "the VOI LUT function is unknown"),
        ({"RescaleSlope": "1e999", "RescaleIntercept": 0}, "slope or intercept is not finite"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "the rescale slope is 0"),
        ({"VOILUTSequence": table(np.zeros(0, "<u2"), 0, 12)}, "a LUT has no entries"),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}, "every pixel is padding"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # pydicom's
def test_unsuitable_headers_are_rejected(elements: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        decode(written(image(**elements)), name="x.dcm")
    assert caught.value.path == "x.dcm"
    assert NAME not in str(caught.value)


def test_a_lut_with_too_few_entries_is_rejected() -> None:
    voi = table(np.zeros(4, "<u2"), 0, 12)
    voi[0].LUTDescriptor = [9, 0, 12]
    with pytest.raises(UnreadableImageError, match="a LUT has 4 of 9 entries of 12 bits"):
        gray(image(VOILUTSequence=voi))


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless])
def test_compression_without_a_decoder_names_the_extra(syntax: uid.UID, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "is_available", False)
    dataset = image(syntax=syntax, PixelData=encapsulate([b"\0\0"]))
    with pytest.raises(
        UnreadableImageError, match=f"no installed decoder supports its compression, {syntax.name[:9]}"
    ) as caught:
        gray(dataset)
    assert caught.value.hint == (
        "Install the extra [dicom]: pip install 'pneumoscope[dicom]'; or decompress the file first: gdcmconv --raw IN OUT"
    )


# --- Compressed pixels ----------------------------------------------------------------------------------------------


def captured(name: str) -> Dataset:
    """Return one of pydicom's test files, declared to be a chest image, for its pixel compression."""
    dataset = dcmread(files("pydicom") / "data" / "test_files" / name)
    dataset.Modality, dataset.BodyPartExamined = "DX", "CHEST"
    return dataset


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_lossless_compression_is_decoded_exactly(name: str) -> None:
    plain = gray(captured("MR_small.dcm"))
    assert len(np.unique(plain)) > 100
    assert np.array_equal(gray(captured(name)), plain)


def test_near_lossless_jpeg_ls_is_decoded_approximately() -> None:
    dataset = image((RAMP // 16).astype(np.uint8), stored=8, WindowCenter=128, WindowWidth=256)
    plain = gray(dataset).astype(int)
    dataset.compress(uid.JPEGLSNearLossless, jls_error=3)
    difference = np.abs(gray(dataset) - plain)
    assert 0 < difference.max() <= 3


def test_12_bit_lossy_jpeg_is_decoded() -> None:
    pytest.importorskip("imagecodecs", reason="the extra [dicom] is not installed")
    levels = gray(captured("JPEG-lossy.dcm"))
    assert (levels.shape, levels.min(), levels.max()) == ((1024, 256), 0, 255)


@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.1])
def test_truncated_12_bit_lossy_jpeg_is_rejected(fraction: float) -> None:
    pytest.importorskip("imagecodecs", reason="the extra [dicom] is not installed")
    dataset = captured("JPEG-lossy.dcm")
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[: int(fraction * len(frame))]])
    with pytest.raises(UnreadableImageError, match="the compressed frame is truncated"):
        gray(dataset)


def test_fill_bytes_before_a_marker_hide_no_other_size() -> None:
    dataset = captured("JPEG-lossy.dcm")
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    segment = b"\xff\xff\xe1" + struct.pack(">H", 15) + frame[2:15]  # would hide a start of frame
    bomb = bytearray(frame)
    start = next(i for i in range(len(bomb)) if bomb[i] == 0xFF and bomb[i + 1] == 0xC1)
    bomb[start + 5 : start + 9] = struct.pack(">HH", 60_000, 60_000)
    dataset.PixelData = encapsulate([bytes(bomb[:2] + segment + bomb[2:])])
    with pytest.raises(UnreadableImageError, match="the compressed frame is"):
        gray(dataset)


def test_12_bit_lossy_jpeg_without_its_decoder_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(
        UnreadableImageError, match="no installed decoder supports its compression, JPEG Extended"
    ) as caught:
        gray(captured("JPEG-lossy.dcm"))
    assert caught.value.hint.startswith("Install the extra [dicom]")


def jpeg_lossless(pixels: npt.NDArray[np.uint16], bits: int) -> bytes:
    """Return a JPEG of ITU-T T.81, process 14, first-order prediction: each difference from the left neighbor as its
    category, a Huffman code of five bits, and its lowest bits (H.1.2, F.1.2.1)."""
    height, width = pixels.shape
    row_by_row = pixels.astype(int)
    predicted = np.empty_like(row_by_row)
    predicted[:, 1:] = row_by_row[:, :-1]
    predicted[1:, 0] = row_by_row[:-1, 0]
    predicted[0, 0] = 2 ** (bits - 1)
    stream = ""
    for difference in (row_by_row - predicted).ravel().tolist():
        category = abs(difference).bit_length()
        stream += f"{category:05b}"
        if category:
            stream += f"{difference if difference > 0 else difference + 2**category - 1:0{category}b}"
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\0")

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content

    frame = struct.pack(">BHHBBBB", bits, height, width, 1, 1, 0x11, 0)
    table = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    start = bytes([1, 1, 0, 1, 0, 0])
    parts = segment(0xC3, frame), segment(0xC4, table), segment(0xDA, start)
    return b"\xff\xd8" + b"".join(parts) + scan + b"\xff\xd9"


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEGLossless])
def test_jpeg_lossless_by_the_standard_is_decoded_exactly(syntax: uid.UID) -> None:
    pytest.importorskip("gdcm", reason="the extra [dicom] is not installed")
    noise = np.random.default_rng(5).integers(0, 4096, (9, 35), dtype=np.uint16)
    for pixels in (RAMP, noise):
        dataset = image(pixels, syntax=syntax, PixelData=encapsulate([jpeg_lossless(pixels, 12)]))
        dataset["PixelData"].VR = "OB"
        assert np.array_equal(gray(dataset), gray(image(pixels)))


@pytest.mark.parametrize("length", [30, 200, -40])
def test_truncated_jpeg_lossless_is_rejected(length: int) -> None:
    pytest.importorskip("gdcm", reason="the extra [dicom] is not installed")
    dataset = image(syntax=uid.JPEGLosslessSV1, PixelData=encapsulate([jpeg_lossless(RAMP, 12)[:length]]))
    dataset["PixelData"].VR = "OB"
    with pytest.raises(UnreadableImageError, match="the pixel data cannot be decoded"):
        gray(dataset)


def test_the_preferred_decoder_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = []
    original = Decoder.as_array

    def as_array(self: Decoder, *arguments: Any, **options: Any) -> Any:
        plugins.append(options["decoding_plugin"])
        return original(self, *arguments, **options)

    monkeypatch.setattr(Decoder, "as_array", as_array)
    for name in ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"):
        gray(captured(name))
    assert plugins == ["", "pydicom", "pylibjpeg", "pyjpegls"]


def test_truncated_compressed_pixels_are_rejected() -> None:
    dataset = image()
    dataset.compress(uid.RLELossless)
    whole = written(dataset)
    with pytest.raises(UnreadableImageError, match="the pixel data cannot be decoded"):
        decode(whole[:-200], name="x")


def test_deflated_files_are_rejected_before_inflation() -> None:
    dataset = image(syntax=uid.DeflatedExplicitVRLittleEndian)
    with pytest.raises(UnreadableImageError, match=r"deflated DICOM is not supported\. Decompress it first: dcmconv"):
        gray(dataset)


def test_video_is_rejected() -> None:
    dataset = image(syntax=uid.MPEG2MPML, PixelData=encapsulate([b"\0\0"]))
    with pytest.raises(UnreadableImageError, match=r"the transfer syntax MPEG2 .* is not supported"):
        gray(dataset)


@pytest.mark.parametrize("tail", [b"", b"\0" * 30, b"\xff" * 64, b"\x02\x00\x00\x00UL\x04\x00\xff\xff\xff\xff"])
def test_invalid_data_after_the_prefix_is_rejected(tail: bytes) -> None:
    with pytest.raises(UnreadableImageError, match=r"the DICOM header cannot be read \(\w+\)|it contains no image"):
        decode(b"\0" * 128 + b"DICM" + tail, name="x")


def test_header_values_of_the_wrong_type_are_rejected_and_not_repeated() -> None:
    data = written(image(NumberOfFrames=1, PatientID="SECRET")).replace(b"IS\x02\x00" + b"1 ", b"IS\x02\x00" + b"SE")
    with pytest.raises(UnreadableImageError, match="the DICOM header cannot be read") as caught:
        decode(data, name="x")
    assert "SE" not in caught.value.detail


WHOLE = written(image(WindowCenter=2000, WindowWidth=1000, VOILUTSequence=table(np.arange(9, dtype="<u2"), 5, 12)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_give_an_image_or_an_unreadable_image_error(data: st.DataObject) -> None:
    damaged = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(132, len(damaged) - RAMP.nbytes))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(132, len(damaged)))
    message = ""
    try:
        decode(bytes(damaged[:cut]), name="x")
    except UnreadableImageError as error:
        message = str(error)
    assert NAME not in message


def test_the_header_is_checked_before_the_pixels_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr(Decoder, "as_array", fail)
    with pytest.raises(UnreadableImageError, match="more than"):
        gray(image(Rows=struct.unpack("<H", b"\xff\xff")[0], Columns=65535))


def test_rejected_headers_raise_an_error_where_a_prediction_is_not_wanted() -> None:
    content = written(image(ViewPosition="LL"))
    with pytest.raises(UnreadableImageError, match="cannot read 'x': the DICOM header specifies the view LL; only"):
        decode(content, name="x")
    radiograph = decode(content, allow_rejected=True)
    assert radiograph.rejections == (Rejection("lateral_view", {"view": "LL"}),)
    assert np.array_equal(radiograph.pixels, gray(image()))


@pytest.mark.parametrize(
    "keyword", ["SeriesDescription", "ViewPosition", "BodyPartExamined", "ImageLaterality", "Modality"]
)
@pytest.mark.filterwarnings("ignore")  # pydicom warns of values that are too long
def test_messages_quote_no_more_than_a_code(keyword: str) -> None:
    content = written(image(**{keyword: f"LAT ABCDEFGHIJKL {NAME}"}))
    for rejection in decode(content, allow_rejected=True).rejections:
        message = rejection_message(rejection)
        assert NAME not in message
        assert NAME.upper() not in message


def test_rejections_that_a_person_can_override_raise_no_error() -> None:
    radiograph = decode(written(image(BodyPartExamined="HAND", ViewPosition="ODD")))
    assert [rejection.code for rejection in radiograph.rejections] == ["body_part_not_chest", "view_not_understood"]


@pytest.mark.parametrize(
    ("elements", "age"),
    [
        ({"PatientAge": "067Y"}, PatientAge(67)),
        ({"PatientBirthDate": "20000301", "StudyDate": "20040301"}, PatientAge(pytest.approx(4, abs=0.002))),
        ({"PatientBirthDate": "20000301"}, PatientAge(None, stated="StudyDate: \N{EN DASH}")),
        ({}, None),
    ],
)
def test_the_age_of_the_patient_is_read(elements: dict[str, str], age: PatientAge | None) -> None:
    assert decode(written(image(**elements))).age == age


def test_an_invalid_window_is_not_repeated() -> None:
    content = written(image(WindowCenter="12345678", WindowWidth="1")).replace(b"12345678", b"DOE^JANE")
    with pytest.raises(UnreadableImageError) as caught:
        decode(content)
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm", "JPEG-lossless"],
)
def test_compressed_pixels_of_another_size_are_rejected(name: str) -> None:
    if name == "JPEG-lossless":
        pytest.importorskip("gdcm", reason="the extra [dicom] is not installed")
        dataset = image(syntax=uid.JPEGLosslessSV1, PixelData=encapsulate([jpeg_lossless(RAMP, 12)]))
        dataset["PixelData"].VR = "OB"
    else:
        dataset = captured(name)
    rows, columns = dataset.Rows, dataset.Columns
    assert gray(dataset).shape == (rows, columns)
    for dataset.Rows, dataset.Columns in ((rows, columns + 1), (rows - 1, columns), (64_000, 1)):
        if name == "MR_small_RLE.dcm" and dataset.Rows * dataset.Columns < rows * columns:
            continue  # pydicom ignores surplus pixels
        with pytest.raises(UnreadableImageError, match="the pixel data cannot be decoded"):
            gray(dataset)


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEG-lossless"])
def test_compressed_pixels_of_another_shape_are_rejected(name: str) -> None:
    if name == "JPEG-lossless":
        dataset = image(syntax=uid.JPEGLosslessSV1, PixelData=encapsulate([jpeg_lossless(RAMP, 12)]))
        dataset["PixelData"].VR = "OB"
    else:
        dataset = captured(name)
    dataset.Rows, dataset.Columns = dataset.Rows // 2 or 1, dataset.Columns * 2
    if name == "JPEG-lossless":
        dataset.Rows, dataset.Columns = 35, 9
    with pytest.raises(UnreadableImageError, match=r"the compressed frame is \d+ x \d+, the header states \d+ x \d+"):
        gray(dataset)

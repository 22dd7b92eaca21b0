"""The values of an image before any window: exact, complete, and with the gray levels that the model saw."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom import Dataset, Sequence, dcmread
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from tests.imaging.conformance import CASES, NO_WINDOW, REFERENCE, dataset, deep, lut, written

from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.pixel_values import PixelSpacing, PixelValues, Window

READABLE = [case for case in CASES if not case.result.startswith("error")]


def values_of(data: bytes) -> PixelValues:
    """Return the values, after a check that their gray levels are those of the 8-bit image."""
    radiograph = decode(data, allow_rejected=True, keep_values=True)
    values = radiograph.values
    assert values is not None
    assert np.array_equal(values.gray_levels[values.numbers], radiograph.pixels)
    assert np.array_equal(decode(data, allow_rejected=True).pixels, radiograph.pixels)
    return values


def in_units(values: PixelValues) -> npt.NDArray[np.float64]:
    """Return the values without padding, which is NaN."""
    found = values.description.slope * values.numbers.astype(np.float64) + values.description.intercept
    if values.description.padding is not None:
        found[values.numbers == values.description.padding] = np.nan
    return found


def windowed(values: PixelValues, window: Window) -> npt.NDArray[np.float64]:
    """Return the gray levels of a window by the formulas of PS3.3 C.11.2.1.2, as the browser computes them."""
    x, center, width = in_units(values), window.center, window.width
    if window.function == "SIGMOID":
        brightness = 1 / (1 + np.exp(-4 * (x - center) / width))
    elif window.function == "LINEAR_EXACT":
        brightness = (x - center) / width + 0.5
    else:
        brightness = (x - (center - 0.5)) / (width - 1) + 0.5
    levels = 255 * np.clip(brightness, 0, 1)
    return np.nan_to_num(255 - levels if values.description.white_is_zero else levels)


@pytest.mark.parametrize("case", READABLE, ids=[case.what for case in READABLE])
def test_every_readable_file_has_values_with_the_gray_levels_of_the_model(case: Any) -> None:
    data = case.build()
    if not data.startswith(b"PK"):
        values = values_of(data)
        assert values.numbers.dtype == np.uint16
        assert values.description.is_valid
        if values.description.default_window:
            shown = windowed(values, values.description.default_window)
            assert np.abs(shown - values.gray_levels[values.numbers]).max() <= 1


@pytest.mark.parametrize(
    ("elements", "bits"),
    [
        ({}, 12),
        ({"WindowCenter": 1500, "WindowWidth": 2500}, 12),
        ({"WindowCenter": 1500, "WindowWidth": 2500, "VOILUTFunction": "LINEAR_EXACT"}, 12),
        ({"WindowCenter": 1500, "WindowWidth": 2500, "VOILUTFunction": "SIGMOID"}, 12),
        ({"RescaleSlope": 0.5, "RescaleIntercept": -200, "WindowCenter": 800, "WindowWidth": 2000}, 12),
        ({"RescaleSlope": -1, "RescaleIntercept": 4095}, 12),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 12),
        ({}, 16),
        ({}, 8),
    ],
)
def test_values_and_window_are_those_of_pydicom(elements: dict[str, Any], bits: int) -> None:
    pixels = deep(bits) if bits > 8 else deep(8).astype(np.uint8)
    data = written(dataset(pixels, bits, **elements))
    values = values_of(data)
    file = dcmread(io.BytesIO(data))
    expected = apply_modality_lut(file.pixel_array, file)
    assert np.allclose(in_units(values), expected)
    assert (values.description.smallest, values.description.largest) == (expected.min(), expected.max())
    assert values.description.bits == bits
    shown = apply_voi_lut(expected, file).astype(np.float64)
    black = float(file.get("RescaleIntercept", 0))  # pydicom scales to the range of rescaled stored values
    white = float(file.get("RescaleSlope", 1)) * (2**bits - 1) + black
    shown = 255 * (shown - black) / (white - black)
    shown = 255 - shown if values.description.white_is_zero else shown
    assert values.description.default_window
    assert np.abs(values.gray_levels[values.numbers] - shown).max() <= 1
    assert np.abs(windowed(values, values.description.default_window) - shown).max() <= 1


def test_signed_values_are_kept() -> None:
    pixels = deep().astype(np.int16) - 2048
    values = values_of(written(dataset(pixels, **NO_WINDOW)))
    assert np.array_equal(in_units(values), pixels)
    assert (values.description.smallest, values.description.largest) == (-2048, 2047)


def test_values_of_the_full_range_of_16_signed_bits_do_not_overflow() -> None:
    pixels = (deep(16).astype(np.int32) - 2**15).astype(np.int16)
    values = values_of(written(dataset(pixels, 16, **NO_WINDOW)))
    assert np.array_equal(in_units(values), pixels)


def test_voi_lut_has_no_window_and_exact_gray_levels() -> None:
    table = np.round(4095 * (np.arange(4096) / 4095) ** 2).astype(np.uint16)
    data = written(dataset(VOILUTSequence=lut(table), **NO_WINDOW))
    values = values_of(data)
    assert values.description.default_window is None
    file = dcmread(io.BytesIO(data))
    expected = apply_voi_lut(file.pixel_array, file) / 4095 * 255
    assert np.abs(values.gray_levels[values.numbers] - expected).max() <= 1


def test_values_after_a_modality_lut_are_its_entries() -> None:
    table = (3 * np.arange(4096) + 100).astype(np.uint16)
    data = written(dataset(ModalityLUTSequence=lut(table, bits=16), WindowCenter=6243, WindowWidth=12288))
    values = values_of(data)
    file = dcmread(io.BytesIO(data))
    assert np.array_equal(in_units(values), apply_modality_lut(file.pixel_array, file))
    # Levels of numbers without pixels lie between those of their neighbors.
    assert np.abs(np.diff(values.gray_levels.astype(int))).max() <= 1


def test_every_window_of_the_file_is_listed_with_its_explanation() -> None:
    values = values_of(
        written(
            dataset(
                WindowCenter=[2048, 1500, 900], WindowWidth=[4096, 2500, 0],
                WindowCenterWidthExplanation=["NORMAL", "HARD\x07er", "bad"],
            )
        )
    )  # fmt: skip
    assert values.description.windows == (
        Window(2048, 4096, "LINEAR", "NORMAL"),
        Window(1500, 2500, "LINEAR", "HARDer"),
    )
    assert values.description.default_window == values.description.windows[0]


def test_window_that_does_not_fit_is_listed_but_not_applied() -> None:
    values = values_of(written(dataset(WindowCenter=30000, WindowWidth=100)))
    assert [each.center for each in values.description.windows] == [30000]
    assert values.description.default_window
    assert values.description.default_window.center != 30000


def test_padding_has_its_own_number_and_the_same_value_in_the_image_does_not() -> None:
    pixels = deep() // 2 + 1000
    pixels[:10] = 4000
    pixels[50, 50] = 4000
    values = values_of(written(dataset(pixels, PixelPaddingValue=4000)))
    padding = values.description.padding
    assert padding is not None
    assert np.array_equal(np.flatnonzero((values.numbers == padding).any(axis=1)), np.arange(10))
    assert (values.gray_levels[padding], values.description.largest) == (0, 4000)
    assert in_units(values)[50, 50] == 4000


def test_padding_of_an_image_that_uses_every_number_is_black() -> None:
    pixels = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    pixels[0] = 500
    pixels[-1, 0], pixels[1, 1] = 0, 65535
    values = values_of(written(dataset(pixels, 16, PixelPaddingValue=500, **NO_WINDOW)))
    assert values.description.padding is None


SPACING = {"PixelSpacing": [0.2, 0.3]}
DETECTOR = {"ImagerPixelSpacing": [0.25, 0.35]}


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, None),
        (DETECTOR, (0.25, 0.35, "detector")),
        (SPACING | DETECTOR, (0.2, 0.3, "calibrated")),
        ({"PixelSpacing": [0.25, 0.35]} | DETECTOR, (0.25, 0.35, "detector")),
        (SPACING, (0.2, 0.3, "unstated")),
        (SPACING | {"PixelSpacingCalibrationType": "FIDUCIAL"}, (0.2, 0.3, "calibrated")),
        ({"PixelSpacing": ["0", "0.3"]}, None),
        ({"PixelSpacing": ["0.3"]}, None),
        ({"PixelSpacing": ["nan", "0.3"]}, None),
    ],
)
def test_spacing_is_stated_with_its_kind(elements: dict[str, Any], expected: tuple[float, float, str] | None) -> None:
    spacing = values_of(written(dataset(**elements))).description.spacing
    assert spacing == (None if expected is None else PixelSpacing(*expected))  # type: ignore[arg-type]


def test_spacing_that_is_not_a_number_is_ignored() -> None:
    data = written(dataset(PixelSpacing=["0.21", "0.31"]))
    values = values_of(data.replace(b"0.21\\0.31", b"many\\0.31"))
    assert values.description.spacing is None


def test_spacing_and_window_of_an_enhanced_object_are_found() -> None:
    measures, voi, group = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [0.2, 0.3]
    voi.WindowCenter, voi.WindowWidth, voi.WindowCenterWidthExplanation = 1500, 2500, "CHEST"
    group.PixelMeasuresSequence, group.FrameVOILUTSequence = Sequence([measures]), Sequence([voi])
    values = values_of(written(dataset(SharedFunctionalGroupsSequence=Sequence([group]), **NO_WINDOW)))
    assert values.description.spacing == PixelSpacing(0.2, 0.3, "unstated")
    assert values.description.windows == (Window(1500, 2500, "LINEAR", "CHEST"),)


@pytest.mark.parametrize(
    ("file_format", "pixels"),
    [
        ("PNG", REFERENCE),
        ("PNG", deep(16)),
        ("PNG", deep(12)),
        ("TIFF", deep(16)),
        ("TIFF", REFERENCE),
        ("BMP", REFERENCE),
    ],
)
def test_values_of_files_without_a_header_are_those_of_pillow(file_format: str, pixels: npt.NDArray[Any]) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    values = values_of(file.getvalue())
    assert np.array_equal(in_units(values), np.asarray(Image.open(file)))
    assert (values.description.windows, values.description.spacing) == ((), None)
    assert values.description.bits == 8 * pixels.itemsize


def test_values_of_a_rotated_jpeg_are_upright() -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(REFERENCE[:40]).save(file, "JPEG", exif=exif)
    assert values_of(file.getvalue()).numbers.shape == (REFERENCE.shape[1], 40)

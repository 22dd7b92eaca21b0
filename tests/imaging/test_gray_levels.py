"""Windows and lookup tables are kept if they can belong to the pixels, and replaced if they cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.uid import SecondaryCaptureImageStorage
from tests.imaging.conformance import FULL_WINDOW, NO_WINDOW, REFERENCE, dataset, deep, lut, written

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.image import Radiograph

SIDE = 96


def rendered(pixels: npt.NDArray[Any] | None = None, bits: int = 12, **elements: Any) -> Radiograph:
    return decode(written(dataset(pixels, bits, **elements)))


def child_on_a_large_detector(anatomy: float = 0.43) -> npt.NDArray[np.uint16]:
    """Return 14-bit pixels: 25% collimated, direct exposure, and this fraction of anatomy from 1,500 to 4,500."""
    random = np.random.default_rng(0)
    n = SIDE * SIDE
    n_anatomy, n_collimated = int(anatomy * n), n // 4
    values = np.concatenate([
        random.integers(0, 150, n_collimated),
        np.sort(random.integers(1500, 4500, n_anatomy)),
        random.integers(14_500, 16_383, n - n_anatomy - n_collimated),
    ])  # fmt: skip
    return values.reshape(SIDE, SIDE).astype(np.uint16)


@pytest.mark.parametrize("anatomy", [0.2, 0.43, 0.6])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_window_of_the_anatomy_is_kept_although_most_pixels_are_background(anatomy: float, photometric: str) -> None:
    pixels = child_on_a_large_detector(anatomy)
    image = rendered(pixels, 14, WindowCenter=3000, WindowWidth=3200, PhotometricInterpretation=photometric)
    assert image.warnings == ()
    expected = np.clip((pixels.astype(float) - 2999.5) / 3199 + 0.5, 0, 1) * 255
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    assert np.abs(image.pixels - expected).max() <= 1


def test_window_that_clips_the_brightest_tenth_of_the_anatomy_is_kept() -> None:
    high = int(np.quantile(deep(), 0.9))
    assert rendered(WindowCenter=high / 2, WindowWidth=high).warnings == ()


def test_window_that_clips_half_of_the_anatomy_is_ignored() -> None:
    middle = int(np.quantile(deep(), 0.5))
    image = rendered(WindowCenter=middle / 2, WindowWidth=middle)
    assert image.warnings == ("window_ignored",)
    assert np.abs(image.pixels.astype(int) - REFERENCE).max() <= 1


def test_window_that_lies_beside_the_pixels_is_ignored() -> None:
    random = np.random.default_rng(0)
    n_bright = SIDE * SIDE * 15 // 100
    values = np.concatenate([random.integers(0, 2048, SIDE * SIDE - n_bright), random.integers(2048, 4096, n_bright)])
    pixels = np.sort(values).reshape(SIDE, SIDE).astype(np.uint16)
    assert rendered(pixels, WindowCenter=1100, WindowWidth=2200).warnings == ()
    image = rendered(pixels, WindowCenter=0, WindowWidth=4300)
    assert image.warnings == ("window_ignored",)
    assert np.abs(image.pixels - pixels / 4095 * 255).max() <= 1


@pytest.mark.parametrize("level", [2047, 2048, 2300, 4095])
def test_depth_is_measured_where_a_full_window_leaves_a_bit_unused_whatever_one_pixel_has(level: int) -> None:
    pixels = deep(11)
    pixels[0, 0] = level
    image = rendered(pixels)
    assert image.warnings == ("bit_depth_measured",)
    assert np.abs(image.pixels[1:].astype(int) - REFERENCE[1:]).max() <= 1


def test_full_window_of_the_stated_depth_is_kept_if_the_pixels_need_all_bits() -> None:
    pixels = (0.6 * deep()).astype(np.uint16)
    image = rendered(pixels)
    assert image.warnings == ()
    assert np.abs(image.pixels - pixels / 4095 * 255).max() <= 1


def test_full_window_of_the_measured_depth_is_kept_in_an_image_of_little_contrast() -> None:
    pixels = (2000 + deep(10) // 2).astype(np.uint16)
    image = rendered(pixels)
    assert image.warnings == ()
    assert np.abs(image.pixels - pixels / 4095 * 255).max() <= 1


@pytest.mark.parametrize("level", [4095, 4100, 5000, 9000, 65535])
def test_one_pixel_changes_no_measured_depth(level: int) -> None:
    pixels = deep()
    pixels[0, 0] = level
    image = rendered(pixels, 16)
    assert image.warnings == ("bit_depth_measured",)
    assert np.abs(image.pixels[1:].astype(int) - REFERENCE[1:]).max() <= 1


def test_window_function_is_kept_where_the_depth_is_measured() -> None:
    linear, sigmoid = (
        rendered(deep(), 16, VOILUTFunction=function).pixels.astype(int) for function in ("LINEAR", "SIGMOID")
    )
    expected = rendered(deep(), 12, VOILUTFunction="SIGMOID").pixels
    assert np.abs(sigmoid - expected).max() <= 1
    assert np.abs(sigmoid - linear).max() > 20


def test_lut_that_blackens_background_at_both_ends_is_kept() -> None:
    pixels = child_on_a_large_detector()
    values = np.arange(16384)
    table = np.where((values > 1500) & (values < 4500), (values - 1500) * 4095 // 3000, 0).astype("<u2")
    image = rendered(pixels, 14, VOILUTSequence=lut(table), **NO_WINDOW)
    assert image.warnings == ()
    assert np.abs(image.pixels - table[pixels] / 4095 * 255).max() <= 1


@pytest.mark.parametrize("entry", [4095, 4096, 65535])
@pytest.mark.parametrize("bits", [12, 16])
def test_one_wrong_entry_changes_no_depth_of_a_lut(entry: int, bits: int) -> None:
    table = np.arange(4096, dtype="<u2")
    table[-1] = entry
    image = rendered(VOILUTSequence=lut(table, bits=bits), **NO_WINDOW)
    assert np.abs(image.pixels.astype(int) - REFERENCE).max() <= 1


def test_lut_that_does_not_reach_white_is_kept() -> None:
    table = (0.6 * np.arange(4096)).astype("<u2")
    image = rendered(VOILUTSequence=lut(table), **NO_WINDOW)
    assert image.warnings == ()
    assert np.abs(image.pixels - table[deep()] / 4095 * 255).max() <= 1


@pytest.mark.parametrize("bits", [9, 11, 13, 14])
def test_depth_of_a_lut_that_states_one_bit_too_many_is_measured(bits: int) -> None:
    table = lut(np.arange(2**bits, dtype="<u2"), bits=bits + 1)
    image = rendered(deep(bits), bits, VOILUTSequence=table, **NO_WINDOW)
    assert image.warnings == ("bit_depth_measured",)
    assert np.abs(image.pixels.astype(int) - REFERENCE).max() <= 1


def test_marker_of_a_few_pixels_does_not_darken_an_image_without_a_window() -> None:
    pixels = (1000 + deep(10)).astype(np.uint16)
    pixels.ravel()[:9] = 4095
    image = rendered(pixels, **NO_WINDOW)
    assert np.abs(image.pixels[1:].astype(int) - REFERENCE[1:]).max() <= 1


def test_values_that_wrap_around_are_found_in_any_row() -> None:
    pixels = deep()
    pixels[50:52] = 4000 + 6 * np.arange(SIDE, dtype=np.uint16)  # a bright bar that 12 bits cannot hold
    image = rendered(pixels, 12, **NO_WINDOW)
    assert image.warnings == ("bit_depth_measured",)
    assert np.abs(image.pixels - pixels / 8191 * 255).max() <= 1


def test_windows_beyond_the_eighth_are_not_tried() -> None:
    centers, widths = [30000.0] * 9, [1000.0] * 9
    image = rendered(WindowCenter=[*centers, 2048], WindowWidth=[*widths, 4096])
    assert image.warnings == ("window_ignored",)


@pytest.mark.parametrize(
    ("slope", "reason"), [("1e305", "the rescaled values are not finite"), ("0", "the rescale slope is 0")]
)
def test_unusable_rescale_values_are_errors(slope: str, reason: str) -> None:
    with pytest.raises(Exception, match=reason):
        rendered(RescaleSlope=slope, RescaleIntercept=0, **FULL_WINDOW)


def test_lut_that_is_too_long_is_an_error() -> None:
    with pytest.raises(UnreadableImageError, match="a LUT is too long"):
        rendered(VOILUTSequence=lut(np.zeros(2**16 + 1, "<u2")), **NO_WINDOW)


def test_secondary_capture_without_a_modality_may_be_a_radiograph() -> None:
    image = rendered(Modality=None, SOPClassUID=SecondaryCaptureImageStorage)
    assert (image.rejections, image.warnings) == ((), ("modality_not_stated",))


def test_scattered_hot_pixels_without_a_gap_do_not_darken_an_image() -> None:
    pixels = deep()
    places = np.arange(15) * 600
    pixels.ravel()[places] = np.linspace(4400, 65535, 15).astype(np.uint16)
    image = rendered(pixels, 16, **NO_WINDOW)
    assert (np.abs(image.pixels.astype(int) - REFERENCE) <= 1).mean() > 0.99


@pytest.mark.parametrize("level", [40_000, 60_000, 65_535])
@pytest.mark.parametrize("window", [NO_WINDOW, {}])
@pytest.mark.parametrize("bits", [8, 13, 14])
def test_scattered_hot_pixels_are_not_negative_values(bits: int, window: dict[str, Any], level: int) -> None:
    pixels = deep(bits)
    pixels.ravel()[::101] = level
    image = rendered(pixels, 16, **window)
    others = pixels < level
    assert np.abs(image.pixels.astype(int) - REFERENCE)[others].max() <= 1
    assert image.pixels[~others].min() == 255


def test_marker_of_1_percent_does_not_darken_an_image_with_an_offset() -> None:
    pixels = (30_000 + deep()).astype(np.uint16)
    pixels.ravel()[:92] = 65535
    image = rendered(pixels, 16, **NO_WINDOW)
    assert np.abs(image.pixels[1:].astype(int) - REFERENCE[1:]).max() <= 1


@pytest.mark.parametrize("border", [5, 20])
@pytest.mark.parametrize(
    ("value", "bits", "kind"),
    [
        (65535, 10, np.uint16),
        (65535, 14, np.uint16),
        (63536, 14, np.uint16),
        (-20000, 12, np.int16),
        (-32768, 10, np.int16),
    ],
)
def test_undeclared_padding_of_one_value_changes_no_gray_level(
    value: int, bits: int, kind: type[np.generic], border: int
) -> None:
    pixels = deep(bits).astype(np.int64) - (2 ** (bits - 1) if kind is np.int16 else 0)
    inside = np.zeros(pixels.shape, np.bool_)
    inside[border:-border, border:-border] = True
    pixels[~inside] = value
    image = rendered(pixels.astype(kind), 16, **NO_WINDOW)
    assert image.warnings == ("padding_measured",)
    assert np.abs(image.pixels.astype(int) - REFERENCE)[inside].max() <= 1
    assert (image.pixels[~inside] == 0).all()


@pytest.mark.parametrize("value", [-1, -100, -2000])
def test_the_only_negative_value_is_undeclared_padding_at_any_distance(value: int) -> None:
    pixels = deep().astype(np.int16)
    pixels[:10] = value
    image = rendered(pixels, 16, **NO_WINDOW)
    assert image.warnings == ("padding_measured",)
    assert np.abs(image.pixels.astype(int) - REFERENCE)[10:].max() <= 1
    assert (image.pixels[:10] == 0).all()


@pytest.mark.parametrize("border", [0, 4095, 16383, 32767])
def test_signed_and_unsigned_files_of_the_same_numbers_have_the_same_gray_levels(border: int) -> None:
    pixels = np.random.default_rng(0).integers(3000, 3900, (SIDE, SIDE)).astype(np.uint16)
    pixels[:10], pixels[-10:] = border, border
    unsigned, signed = (rendered(pixels.astype(kind), 16, **NO_WINDOW) for kind in (np.uint16, np.int16))
    assert np.array_equal(unsigned.pixels, signed.pixels)
    assert unsigned.warnings == signed.warnings == ()


@pytest.mark.parametrize(("value", "kind", "level"), [(65535, np.uint16, 255), (-20000, np.int16, 0)])
def test_object_that_touches_undeclared_padding_of_its_value_is_not_padding(
    value: int, kind: type[np.generic], level: int
) -> None:
    pixels = deep().astype(np.int64)
    pixels[:10] = value
    pixels[10:40, 20:30] = value
    image = decode(written(dataset(pixels.astype(kind), 16, **NO_WINDOW)), keep_values=True)
    values = image.values
    assert values is not None
    assert values.description.padding is not None
    assert np.array_equal(np.flatnonzero((values.numbers == values.description.padding).any(axis=1)), np.arange(10))
    assert (image.pixels[:10] == 0).all()
    assert (image.pixels[10:40, 20:30] == level).all()
    assert np.abs(image.pixels.astype(int) - REFERENCE)[pixels != value].max() <= 1


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_border_of_a_saturated_detector_is_not_padding(photometric: str) -> None:
    pixels = deep(12)
    pixels[:10] = 16383
    image = rendered(pixels, 14, PhotometricInterpretation=photometric)
    assert image.warnings == ()


def test_12_bits_of_16_levels_are_not_taken_for_scaled_8_bits() -> None:
    pixels = (np.random.default_rng(0).integers(0, 16, (SIDE, SIDE)) * 256).astype(np.uint16)
    image = rendered(pixels, **NO_WINDOW)
    assert image.warnings == ()
    assert np.abs(image.pixels - pixels / 4095 * 255).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("slope", [256, 257])
def test_rescaled_values_have_the_depth_of_the_stored_ones(slope: int) -> None:
    image = rendered(RescaleSlope=slope, RescaleIntercept=0, **NO_WINDOW)
    assert np.abs(image.pixels.astype(int) - REFERENCE).max() <= 1


@pytest.mark.parametrize("factor", [256, 257])
def test_8_bits_scaled_to_16_keep_a_full_window(factor: int) -> None:
    gray = np.random.default_rng(0).integers(0, 100, (SIDE, SIDE))
    image = rendered((gray * factor).astype(np.uint16), 16)
    assert image.warnings == ()
    assert np.abs(image.pixels - gray).max() <= 1

"""Convert stored pixel values of any depth to 256 gray levels.

Bit depths, windows and lookup tables are checked against the pixels, because headers often contain those of a different image.
Gray levels are computed once per distinct value and applied as a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_windowing

from pneumoscope.core.prediction_codes import WarningCode
from pneumoscope.imaging.histogram import PERCENTILES, Floats, Histogram, Integers, count_values, displayed_range
from pneumoscope.imaging.image import GrayLevels
from pneumoscope.imaging.lookup_table import GrayLevelError, LookupTable, parse_element_numbers
from pneumoscope.imaging.padding import find_padding
from pneumoscope.imaging.pixel_values import (
    PixelDescription,
    Window,
    WindowFunction,
    describe,
    pixel_spacing,
    values_of_gray_levels,
    window_between,
)

__all__ = ["GRAY_LEVEL_ELEMENTS", "dicom_gray_levels", "flatten_functional_groups", "scale_to_depth"]

GRAY_LEVEL_ELEMENTS = (
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# Functional groups of enhanced objects with elements for gray levels and distances (PS3.3 C.7.6.16.2.1, C.7.6.16.2.9
# and C.7.6.16.2.10).
_FUNCTIONAL_GROUPS = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction", "WindowCenterWidthExplanation"),
    "PixelMeasuresSequence": ("PixelSpacing",),
}
_MAX_WINDOWS = 8  # windows per file; more are ignored
_MAX_EXPLANATION = 40  # characters
# Minimum brightness range between the percentiles; below it, a window is too wide. The minimum over 5,856 pediatric
# radiographs is 0.33.
_MIN_SPREAD = 0.3
_MAX_UNUSED = 0.4  # maximum part of a window beyond one end of the range if it clips pixels at the other end
_FUNCTIONS: dict[str, WindowFunction] = {"LINEAR": "LINEAR", "LINEAR_EXACT": "LINEAR_EXACT", "SIGMOID": "SIGMOID"}


def scale_to_depth(stored: Integers, stated_bits: int, *, keep_values: bool = False) -> GrayLevels:
    """Return the gray levels of unsigned values without a window, as in PNG and TIFF.

    Files that declare 16 bits often contain 8 to 15, or an offset. For these the range is measured, see `displayed_range`.

    Args:
        stored: Values, shape (height, width).
        stated_bits: Bit depth declared by the file, 8 to 16. Depths below 16 are trusted, because few files declare them.
        keep_values: Also return the values.
    """
    low, high = 0.0, 2.0**stated_bits - 1
    if stated_bits == 16:
        counts = count_values(stored, 0, 2**16)
        low, high = displayed_range(Histogram.of(np.arange(len(counts)), counts))
    values = None
    if keep_values:
        levels = _scaled(np.arange(int(stored.max()) + 1), low, high)
        values = values_of_gray_levels(stored, levels, stated_bits, window_between(low, high))
    is_measured = (low, high) != (0.0, 2.0**stated_bits - 1)
    return GrayLevels(_scaled(stored, low, high), ("bit_depth_measured",) if is_measured else (), values)


def _scaled(values: Integers, low: float, high: float) -> npt.NDArray[np.uint8]:
    scaled = (values.astype(np.float32) - np.float32(low)) / np.float32((high - low) / 255)
    levels: npt.NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return levels


def dicom_gray_levels(stored: Integers, dataset: Dataset, *, keep_values: bool = False) -> GrayLevels:
    """Return the gray levels of stored DICOM values.

    First the modality LUT, or rescale slope and intercept, is applied. Then the first VOI LUT is applied if it fits the pixels,
    otherwise the first window that fits; without either, see `displayed_range`. MONOCHROME1 is inverted. Padding pixels are
    black.

    Args:
        stored: Stored values, shape (height, width).
        dataset: Data set with `GRAY_LEVEL_ELEMENTS`, functional groups flattened, and PhotometricInterpretation.
        keep_values: Also return the modality values.

    Raises:
        GrayLevelError: Every pixel is padding, or a window, LUT or rescale value is invalid.

    Source: PS3.3 C.11.1 (modality), C.11.2.1.2 and C.11.2.1.3 (window), C.7.6.3.1.2 (MONOCHROME1), C.7.5.1.1.2 (padding).
    """
    warnings: set[WarningCode] = set()
    padding, undeclared = find_padding(stored, dataset)
    if undeclared is not None:
        warnings.add("padding_measured")
    image = stored[~padding] if padding.any() else stored
    if image.size == 0:
        raise GrayLevelError("all_padding")
    lowest, highest = int(image.min()), int(image.max())
    steps = np.arange(lowest, highest + 1)
    counts = count_values(image, lowest, len(steps))
    if undeclared is not None and lowest <= undeclared <= highest:
        counts[undeclared - lowest] = 0  # such pixels inside the image keep a gray level but do not affect others
    with np.errstate(over="ignore"):
        values = _apply_modality(steps, counts, dataset)
    if not np.isfinite(values).all():
        raise GrayLevelError("rescaled_values_not_finite")
    voi = _apply_voi(values, steps.astype(np.float64), counts, dataset, warnings)
    levels: npt.NDArray[np.uint8] = np.rint(255 * voi.brightness).astype(np.uint8)
    white_is_zero = dataset.PhotometricInterpretation == "MONOCHROME1"
    if white_is_zero:
        levels = 255 - levels
    gray: npt.NDArray[np.uint8] = levels[np.clip(stored.astype(np.int32), lowest, highest) - lowest]
    gray[padding] = 0
    kept = None
    if keep_values:
        has_lut = bool(dataset.get("ModalityLUTSequence"))
        slope, intercept = (1.0, 0.0) if has_lut or voi.is_for_stored else _rescale(dataset)
        description = PixelDescription(
            slope, intercept, 0.0, 0.0, int(dataset.BitsStored),
            white_is_zero=white_is_zero, default_window=voi.window, windows=_stated_windows(dataset),
            spacing=pixel_spacing(dataset),
        )  # fmt: skip
        entries = values if has_lut and not voi.is_for_stored else None
        kept = describe(stored, levels, padding, description, lowest=lowest, entries=entries)
    return GrayLevels(gray, tuple(sorted(warnings)), kept)


def flatten_functional_groups(dataset: Dataset) -> None:
    """Copy gray-level elements from the functional groups of the only frame, unless the data set itself contains them."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in (dataset.get(groups) or ())[:1]:
            for sequence, keywords in _FUNCTIONAL_GROUPS.items():
                for item in (group.get(sequence) or ())[:1]:
                    for keyword in keywords:
                        if keyword in item and dataset.get(keyword) in (None, ""):
                            dataset[keyword] = item[keyword]


def _apply_modality(values: Integers, counts: Integers, dataset: Dataset) -> Floats:
    """Return the modality values of stored values, by LUT or by slope and intercept (PS3.3 C.11.1)."""
    if luts := dataset.get("ModalityLUTSequence"):
        return LookupTable.read(luts[0], dataset, values, counts).look_up(values)
    slope, intercept = _rescale(dataset)
    return apply_modality_lut(values, _dataset_of(RescaleSlope=slope, RescaleIntercept=intercept))


def _rescale(dataset: Dataset) -> tuple[float, float]:
    """Return the rescale slope and intercept, or 1 and 0 if the file does not contain both.

    Raises:
        GrayLevelError: A value is not finite, or the slope is 0.
    """
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise GrayLevelError("rescale_not_finite")
    if slope == 0:
        raise GrayLevelError("rescale_slope_zero")
    return float(slope), float(intercept)


class _Voi(NamedTuple):
    """Brightness of values and its source.

    Attributes:
        brightness: Brightness of each value, 0 to 1.
        window: Applied window; None for a LUT.
        is_for_stored: Whether the LUT or window applies to stored values instead of modality values.
    """

    brightness: Floats
    window: Window | None
    is_for_stored: bool = False


def _apply_voi(values: Floats, stored: Floats, counts: Integers, dataset: Dataset, warnings: set[WarningCode]) -> _Voi:
    """Return the brightness of each value (PS3.3 C.11.2), which increases with the modality value.

    Args:
        values: Modality values.
        stored: Corresponding stored values, to which some LUTs and windows apply.
        counts: Number of pixels of each value.
        dataset, warnings: See `dicom_gray_levels`; warnings are added to the set.
    """
    histogram, stored_histogram = Histogram.of(values, counts), Histogram.of(stored, counts)
    is_rescaled = not np.array_equal(values, stored)
    errors: list[GrayLevelError] = []
    n_valid = 0
    for item in (dataset.get("VOILUTSequence") or ())[:1]:
        try:
            lut = LookupTable.read(item, dataset, histogram.values, histogram.counts)
        except GrayLevelError as error:
            errors.append(error)
            continue
        n_valid += 1
        if _fits(histogram, _LUT_FIT, lut.first, lut.last, lut.brightness):
            if lut.bits != lut.stated_bits:
                warnings.add("bit_depth_measured")
            return _Voi(lut.brightness(values), None)
        warnings.add("window_ignored")
        if is_rescaled and _fits(stored_histogram, _LUT_FIT, lut.first, lut.last, lut.brightness):
            return _Voi(lut.brightness(stored), None, is_for_stored=True)
    for stated in _windows(dataset, errors):
        n_valid += 1
        center, width = stated.center, stated.width
        low, high = center - width / 2, center + width / 2
        window = partial(apply_windowing, ds=_window(center, width, stated.function))
        bits, measured = _full_range_bits(center, width), histogram.bits()
        fit = _FULL_RANGE_FIT if bits else _WINDOW_FIT
        # This also brightens dark images that leave the upper half of their range unused: their pixels look like those
        # of a smaller bit depth.
        is_wide = bits > measured and histogram.has_depth()
        if not is_wide and _fits(histogram, fit, low, high, window):
            return _Voi(window(values), stated)
        if bits and is_rescaled and _fits(stored_histogram, fit, low, high, window):
            warnings.add("window_ignored")
            return _Voi(window(stored), stated, is_for_stored=True)
        if bits and measured == bits and histogram.has_depth():  # the pixels are dark or have little contrast
            return _Voi(window(values), stated)
        if bits and histogram.has_depth():  # the full range of a different bit depth
            warnings.add("bit_depth_measured")
            full = Window(2.0 ** (measured - 1), 2.0**measured, stated.function)
            return _Voi(apply_windowing(values, ds=_window(full.center, full.width, full.function)), full)
        warnings.add("window_ignored")
    if errors and not n_valid:
        raise errors[0]
    black, white = _displayed_values(histogram, stored_histogram, dataset)
    brightness = np.asarray(np.clip((values - black) / (white - black), 0, 1))
    return _Voi(brightness, window_between(black, white))


def _displayed_values(histogram: Histogram, stored: Histogram, dataset: Dataset) -> tuple[float, float]:
    """Return the modality values displayed as black and white in an image without a window.

    Values that are scaled, or raised by an intercept, have no meaningful bit depth, so the range of the stored values is
    converted.
    """
    if dataset.get("ModalityLUTSequence"):
        return displayed_range(histogram)
    slope, intercept = _rescale(dataset)
    is_signed = dataset.PixelRepresentation == 1
    if abs(slope) == 1 and intercept <= 0:
        return displayed_range(histogram, is_signed=is_signed and (slope, intercept) == (1, 0))
    first, last = sorted(slope * value + intercept for value in displayed_range(stored, is_signed=is_signed))
    return first, last


def _windows(dataset: Dataset, errors: list[GrayLevelError]) -> Iterable[Window]:
    """Yield the valid windows; append an error for each invalid one."""
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    centers = parse_element_numbers(dataset.get("WindowCenter"), "WindowCenter")
    widths = parse_element_numbers(dataset.get("WindowWidth"), "WindowWidth")
    explanations = _explanations(dataset)
    for i, (center, width) in enumerate(list(zip(centers, widths, strict=False))[:_MAX_WINDOWS]):
        if function not in _FUNCTIONS:
            errors.append(GrayLevelError("voi_lut_function_unknown"))
        elif not (math.isfinite(center) and math.isfinite(width)) or width <= 0 or (width < 1 and function == "LINEAR"):
            errors.append(GrayLevelError("window_invalid", function=function, center=f"{center:g}", width=f"{width:g}"))
        else:
            yield Window(center, width, _FUNCTIONS[function], explanations[i] if i < len(explanations) else "")


def _stated_windows(dataset: Dataset) -> tuple[Window, ...]:
    """Return the valid windows of a file, or none if a value is not a number."""
    try:
        return tuple(_windows(dataset, []))
    except GrayLevelError:
        return ()


def _explanations(dataset: Dataset) -> list[str]:
    """Return the explanations of the windows without unprintable characters."""
    value = dataset.get("WindowCenterWidthExplanation") or ()
    texts = [value] if isinstance(value, str) else value
    try:
        return ["".join(filter(_is_plain, str(text))).strip()[:_MAX_EXPLANATION] for text in texts]
    except TypeError:  # unexpected VR
        return []


def _is_plain(mark: str) -> bool:
    return mark.isprintable() and ord(mark) < 2**16


def _full_range_bits(center: float, width: float) -> int:
    """Return the bit depth whose full range a window covers, such as 12 for center 2048 and width 4096, or 0 if none."""
    bits = round(math.log2(width)) if width >= 2 else 0
    is_full = 8 <= bits <= 16 and abs(width - 2**bits) <= 1 and abs(center - 2 ** (bits - 1)) <= 1
    return bits if is_full else 0


class _Fit(NamedTuple):
    """Maximum fraction of pixels clipped by a window at one end, if their values spread over more than `max_spread`.

    The spread is a fraction of the range. Background, such as direct exposure, has nearly constant values; anatomy does not.
    """

    max_clipped: float
    max_spread: float


_WINDOW_FIT = _Fit(0.3, 0.3)
_LUT_FIT = _Fit(0.05, 0.15)
_FULL_RANGE_FIT = _Fit(0.01, 0.15)  # also for windows that lie beside the range of the pixels


def _fits(histogram: Histogram, fit: _Fit, low: float, high: float, brightness: Callable[[Floats], Floats]) -> bool:
    """Return whether a window or LUT from `low` to `high` can belong to the pixels.

    If it is too wide, the image becomes black, gray or white; if it is too narrow or misplaced, it clips anatomy.
    """
    first, last = histogram.quantiles(*PERCENTILES)
    unused = {"low": (last, high), "high": (low, first)}  # part of the window beyond the other end of the pixels
    for end, outside in (("low", histogram.values < low), ("high", histogram.values > high)):
        start, stop = unused[end]
        is_beside = stop - start > _MAX_UNUSED * (high - low)
        if _clips(histogram, outside, _FULL_RANGE_FIT if is_beside else fit, last - first):
            return False
    darkest, brightest = Histogram.of(brightness(histogram.values), histogram.counts).quantiles(*PERCENTILES)
    return brightest - darkest >= _MIN_SPREAD or not histogram.has_contrast()


def _clips(histogram: Histogram, outside: npt.NDArray[np.bool_], fit: _Fit, width: float) -> bool:
    if histogram.counts[outside].sum() <= fit.max_clipped * histogram.counts.sum():
        return False
    low, high = Histogram(histogram.values[outside], histogram.counts[outside]).quantiles(0.1, 0.9)
    return high - low > fit.max_spread * width


def _window(center: float, width: float, function: str) -> Dataset:
    """Return a data set for pydicom's `apply_windowing` whose output range is 0 to 1 (1 bit stored)."""
    window = _dataset_of(WindowCenter=center, WindowWidth=width)
    window.VOILUTFunction, window.PhotometricInterpretation = function, "MONOCHROME2"
    window.BitsStored, window.PixelRepresentation = 1, 0
    return window


def _dataset_of(**numbers: float) -> Dataset:
    """Return a data set with only these numbers, which excludes effects of other elements."""
    dataset = Dataset()
    for keyword, number in numbers.items():
        dataset.add_new(keyword, "FD", number)
    return dataset

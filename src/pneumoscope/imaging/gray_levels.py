"""Convert stored pixel values of any depth to 256 gray levels.

Bit depths, windows and lookup tables are compared with the pixels: headers often state those of another image. A table of
levels is computed once for each value in the range of the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.pixels.processing import apply_modality_lut, apply_windowing

from pneumoscope.core.prediction import WarningCode
from pneumoscope.imaging.image import GrayLevels
from pneumoscope.imaging.pixel_values import (
    PixelDescription,
    Window,
    WindowFunction,
    describe,
    pixel_spacing,
    values_of_gray_levels,
    window_between,
)

__all__ = ["GRAY_LEVEL_ELEMENTS", "GrayLevelError", "dicom_gray_levels", "flatten_functional_groups", "scale_to_depth"]

GRAY_LEVEL_ELEMENTS = (
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# Functional groups of enhanced objects that contain elements for gray levels and distances (PS3.3 C.7.6.16.2.1, C.7.6.16.2.9
# and C.7.6.16.2.10).
_FUNCTIONAL_GROUPS = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction", "WindowCenterWidthExplanation"),
    "PixelMeasuresSequence": ("PixelSpacing",),
}
_MAX_LUT_BYTES = 2**17  # 65,536 entries of 16 bits
_MAX_WINDOWS = 8  # of a file; more are ignored
_MAX_EXPLANATION = 40  # characters
_BLOCK = 2**20  # pixels
# Hot or dead pixels and markers: the first fraction of the pixels beyond a gap at least as wide as the range of the others, or
# the second one without a gap, farther away than that range.
_SEPARATE, _OUTLIERS = 0.03, 0.002
_MARGIN = 0.25  # of the range of the other pixels, on both sides of it: values in it are no outliers
_BRIGHTEST = 0.0002  # fraction of the pixels that a bit depth may leave out
_PERCENTILES = (0.01, 0.99)  # ends of the range of an image
_MAX_OFFSET = 0.4  # of the full range of a bit depth, for the darkest pixels of an image that uses this range
_NOISE = 64  # stored values; an image with a smaller range is blank, and not stretched
_MIN_SPREAD = 0.15  # brightness between the percentiles below which a window is too wide
_MIN_CONTRAST = 0.25  # range over maximum below which an image may be blank, so that no window is too wide for it
_MAX_UNUSED = 0.4  # of a window beyond one end of the range, if it clips pixels at the other end
_FUNCTIONS: dict[str, WindowFunction] = {"LINEAR": "LINEAR", "LINEAR_EXACT": "LINEAR_EXACT", "SIGMOID": "SIGMOID"}
_EXCEEDING = 0.01  # fraction of the pixels whose LUT entries may exceed the stated bits

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]


class GrayLevelError(Exception):
    """The window, lookup table or padding is invalid. The message contains no patient data."""


class _Histogram(NamedTuple):
    """The number of pixels (counts) by value (ascending); values in between have no pixels."""

    values: Floats
    counts: Integers

    @classmethod
    def of(cls, values: Floats | Integers, counts: Integers) -> _Histogram:
        """Return the histogram of values in any order, some of them without pixels."""
        order = np.argsort(values, kind="stable")
        order = order[counts[order] > 0]
        return cls(values[order].astype(np.float64), counts[order])

    def quantiles(self, *fractions: float) -> list[float]:
        """Return values below or at which these fractions of the pixels are."""
        cumulative = np.cumsum(self.counts)
        return [float(self.values[i]) for i in np.searchsorted(cumulative, np.array(fractions) * cumulative[-1])]

    def range_without_outliers(self) -> tuple[float, float]:
        """Return the smallest and largest value without hot and dead pixels and markers; see `_SEPARATE` and `_OUTLIERS`."""
        first, last = float(self.values[0]), float(self.values[-1])
        gaps, total = np.diff(self.values), self.counts.sum()
        n_below = np.cumsum(self.counts)[:-1]
        below, above = self.values[:-1] - first, last - self.values[1:]
        cut_above = np.flatnonzero((total - n_below <= _SEPARATE * total) & (gaps >= below) & (below > 0))
        cut_below = np.flatnonzero((n_below <= _SEPARATE * total) & (gaps >= above) & (above > 0))
        if cut_above.size:
            last = float(self.values[cut_above[0]])
        if cut_below.size and self.values[cut_below[-1] + 1] < last:
            first = float(self.values[cut_below[-1] + 1])
        low, high = self.quantiles(_OUTLIERS, 1 - _OUTLIERS)
        low, high, width = max(low, first), min(high, last), min(high, last) - max(low, first)
        if low - first > width:
            first = float(self.values[self.values >= low - _MARGIN * width][0])
        if last - high > width:
            last = float(self.values[self.values <= high + _MARGIN * width][-1])
        return first, last

    def has_contrast(self) -> bool:
        """Return whether the values spread over a part of their range; a blank image with noise does not."""
        low, high = self.quantiles(*_PERCENTILES)
        return high - low >= _MIN_CONTRAST * max(abs(low), abs(high)) and high > low


def scale_to_depth(stored: Integers, stated_bits: int, *, keep_values: bool = False) -> GrayLevels:
    """Return gray levels of unsigned values that have no window, as in PNG and TIFF.

    Files that state 16 bits often hold 8 to 15, or an offset. The range is then measured, see `_displayed_range`.

    Args:
        stored: Values, shape (height, width).
        stated_bits: Depth by the file, 8 to 16 bits. A depth below 16 is not measured, because few files state one.
        keep_values: Also return the values.
    """
    low, high = 0.0, 2.0**stated_bits - 1
    if stated_bits == 16:
        counts = _count(stored, 0, 2**16)
        low, high = _displayed_range(_Histogram.of(np.arange(len(counts)), counts))
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


def _displayed_range(histogram: _Histogram, *, is_signed: bool = False) -> tuple[float, float]:
    """Return the values that become black and white in an image without a window.

    These are the ends of the full range of its bit depth if the image uses that range or is blank. Otherwise, as for values with
    an offset, they are the smallest and largest value.

    Args:
        histogram: Of the values.
        is_signed: Whether the full range is that of signed values.
    """
    first, last = histogram.quantiles(*_PERCENTILES)
    low, high = 0.0, 2.0 ** _measured_bits(histogram) - 1
    if is_signed:
        lowest, highest = histogram.range_without_outliers()
        half = 2.0 ** max(7, int(max(-lowest - 1, highest, 0)).bit_length())
        if last - first >= half:
            return -half, half - 1
    if histogram.values[0] >= 0 and (high < 2**8 or first < _MAX_OFFSET * high or last - first < _NOISE):
        return low, high
    low, high = histogram.range_without_outliers()
    return (low, high) if high > low else (low, low + 1)


def _measured_bits(histogram: _Histogram) -> int:
    """Return the bits of the largest value, at least 8; hot pixels and the few brightest ones do not count."""
    without_outliers = histogram.range_without_outliers()[1]
    largest, usual = histogram.quantiles(1 - _BRIGHTEST, 1 - _OUTLIERS)
    if without_outliers < histogram.values[-1]:
        largest = min(without_outliers, usual)
    return max(8, int(largest).bit_length())


def dicom_gray_levels(stored: Integers, dataset: Dataset, *, keep_values: bool = False) -> GrayLevels:
    """Return the gray levels of stored DICOM values.

    The modality LUT, or the rescale slope and intercept, are applied, then the first VOI LUT if it fits the pixels, or else the
    first window that does. Without one, see `_displayed_range`. MONOCHROME1 is inverted. Padding pixels are black.

    Args:
        stored: Stored values, shape (height, width).
        dataset: Data set with `GRAY_LEVEL_ELEMENTS`, functional groups flattened, and PhotometricInterpretation.
        keep_values: Also return the modality values.

    Raises:
        GrayLevelError: Every pixel is padding, or a window, LUT or rescale value is invalid.

    Source: PS3.3 C.11.1 (modality), C.11.2.1.2 and C.11.2.1.3 (window), C.7.6.3.1.2 (MONOCHROME1), C.7.5.1.1.2
        (padding).
    """
    padding = _padding(stored, dataset)
    image = stored[~padding] if padding.any() else stored
    if image.size == 0:
        raise GrayLevelError("every pixel is padding")
    lowest, highest = int(image.min()), int(image.max())
    steps = np.arange(lowest, highest + 1)
    counts = _count(image, lowest, len(steps))
    warnings: set[WarningCode] = set()
    with np.errstate(over="ignore"):
        values = _apply_modality(steps, counts, dataset)
    if not np.isfinite(values).all():
        raise GrayLevelError("the rescaled values are not finite")
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
    """Copy elements for gray levels from the functional groups of the only frame, unless the data set states them itself."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in (dataset.get(groups) or ())[:1]:
            for sequence, keywords in _FUNCTIONAL_GROUPS.items():
                for item in (group.get(sequence) or ())[:1]:
                    for keyword in keywords:
                        if keyword in item and dataset.get(keyword) in (None, ""):
                            dataset[keyword] = item[keyword]


def _count(pixels: Integers, lowest: int, n: int) -> Integers:
    """Return the number of pixels of each of `n` values from the lowest one, in blocks: NumPy counts in 64 bits."""
    flat, counts = pixels.ravel(), np.zeros(n, dtype=np.int64)
    for start in range(0, flat.size, _BLOCK):
        counts += np.bincount(flat[start : start + _BLOCK].astype(np.int64) - lowest, minlength=n)
    return counts


def _padding(stored: Integers, dataset: Dataset) -> npt.NDArray[np.bool_]:
    """Return the mask of padding: pixels with the padding value, or in the range from it to the range limit.

    They must be connected to the border of the image along a row or a column: inside, the same value can be anatomy.
    """
    value = _integer(dataset, "PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=np.bool_)
    limit = _integer(dataset, "PixelPaddingRangeLimit")
    info, size = np.iinfo(stored.dtype), 2 ** (8 * stored.dtype.itemsize)

    def representable(number: int) -> int:
        """Return the number with the same bits in the type of the pixels; its VR often has the other sign."""
        return number if info.min <= number <= info.max else (number - info.min) % size + info.min

    low, high = sorted(representable(each) for each in (value, value if limit is None else limit))
    candidates = (stored >= low) & (stored <= high)
    padding = np.zeros_like(candidates)
    for axis in (0, 1):
        padding |= np.logical_and.accumulate(candidates, axis=axis)
        padding |= np.flip(np.logical_and.accumulate(np.flip(candidates, axis), axis=axis), axis)
    return padding


def _integer(dataset: Dataset, keyword: str) -> int | None:
    """Return the first number of an element; None if it is missing or empty.

    Raises:
        GrayLevelError: It is not a number.
    """
    numbers = _numbers(dataset.get(keyword), keyword)
    return int(numbers[0]) if numbers and math.isfinite(numbers[0]) else None


def _apply_modality(values: Integers, counts: Integers, dataset: Dataset) -> Floats:
    """Return the modality values of stored values: by LUT, or by slope and intercept (PS3.3 C.11.1)."""
    if luts := dataset.get("ModalityLUTSequence"):
        return _Lut.read(luts[0], dataset, values, counts).look_up(values)
    slope, intercept = _rescale(dataset)
    return apply_modality_lut(values, _dataset_of(RescaleSlope=slope, RescaleIntercept=intercept))


def _rescale(dataset: Dataset) -> tuple[float, float]:
    """Return the rescale slope and intercept; 1 and 0 if the file does not state both.

    Raises:
        GrayLevelError: One of them is not finite, or the slope is 0.
    """
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise GrayLevelError("the rescale slope or intercept is not finite")
    if slope == 0:
        raise GrayLevelError("the rescale slope is 0")
    return float(slope), float(intercept)


class _Voi(NamedTuple):
    """The brightness of values, and where it comes from.

    Attributes:
        brightness: 0 to 1.
        window: Window that was applied; None for a LUT.
        is_for_stored: Whether LUT or window are for stored values instead of modality values.
    """

    brightness: Floats
    window: Window | None
    is_for_stored: bool = False


def _apply_voi(values: Floats, stored: Floats, counts: Integers, dataset: Dataset, warnings: set[WarningCode]) -> _Voi:
    """Return the brightness of each value (PS3.3 C.11.2); it rises with the modality value.

    Args:
        values: Modality values.
        stored: The stored values that they come from. Some LUTs and windows are for these.
        counts: Number of pixels of each value.
        dataset, warnings: See `dicom_gray_levels`; warnings are added.
    """
    histogram, stored_histogram = _Histogram.of(values, counts), _Histogram.of(stored, counts)
    is_rescaled = not np.array_equal(values, stored)
    errors: list[GrayLevelError] = []
    n_valid = 0
    for item in (dataset.get("VOILUTSequence") or ())[:1]:
        try:
            lut = _Lut.read(item, dataset, histogram.values, histogram.counts)
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
        bits, measured = _full_range_bits(center, width), _measured_bits(histogram)
        fit = _FULL_RANGE_FIT if bits else _WINDOW_FIT
        is_wide = bits == 16 or bits > int(dataset.BitsStored)  # wider than any statement about the pixels
        if not (is_wide and measured < bits and _has_depth(histogram)) and _fits(histogram, fit, low, high, window):
            return _Voi(window(values), stated)
        if bits and is_rescaled and _fits(stored_histogram, fit, low, high, window):
            warnings.add("window_ignored")
            return _Voi(window(stored), stated, is_for_stored=True)
        if bits and _has_depth(histogram):  # the full range of another bit depth
            warnings.add("bit_depth_measured")
            full = Window(2.0 ** (measured - 1), 2.0**measured, stated.function)
            return _Voi(apply_windowing(values, ds=_window(full.center, full.width, full.function)), full)
        warnings.add("window_ignored")
    if errors and not n_valid:
        raise errors[0]
    is_signed = not is_rescaled and dataset.PixelRepresentation == 1
    black, white = _displayed_range(histogram, is_signed=is_signed)
    brightness = np.asarray(np.clip((values - black) / (white - black), 0, 1))
    return _Voi(brightness, window_between(black, white))


def _windows(dataset: Dataset, errors: list[GrayLevelError]) -> Iterable[Window]:
    """Yield each window; add an error for each that is invalid."""
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    centers = _numbers(dataset.get("WindowCenter"), "WindowCenter")
    widths = _numbers(dataset.get("WindowWidth"), "WindowWidth")
    explanations = _explanations(dataset)
    for i, (center, width) in enumerate(list(zip(centers, widths, strict=False))[:_MAX_WINDOWS]):
        if function not in _FUNCTIONS:
            errors.append(GrayLevelError("the VOI LUT function is unknown"))
        elif not (math.isfinite(center) and math.isfinite(width)) or width <= 0 or (width < 1 and function == "LINEAR"):
            errors.append(GrayLevelError(f"invalid {function} window: center {center:g}, width {width:g}"))
        else:
            yield Window(center, width, _FUNCTIONS[function], explanations[i] if i < len(explanations) else "")


def _stated_windows(dataset: Dataset) -> tuple[Window, ...]:
    """Return the valid windows of a file; none if one of them is not a number."""
    try:
        return tuple(_windows(dataset, []))
    except GrayLevelError:
        return ()


def _explanations(dataset: Dataset) -> list[str]:
    """Return the explanations of the windows, without unprintable characters."""
    value = dataset.get("WindowCenterWidthExplanation") or ()
    texts = [value] if isinstance(value, str) else value
    try:
        return ["".join(filter(_is_plain, str(text))).strip()[:_MAX_EXPLANATION] for text in texts]
    except TypeError:  # another VR
        return []


def _is_plain(mark: str) -> bool:
    return mark.isprintable() and ord(mark) < 2**16


def _full_range_bits(center: float, width: float) -> int:
    """Return the bit depth whose full range a window shows, such as 12 for center 2048 and width 4096; 0 if it is another."""
    bits = round(math.log2(width)) if width >= 2 else 0
    is_full = 8 <= bits <= 16 and abs(width - 2**bits) <= 1 and abs(center - 2 ** (bits - 1)) <= 1
    return bits if is_full else 0


def _has_depth(histogram: _Histogram) -> bool:
    """Return whether a bit depth can be measured: values are not negative, and not all nearly the same."""
    return bool(histogram.values[0] >= 0) and histogram.has_contrast()


class _Fit(NamedTuple):
    """Fraction of the pixels that a window may clip at one end, if their values spread over more than a part of the range.

    Background, such as direct exposure, has nearly one value; anatomy has not.
    """

    max_clipped: float
    max_spread: float


_WINDOW_FIT = _Fit(0.3, 0.3)
_LUT_FIT = _Fit(0.05, 0.15)
_FULL_RANGE_FIT = _Fit(0.01, 0.15)  # also of a window that lies beside the range of the pixels


def _fits(histogram: _Histogram, fit: _Fit, low: float, high: float, brightness: Callable[[Floats], Floats]) -> bool:
    """Return whether a window, or a LUT, from `low` to `high` can belong to the pixels.

    One that is too wide makes an image black, gray or white. One that is too narrow, or lies beside the pixels, clips anatomy.
    """
    first, last = histogram.quantiles(*_PERCENTILES)
    unused = {"low": (last, high), "high": (low, first)}  # beyond the other end
    for end, outside in (("low", histogram.values < low), ("high", histogram.values > high)):
        start, stop = unused[end]
        is_beside = stop - start > _MAX_UNUSED * (high - low)
        if _clips(histogram, outside, _FULL_RANGE_FIT if is_beside else fit, last - first):
            return False
    darkest, brightest = _Histogram.of(brightness(histogram.values), histogram.counts).quantiles(*_PERCENTILES)
    return brightest - darkest >= _MIN_SPREAD or not histogram.has_contrast()


def _clips(histogram: _Histogram, outside: npt.NDArray[np.bool_], fit: _Fit, width: float) -> bool:
    if histogram.counts[outside].sum() <= fit.max_clipped * histogram.counts.sum():
        return False
    low, high = _Histogram(histogram.values[outside], histogram.counts[outside]).quantiles(0.1, 0.9)
    return high - low > fit.max_spread * width


def _window(center: float, width: float, function: str) -> Dataset:
    """Return a data set for pydicom's `apply_windowing`, which scales to the range of stored values; with 1 bit, to 0 to 1."""
    window = _dataset_of(WindowCenter=center, WindowWidth=width)
    window.VOILUTFunction, window.PhotometricInterpretation = function, "MONOCHROME2"
    window.BitsStored, window.PixelRepresentation = 1, 0
    return window


def _dataset_of(**numbers: float) -> Dataset:
    """Return a data set with these numbers only, so that other elements of the file have no effect."""
    dataset = Dataset()
    for keyword, number in numbers.items():
        dataset.add_new(keyword, "FD", number)
    return dataset


class _Lut(NamedTuple):
    """A lookup table, with the first value, the number of entries and the bits that its data and the pixels show.

    pydicom 3.0 cannot read packed 8-bit entries, and its `apply_voi` returns wrong entries for values above 65,535 and for
    8-bit LUTs with more than 256 entries.
    """

    entries: Integers
    first: int
    bits: int
    stated_bits: int

    @classmethod
    def read(cls, lut: Dataset, dataset: Dataset, values: Integers | Floats, counts: Integers) -> _Lut:
        """Return a LUT (PS3.3 C.11.1.1.1).

        Args:
            lut: Item of the sequence.
            dataset: The data set, for its byte order.
            values, counts: Values that are looked up, and the number of pixels of each.

        Raises:
            GrayLevelError: The LUT is too long, has no entries, or has fewer entries than it states and than the pixels need.
        """
        for keyword in ("LUTDescriptor", "LUTData"):
            raw: Any = lut.get_item(keyword)
            if isinstance(raw, RawDataElement) and len(raw.value or b"") > _MAX_LUT_BYTES:
                raise GrayLevelError("a LUT is too long")
        descriptor = _numbers(lut.get("LUTDescriptor"), "LUTDescriptor")
        if len(descriptor) != 3:
            raise GrayLevelError("a LUT has no valid descriptor")
        count, first, stated_bits = (int(number) for number in descriptor)
        count = count % 2**16 or 2**16
        entries = _entries(lut.get("LUTData") or b"", count, stated_bits, dataset)
        if not entries.size:
            raise GrayLevelError("a LUT has no entries")
        # The first value is signed if the pixels or the rescaled values are; its VR may differ.
        first = max(
            (first, first - 2**16, first + 2**16), key=lambda start: _n_inside(values, counts, start, len(entries))
        )
        if (
            len(entries) < count
            and _n_inside(values, counts, first - 2**16, len(entries) + 2**16) < 0.999 * counts.sum()
        ):
            raise GrayLevelError(f"a LUT has {len(entries)} of {count} entries of {stated_bits} bits")
        return cls(entries, first, cls._measured_bits(entries, first, stated_bits, values, counts), stated_bits)

    @staticmethod
    def _measured_bits(
        entries: Integers, first: int, stated_bits: int, values: Integers | Floats, counts: Integers
    ) -> int:
        """Return the bits of the entries: those that are stated, unless they are 16, impossible, exceeded by many pixels, or more
        than one of them is unused."""
        used = entries[np.clip(np.floor(values).astype(np.int64) - first, 0, len(entries) - 1)]
        exceeding = counts[used >= 2.0**stated_bits].sum()
        # A few entries at the ends may be wrong; the largest ones that pixels have are not.
        largest = max(np.quantile(entries, 0.995), _Histogram.of(used, counts).quantiles(_PERCENTILES[1])[0])
        bits = max(8, int(largest).bit_length())
        if 8 <= stated_bits < 16 and exceeding <= _EXCEEDING * counts.sum() and bits >= stated_bits - 1:
            return stated_bits
        return bits

    @property
    def last(self) -> int:
        """The value of the last entry."""
        return self.first + len(self.entries) - 1

    def look_up(self, values: Integers | Floats) -> Floats:
        """Return the entries of values; values below and above the LUT have its first and last entry."""
        index = np.clip(np.floor(values).astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return self.entries[index].astype(np.float64)

    def brightness(self, values: Integers | Floats) -> Floats:
        """Return the entries of values, 0 to 1."""
        return np.asarray(np.minimum(self.look_up(values) / (2**self.bits - 1), 1))


def _n_inside(values: Integers | Floats, counts: Integers, first: int, count: int) -> int:
    return int(counts[(values >= first) & (values < first + count)].sum())


def _entries(raw: bytes | Iterable[int] | int, count: int, bits: int, dataset: Dataset) -> Integers:
    """Return the entries of LUT data: numbers (US) or bytes (OW), where 8-bit entries may be packed two to a word."""
    if not isinstance(raw, bytes):
        return np.atleast_1d(np.asarray(raw, dtype=np.int64))
    if len(raw) < 2 * count and bits <= 8:
        return np.frombuffer(raw, dtype=np.uint8)
    return np.frombuffer(raw[: len(raw) // 2 * 2], dtype="<u2" if dataset.original_encoding[1] else ">u2")


def _numbers(value: Any, keyword: str) -> list[float]:
    """Return the numbers of an element; NaN for empty ones, none if it is missing.

    Raises:
        GrayLevelError: A value is not a number.
    """
    if value is None or value == "":
        return []
    try:
        if isinstance(value, bytes):  # written as OW
            return [float(number) for number in np.frombuffer(value, dtype="<u2")]
        return [
            math.nan if each in (None, "") else float(each)
            for each in ([value] if isinstance(value, (int, float, str)) else value)
        ]
    except (TypeError, ValueError) as error:
        raise GrayLevelError(f"{keyword} is not a number") from error

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

__all__ = ["GRAY_LEVEL_ELEMENTS", "GrayLevelError", "dicom_gray_levels", "flatten_functional_groups", "scale_to_depth"]

GRAY_LEVEL_ELEMENTS = (
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# Functional groups of enhanced objects that contain elements for gray levels (PS3.3 C.7.6.16.2.9 and C.7.6.16.2.10).
_FUNCTIONAL_GROUPS = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
}
_MAX_LUT_BYTES = 2**17  # 65,536 entries of 16 bits
_MAX_WINDOWS = 8  # of a file; more are ignored
_BLOCK = 2**20  # pixels
_OUTLIERS = 0.002  # fraction of the pixels at each end that may be hot or dead
_MARGIN = 0.25  # of the range of the other pixels, on both sides of it: values in it are no outliers
_BRIGHTEST = 0.0002  # fraction of the pixels that a bit depth may leave out
_PERCENTILES = (0.01, 0.99)  # ends of the range of an image
_MIN_SPREAD = 0.15  # brightness between the percentiles below which a window is too wide
_MIN_CONTRAST = 0.25  # range over maximum below which an image may be blank, so that no window is too wide for it
# A window is too narrow if it clips this fraction of the pixels at one end, and their values spread over this part of the range:
# background has nearly one value, anatomy has not.
_MAX_CLIPPED, _MIN_CLIPPED_SPREAD = 0.3, 0.3
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
        """Return the smallest and largest value without hot and dead pixels.

        There are such pixels at an end if it is farther from the range of the other pixels, all but `_OUTLIERS`, than this range
        is wide.
        """
        low, high = self.quantiles(_OUTLIERS, 1 - _OUTLIERS)
        first, last, width = float(self.values[0]), float(self.values[-1]), high - low
        if low - first > width:
            first = float(self.values[self.values >= low - _MARGIN * width][0])
        if last - high > width:
            last = float(self.values[self.values <= high + _MARGIN * width][-1])
        return first, last

    def has_contrast(self) -> bool:
        """Return whether the values spread over a part of their range; a blank image with noise does not."""
        low, high = self.quantiles(*_PERCENTILES)
        return high - low >= _MIN_CONTRAST * max(abs(low), abs(high)) and high > low


def scale_to_depth(stored: Integers, stated_bits: int) -> GrayLevels:
    """Return gray levels of unsigned values that have no window, as in PNG and TIFF; the largest value of the depth is white.

    Files that state 16 bits often hold 8 to 15. The depth is then that of the largest value without hot pixels.

    Args:
        stored: Values, shape (height, width).
        stated_bits: Depth by the file, 8 to 16 bits. A depth below 16 is not measured, because few files state one.
    """
    bits = stated_bits
    if stated_bits == 16:
        counts = _count(stored, 0, 2**16)
        bits = _measured_bits(_Histogram.of(np.arange(len(counts)), counts))
    scaled = np.clip(stored.astype(np.float32) / np.float32((2**bits - 1) / 255), 0, 255)
    return GrayLevels(np.rint(scaled).astype(np.uint8), ("bit_depth_measured",) if bits != stated_bits else ())


def _measured_bits(histogram: _Histogram) -> int:
    """Return the bits of the largest value, at least 8; hot pixels and the few brightest ones do not count."""
    largest = min(histogram.quantiles(1 - _BRIGHTEST)[0], histogram.range_without_outliers()[1])
    return max(8, int(largest).bit_length())


def dicom_gray_levels(stored: Integers, dataset: Dataset) -> GrayLevels:
    """Return the gray levels of stored DICOM values.

    The modality LUT, or the rescale slope and intercept, are applied, then the first VOI LUT if it fits the pixels, or else the
    first window that does. Without one, the lowest value becomes black and the highest white, except for hot and dead pixels.
    MONOCHROME1 is inverted. Padding pixels are black.

    Args:
        stored: Stored values, shape (height, width).
        dataset: Data set with `GRAY_LEVEL_ELEMENTS`, functional groups flattened, and PhotometricInterpretation.

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
    brightness = _apply_voi(values, counts, dataset, warnings)
    levels: npt.NDArray[np.uint8] = np.rint(255 * brightness).astype(np.uint8)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        levels = 255 - levels
    gray: npt.NDArray[np.uint8] = levels[np.clip(stored.astype(np.int32), lowest, highest) - lowest]
    gray[padding] = 0
    return GrayLevels(gray, tuple(sorted(warnings)))


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
    """Return the mask of padding: pixels with the padding value, or in the range from it to the range limit."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=np.bool_)
    info, size = np.iinfo(stored.dtype), 2 ** (8 * stored.dtype.itemsize)

    def representable(number: int) -> int:
        """Return the number with the same bits in the type of the pixels; its VR often has the other sign."""
        return number if info.min <= number <= info.max else (number - info.min) % size + info.min

    low, high = sorted(representable(int(each)) for each in (value, dataset.get("PixelPaddingRangeLimit", value)))
    return (stored >= low) & (stored <= high)


def _apply_modality(values: Integers, counts: Integers, dataset: Dataset) -> Floats:
    """Return the modality values of stored values: by LUT, or by slope and intercept (PS3.3 C.11.1)."""
    if luts := dataset.get("ModalityLUTSequence"):
        return _Lut.read(luts[0], dataset, values, counts).look_up(values)
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return values.astype(np.float64)
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise GrayLevelError("the rescale slope or intercept is not finite")
    if slope == 0:
        raise GrayLevelError("the rescale slope is 0")
    return apply_modality_lut(values, _dataset_of(RescaleSlope=float(slope), RescaleIntercept=float(intercept)))


def _apply_voi(values: Floats, counts: Integers, dataset: Dataset, warnings: set[WarningCode]) -> Floats:
    """Return the brightness of modality values, 0 to 1, rising with the value (PS3.3 C.11.2)."""
    histogram = _Histogram.of(values, counts)
    for item in (dataset.get("VOILUTSequence") or ())[:1]:
        lut = _Lut.read(item, dataset, histogram.values, histogram.counts)
        if _fits(histogram, lut.first, lut.first + len(lut.entries) - 1, lut.brightness):
            if lut.bits != lut.stated_bits:
                warnings.add("bit_depth_measured")
            return lut.brightness(values)
        warnings.add("window_ignored")
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    centers, widths = _numbers(dataset.get("WindowCenter")), _numbers(dataset.get("WindowWidth"))
    for center, width in list(zip(centers, widths, strict=False))[:_MAX_WINDOWS]:
        if function not in {"LINEAR", "LINEAR_EXACT", "SIGMOID"}:
            raise GrayLevelError("the VOI LUT function is unknown")
        if not (math.isfinite(center) and math.isfinite(width)) or width <= 0 or (width < 1 and function == "LINEAR"):
            raise GrayLevelError(f"invalid {function} window: center {center:g}, width {width:g}")
        bits = _full_range_bits(center, width)
        is_wide = bits == 16 or bits > int(dataset.BitsStored)  # wider than any statement about the pixels
        window = partial(apply_windowing, ds=_window(center, width, function))
        if not (is_wide and _measured_bits(histogram) < bits and _has_depth(histogram)) and _fits(
            histogram, center - width / 2, center + width / 2, window
        ):
            return window(values)
        if bits and _has_depth(histogram):  # the full range of another bit depth
            warnings.add("bit_depth_measured")
            full = 2.0 ** _measured_bits(histogram)
            return apply_windowing(values, ds=_window(full / 2, full, function))
        warnings.add("window_ignored")
    low, high = histogram.range_without_outliers()
    return np.asarray(np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values))


def _full_range_bits(center: float, width: float) -> int:
    """Return the bit depth whose full range a window shows, such as 12 for center 2048 and width 4096; 0 if it is another."""
    bits = round(math.log2(width)) if width >= 2 else 0
    is_full = 8 <= bits <= 16 and abs(width - 2**bits) <= 1 and abs(center - 2 ** (bits - 1)) <= 1
    return bits if is_full else 0


def _has_depth(histogram: _Histogram) -> bool:
    """Return whether a bit depth can be measured: values are not negative, and not all nearly the same."""
    return bool(histogram.values[0] >= 0) and histogram.has_contrast()


def _fits(histogram: _Histogram, low: float, high: float, brightness: Callable[[Floats], Floats]) -> bool:
    """Return whether a window, or a LUT, from `low` to `high` can belong to the pixels.

    One that is too wide makes an image black, gray or white. One that is too narrow clips anatomy.
    """
    first, last = histogram.quantiles(*_PERCENTILES)
    for outside in (histogram.values < low, histogram.values > high):
        if histogram.counts[outside].sum() > _MAX_CLIPPED * histogram.counts.sum():
            clipped = _Histogram(histogram.values[outside], histogram.counts[outside]).quantiles(0.1, 0.9)
            if clipped[1] - clipped[0] > _MIN_CLIPPED_SPREAD * (last - first):
                return False
    darkest, brightest = _Histogram.of(brightness(histogram.values), histogram.counts).quantiles(*_PERCENTILES)
    return brightest - darkest >= _MIN_SPREAD or not histogram.has_contrast()


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
        count, first, stated_bits = (int(number) for number in lut.LUTDescriptor)
        count = count % 2**16 or 2**16
        entries = _entries(lut.LUTData or b"", count, stated_bits, dataset)[:count]
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
        """Return the bits of the entries: those that are stated, unless they are 16, impossible, or exceeded by many pixels."""
        used = entries[np.clip(np.floor(values).astype(np.int64) - first, 0, len(entries) - 1)]
        exceeding = counts[used >= 2.0**stated_bits].sum()
        if 8 <= stated_bits < 16 and exceeding <= _EXCEEDING * counts.sum():
            return stated_bits
        # A few entries at the ends may be wrong; the largest one that pixels have is not.
        largest = max(np.quantile(entries, 0.995), _Histogram.of(used, counts).quantiles(_PERCENTILES[1])[0])
        return max(8, int(largest).bit_length())

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


def _numbers(value: Any) -> list[float]:
    """Return the numbers of an element; none if it is missing or empty."""
    if value is None or value == "":
        return []
    return [float(each) for each in ([value] if isinstance(value, (int, float, str)) else value)]

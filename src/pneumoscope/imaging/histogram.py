"""Histograms of pixel values: range without outliers, and bit depth."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["PERCENTILES", "Floats", "Histogram", "Integers", "count_values", "displayed_range"]

# Outliers, such as hot or dead pixels and markers: up to a fraction of _SEPARATE beyond a gap at least as wide as the
# range of the other pixels, or, without a gap, up to _OUTLIERS farther away than that range.
_SEPARATE, _OUTLIERS = 0.03, 0.002
_BLOCK = 2**20  # pixels
_MARGIN = 0.25  # as a fraction of the other pixels' range; values within this margin are not outliers
_BRIGHTEST = 0.0002  # fraction of the pixels that may exceed a bit depth
_MAX_OFFSET = 0.4  # maximum of the darkest pixels, as a fraction of the full range, in an image that uses this range
_FOREIGN = 0.0002  # fraction of the pixels, such as markers, with other values in an image scaled from 8 bits
_DARKEST_SCALED = 2**12  # smallest maximum of such an image, which excludes 12-bit images
_NOISE = 64  # stored values; an image with a smaller range is blank and is not stretched
_MIN_CONTRAST = 0.25  # minimum ratio of range to maximum; below it an image may be blank, and no window is too wide
PERCENTILES = (0.01, 0.99)  # limits of an image's range

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]


class Histogram(NamedTuple):
    """Pixel counts by value, in ascending order of values that occur."""

    values: Floats
    counts: Integers

    @classmethod
    def of(cls, values: Floats | Integers, counts: Integers) -> Histogram:
        """Return a histogram from unsorted values, dropping those without pixels."""
        order = np.argsort(values, kind="stable")
        order = order[counts[order] > 0]
        return cls(values[order].astype(np.float64), counts[order])

    def quantiles(self, *fractions: float) -> list[float]:
        """Return the quantiles of the pixel values."""
        cumulative = np.cumsum(self.counts)
        return [float(self.values[i]) for i in np.searchsorted(cumulative, np.array(fractions) * cumulative[-1])]

    def range_without_outliers(self) -> tuple[float, float]:
        """Return the smallest and largest value without hot pixels, dead pixels and markers; see `_SEPARATE` and `_OUTLIERS`."""
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
        """Return whether the values spread over a substantial part of their range, unlike those of a blank, noisy image."""
        low, high = self.quantiles(*PERCENTILES)
        return high - low >= _MIN_CONTRAST * max(abs(low), abs(high)) and high > low

    def has_depth(self) -> bool:
        """Return whether a bit depth can be measured: the image has contrast and no negative values."""
        return bool(self.values[0] >= 0) and self.has_contrast()

    def is_scaled_to_16_bits(self) -> bool:
        """Return whether 8-bit values were multiplied by 257 or shifted by 8 bits to fill 16 bits; see `_FOREIGN`."""
        if self.values[0] < 0 or not _DARKEST_SCALED <= self.values[-1] < 2**16:
            return False
        max_foreign = _FOREIGN * self.counts.sum()
        return any(self.counts[self.values % factor != 0].sum() <= max_foreign for factor in (257, 256))

    def bits(self) -> int:
        """Return the number of bits of the largest value, at least 8, ignoring hot pixels and the few brightest ones.

        Values scaled from 8 bits have 16, even in a dark image.
        """
        if self.is_scaled_to_16_bits():
            return 16
        without_outliers = self.range_without_outliers()[1]
        largest, usual = self.quantiles(1 - _BRIGHTEST, 1 - _OUTLIERS)
        if without_outliers < self.values[-1]:
            largest = min(without_outliers, usual)
        return max(8, int(largest).bit_length())


def count_values(pixels: Integers, lowest: int, n: int) -> Integers:
    """Return the pixel counts of `n` consecutive values from `lowest`, in blocks because NumPy converts to 64 bits."""
    flat, counts = pixels.ravel(), np.zeros(n, dtype=np.int64)
    for start in range(0, flat.size, _BLOCK):
        counts += np.bincount(flat[start : start + _BLOCK].astype(np.int64) - lowest, minlength=n)
    return counts


def displayed_range(histogram: Histogram, *, is_signed: bool = False) -> tuple[float, float]:
    """Return the values displayed as black and white in an image without a window.

    If the image uses the full range of its bit depth, is blank, or was scaled from 8 bits, these are the limits of that range.
    Otherwise, as for values with an offset, they are the smallest and largest value.

    Args:
        histogram: Histogram of the values.
        is_signed: Whether the full range is signed.
    """
    first, last = histogram.quantiles(*PERCENTILES)
    low, high = 0.0, 2.0 ** histogram.bits() - 1
    if is_signed:
        lowest, highest = histogram.range_without_outliers()
        half = 2.0 ** max(7, int(max(-lowest - 1, highest, 0)).bit_length())
        if last - first >= half:
            return -half, half - 1
    is_8_bit = high < 2**8 or histogram.is_scaled_to_16_bits()
    if histogram.values[0] >= 0 and (is_8_bit or first < _MAX_OFFSET * high or last - first < _NOISE):
        return low, high
    low, high = histogram.range_without_outliers()
    return (low, high) if high > low else (low, low + 1)

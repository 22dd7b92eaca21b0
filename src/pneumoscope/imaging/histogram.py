"""Histograms of pixel values: their range without outliers, and the bit depth that they show."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["PERCENTILES", "Floats", "Histogram", "Integers", "count_values", "displayed_range"]

# Hot or dead pixels and markers: the first fraction of the pixels beyond a gap at least as wide as the range of the others, or
# the second one without a gap, farther away than that range.
_SEPARATE, _OUTLIERS = 0.03, 0.002
_BLOCK = 2**20  # pixels
_MARGIN = 0.25  # of the range of the other pixels, on both sides of it: values in it are not outliers
_BRIGHTEST = 0.0002  # fraction of the pixels that a bit depth may leave out
_MAX_OFFSET = 0.4  # of the full range of a bit depth, for the darkest pixels of an image that uses this range
_FOREIGN = 0.0002  # fraction of the pixels, such as markers, that may have other values in an image scaled from 8 bits
_DARKEST_SCALED = 2**12  # smallest maximum of such an image, so that one of 12 bits is not taken for it
_NOISE = 64  # stored values; an image with a smaller range is blank, and not stretched
_MIN_CONTRAST = 0.25  # range over maximum below which an image may be blank, so that no window is too wide for it
PERCENTILES = (0.01, 0.99)  # ends of the range of an image

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]


class Histogram(NamedTuple):
    """The number of pixels (counts) by value (ascending); values in between have no pixels."""

    values: Floats
    counts: Integers

    @classmethod
    def of(cls, values: Floats | Integers, counts: Integers) -> Histogram:
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
        low, high = self.quantiles(*PERCENTILES)
        return high - low >= _MIN_CONTRAST * max(abs(low), abs(high)) and high > low

    def has_depth(self) -> bool:
        """Return whether a bit depth can be measured: values are not negative, and not all nearly the same."""
        return bool(self.values[0] >= 0) and self.has_contrast()

    def is_scaled_to_16_bits(self) -> bool:
        """Return whether 8-bit values were multiplied by 257, or shifted by 8 bits, to fill 16 bits; see `_FOREIGN`."""
        if self.values[0] < 0 or not _DARKEST_SCALED <= self.values[-1] < 2**16:
            return False
        max_foreign = _FOREIGN * self.counts.sum()
        return any(self.counts[self.values % factor != 0].sum() <= max_foreign for factor in (257, 256))

    def bits(self) -> int:
        """Return the bits of the largest value, at least 8; hot pixels and the few brightest ones do not count.

        Values that were scaled from 8 bits have 16, even in a dark image.
        """
        if self.is_scaled_to_16_bits():
            return 16
        without_outliers = self.range_without_outliers()[1]
        largest, usual = self.quantiles(1 - _BRIGHTEST, 1 - _OUTLIERS)
        if without_outliers < self.values[-1]:
            largest = min(without_outliers, usual)
        return max(8, int(largest).bit_length())


def count_values(pixels: Integers, lowest: int, n: int) -> Integers:
    """Return the number of pixels of each of `n` values from the lowest one, in blocks: NumPy counts in 64 bits."""
    flat, counts = pixels.ravel(), np.zeros(n, dtype=np.int64)
    for start in range(0, flat.size, _BLOCK):
        counts += np.bincount(flat[start : start + _BLOCK].astype(np.int64) - lowest, minlength=n)
    return counts


def displayed_range(histogram: Histogram, *, is_signed: bool = False) -> tuple[float, float]:
    """Return the values that become black and white in an image without a window.

    These are the ends of the full range of its bit depth if the image uses that range, is blank, or was scaled from 8 bits.
    Otherwise, as for values with an offset, they are the smallest and largest value.

    Args:
        histogram: Of the values.
        is_signed: Whether the full range is that of signed values.
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

"""Bins of probability as reliability diagrams and tables show them.

The recorded bins are those of the calibration error: 15 of equal mass, whatever the number of images. The rate in a bin of a few
images is imprecise, so adjacent bins are merged for display. 20 images per bin are a convention of this project; there is no
standard. With 20 images, a 95% interval of Wilson around a rate of one half is still 0.40 wide.
"""

from __future__ import annotations

from collections.abc import Sequence

from pneumoscope.core.results import ReliabilityBin
from pneumoscope.statistics.intervals import wilson

__all__ = ["displayed_bins"]

_LEAST = 20  # images per bin
_BINS = 3  # number of bins that is kept even if they have fewer images


def displayed_bins(bins: Sequence[ReliabilityBin]) -> tuple[ReliabilityBin, ...]:
    """Return the bins with adjacent ones merged, so that each has at least 20 images; up to 60 images keep three bins.

    Images with equal probabilities are in one bin, so that bins can differ in size.

    Args:
        bins: Recorded bins, in ascending order of probability.
    """
    if all(each.observed_rate.n >= _LEAST for each in bins):
        return tuple(bins)
    groups = _even_groups(bins)
    fewest = _BINS if _size(bins) <= _BINS * _LEAST else 1
    while len(groups) > fewest:
        sizes = list(map(_size, groups))
        smallest = sizes.index(min(sizes))
        if sizes[smallest] >= _LEAST:
            break
        neighbors = [each for each in (smallest - 1, smallest + 1) if 0 <= each < len(groups)]
        first, second = sorted((smallest, min(neighbors, key=sizes.__getitem__)))
        groups[first : second + 1] = [groups[first] + groups[second]]
    return tuple(map(_merged, groups))


def _even_groups(bins: Sequence[ReliabilityBin]) -> list[list[ReliabilityBin]]:
    """Return adjacent bins in groups of about equally many images, as many as have enough images."""
    total = _size(bins)
    number = max(_BINS, total // _LEAST)
    groups: dict[int, list[ReliabilityBin]] = {}
    before = 0
    for each in bins:
        middle = before + each.observed_rate.n / 2
        groups.setdefault(int(number * middle / total), []).append(each)
        before += each.observed_rate.n
    return list(groups.values())


def _size(bins: Sequence[ReliabilityBin]) -> int:
    return sum(each.observed_rate.n for each in bins)


def _merged(bins: Sequence[ReliabilityBin]) -> ReliabilityBin:
    if len(bins) == 1:
        return bins[0]
    n = _size(bins)
    positive = sum(round((each.observed_rate.value or 0) * each.observed_rate.n) for each in bins)
    mean = sum(each.mean_probability * each.observed_rate.n for each in bins) / n
    return ReliabilityBin(bins[0].low, bins[-1].high, mean, wilson(positive, n))

"""Where a score says too little to decide: split-conformal prediction for each label on its own (Mondrian).

A label stays possible for an image unless the image's score is among the few strangest of the calibration images of that label.
Over images that are exchangeable with them the true label then stays possible in at least the stated share of images, for
normal images and for pneumonias alike, whatever the network is worth. Under a shift the promise does not hold; what held
on other images has to be measured there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.inputs import checked

__all__ = ["UncertaintyBand", "uncertain_band"]


class UncertaintyBand(NamedTuple):
    """Scores from `low` to `high`, both included, are uncertain: below is normal alone, above is pneumonia alone."""

    low: float
    high: float


def uncertain_band(scores: npt.ArrayLike, labels: npt.ArrayLike, coverage: float) -> UncertaintyBand:
    """The scores at which both labels are possible, or neither is.

    Where few calibration images are called wrongly, neither label may be possible at some scores: such an image is as strange
    for one label as for the other, and is counted as uncertain too, which can only raise the coverage.

    Args:
        scores: of calibration images, on which neither the network nor its epoch was chosen, 0 to 1, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        coverage: for each label, above 0 and below 1.
    Raises:
        UndefinedMetricError: the coverage is out of range, or a label has too few images for it: at least
            coverage / (1 - coverage).
    Source: Vovk, Gammerman & Shafer 2005, Algorithmic Learning in a Random World, section 4.5; Vovk 2012, ACML 25:475.
    """
    x, y = checked(scores, labels)
    if not 0 < coverage < 1:
        raise UndefinedMetricError(f"a coverage of {coverage} is not between 0 and 1")
    # Of n + 1 equally likely ranks of a new image among those of its label this many are given up.
    lowest = np.sort(x[y])
    highest = np.sort(x[~y])[::-1]
    least_pneumonia = lowest[_given_up(len(lowest), coverage, "PNEUMONIA") - 1]
    greatest_normal = highest[_given_up(len(highest), coverage, "NORMAL") - 1]
    return UncertaintyBand(float(min(least_pneumonia, greatest_normal)), float(max(least_pneumonia, greatest_normal)))


def _given_up(n: int, coverage: float, label: str) -> int:
    given_up = math.floor((1 - coverage) * (n + 1) + 1e-9)
    if given_up < 1:
        needed = math.ceil(coverage / (1 - coverage) - 1e-9)
        raise UndefinedMetricError(f"a coverage of {coverage} needs {needed} {label} images or more; here are {n}")
    return given_up

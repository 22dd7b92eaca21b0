"""Where to cut the score. Chosen on validation images only; an image at or above the threshold is called pneumonia."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.inputs import checked
from pneumoscope.statistics.roc import roc_curve

__all__ = ["at_sensitivity", "at_specificity", "highest_youden"]


def highest_youden(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The threshold with the highest Youden index (sensitivity + specificity - 1).

    It lies midway between the lowest score called pneumonia and the next below it. Of equally good ones the lowest is
    taken, the one that misses fewest pneumonias; a network that ranks no better than chance so calls every image
    pneumonia.

    Args:
        scores: of validation images, 0 to 1, shape (n,).
        labels: True where pneumonia is present, shape (n,).
    Raises:
        UndefinedMetricError: a class has no image.
    Source: Youden 1950, Cancer 3:32.
    """
    wrong, right, thresholds = roc_curve(scores, labels)
    youden = right - wrong
    # Equal indices can differ in their last bit; images are fewer than 1e9, so true differences are larger than this.
    place = int(np.flatnonzero(youden >= youden.max() - 1e-12)[-1])
    upper = float(thresholds[max(place, 1)])
    if place in (0, len(thresholds) - 1):
        return upper
    lower = float(thresholds[place + 1])
    middle = lower + (upper - lower) / 2
    return middle if lower < middle else upper


def at_sensitivity(scores: npt.ArrayLike, labels: npt.ArrayLike, sensitivity: float = 0.99) -> float:
    """The largest threshold with at least this sensitivity: the score of the last pneumonia that must be found.

    Args:
        scores: of validation images, 0 to 1, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        sensitivity: above 0, up to 1.
    Raises:
        UndefinedMetricError: there is no pneumonia, or the sensitivity is outside its range.
    """
    x, y = checked(scores, labels)
    if not 0 < sensitivity <= 1:
        raise UndefinedMetricError(f"a sensitivity of {sensitivity} is not above 0 and up to 1")
    if not y.any():
        raise UndefinedMetricError("a threshold by sensitivity needs a pneumonia; there is none")
    positive = np.sort(x[y])[::-1]
    needed = max(1, math.ceil(sensitivity * len(positive) - 1e-9))  # 0.07 x 100 is 7.000000000000001
    return float(positive[needed - 1])


def at_specificity(scores: npt.ArrayLike, labels: npt.ArrayLike, specificity: float = 0.99) -> float:
    """The smallest threshold with at least this specificity, midway between the last normal below it and the next score.

    Where no score lies above that normal, midway to 1. A threshold cannot lie above 1: where so many normals score 1 that the
    specificity is out of reach, 1 is given.

    Args:
        scores: of validation images, 0 to 1, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        specificity: above 0, up to 1.
    Raises:
        UndefinedMetricError: there is no normal image, or the specificity is outside its range.
    """
    x, y = checked(scores, labels)
    if not 0 < specificity <= 1:
        raise UndefinedMetricError(f"a specificity of {specificity} is not above 0 and up to 1")
    if y.all():
        raise UndefinedMetricError("a threshold by specificity needs a normal image; there is none")
    normal = np.sort(x[~y])
    needed = max(1, math.ceil(specificity * len(normal) - 1e-9))
    last = float(normal[needed - 1])
    above = float(x[x > last].min(initial=1.0))
    middle = last + (above - last) / 2
    return middle if last < middle else above

"""Choose operating points: thresholds on the score, from validation images only.

An image is predicted as pneumonia if its score is at or above the threshold.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.inputs import validate
from pneumoscope.statistics.roc import roc_curve

__all__ = ["threshold_at_sensitivity", "threshold_at_specificity", "youden_threshold"]


def youden_threshold(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the threshold with the highest Youden index, sensitivity + specificity - 1.

    It is the midpoint between the lowest score predicted as pneumonia and the next lower score. In case of ties, the
    lowest threshold is returned, because it misses the fewest pneumonias; a network that ranks no better than chance
    therefore predicts pneumonia for every image.

    Args:
        scores: Scores of validation images, 0 to 1, shape (n,).
        labels: True where pneumonia is present, shape (n,).

    Raises:
        UndefinedMetricError: A class has no images.

    Source: Youden 1950, Cancer 3:32.
    """
    false_positive_rate, sensitivity, thresholds = roc_curve(scores, labels)
    youden = sensitivity - false_positive_rate
    # Tied indices can differ in the last bit. With fewer than 1e9 images, true differences exceed 1e-12.
    best = int(np.flatnonzero(youden >= youden.max() - 1e-12)[-1])
    upper = float(thresholds[max(best, 1)])
    if best in (0, len(thresholds) - 1):
        return upper
    return _midpoint(float(thresholds[best + 1]), upper)


def threshold_at_sensitivity(scores: npt.ArrayLike, labels: npt.ArrayLike, sensitivity: float = 0.99) -> float:
    """Return the highest threshold with at least this sensitivity, which is the score of a PNEUMONIA image.

    Args:
        scores: Scores of validation images, 0 to 1, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        sensitivity: Required sensitivity, above 0, up to 1.

    Raises:
        UndefinedMetricError: There is no PNEUMONIA image, or the sensitivity is out of range.
    """
    x, y = validate(scores, labels)
    if not y.any():
        raise UndefinedMetricError("a threshold by sensitivity needs a PNEUMONIA image; there is none")
    descending = np.sort(x[y])[::-1]
    return float(descending[_required_count("sensitivity", sensitivity, len(descending)) - 1])


def threshold_at_specificity(scores: npt.ArrayLike, labels: npt.ArrayLike, specificity: float = 0.99) -> float:
    """Return the lowest threshold with at least this specificity.

    It is the midpoint between the highest NORMAL score below it and the next higher score (1 if there is none). If too
    many NORMAL images score 1, no threshold up to 1 reaches the specificity, and 1 is returned.

    Args:
        scores: Scores of validation images, 0 to 1, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        specificity: Required specificity, above 0, up to 1.

    Raises:
        UndefinedMetricError: There is no NORMAL image, or the specificity is out of range.
    """
    x, y = validate(scores, labels)
    if y.all():
        raise UndefinedMetricError("a threshold by specificity needs a NORMAL image; there is none")
    ascending = np.sort(x[~y])
    last = float(ascending[_required_count("specificity", specificity, len(ascending)) - 1])
    return _midpoint(last, float(x[x > last].min(initial=1.0)))


def _required_count(name: str, rate: float, n: int) -> int:
    """Return how many of `n` images must be classified correctly to reach the rate."""
    if not 0 < rate <= 1:
        raise UndefinedMetricError(f"{name} is {rate}, not above 0 and up to 1")
    return max(1, math.ceil(rate * n - 1e-9))  # 0.07 x 100 is 7.000000000000001


def _midpoint(lower: float, upper: float) -> float:
    """Return the midpoint, or `upper` if no float lies between the two."""
    middle = lower + (upper - lower) / 2
    return middle if lower < middle else upper

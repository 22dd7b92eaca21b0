"""Means over cross-validation folds, and their differences, with a variance that accounts for the folds.

The folds are not independent, because any two trainings share most of their training images. The variance of K values
divided by K is therefore too small, and the usual t test finds differences that other images would not show. Nadeau and
Bengio replace 1/K by 1/K + n_validation / n_training.

Source: Nadeau & Bengio 2003, Mach Learn 52:239; for the folds of a cross-validation, Bouckaert & Frank 2004, PAKDD,
LNCS 3056:3.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from pneumoscope.core.interval import Interval
from pneumoscope.statistics.inputs import FloatArray

__all__ = ["FOLDS_METHOD", "folds_difference", "folds_mean"]

FOLDS_METHOD = "nadeau-bengio, corrected resampled t"


def folds_mean(values: npt.ArrayLike, ratio: float, *, n: int, level: float = 0.95) -> Interval:
    """Return the mean of a metric over folds, with an interval that covers other training images and patients.

    Args:
        values: The metric of each fold on its validation images, 0 to 1, shape (k,); at least 2.
        ratio: Ratio of validation to training images of an average fold.
        n: Number of validation images of all folds.
        level: Coverage, 0 to 1.

    Returns:
        The interval, clipped to 0 to 1. Its limits are None if all values are equal, because the data then show no
        variation.
    """
    x = np.asarray(values, dtype=np.float64)
    mean, half = float(x.mean()), _half_width(x, ratio, level)
    if half is None:
        return Interval(mean, None, None, FOLDS_METHOD, n, level, reason="it is the same in all folds")
    return Interval(mean, max(mean - half, 0.0), min(mean + half, 1.0), FOLDS_METHOD, n, level)


def folds_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, ratio: float, *, n: int, level: float = 0.95
) -> tuple[Interval, float | None]:
    """Return the mean difference over the same folds, a minus b, and its two-sided p-value.

    Args:
        a, b: The metric of two recipes in each fold, shape (k,); at least 2.
        ratio, n, level: See `folds_mean`.

    Returns:
        The interval and the p-value; the limits and the p-value are None if the difference is the same in all folds.
    """
    d = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    mean, half = float(d.mean()), _half_width(d, ratio, level)
    if half is None:
        return Interval(mean, None, None, FOLDS_METHOD, n, level, reason="it is the same in all folds"), None
    p = 2 * float(stats.t.sf(abs(mean) / _standard_error(d, ratio), len(d) - 1))
    return Interval(mean, max(mean - half, -1.0), min(mean + half, 1.0), FOLDS_METHOD, n, level), p


def _standard_error(values: FloatArray, ratio: float) -> float:
    return math.sqrt((1 / len(values) + ratio) * float(values.var(ddof=1)))


def _half_width(values: FloatArray, ratio: float, level: float) -> float | None:
    """Return half the width of a mean's interval; None without variance, apart from rounding errors."""
    if float(np.ptp(values)) < 1e-12:
        return None
    return float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * _standard_error(values, ratio)

"""Means over several trainings of one recipe, and their differences, with the variance of seeds and patients.

The trainings correspond to the readers of a multi-reader multi-case study in which each reader uses one modality, the
recipe: both readers and cases are samples. A test that ignores either variance finds differences that other seeds, or
other patients, would not show.

Source: Obuchowski & Rockette 1995, Commun Stat Simul Comput 24:285; degrees of freedom by Hillis 2007, Stat Med 26:596;
readers nested within modalities by Hillis 2014, Stat Med 33:330.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.statistics.inputs import FloatArray, IntArray

__all__ = ["proportion_covariance", "replicates_difference", "replicates_mean", "replicates_method"]


_NO_VARIANCE = "neither seeds nor images show a variance"


def proportion_covariance(successes: npt.ArrayLike, groups: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return the proportions of one or more networks on the same images, and their covariance.

    Args:
        successes: True where a network is correct, shape (k, n).
        groups: Patient numbers from `inputs.patient_groups`, shape (n,). Images of one patient may be correlated.

    Returns:
        Proportions, shape (k,), and covariance, shape (k, k).

    Raises:
        UndefinedMetricError: There are fewer than 2 patients.

    Source: Linearized variance of a cluster mean, Cochran 1977, Sampling Techniques, section 9A.
    """
    x = np.atleast_2d(np.asarray(successes, dtype=np.float64))
    n_patients = len(np.unique(groups))
    if n_patients < 2:
        raise UndefinedMetricError("the variance of a proportion needs 2 patients; there is 1")
    mean = x.mean(axis=1)
    residuals = np.stack([np.bincount(groups, row) for row in x - mean[:, None]]) / x.shape[1]
    return mean, n_patients / (n_patients - 1) * residuals @ residuals.T


def replicates_mean(
    values: npt.ArrayLike, covariance: FloatArray, *, n: int, method: str, level: float = 0.95
) -> Interval:
    """Return the mean of a metric over trainings, with an interval that covers other seeds and other patients.

    Args:
        values: The metric of each training on the same images, 0 to 1, shape (r,).
        covariance: Covariance of the values over patients, shape (r, r); see `proportion_covariance` and
            `roc.delong_covariance`.
        n: Number of images.
        method: See `replicates_method`.
        level: Coverage, 0 to 1.

    Returns:
        The interval, clipped to 0 to 1. A single training has no variance of seeds, so its interval covers other
        patients only. The limits are None, with the reason, if the variance is 0, because the data then show no
        variation.
    """
    x = np.asarray(values, dtype=np.float64)
    variance = _between(x, covariance) + max(_common_covariance(covariance), 0.0)
    half = _half_width(variance, _degrees((x,), variance), level)
    mean = float(x.mean())
    if half is None:
        return Interval(mean, None, None, method, n, level, reason=_NO_VARIANCE)
    return Interval(mean, max(mean - half, 0.0), min(mean + half, 1.0), method, n, level)


def replicates_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, covariance: FloatArray, *, n: int, method: str, level: float = 0.95
) -> tuple[Interval, float | None]:
    """Return the difference of two means over trainings, a minus b, and its two-sided p-value.

    Args:
        a, b: The metric of each training of two recipes on the same images, shapes (r,) and (s,).
        covariance: Covariance of all values over patients, with `a` first, shape (r + s, r + s).
        n: Number of images.
        method: See `replicates_method`.
        level: Coverage, 0 to 1.

    Returns:
        The interval and the p-value; the limits and the p-value are None if the variance is 0. A single training has no
        variance of seeds: the result then applies to this training, not to its recipe.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    cross = float(covariance[: len(x), len(x) :].mean())
    of_x, of_y = covariance[: len(x), : len(x)], covariance[len(x) :, len(x) :]
    common = _common_covariance(of_x) + _common_covariance(of_y)
    variance = _between(x, of_x) + _between(y, of_y) + max(common - 2 * cross, 0.0)
    degrees, difference = _degrees((x, y), variance), float(x.mean() - y.mean())
    half = _half_width(variance, degrees, level)
    if half is None:
        return Interval(difference, None, None, method, n, level, reason=_NO_VARIANCE), None
    p = 2 * float(stats.t.sf(abs(difference) / math.sqrt(variance), degrees))
    return Interval(difference, max(difference - half, -1.0), min(difference + half, 1.0), method, n, level), p


def replicates_method(groups: IntArray) -> str:
    """Return the name of the method, with "patients" or "images" as the cases."""
    cases = "patients" if len(np.unique(groups)) < len(groups) else "images"
    return f"obuchowski-rockette, random seeds and {cases}"


def _between(values: FloatArray, covariance: FloatArray) -> float:
    """Return the variance of a mean due to differences between its trainings; 0 for one training.

    It is at least the variance due to patients: a few trainings may agree by chance, and the interval would then be
    narrower than for these trainings alone. This makes intervals and tests conservative if seeds have no effect.
    """
    if len(values) == 1:
        return 0.0
    by_patients = float(np.diag(covariance).mean()) - _common_covariance(covariance)
    return max(float(values.var(ddof=1)), by_patients) / len(values)


def _common_covariance(covariance: FloatArray) -> float:
    """Return the mean covariance of two trainings of a recipe; for a single training, its variance."""
    r = len(covariance)
    return float((covariance.sum() - np.trace(covariance)) / (r * (r - 1))) if r > 1 else float(covariance[0, 0])


def _degrees(samples: tuple[FloatArray, ...], variance: float) -> float:
    """Return the degrees of freedom of a variance; infinity if seeds do not contribute to it."""
    parts = sum(
        (float(values.var(ddof=1)) / len(values)) ** 2 / (len(values) - 1) for values in samples if len(values) > 1
    )
    return variance**2 / parts if parts else math.inf


def _half_width(variance: float, degrees: float, level: float) -> float | None:
    if variance <= 0:
        return None
    return float(stats.t.ppf((1 + level) / 2, degrees)) * math.sqrt(variance)

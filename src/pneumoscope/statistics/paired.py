"""Paired tests of two networks on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from pneumoscope.core.interval import Interval
from pneumoscope.statistics.inputs import IntArray, patient_groups, validate
from pneumoscope.statistics.intervals import normal_quantile
from pneumoscope.statistics.roc import delong_covariance, delong_method

__all__ = ["auroc_difference", "delong_test", "mcnemar_exact", "mcnemar_method"]


def mcnemar_exact(
    a_correct: npt.ArrayLike, b_correct: npt.ArrayLike, patients: Sequence[str] | None = None
) -> float | None:
    """Return the two-sided p-value of the hypothesis that two networks are correct equally often.

    A patient's lead is the number of images that only a classifies correctly, minus those that only b does. Under the
    hypothesis, either sign of each lead is equally likely. The p-value is the exact probability, over all 2^k signs, of
    a total lead at least as large as observed. With one image per patient this is McNemar's exact (binomial) test; if
    patients repeat, their images are kept together.

    Args:
        a_correct, b_correct: True where an image is classified correctly, shape (n,), in the same order.
        patients: One patient key per image, "" where unknown; None if all are unknown.

    Returns:
        The p-value; None if every lead is 0.

    Raises:
        UndefinedMetricError: There are no images, or the shapes differ.

    Source: McNemar 1947, Psychometrika 12:153; exact sign-change test by Pitman 1937, J R Stat Soc Suppl 4:119.
    """
    a, b = validate(a_correct, b_correct)
    leads = np.bincount(patient_groups(patients, len(a)), a - b)
    steps = np.abs(leads[leads != 0]).astype(np.int64)
    if not len(steps):
        return None
    max_lead = int(steps.sum())
    probabilities = np.zeros(2 * max_lead + 1)  # for total leads from -max_lead to max_lead
    probabilities[max_lead] = 1.0
    for step in steps:
        # No wrap-around, because max_lead is the sum of all steps.
        probabilities = (np.roll(probabilities, step) + np.roll(probabilities, -step)) / 2
    observed = abs(round(float(leads.sum())))
    as_large = np.abs(np.arange(-max_lead, max_lead + 1)) >= observed
    return min(1.0, float(probabilities[as_large].sum()))


def mcnemar_method(groups: IntArray) -> str:
    """Return the name of the test that `mcnemar_exact` performs for these patients.

    Args:
        groups: Patient numbers from `inputs.patient_groups`, shape (n,).
    """
    repeated = len(np.unique(groups)) < len(groups)
    return "mcnemar, exact, clustered by patient (permutation)" if repeated else "mcnemar, exact"


def delong_test(
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: Sequence[str] | None = None,
    level: float = 0.95,
) -> tuple[Interval, float | None]:
    """Return the difference of two AUROCs on the same images, a minus b, and its two-sided p-value.

    Args:
        scores_a, scores_b: Scores in any unit, shape (n,), in the same order.
        labels: True where pneumonia is present, shape (n,).
        patients: One patient key per image, "" where unknown; images of one patient may be correlated.
        level: Coverage of the interval, 0 to 1.

    Returns:
        The difference with a normal interval, and the p-value. If both networks rank the images alike, the variance is
        0, and the limits and the p-value are None.

    Raises:
        UndefinedMetricError: The shapes differ, or a class has fewer than 2 patients.

    Source: See `roc.delong_covariance`.
    """
    a, y = validate(scores_a, labels)
    b, _ = validate(scores_b, labels)
    groups = patient_groups(patients, len(a))
    method = delong_method(groups)
    area, covariance = delong_covariance(np.stack([a, b]), y, groups)
    difference = float(area[0] - area[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    return auroc_difference(difference, variance, method=method, n=len(a), level=level)


def auroc_difference(
    difference: float, variance: float, *, method: str, n: int, level: float = 0.95
) -> tuple[Interval, float | None]:
    """Return the difference of two AUROCs on the same images with a normal interval, and its two-sided p-value.

    Args:
        difference: The difference.
        variance: Its variance; if it is 0, the limits and the p-value are None.
        method: Name of the method.
        n: Number of images.
        level: Coverage of the interval, 0 to 1.
    """
    if variance <= 1e-15:
        reason = "both networks rank the images alike"
        return Interval(difference, None, None, method, n, level, None, reason), None
    deviation = math.sqrt(variance)
    half_width = normal_quantile(level) * deviation
    low, high = max(-1.0, difference - half_width), min(1.0, difference + half_width)
    p = float(2 * special.ndtr(-abs(difference) / deviation))
    return Interval(difference, low, high, method, n, level), p

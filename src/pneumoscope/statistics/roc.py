"""ROC and precision-recall curves, and the area under the ROC curve with DeLong's variance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.results import Interval
from pneumoscope.statistics.inputs import BoolArray, FloatArray, IntArray, checked, patient_numbers
from pneumoscope.statistics.intervals import normal_quantile, undefined, wilson

__all__ = [
    "auroc",
    "auroc_interval",
    "delong_covariance",
    "precision_recall_curve",
    "roc_curve",
    "weighted_auprc",
    "weighted_auroc",
]


def _at_each_score(scores: FloatArray, labels: BoolArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weight of pneumonia and of normal images at each distinct score, from the highest down: two arrays (r, k)."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    sorted_weights = weights[:, order]
    positive = np.add.reduceat(sorted_weights * labels[order], starts, axis=1)
    return positive, np.add.reduceat(sorted_weights, starts, axis=1) - positive


def weighted_auroc(scores: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
    """AUROC of each weighting of the images, for `intervals.patient_bootstrap`.

    Args:
        scores: shape (n,).
        labels: shape (n,).
        weights: of each image, 0 or more, shape (r, n).
    Returns:
        Shape (r,), 0 to 1; NaN where a class has no weight.
    """
    positive, negative = _at_each_score(scores, labels, weights)
    above = np.cumsum(positive, axis=1) - positive / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray((above * negative).sum(axis=1) / pairs)


def weighted_auprc(scores: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
    """Return the average precision of each weighting of the images; arguments and result as in `weighted_auroc`.

    Precision at each score, weighted by the sensitivity gained there; no interpolation.

    Source: the step-wise sum of scikit-learn's `average_precision_score`.
    """
    positive, negative = _at_each_score(scores, labels, weights)
    called = np.cumsum(positive + negative, axis=1)
    with np.errstate(invalid="ignore"):
        precision = np.where(called > 0, np.cumsum(positive, axis=1) / called, 0.0)
        return np.asarray((precision * positive).sum(axis=1) / positive.sum(axis=1))


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Area under the ROC curve: the chance that a pneumonia scores above a normal image; ties count one half.

    Args:
        scores: any ordering, shape (n,); logits rather than scores, which tie at 0 and 1.
        labels: True where pneumonia is present, shape (n,).
    Raises:
        UndefinedMetricError: a class has no image.
    Source: Hanley & McNeil 1982, Radiology 143:29.
    """
    x, y = _both_classes(scores, labels)
    return float(weighted_auroc(x, y, np.ones((1, len(x))))[0])


def roc_curve(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the corners of the ROC curve from (0, 0) to (1, 1).

    Args:
        scores: in any unit, shape (n,).
        labels: True where pneumonia is present, shape (n,).
    Returns:
        False positive rate, sensitivity and threshold, each of shape (k + 1,) for k distinct scores. A score at or above the
        threshold is positive; the first threshold is infinite.
    Raises:
        UndefinedMetricError: A class has no image.
    """
    from sklearn import metrics  # takes a second to import

    x, y = _both_classes(scores, labels)
    rate, sensitivity, thresholds = metrics.roc_curve(y, x, drop_intermediate=False)
    return rate, sensitivity, thresholds


def precision_recall_curve(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the corners of the precision-recall curve, from the highest threshold down.

    Args:
        scores: in any unit, shape (n,).
        labels: True where pneumonia is present, shape (n,).
    Returns:
        Sensitivity (rising), precision and threshold, each of shape (k,) for k distinct scores. A score at or above the
        threshold is positive. The area below it as a step function is the average precision.
    Raises:
        UndefinedMetricError: A class has no image.
    """
    from sklearn import metrics

    x, y = _both_classes(scores, labels)
    precision, sensitivity, thresholds = metrics.precision_recall_curve(y, x)
    return (
        sensitivity[-2::-1],
        precision[-2::-1],
        thresholds[::-1],
    )  # without the end point (0, 1), which no threshold has


def delong_covariance(scores: npt.ArrayLike, labels: npt.ArrayLike, groups: IntArray) -> tuple[FloatArray, FloatArray]:
    """AUROC of one or more networks on the same images, and their covariance.

    Args:
        scores: a row a network, shape (k, n).
        labels: shape (n,).
        groups: patient numbers, shape (n,); images of one patient may be correlated.
    Returns:
        AUROC, shape (k,), and covariance, shape (k, k). With an image a patient it is DeLong's.
    Raises:
        UndefinedMetricError: a class has fewer than 2 patients.
    Source: DeLong 1988, Biometrics 44:837; the mid-ranks of Sun & Xu 2014, IEEE Signal Process Lett 21:1389; sums over
        the images of a patient by Obuchowski 1997, Biometrics 53:567.
    """
    x, y = np.atleast_2d(np.asarray(scores, dtype=np.float64)), np.asarray(labels, dtype=np.bool_)
    sizes = [len(np.unique(groups[chosen])) for chosen in (y, ~y)]
    if min(sizes) < 2:
        raise UndefinedMetricError(
            f"the variance of AUROC needs 2 patients a class; here are {sizes[0]} and {sizes[1]}"
        )
    m, n, patients = int(y.sum()), int((~y).sum()), int(groups.max()) + 1
    ranks = stats.rankdata(x, axis=1)
    above = (ranks[:, y] - stats.rankdata(x[:, y], axis=1)) / n
    below = 1 - (ranks[:, ~y] - stats.rankdata(x[:, ~y], axis=1)) / m
    area = above.mean(axis=1)
    positive = np.stack([np.bincount(groups[y], row, patients) for row in (above - area[:, None]) / m])
    negative = np.stack([np.bincount(groups[~y], row, patients) for row in (below - area[:, None]) / n])
    cross = positive @ negative.T
    covariance = (
        sizes[0] / (sizes[0] - 1) * positive @ positive.T
        + sizes[1] / (sizes[1] - 1) * negative @ negative.T
        + patients / (patients - 1) * (cross + cross.T)
    )
    return area, covariance


def auroc_interval(
    scores: npt.ArrayLike, labels: npt.ArrayLike, patients: Sequence[str] | None = None, level: float = 0.95
) -> Interval:
    """AUROC with DeLong's interval on the logit scale, which stays in 0 to 1.

    Where the variance is 0 or cannot be estimated (perfect separation, a class with one patient) DeLong would claim
    certainty. Then it is Wilson's interval for as many independent pairs, a pneumonia with a normal image, as the
    smaller class has patients.

    Args:
        scores: any ordering, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        patients: a key an image; "" is a patient of its own.
    Returns:
        Undefined, with the reason, where a class has no image.
    Source: `delong_covariance`; logit transform by Pepe 2003, The Statistical Evaluation of Medical Tests, section 5.2.
    """
    x, y = checked(scores, labels)
    groups = patient_numbers(patients, len(x))
    method = "delong" if len(np.unique(groups)) == len(x) else "delong by patient"
    if y.all() or not y.any():
        return undefined(
            f"there is no {'NORMAL' if y.all() else 'PNEUMONIA'} image", n=len(x), method=method, level=level
        )
    area = auroc(x, y)
    pairs = min(len(np.unique(groups[chosen])) for chosen in (y, ~y))
    variance = float(delong_covariance(x, y, groups)[1][0, 0]) if pairs > 1 else 0.0
    if variance <= 1e-15 or not 0 < area < 1:
        found = wilson(area * pairs, pairs, level)
        return Interval(area, found.low, found.high, f"wilson of {pairs} pairs", len(x), level)
    half = normal_quantile(level) * math.sqrt(variance) / (area * (1 - area))
    low, high = (float(special.expit(special.logit(area) + side * half)) for side in (-1, 1))
    return Interval(area, low, high, method, len(x), level)


def _both_classes(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, BoolArray]:
    x, y = checked(scores, labels)
    if y.all() or not y.any():
        raise UndefinedMetricError(
            f"AUROC needs both classes; there is no {'NORMAL' if y.all() else 'PNEUMONIA'} image"
        )
    return x, y

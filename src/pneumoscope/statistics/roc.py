"""ROC and precision-recall curves, and the area under the ROC curve with DeLong's variance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.statistics.inputs import (
    BoolArray,
    FloatArray,
    IntArray,
    patient_groups,
    validate,
    validate_both_classes,
)
from pneumoscope.statistics.intervals import normal_quantile, undefined, wilson

__all__ = [
    "area_interval",
    "auroc",
    "auroc_interval",
    "delong_covariance",
    "delong_method",
    "precision_recall_curve",
    "roc_curve",
    "weighted_auprc",
    "weighted_auroc",
    "weighted_macro_auroc",
]


def _weights_by_score(scores: FloatArray, labels: BoolArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the weights of PNEUMONIA and NORMAL images at each of k distinct scores, descending, each (r, k)."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    sorted_weights = weights[:, order]
    positive = np.add.reduceat(sorted_weights * labels[order], starts, axis=1)
    return positive, np.add.reduceat(sorted_weights, starts, axis=1) - positive


def weighted_auroc(scores: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
    """Return the AUROC for each row of image weights, for `intervals.patient_bootstrap`.

    Args:
        scores: Scores in any unit, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        weights: Image weights, 0 or more, shape (r, n).

    Returns:
        Shape (r,), 0 to 1; NaN where a class has no weight.
    """
    positive, negative = _weights_by_score(scores, labels, weights)
    above = np.cumsum(positive, axis=1) - positive / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray((above * negative).sum(axis=1) / pairs)


def weighted_macro_auroc(ranking: FloatArray, targets: IntArray, weights: FloatArray) -> FloatArray:
    """Return the mean one-against-rest AUROC over classes for each row of image weights.

    Args:
        ranking: Scores of the classes in any unit, such as `probabilities.log_odds`, shape (n, K).
        targets: Class index of each image, shape (n,).
        weights: Image weights, 0 or more, shape (r, n).

    Returns:
        Shape (r,); NaN where a class has no weight.
    """
    columns = [weighted_auroc(ranking[:, k], targets == k, weights) for k in range(ranking.shape[1])]
    return np.asarray(np.mean(columns, axis=0), dtype=np.float64)


def weighted_auprc(scores: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
    """Return the average precision for each row of image weights; arguments and shape as in `weighted_auroc`.

    It is the sum of the precision at each score times the sensitivity gained there, without interpolation.

    Source: scikit-learn's `average_precision_score`.
    """
    positive, negative = _weights_by_score(scores, labels, weights)
    predicted = np.cumsum(positive + negative, axis=1)
    with np.errstate(invalid="ignore"):
        precision = np.where(predicted > 0, np.cumsum(positive, axis=1) / predicted, 0.0)
        return np.asarray((precision * positive).sum(axis=1) / positive.sum(axis=1))


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the area under the ROC curve: the probability that a PNEUMONIA image scores above a NORMAL one.

    Ties count one half.

    Args:
        scores: Scores in any unit, shape (n,). Prefer logits, because scores tie at 0 and 1.
        labels: True where pneumonia is present, shape (n,).

    Raises:
        UndefinedMetricError: A class has no images.

    Source: Hanley & McNeil 1982, Radiology 143:29.
    """
    x, y = validate_both_classes(scores, labels, "AUROC")
    return float(weighted_auroc(x, y, np.ones((1, len(x))))[0])


def roc_curve(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the vertices of the ROC curve from (0, 0) to (1, 1).

    Args:
        scores: Scores in any unit, shape (n,).
        labels: True where pneumonia is present, shape (n,).

    Returns:
        False positive rate, sensitivity and threshold, each of shape (k + 1,) for k distinct scores. Scores at or above
        the threshold are positive; the first threshold is infinite.

    Raises:
        UndefinedMetricError: A class has no images.
    """
    from sklearn import metrics  # deferred: takes a second

    x, y = validate_both_classes(scores, labels, "the ROC curve")
    false_positive_rate, sensitivity, thresholds = metrics.roc_curve(y, x, drop_intermediate=False)
    return false_positive_rate, sensitivity, thresholds


def precision_recall_curve(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the vertices of the precision-recall curve, from the highest threshold down.

    Args:
        scores: Scores in any unit, shape (n,).
        labels: True where pneumonia is present, shape (n,).

    Returns:
        Sensitivity (ascending), precision and threshold, each of shape (k,) for k distinct scores. Scores at or above
        the threshold are positive. The area below the step function is the average precision.

    Raises:
        UndefinedMetricError: A class has no images.
    """
    from sklearn import metrics  # deferred: takes a second

    x, y = validate_both_classes(scores, labels, "the precision-recall curve")
    precision, sensitivity, thresholds = metrics.precision_recall_curve(y, x)
    # scikit-learn appends the point (0, 1), which has no threshold.
    return sensitivity[-2::-1], precision[-2::-1], thresholds[::-1]


def delong_covariance(scores: npt.ArrayLike, labels: npt.ArrayLike, groups: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return the AUROCs of one or more networks on the same images, and their covariance.

    Args:
        scores: Scores of k networks in any unit, shape (k, n).
        labels: True where pneumonia is present, shape (n,).
        groups: Patient numbers from `inputs.patient_groups`, shape (n,). Images of one patient may be correlated. With
            one image per patient the result is DeLong's.

    Returns:
        AUROC, shape (k,), and covariance, shape (k, k).

    Raises:
        UndefinedMetricError: A class has fewer than 2 patients.

    Source: DeLong 1988, Biometrics 44:837; mid-ranks by Sun & Xu 2014, IEEE Signal Process Lett 21:1389; sums over the
    images of a patient by Obuchowski 1997, Biometrics 53:567.
    """
    x, y = np.atleast_2d(np.asarray(scores, dtype=np.float64)), np.asarray(labels, dtype=np.bool_)
    n_patients = [len(np.unique(groups[members])) for members in (y, ~y)]
    if min(n_patients) < 2:
        raise UndefinedMetricError(
            "the variance of the AUROC needs 2 patients in each class"
            f" (PNEUMONIA: {n_patients[0]}, NORMAL: {n_patients[1]})"
        )
    m, n, total = int(y.sum()), int((~y).sum()), int(groups.max()) + 1
    ranks = stats.rankdata(x, axis=1)
    above = (ranks[:, y] - stats.rankdata(x[:, y], axis=1)) / n
    below = 1 - (ranks[:, ~y] - stats.rankdata(x[:, ~y], axis=1)) / m
    area = above.mean(axis=1)
    positive = np.stack([np.bincount(groups[y], row, total) for row in (above - area[:, None]) / m])
    negative = np.stack([np.bincount(groups[~y], row, total) for row in (below - area[:, None]) / n])
    cross = positive @ negative.T
    covariance = (
        n_patients[0] / (n_patients[0] - 1) * positive @ positive.T
        + n_patients[1] / (n_patients[1] - 1) * negative @ negative.T
        + total / (total - 1) * (cross + cross.T)
    )
    return area, covariance


def delong_method(groups: IntArray) -> str:
    """Return the name of the method: "delong by patient" if patients repeat, else "delong"."""
    return "delong" if len(np.unique(groups)) == len(groups) else "delong by patient"


def auroc_interval(
    scores: npt.ArrayLike, labels: npt.ArrayLike, patients: Sequence[str] | None = None, level: float = 0.95
) -> Interval:
    """Return the AUROC with DeLong's interval on the logit scale, which stays within 0 to 1.

    DeLong's variance is 0 if the classes are perfectly separated, and cannot be estimated if a class has only one
    patient. In these cases the interval is Wilson's for k independent pairs of a PNEUMONIA and a NORMAL image, where k
    is the number of patients of the smaller class.

    Args:
        scores: Scores in any unit, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        patients: One patient key per image, "" where unknown; None if all are unknown.
        level: Coverage, 0 to 1.

    Returns:
        The interval; undefined, with the reason, if a class has no images.

    Raises:
        UndefinedMetricError: See `inputs.validate`.

    Source: `delong_covariance`; logit transform by Pepe 2003, The Statistical Evaluation of Medical Tests, section 5.2.
    """
    x, y = validate(scores, labels)
    groups = patient_groups(patients, len(x))
    method = delong_method(groups)
    if y.all() or not y.any():
        reason = f"there is no {'NORMAL' if y.all() else 'PNEUMONIA'} image"
        return undefined(reason, n=len(x), method=method, level=level)
    area = auroc(x, y)
    pairs = min(len(np.unique(groups[members])) for members in (y, ~y))
    variance = float(delong_covariance(x, y, groups)[1][0, 0]) if pairs > 1 else 0.0
    return area_interval(area, variance, pairs=pairs, method=method, n=len(x), level=level)


def area_interval(area: float, variance: float, *, pairs: int, method: str, n: int, level: float = 0.95) -> Interval:
    """Return the interval of an area (AUROC or macro AUROC) on the logit scale; see `auroc_interval`.

    Args:
        area, variance: The area and its variance.
        pairs: Number of patients of the smallest class, used as the number of pairs for Wilson's interval if the
            variance is 0.
        method: Name of the variance method.
        n: Number of images.
        level: Coverage, 0 to 1.
    """
    if variance <= 1e-15 or not 0 < area < 1:
        interval = wilson(area * pairs, pairs, level)
        method = f"wilson of {pairs} {'pair' if pairs == 1 else 'pairs'}"
        return Interval(area, interval.low, interval.high, method, n, level)
    half_width = normal_quantile(level) * math.sqrt(variance) / (area * (1 - area))
    low, high = (float(special.expit(special.logit(area) + sign * half_width)) for sign in (-1, 1))
    return Interval(area, low, high, method, n, level)

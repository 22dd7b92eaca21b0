"""Covariance of macro AUROCs of multiclass networks on the same images, and a paired test of two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.statistics.inputs import FloatArray, IntArray, patient_groups
from pneumoscope.statistics.multiclass import too_few_patients
from pneumoscope.statistics.paired import auroc_difference
from pneumoscope.statistics.roc import area_interval

__all__ = ["MACRO_AUROC_METHOD", "macro_auroc_area", "macro_auroc_covariance", "macro_auroc_test"]

MACRO_AUROC_METHOD = "delong, mean of classes, by patient"


def macro_auroc_covariance(
    rankings: npt.ArrayLike, targets: npt.ArrayLike, names: Sequence[str], groups: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Return the macro AUROCs of one or more networks on the same images, and their covariance.

    The macro AUROC is the mean over classes of the one-against-rest AUROC. A patient's influence on it is the mean over
    classes of DeLong's structural components of the patient's images, so that the variance accounts for correlations
    between networks, classes and images of a patient.

    Args:
        rankings: Scores of the classes in any unit, for each network, shape (k, n, K).
        targets: Class index of each image, shape (n,).
        names: Name of each class.
        groups: Patient numbers from `inputs.patient_groups`, shape (n,).

    Returns:
        Macro AUROCs, shape (k,), and covariance, shape (k, k).

    Raises:
        UndefinedMetricError: A class has fewer patients than `intervals.MIN_PATIENTS`. With one patient, a class would
            add no variance at all.

    Source: DeLong 1988, Biometrics 44:837, with sums over the images of a patient by Obuchowski 1997, Biometrics
    53:567; the macro AUROC is linear in the AUROCs of the classes.
    """
    y = np.asarray(targets, dtype=np.int64)
    if reason := too_few_patients(y, names, groups, "the variance of the macro AUROC"):
        raise UndefinedMetricError(reason)
    found = [_influence(ranking, y, groups) for ranking in np.asarray(rankings, dtype=np.float64)]
    influence = np.stack([each for _, each in found])
    areas = np.array([areas.mean() for areas, _ in found])
    return areas, influence @ influence.T


def macro_auroc_area(
    ranking: npt.ArrayLike,
    targets: npt.ArrayLike,
    names: Sequence[str],
    patients: Sequence[str] | None = None,
    level: float = 0.95,
) -> Interval:
    """Return the macro AUROC with an interval on the logit scale from the variance of `macro_auroc_covariance`.

    Args:
        ranking: Scores of the classes in any unit, shape (n, K).
        targets: Class index of each image, shape (n,).
        names: Name of each class.
        patients: One patient key per image, "" where unknown; None if all are unknown.
        level: Coverage, 0 to 1.

    Raises:
        UndefinedMetricError: See `macro_auroc_covariance`.

    Source: As for the binary AUROC; see `roc.area_interval`.
    """
    y = np.asarray(targets, dtype=np.int64)
    groups = patient_groups(patients, len(y))
    areas, covariance = macro_auroc_covariance(np.asarray(ranking, dtype=np.float64)[None], y, names, groups)
    pairs = min(len(np.unique(groups[y == k])) for k in range(len(names)))
    area, variance = float(areas[0]), float(covariance[0, 0])
    return area_interval(area, variance, pairs=pairs, method=MACRO_AUROC_METHOD, n=len(y), level=level)


def macro_auroc_test(
    ranking_a: npt.ArrayLike,
    ranking_b: npt.ArrayLike,
    targets: npt.ArrayLike,
    names: Sequence[str],
    patients: Sequence[str] | None = None,
    level: float = 0.95,
) -> tuple[Interval, float | None]:
    """Return the difference of two macro AUROCs on the same images, a minus b, and its two-sided p-value.

    The variance is from `macro_auroc_covariance`. A permutation test would need scores of both networks on one scale; a
    bootstrap has the same variance up to its random error.

    Args:
        ranking_a, ranking_b: Scores of the classes in any unit, in the same order, shape (n, K).
        targets: Class index of each image, shape (n,).
        names: Name of each class.
        patients: One patient key per image, "" where unknown; None if all are unknown.
        level: Coverage of the interval, 0 to 1.

    Returns:
        The difference with a normal interval, and the p-value. If both networks rank the images alike, the variance is
        0, and the limits and the p-value are None.

    Raises:
        UndefinedMetricError: The shapes differ, or see `macro_auroc_covariance`.
    """
    a, b = np.asarray(ranking_a, dtype=np.float64), np.asarray(ranking_b, dtype=np.float64)
    y = np.asarray(targets, dtype=np.int64)
    if a.ndim != 2 or a.shape != b.shape or y.shape != a.shape[:1]:
        raise UndefinedMetricError(f"scores of shapes {a.shape} and {b.shape} do not match targets of shape {y.shape}")
    areas, covariance = macro_auroc_covariance(np.stack([a, b]), y, names, patient_groups(patients, len(y)))
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    return auroc_difference(difference, variance, method=MACRO_AUROC_METHOD, n=len(y), level=level)


def _influence(ranking: FloatArray, targets: IntArray, groups: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return the AUROC of each class, shape (K,), and the influence of each patient on their mean, shape (patients,).

    Influences of the m patients of a class, or of its rest, are multiplied by sqrt(m / (m - 1)) to make the variance
    unbiased, as in `roc.delong_covariance`.
    """
    total, classes = int(groups.max()) + 1, ranking.shape[1]
    areas, influence = np.zeros(classes), np.zeros(total)
    for k in range(classes):
        member, scores = targets == k, ranking[:, k]
        m, n = int(member.sum()), int((~member).sum())
        ranks = stats.rankdata(scores)
        above = (ranks[member] - stats.rankdata(scores[member])) / n
        below = 1 - (ranks[~member] - stats.rankdata(scores[~member])) / m
        areas[k] = above.mean()
        for members, components in ((member, (above - areas[k]) / m), (~member, (below - areas[k]) / n)):
            patients = len(np.unique(groups[members]))
            scale = math.sqrt(patients / (patients - 1)) / classes
            influence += scale * np.bincount(groups[members], components, total)
    return areas, influence

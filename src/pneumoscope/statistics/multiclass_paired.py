"""Paired test of the macro AUROC of two networks for several classes on the same images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.results import Interval
from pneumoscope.statistics.inputs import FloatArray, IntArray, patient_groups
from pneumoscope.statistics.paired import auroc_difference

__all__ = ["MACRO_AUROC_METHOD", "macro_auroc_test"]

MACRO_AUROC_METHOD = "delong, mean of classes, by patient"


def macro_auroc_test(
    ranking_a: npt.ArrayLike,
    ranking_b: npt.ArrayLike,
    targets: npt.ArrayLike,
    patients: Sequence[str] | None = None,
    level: float = 0.95,
) -> tuple[Interval, float | None]:
    """Return the difference of two macro AUROCs on the same images, a minus b, and its two-sided p.

    The macro AUROC is the mean over the classes of the AUROC of one class against the rest. The influence of a patient on it is
    the mean of DeLong's structural components of the patient's images over the classes, so that the variance accounts for the
    correlation of networks, of classes and of the images of a patient. A permutation of the scores of two networks would need
    scores on one scale; a bootstrap has the same variance up to its random error.

    Args:
        ranking_a, ranking_b: Scores of the classes in any unit, in the same order, shape (n, K).
        targets: Index of the class of each image, shape (n,).
        patients: One patient key per image, "" where unknown; None if no patient is known.
        level: Coverage of the interval, 0 to 1.

    Returns:
        The difference with a normal interval, and p. If both networks rank the images alike the variance is 0: the ends of the
        interval and p are None.

    Raises:
        UndefinedMetricError: The shapes differ, or a class or its rest has no images.

    Source: DeLong 1988, Biometrics 44:837, with sums over the images of a patient by Obuchowski 1997, Biometrics 53:567; the
        mean of the AUROCs of all classes is linear in them.
    """
    a, b = np.asarray(ranking_a, dtype=np.float64), np.asarray(ranking_b, dtype=np.float64)
    y = np.asarray(targets, dtype=np.int64)
    if a.ndim != 2 or a.shape != b.shape or y.shape != a.shape[:1]:
        raise UndefinedMetricError(f"scores of shapes {a.shape} and {b.shape} do not match targets of shape {y.shape}")
    groups = patient_groups(patients, len(y))
    patients_n = int(groups.max()) + 1
    if patients_n < 2:
        raise UndefinedMetricError("the variance of the AUROC needs images of 2 patients")
    areas_a, influence_a = _influence(a, y, groups)
    areas_b, influence_b = _influence(b, y, groups)
    difference = float(areas_a.mean() - areas_b.mean())
    variance = float(np.square(influence_a - influence_b).sum()) * patients_n / (patients_n - 1)
    return auroc_difference(difference, variance, method=MACRO_AUROC_METHOD, n=len(y), level=level)


def _influence(ranking: FloatArray, targets: IntArray, groups: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return the AUROC of each class, shape (K,), and the influence of each patient on their mean, shape (patients,)."""
    total, classes = int(groups.max()) + 1, ranking.shape[1]
    areas, influence = np.zeros(classes), np.zeros(total)
    for k in range(classes):
        member, scores = targets == k, ranking[:, k]
        m, n = int(member.sum()), int((~member).sum())
        if not m or not n:
            raise UndefinedMetricError(f"class {k + 1} of {classes} has {m} of the {m + n} images")
        ranks = stats.rankdata(scores)
        above = (ranks[member] - stats.rankdata(scores[member])) / n
        below = 1 - (ranks[~member] - stats.rankdata(scores[~member])) / m
        areas[k] = above.mean()
        influence += np.bincount(groups[member], (above - areas[k]) / m, total) / classes
        influence += np.bincount(groups[~member], (below - areas[k]) / n, total) / classes
    return areas, influence

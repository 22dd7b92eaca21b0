"""Compare groups of different images: differences of two AUROCs, and tests of whether several groups differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.statistics.inputs import FloatArray, IntArray, patient_groups, validate
from pneumoscope.statistics.intervals import difference, too_few_of
from pneumoscope.statistics.roc import auroc_interval, delong_covariance

__all__ = [
    "PERMUTATIONS",
    "ScoredGroup",
    "area_heterogeneity",
    "auroc_heterogeneity",
    "proportion_heterogeneity",
    "unpaired_area_difference",
    "unpaired_auroc_difference",
]

PERMUTATIONS = 9999
_SIDES = ("the class PNEUMONIA", "the class NORMAL")
_BLOCK = 4_000_000  # group numbers per block of permutations

# Scores (n,), labels (n,) and patient keys of a group of images.
ScoredGroup = tuple[npt.ArrayLike, npt.ArrayLike, Sequence[str]]


def unpaired_auroc_difference(
    a: ScoredGroup,
    b: ScoredGroup,
    level: float = 0.95,
    sides: tuple[str, str] = _SIDES,
    names: Sequence[str] = (),
) -> Interval:
    """Return the difference of two AUROCs on different images, a minus b, from their intervals.

    Args:
        a, b: Scores, labels and patients of the images, which must not overlap in images or patients.
        level: Coverage, 0 to 1.
        sides: Names for the images with the labels True and False, for reasons.
        names: Names of a and b, for reasons; empty for none.

    Raises:
        UndefinedMetricError: One of the two has fewer than `intervals.MIN_PATIENTS` patients of a label, with which the
            coverage of the interval is too low.

    Source: `roc.auroc_interval`; see `unpaired_area_difference`.
    """
    _check_patients((a, b), "a difference in AUROC", sides, names)
    return unpaired_area_difference(*(auroc_interval(*each, level) for each in (a, b)))


def unpaired_area_difference(a: Interval, b: Interval) -> Interval:
    """Return the difference of two areas on different images, a minus b, from their intervals (MOVER).

    An area without a variance, such as that of perfectly separated labels, contributes the width of its interval.

    Args:
        a, b: The areas, such as AUROCs, with intervals at the same level; see `roc.area_interval` and
            `multiclass_paired.macro_auroc_area`.

    Source: Method of variance estimates recovery, Zou & Donner 2008, Stat Med 27:1693.
    """
    methods = dict.fromkeys((a.method, b.method))
    return difference(a, b, f"{' and '.join(methods)}, mover, unpaired")


def auroc_heterogeneity(groups: Sequence[ScoredGroup], names: Sequence[str] = ()) -> float:
    """Return the p-value of the hypothesis that the AUROC is equal in all groups: Cochran's Q with DeLong variances.

    Args:
        groups: Scores, labels and patients of two or more groups of different images.
        names: Names of the groups, for reasons; empty for none.

    Raises:
        UndefinedMetricError: A class of a group has fewer than `intervals.MIN_PATIENTS` patients, with which the type I
            error is far too high, or an AUROC has no variance.
    """
    _check_patients(groups, "a test of AUROCs", _SIDES, [f"the group {name}" for name in names])
    areas, variances = np.array([_area(group) for group in groups]).T
    return area_heterogeneity(areas, variances)


def _check_patients(groups: Sequence[ScoredGroup], purpose: str, sides: tuple[str, str], names: Sequence[str]) -> None:
    """Raise if a class of a group has too few patients; the message names the smallest one."""
    counts = []
    for index, (_, labels, patients) in enumerate(groups):
        y = np.asarray(labels, dtype=np.bool_)
        keys = patient_groups(patients, len(y))
        where = f" in {names[index]}" if names else ""
        counts += [(len(np.unique(keys[of])), side + where) for of, side in zip((y, ~y), sides, strict=True)]
    if reason := too_few_of(*min(counts, key=lambda each: each[0]), purpose):
        raise UndefinedMetricError(reason)


def area_heterogeneity(areas: npt.ArrayLike, variances: npt.ArrayLike) -> float:
    """Return the p-value of the hypothesis that an area, such as the AUROC, is equal in all groups: Cochran's Q.

    Args:
        areas: The area of each group of different images, shape (k,).
        variances: Their variances; see `roc.delong_covariance` and `multiclass_paired.macro_auroc_covariance`.

    Raises:
        UndefinedMetricError: A variance is 0.

    Source: Cochran 1954, Biometrics 10:101.
    """
    x, v = np.asarray(areas, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    if v.min() <= 1e-15:
        raise UndefinedMetricError("the labels of a group are separated perfectly, so that its variance is unknown")
    weights = 1 / v
    mean = weights @ x / weights.sum()
    return float(stats.chi2.sf(weights @ np.square(x - mean), len(x) - 1))


def proportion_heterogeneity(
    correct: npt.ArrayLike,
    groups: npt.ArrayLike,
    patients: Sequence[str],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> float:
    """Return the p-value of the hypothesis that a proportion is equal in all groups, by permutation of whole patients.

    The statistic is Pearson's chi-squared of the table of groups and outcomes. Each permutation reassigns patients,
    with all their images in a group, to the groups. With one image per patient, this is a Monte Carlo version of the
    Fisher-Freeman-Halton test with this statistic.

    Args:
        correct: True for images in the numerator, shape (n,).
        groups: Group of each image, numbered from 0, shape (n,).
        patients: One patient key per image, "" where unknown.
        permutations: Number of random permutations; the smallest possible p-value is 1 / (permutations + 1).
        seed: Seed of the permutations.

    Raises:
        UndefinedMetricError: There is one group, or all images have the same outcome.

    Source: Freeman & Halton 1951, Biometrika 38:141; p-value by Phipson & Smyth 2010, Stat Appl Genet Mol Biol 9:39.
    """
    y, _ = validate(correct, np.asarray(correct, dtype=np.bool_))
    members = np.asarray(groups, dtype=np.int64)
    k = int(members.max()) + 1
    if k < 2 or y.min() == y.max():
        raise UndefinedMetricError("there is one group" if k < 2 else "all images have the same outcome")
    # A unit is a patient within a group.
    _, unit = np.unique(np.stack([patient_groups(patients, len(y)), members]), axis=1, return_inverse=True)
    unit = unit.ravel()
    sizes, sums = np.bincount(unit).astype(np.float64), np.bincount(unit, y).astype(np.float64)
    unit_groups = np.zeros(len(sizes), dtype=np.int64)
    unit_groups[unit] = members
    random = np.random.default_rng(seed)
    observed = _pearson(unit_groups[None], sizes, sums, k)[0]
    block = max(1, min(permutations, _BLOCK // len(sizes)))
    as_large = 0
    for start in range(0, permutations, block):
        rows = min(block, permutations - start)
        drawn = random.permuted(np.tile(unit_groups, (rows, 1)), axis=1)
        as_large += int(np.count_nonzero(_pearson(drawn, sizes, sums, k) >= observed * (1 - 1e-9)))
    return (as_large + 1) / (permutations + 1)


def _pearson(groups: IntArray, sizes: FloatArray, sums: FloatArray, k: int) -> FloatArray:
    """Return Pearson's chi-squared for each row of group numbers of units, shape (r,)."""
    rows = len(groups)
    cells = (groups + k * np.arange(rows)[:, None]).ravel()
    n = np.bincount(cells, np.tile(sizes, rows), rows * k).reshape(rows, k)
    positive = np.bincount(cells, np.tile(sums, rows), rows * k).reshape(rows, k)
    rate = sums.sum() / sizes.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = np.where(n > 0, np.square(positive - n * rate) / (n * rate * (1 - rate)), 0.0)
    return np.asarray(terms.sum(axis=1))


def _area(group: ScoredGroup) -> tuple[float, float]:
    """Return the AUROC and its variance."""
    scores, labels, patients = group
    x, y = validate(scores, labels)
    area, covariance = delong_covariance(x, y, patient_groups(patients, len(y)))
    return float(area[0]), float(covariance[0, 0])

"""Mondrian conformal prediction and Venn-Abers calibration, with guarantees for exchangeable images.

Conformal prediction excludes a label for an image only if the score is among the most extreme calibration scores of
that label. For the images of either label, the true label is then included with at least the specified coverage,
however poor the network.

Venn-Abers calibration fits isotonic regression to the calibration images and the new image twice, once with each label.
One of the two probabilities is calibrated. They differ widely where few calibration images have similar scores.

Neither guarantee holds under distribution shift.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.inputs import FloatArray, validate, validate_both_classes

__all__ = [
    "UncertaintyBand",
    "VennAbers",
    "few_images_text",
    "fit_class_thresholds",
    "fit_uncertainty_band",
    "fit_venn_abers",
]


class UncertaintyBand(NamedTuple):
    """Band of uncertain scores from `low` to `high`, both included.

    Below the band NORMAL is the only possible label; above it PNEUMONIA is.
    """

    low: float
    high: float


def fit_uncertainty_band(scores: npt.ArrayLike, labels: npt.ArrayLike, coverage: float) -> UncertaintyBand:
    """Return the band of scores at which both labels or neither label are possible.

    If few calibration images are misclassified, there may be scores at which neither label is possible. An image with
    such a score is atypical of both labels and also counts as uncertain, which can only increase the coverage.

    Args:
        scores: Scores, 0 to 1, of calibration images that were not used to select the network or its epoch, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        coverage: Coverage of each label, above 0 and below 1.

    Raises:
        UndefinedMetricError: The coverage is out of range, or a label has fewer than coverage / (1 - coverage) images.

    Source: Vovk, Gammerman & Shafer 2005, Algorithmic Learning in a Random World, section 4.5; Vovk 2012, ACML 25:475.
    """
    x, y = validate(scores, labels)
    if not 0 < coverage < 1:
        raise UndefinedMetricError(f"the coverage is {coverage}, not between 0 and 1")
    ascending = np.sort(x[y])
    descending = np.sort(x[~y])[::-1]
    min_pneumonia = ascending[_n_excluded(len(ascending), coverage, "PNEUMONIA") - 1]
    max_normal = descending[_n_excluded(len(descending), coverage, "NORMAL") - 1]
    return UncertaintyBand(float(min(min_pneumonia, max_normal)), float(max(min_pneumonia, max_normal)))


def fit_class_thresholds(
    probabilities: npt.ArrayLike, targets: npt.ArrayLike, names: Sequence[str], coverage: float
) -> list[float]:
    """Return for each class the probability at or above which it is included in an image's prediction set.

    A class is excluded if its probability is among the lowest of the calibration images of this class. If these are
    exchangeable with new images of the class, prediction sets contain the true class with at least the coverage
    (class-conditional, or Mondrian, conformal prediction). A set may contain several classes, or none.

    Args:
        probabilities: Probabilities of calibration images that were not used to select the network or its epoch, shape
            (n, K).
        targets: Class index of each image, shape (n,).
        names: Names of the classes.
        coverage: Coverage of each class, above 0 and below 1.

    Raises:
        UndefinedMetricError: The coverage is out of range, or a class has fewer than coverage / (1 - coverage) images.

    Source: Vovk, Gammerman & Shafer 2005, Algorithmic Learning in a Random World, section 4.5; Vovk 2012, ACML 25:475.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.int64)
    if not 0 < coverage < 1:
        raise UndefinedMetricError(f"the coverage is {coverage}, not between 0 and 1")
    thresholds = []
    for index, name in enumerate(names):
        ascending = np.sort(p[y == index, index])
        thresholds.append(float(ascending[_n_excluded(len(ascending), coverage, name) - 1]))
    return thresholds


def _n_excluded(n: int, coverage: float, label: str) -> int:
    """Return how many of the n + 1 equally likely ranks of a new image of the label are outside the coverage."""
    n_excluded = math.floor((1 - coverage) * (n + 1) + 1e-9)
    if n_excluded < 1:
        raise UndefinedMetricError(
            f"a coverage of {coverage} needs at least {_min_images(coverage)} {label} images; there are {n}"
        )
    return n_excluded


def _min_images(coverage: float) -> int:
    """Return the smallest number of calibration images per label for a coverage."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def few_images_text(counts: Mapping[str, int], coverage: float) -> str:
    """Return a clause naming the classes with too few validation images for a coverage; "" if there are none.

    Args:
        counts: Number of validation images of each class.
        coverage: Coverage of each class, above 0 and below 1.
    """
    required = _min_images(coverage)
    few = [f"{n} of {name}" for name, n in counts.items() if n < required]
    if not few:
        return ""
    return f"a coverage of {coverage:.0%} needs {required} validation images of each class; there are {', '.join(few)}"


class VennAbers(NamedTuple):
    """Lower and upper probability of pneumonia as ascending step functions of the score.

    Attributes:
        edges: The k scores at which a step may occur, ascending.
        low, high: The k + 1 probabilities between the edges; `low` is below `high`.
    """

    edges: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    def interval(self, score: float) -> tuple[float, float]:
        """Return the lower and upper probability for a score; on an edge, the union of the adjacent intervals."""
        return self.low[bisect_left(self.edges, score)], self.high[bisect_right(self.edges, score)]


def fit_venn_abers(scores: npt.ArrayLike, labels: npt.ArrayLike) -> VennAbers:
    """Return both probabilities as functions of the score.

    Args:
        scores: Scores of calibration images in any unit, shape (n,).
        labels: True where pneumonia is present, shape (n,).

    Raises:
        UndefinedMetricError: A class has no images.

    Source: Vovk, Petej & Fedorova 2015, NeurIPS 28:892 (inductive Venn-Abers predictors).
    """
    from sklearn.isotonic import isotonic_regression  # deferred: evaluating the step functions does not need it

    x, y = validate_both_classes(scores, labels, "Venn-Abers calibration")
    edges, ranks, counts = np.unique(x, return_inverse=True, return_counts=True)
    rates = np.bincount(ranks, y) / counts

    def probabilities(label: float) -> FloatArray:
        """Return the probabilities below all edges, between each two adjacent edges, and above all edges."""
        return np.array(
            [
                isotonic_regression(
                    np.insert(rates, index, label), sample_weight=np.insert(counts.astype(float), index, 1.0)
                )[index]
                for index in range(len(edges) + 1)
            ]
        )

    low, high = probabilities(0.0), probabilities(1.0)
    steps = (np.diff(low) != 0) | (np.diff(high) != 0)
    distinct = np.r_[True, steps]
    return VennAbers(edges[steps].tolist(), low[distinct].tolist(), high[distinct].tolist())

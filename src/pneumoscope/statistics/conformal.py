"""Predictions with a guarantee for exchangeable images: Mondrian conformal prediction and Venn-Abers calibration.

Conformal prediction keeps a label possible for an image unless the score is among the most extreme calibration scores
of that label. For the images of either label, the true label then stays possible with at least the stated coverage,
even if the network is poor.

Venn-Abers calibration fits isotonic regression to the calibration images and the new image twice, once with each label.
One of the two probabilities is calibrated. They differ widely where few calibration images have similar scores.

Neither guarantee holds under a distribution shift.
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
    """Scores from `low` to `high`, both included, are uncertain.

    Below the band NORMAL is the only possible label; above it PNEUMONIA is.
    """

    low: float
    high: float


def fit_uncertainty_band(scores: npt.ArrayLike, labels: npt.ArrayLike, coverage: float) -> UncertaintyBand:
    """Return the scores at which both labels are possible, or neither is.

    If few calibration images are misclassified, neither label may be possible at some scores. Such an image is atypical
    of both labels and counts as uncertain too, which can only raise the coverage.

    Args:
        scores: Scores, 0 to 1, of calibration images that selected neither the network nor its epoch, shape (n,).
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
    """Return for each class the probability at or above which it is in the prediction set of an image.

    A class is left out if its probability is among the lowest of the calibration images of this class. If these are exchangeable
    with the images of the class, their sets contain it with at least the coverage (class-conditional, or Mondrian, conformal
    prediction). A set may have several classes, or none.

    Args:
        probabilities: Probabilities of calibration images that selected neither the network nor its epoch, shape (n, K).
        targets: Index of the class of each image, shape (n,).
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
    """Return how many of the n + 1 equally likely ranks of a new image of the label lie outside the coverage."""
    n_excluded = math.floor((1 - coverage) * (n + 1) + 1e-9)
    if n_excluded < 1:
        raise UndefinedMetricError(
            f"a coverage of {coverage} needs at least {_min_images(coverage)} {label} images; there are {n}"
        )
    return n_excluded


def _min_images(coverage: float) -> int:
    """Return the smallest number of calibration images of a label for a coverage."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def few_images_text(counts: Mapping[str, int], coverage: float) -> str:
    """Return which classes have too few validation images for a coverage, as a clause; "" if none has.

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
        edges: Scores at which a step may occur, ascending, k of them.
        low, high: Probabilities between the edges, k + 1 of each; `low` is below `high`.
    """

    edges: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    def interval(self, score: float) -> tuple[float, float]:
        """Return the lower and upper probability of a score; on an edge, the wider interval of both sides."""
        return self.low[bisect_left(self.edges, score)], self.high[bisect_right(self.edges, score)]


def fit_venn_abers(scores: npt.ArrayLike, labels: npt.ArrayLike) -> VennAbers:
    """Return both probabilities for every score that an image can have.

    Args:
        scores: Scores of calibration images in any unit, shape (n,).
        labels: True where pneumonia is present, shape (n,).

    Raises:
        UndefinedMetricError: A class has no images.

    Source: Vovk, Petej & Fedorova 2015, NeurIPS 28:892 (inductive Venn-Abers predictors).
    """
    from sklearn.isotonic import isotonic_regression  # not needed to evaluate the step functions

    x, y = validate_both_classes(scores, labels, "Venn-Abers calibration")
    edges, ranks, counts = np.unique(x, return_inverse=True, return_counts=True)
    rates = np.bincount(ranks, y) / counts

    def probabilities(label: float) -> FloatArray:
        """Return the probability for a score below all edges, between two neighboring ones, and above all."""
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

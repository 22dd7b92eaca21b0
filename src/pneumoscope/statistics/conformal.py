"""Predictions with a guarantee for exchangeable images: Mondrian conformal prediction and Venn-Abers calibration.

Conformal prediction, for each label on its own: a label stays possible for an image unless its score is among the most
extreme calibration scores of that label. The true label then stays possible for at least the stated share of images of
either label, whatever the quality of the network.

Venn-Abers calibration: isotonic regression is fitted to the calibration images and the new image twice, once for each label.
One of the two probabilities is calibrated. Where few calibration images are near, the two differ widely.

Neither guarantee holds under a distribution shift.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.inputs import FloatArray, checked

__all__ = ["UncertaintyBand", "VennAbers", "fit_venn_abers", "uncertain_band"]


class UncertaintyBand(NamedTuple):
    """Scores from `low` to `high`, both included, are uncertain: below is normal alone, above is pneumonia alone."""

    low: float
    high: float


def uncertain_band(scores: npt.ArrayLike, labels: npt.ArrayLike, coverage: float) -> UncertaintyBand:
    """The scores at which both labels are possible, or neither is.

    Where few calibration images are called wrongly, neither label may be possible at some scores: such an image is as strange
    for one label as for the other, and is counted as uncertain too, which can only raise the coverage.

    Args:
        scores: of calibration images, on which neither the network nor its epoch was chosen, 0 to 1, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        coverage: for each label, above 0 and below 1.
    Raises:
        UndefinedMetricError: the coverage is out of range, or a label has too few images for it: at least
            coverage / (1 - coverage).
    Source: Vovk, Gammerman & Shafer 2005, Algorithmic Learning in a Random World, section 4.5; Vovk 2012, ACML 25:475.
    """
    x, y = checked(scores, labels)
    if not 0 < coverage < 1:
        raise UndefinedMetricError(f"a coverage of {coverage} is not between 0 and 1")
    # Of n + 1 equally likely ranks of a new image among those of its label this many are given up.
    lowest = np.sort(x[y])
    highest = np.sort(x[~y])[::-1]
    least_pneumonia = lowest[_given_up(len(lowest), coverage, "PNEUMONIA") - 1]
    greatest_normal = highest[_given_up(len(highest), coverage, "NORMAL") - 1]
    return UncertaintyBand(float(min(least_pneumonia, greatest_normal)), float(max(least_pneumonia, greatest_normal)))


def _given_up(n: int, coverage: float, label: str) -> int:
    given_up = math.floor((1 - coverage) * (n + 1) + 1e-9)
    if given_up < 1:
        needed = math.ceil(coverage / (1 - coverage) - 1e-9)
        raise UndefinedMetricError(f"a coverage of {coverage} needs {needed} {label} images or more; here are {n}")
    return given_up


class VennAbers(NamedTuple):
    """Two step functions of the score; monotone, the lower one below the upper one.

    Attributes:
        edges: where a step may be, rising, k of them.
        low, high: probability of pneumonia on each side of the edges, k + 1 of them.
    """

    edges: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    def interval(self, score: float) -> tuple[float, float]:
        """Lower and upper probability; on an edge the wider of both sides."""
        return self.low[bisect_left(self.edges, score)], self.high[bisect_right(self.edges, score)]


def fit_venn_abers(scores: npt.ArrayLike, labels: npt.ArrayLike) -> VennAbers:
    """Work out both answers for every score that an image can have.

    Args:
        scores: of calibration images, any unit, shape (n,).
        labels: True where pneumonia is present, shape (n,).
    Raises:
        UndefinedMetricError: a class has no image.
    Source: Vovk, Petej & Fedorova 2015, NeurIPS 28:892 (inductive Venn-Abers predictors).
    """
    from sklearn.isotonic import isotonic_regression  # here, since reading an interval off needs none of it

    x, y = checked(scores, labels)
    if y.all() or not y.any():
        raise UndefinedMetricError(f"calibration needs both classes; here are {len(y)} images of one")
    edges, ranks, images = np.unique(x, return_inverse=True, return_counts=True)
    share = np.bincount(ranks, y) / images

    def answers(label: float) -> FloatArray:
        # A score between two calibration images gets the same answer wherever it is between them.
        return np.array(
            [
                isotonic_regression(
                    np.insert(share, place, label), sample_weight=np.insert(images.astype(float), place, 1.0)
                )[place]
                for place in range(len(edges) + 1)
            ]
        )

    low, high = answers(0.0), answers(1.0)
    steps = (np.diff(low) != 0) | (np.diff(high) != 0)
    kept = np.r_[True, steps]
    return VennAbers(edges[steps].tolist(), low[kept].tolist(), high[kept].tolist())

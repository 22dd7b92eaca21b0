"""A probability with its own uncertainty: two answers for each image, one a label, and how far they are apart.

Isotonic regression is fitted to the calibration images and the new image twice, once as if it were normal and once as if it
were a pneumonia. One of the two is calibrated, whatever the network is worth, as long as images are exchangeable; where few
calibration images are near, the two are far apart.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.inputs import FloatArray, checked

__all__ = ["VennAbers", "fit_venn_abers"]


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

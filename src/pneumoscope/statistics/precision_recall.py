"""Precision against sensitivity, which shows what a low share of pneumonia does to a network that ranks well."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pneumoscope.statistics.inputs import FloatArray
from pneumoscope.statistics.roc import roc_curve

__all__ = ["precision_recall_curve"]


def precision_recall_curve(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Corners of the precision-recall curve, from the highest threshold down.

    Args:
        scores: any ordering, shape (n,).
        labels: True where pneumonia is present, shape (n,).
    Returns:
        Sensitivity (which rises), precision and threshold (an image at or above it is called pneumonia), each of shape
        (k,) for k distinct scores. Flat up to each corner, its area is `roc.auprc`.
    Raises:
        UndefinedMetricError: a class has no image.
    """
    rate, sensitivity, thresholds = (values[1:] for values in roc_curve(scores, labels))
    y = np.asarray(labels, dtype=np.bool_)
    true = sensitivity * y.sum()
    return sensitivity, true / (true + rate * (~y).sum()), thresholds

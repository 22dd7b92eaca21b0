"""Temperature scaling: calibrate multiclass probabilities with one parameter."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.inputs import FloatArray
from pneumoscope.statistics.probabilities import TEMPERATURE_RANGE

__all__ = ["fit_temperature"]


def fit_temperature(logits: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Return the temperature that maximizes the likelihood of softmax(logits / temperature).

    A single parameter for all classes preserves the predicted classes and cannot be overfitted to a class with few
    images. The targets are smoothed as in Platt scaling: the target of an image is (n + 1) / (n + K) for its class,
    which has n images, and the rest is divided among the K - 1 other classes. The temperature then stays above 0 if the
    classes are perfectly separated. It is limited to `probabilities.TEMPERATURE_RANGE`.

    Args:
        logits: Logits of validation images, unbounded, shape (n, K).
        targets: Class index of each image, 0 to K - 1, shape (n,).

    Raises:
        UndefinedMetricError: The shapes differ, a class has no images, or a logit is not finite.

    Source: Guo 2017, ICML 70:1321; smoothed targets by Platt 1999, Advances in Large Margin Classifiers.
    """
    x, y = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.int64)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise UndefinedMetricError(f"logits of shape {x.shape} do not match targets of shape {y.shape}")
    if not np.isfinite(x).all():
        raise UndefinedMetricError("a logit is not finite")
    classes = x.shape[1]
    counts = np.bincount(y, minlength=classes)
    if len(counts) > classes or not counts.all():
        raise UndefinedMetricError(f"calibration needs images of all {classes} classes; there are {counts.tolist()}")
    smoothed = (counts + 1) / (counts + classes)
    goal = np.repeat(((1 - smoothed) / (classes - 1))[y][:, None], classes, axis=1)
    goal[np.arange(len(y)), y] = smoothed[y]

    def loss(log_temperature: float) -> float:
        return float(-(goal * _log_softmax(x / math.exp(log_temperature))).sum() / len(y))

    # The loss is convex in 1 / temperature, so it also has a single minimum on the logarithmic scale.
    bounds = tuple(map(math.log, TEMPERATURE_RANGE))
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-7})
    return math.exp(found.x)


def _log_softmax(logits: FloatArray) -> FloatArray:
    return np.asarray(special.log_softmax(logits, axis=1))

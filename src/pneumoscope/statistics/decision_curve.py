"""Decision curves: net benefit of treating at or above a threshold probability, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.results import DecisionCurvePoint
from pneumoscope.statistics.inputs import BoolArray, FloatArray, validate_probabilities
from pneumoscope.statistics.intervals import RESAMPLES, patient_bootstraps

__all__ = ["THRESHOLD_PROBABILITIES", "decision_curve", "net_benefit"]

# Threshold probabilities of an evaluation: 0.05 to 0.95.
THRESHOLD_PROBABILITIES = tuple(step / 20 for step in range(1, 20))


def net_benefit(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, thresholds: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Return the net benefit of the model and of treating everyone, at each threshold probability.

    A patient is treated if the probability reaches the threshold t. Net benefit is TP / n - FP / n x t / (1 - t): true
    positives per image, minus false positives at the exchange rate implied by the threshold. Treating no one has a net
    benefit of 0.

    Args:
        probabilities: Probabilities of pneumonia, 0 to 1, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        thresholds: Threshold probabilities, 0 or more and below 1, shape (k,).

    Returns:
        Both of shape (k,).

    Raises:
        UndefinedMetricError: There are no images, or a probability or threshold is out of range.

    Source: Vickers & Elkin 2006, Med Decis Making 26:565.
    """
    p, y = validate_probabilities(probabilities, labels)
    t = _validate_thresholds(thresholds)
    values = _weighted(p, y, np.ones((1, len(p))), t)[0]
    return values[: len(t)], values[len(t) : 2 * len(t)]


def decision_curve(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: Sequence[str] | None,
    *,
    thresholds: Sequence[float] = THRESHOLD_PROBABILITIES,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[DecisionCurvePoint, ...]:
    """Return the net benefit at each threshold probability, with patient-bootstrap intervals.

    All thresholds share the resamples. If no probability reaches a threshold, the net benefit is 0 without an interval.
    `DecisionCurvePoint.gain` is relative to the better of treating everyone and no one in each resample.

    Args:
        probabilities: Probabilities of pneumonia, 0 to 1, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        patients: One patient key per image, "" where unknown; None if all are unknown.
        thresholds: Threshold probabilities, 0 or more and below 1.
        resamples: Number of resamples.
        level: Coverage, 0 to 1.
        seed: Seed of the bootstrap.

    Raises:
        UndefinedMetricError: See `net_benefit`.

    Source: `net_benefit`; intervals by Vickers 2008, BMC Med Inform Decis Mak 8:53.
    """
    p, y = validate_probabilities(probabilities, labels)
    t = _validate_thresholds(thresholds)

    def statistics(x: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
        return _weighted(x, labels, weights, t)

    intervals = patient_bootstraps(statistics, p, y, patients, resamples=resamples, level=level, seed=seed)
    k = len(t)
    points = []
    for index, threshold in enumerate(t.tolist()):
        benefit, everybody, gain = intervals[index : 3 * k : k]
        if (p < threshold).all():
            reason = "no probability reaches the threshold, which resampling cannot vary"
            benefit = dataclasses.replace(benefit, low=None, high=None, reason=reason)
        points.append(DecisionCurvePoint(threshold, benefit, everybody, gain))
    return tuple(points)


def _validate_thresholds(thresholds: npt.ArrayLike) -> FloatArray:
    t = np.asarray(thresholds, dtype=np.float64)
    if not ((t >= 0) & (t < 1)).all():
        raise UndefinedMetricError("a threshold probability is not within 0 to 1, or is 1")
    return t


def _weighted(p: FloatArray, y: BoolArray, weights: FloatArray, thresholds: FloatArray) -> FloatArray:
    """Return net benefit, net benefit of treating everyone, and gain for each row of image weights, shape (r, 3k)."""
    odds = thresholds / (1 - thresholds)
    gains = np.where(y[:, None], 1.0, -odds)  # gain from treating an image, shape (n, k)
    total = weights.sum(axis=1, keepdims=True)
    model = weights @ (gains * (p[:, None] >= thresholds)) / total
    everybody = weights @ gains / total
    return np.concatenate([model, everybody, model - np.maximum(everybody, 0.0)], axis=1)

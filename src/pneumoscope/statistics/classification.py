"""Decisions against labels: the four counts, and the eight numbers made from them. Undefined is None with a reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.results import Confusion, Interval
from pneumoscope.statistics.inputs import BoolArray, FloatArray, checked
from pneumoscope.statistics.intervals import RESAMPLES, Statistic, patient_bootstrap, proportion

__all__ = [
    "THRESHOLD_METRICS",
    "confusion",
    "threshold_metrics",
    "weighted_balanced_accuracy",
    "weighted_f1",
    "weighted_mcc",
]

THRESHOLD_METRICS = (
    "accuracy",
    "sensitivity",
    "specificity",
    "precision",
    "negative_predictive_value",
    "f1",
    "balanced_accuracy",
    "mcc",
)


def confusion(decisions: npt.ArrayLike, labels: npt.ArrayLike) -> Confusion:
    """The four counts.

    Args:
        decisions: True where a film is called pneumonia, shape (n,).
        labels: True where pneumonia is present, shape (n,).
    Raises:
        UndefinedMetricError: no film, or other shapes.
    """
    called, y = checked(decisions, labels)
    tp, fn, tn, fp = _cells(called, y, np.ones((1, len(y))))
    return Confusion(int(tp[0]), int(fn[0]), int(tn[0]), int(fp[0]))


def _cells(
    called: FloatArray, labels: BoolArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Weight of true positives, false negatives, true negatives and false positives, each of shape (r,)."""
    cells = np.stack([called * labels, (1 - called) * labels, (1 - called) * ~labels, called * ~labels], axis=1)
    tp, fn, tn, fp = (weights @ cells).T
    return tp, fn, tn, fp


def weighted_f1(called: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
    """Harmonic mean of precision and sensitivity, 2 TP / (2 TP + FP + FN): decisions (n,), (n,), (r, n) -> (r,)."""
    tp, fn, _, fp = _cells(called, labels, weights)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * tp / (2 * tp + fp + fn))


def weighted_balanced_accuracy(called: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
    """Mean of sensitivity and specificity: decisions (n,), (n,), (r, n) -> (r,)."""
    tp, fn, tn, fp = _cells(called, labels, weights)
    with np.errstate(invalid="ignore"):
        return np.asarray((tp / (tp + fn) + tn / (tn + fp)) / 2)


def weighted_mcc(called: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
    """Matthews correlation (Matthews 1975, Biochim Biophys Acta 405:442): decisions (n,), (n,), (r, n) -> (r,)."""
    tp, fn, tn, fp = _cells(called, labels, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def threshold_metrics(
    decisions: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: Sequence[str] | None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """The eight numbers of `THRESHOLD_METRICS`, in that order.

    The five plain proportions take Wilson's interval (`intervals.proportion`: with the design effect where patients
    repeat), the other three draw patients (`intervals.patient_bootstrap`).

    Args:
        decisions: True where a film is called pneumonia, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        patients: a key a film; "" is a patient of its own.
    Raises:
        UndefinedMetricError: no film, or other shapes.
    """
    called, y = checked(decisions, labels)
    positive = called.astype(np.bool_)
    keys = None if patients is None else np.asarray(patients, dtype=object)

    def share(correct: BoolArray, among: BoolArray, why: str) -> Interval:
        return proportion(correct[among], None if keys is None else list(keys[among]), why=why)

    def drawn(statistic: Statistic, why: str) -> Interval:
        return patient_bootstrap(statistic, called, y, patients, resamples=resamples, seed=seed, why=why)

    missing = "there is no NORMAL film" if y.all() else "there is no PNEUMONIA film"
    return {
        "accuracy": share(positive == y, np.ones_like(y), "there is no film"),
        "sensitivity": share(positive, y, "there is no PNEUMONIA film"),
        "specificity": share(~positive, ~y, "there is no NORMAL film"),
        "precision": share(y, positive, "no film is called pneumonia"),
        "negative_predictive_value": share(~y, ~positive, "every film is called pneumonia"),
        "f1": drawn(weighted_f1, "there is no PNEUMONIA film and none is called so"),
        "balanced_accuracy": drawn(weighted_balanced_accuracy, missing),
        "mcc": drawn(weighted_mcc, "all films have one label, or all are called the same"),
    }

"""Decisions against labels: the four counts, and the eight numbers made from them. Undefined is None with a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.core.results import Confusion, Interval
from pneumoscope.statistics.inputs import BoolArray, FloatArray, checked
from pneumoscope.statistics.intervals import RESAMPLES, Statistic, mean_of_two, patient_bootstrap, proportion

__all__ = [
    "confusion",
    "threshold_metrics",
    "weighted_f1",
    "weighted_mcc",
]


def confusion(decisions: npt.ArrayLike, labels: npt.ArrayLike) -> Confusion:
    """The four counts.

    Args:
        decisions: True where an image is called pneumonia, shape (n,).
        labels: True where pneumonia is present, shape (n,).
    Raises:
        UndefinedMetricError: no image, or other shapes.
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
    """Return accuracy, sensitivity, specificity, precision, negative predictive value, F1, balanced accuracy and MCC.

    The five plain proportions take Wilson's interval (`intervals.proportion`: with the design effect where patients
    repeat), and balanced accuracy the two that it is the mean of (`intervals.mean_of_two`). The other two draw patients
    (`intervals.patient_bootstrap`), which knows nothing of errors that no image shows: where a label's images are called all
    rightly or all wrongly, they have no interval.

    Args:
        decisions: True where an image is called pneumonia, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        patients: a key an image; "" is a patient of its own.
    Raises:
        UndefinedMetricError: no image, or other shapes.
    """
    called, y = checked(decisions, labels)
    positive = called.astype(np.bool_)
    keys = None if patients is None else np.asarray(patients, dtype=object)

    def share(correct: BoolArray, among: BoolArray, why: str) -> Interval:
        return proportion(correct[among], None if keys is None else list(keys[among]), why=why)

    def drawn(statistic: Statistic, why: str) -> Interval:
        found = patient_bootstrap(statistic, called, y, patients, resamples=resamples, seed=seed, why=why)
        if found.value is None or not (unvaried := _unvaried(sensitivity, specificity)):
            return found
        return dataclasses.replace(
            found, low=None, high=None, reason=f"{unvaried}: drawing images anew cannot vary that"
        )

    sensitivity = share(positive, y, "there is no PNEUMONIA image")
    specificity = share(~positive, ~y, "there is no NORMAL image")
    return {
        "accuracy": share(positive == y, np.ones_like(y), "there is no image"),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": share(y, positive, "no image is called pneumonia"),
        "negative_predictive_value": share(~y, ~positive, "every image is called pneumonia"),
        "f1": drawn(weighted_f1, "there is no PNEUMONIA image and none is called so"),
        "balanced_accuracy": mean_of_two(sensitivity, specificity),
        "mcc": drawn(weighted_mcc, "all images have one label, or all are called the same"),
    }


def _unvaried(sensitivity: Interval, specificity: Interval) -> str:
    """Which label's images are called all alike, in words; empty where those of both vary."""
    for found, label in ((sensitivity, "PNEUMONIA"), (specificity, "NORMAL")):
        if found.value in {0, 1}:
            return f"all {found.n} {label} images are called {'rightly' if found.value else 'wrongly'}"
    return ""

"""Confusion counts and decision metrics, with intervals. An undefined metric is None with a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.core.interval import Interval
from pneumoscope.core.results import Confusion
from pneumoscope.statistics.inputs import BoolArray, FloatArray, validate
from pneumoscope.statistics.intervals import (
    RESAMPLES,
    WeightedStatistic,
    mean_of_proportions,
    patient_bootstrap,
    proportion,
)
from pneumoscope.statistics.likelihood_ratios import likelihood_ratios

__all__ = ["confusion", "threshold_metrics", "weighted_f1", "weighted_mcc"]


def confusion(decisions: npt.ArrayLike, labels: npt.ArrayLike) -> Confusion:
    """Return the confusion counts.

    Args:
        decisions: True where pneumonia is predicted, shape (n,).
        labels: True where pneumonia is present, shape (n,).

    Raises:
        UndefinedMetricError: There are no images, or the shapes differ.
    """
    predicted, y = validate(decisions, labels)
    tp, fn, tn, fp = _weighted_confusion(predicted, y, np.ones((1, len(y))))
    return Confusion(int(tp[0]), int(fn[0]), int(tn[0]), int(fp[0]))


def _weighted_confusion(
    predicted: FloatArray, labels: BoolArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return the weights of true positives, false negatives, true negatives and false positives, each of shape (r,)."""
    cells = np.stack(
        [predicted * labels, (1 - predicted) * labels, (1 - predicted) * ~labels, predicted * ~labels], axis=1
    )
    tp, fn, tn, fp = (weights @ cells).T
    return tp, fn, tn, fp


def weighted_f1(predicted: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
    """Return F1, the harmonic mean of precision and sensitivity: 2 TP / (2 TP + FP + FN).

    Args:
        predicted: 1 where pneumonia is predicted, else 0, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        weights: Image weights, 0 or more, shape (r, n).

    Returns:
        Shape (r,); NaN where undefined.

    Source: van Rijsbergen 1979, Information Retrieval, chapter 7.
    """
    tp, fn, _, fp = _weighted_confusion(predicted, labels, weights)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * tp / (2 * tp + fp + fn))


def weighted_mcc(predicted: FloatArray, labels: BoolArray, weights: FloatArray) -> FloatArray:
    """Return the Matthews correlation coefficient, -1 to 1; arguments and shape as in `weighted_f1`.

    Source: Matthews 1975, Biochim Biophys Acta 405:442.
    """
    tp, fn, tn, fp = _weighted_confusion(predicted, labels, weights)
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
    """Return accuracy, sensitivity, specificity, predictive values, F1, balanced accuracy, MCC and likelihood ratios.

    The five proportions have Wilson intervals, adjusted for repeated patients (`intervals.proportion`). The interval of
    balanced accuracy combines those of sensitivity and specificity (`intervals.mean_of_proportions`). F1 and MCC have
    patient-bootstrap intervals (`intervals.patient_bootstrap`), but none if all images of a class are classified
    correctly or all incorrectly: resampling cannot produce an error that no image shows. For positive_likelihood_ratio
    and negative_likelihood_ratio see `likelihood_ratios`.

    Args:
        decisions: True where pneumonia is predicted, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        patients: One patient key per image, "" where unknown; None if all are unknown.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Raises:
        UndefinedMetricError: There are no images, or the shapes differ.
    """
    predicted, y = validate(decisions, labels)
    positive = predicted.astype(np.bool_)
    keys = None if patients is None else np.asarray(patients, dtype=object)

    def rate(correct: BoolArray, among: BoolArray, reason: str) -> Interval:
        return proportion(correct[among], None if keys is None else list(keys[among]), reason=reason)

    def bootstrap(statistic: WeightedStatistic, reason: str) -> Interval:
        interval = patient_bootstrap(
            statistic, predicted, y, patients, resamples=resamples, seed=seed, reason=reason, by_label=True
        )
        constant_class = _constant_class(sensitivity, specificity)
        if interval.value is None or not constant_class:
            return interval
        return dataclasses.replace(
            interval, low=None, high=None, reason=f"{constant_class}, which resampling cannot vary"
        )

    sensitivity = rate(positive, y, "there is no PNEUMONIA image")
    specificity = rate(~positive, ~y, "there is no NORMAL image")
    return {
        "accuracy": rate(positive == y, np.ones_like(y), "there are no images"),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": rate(y, positive, "no image is predicted as pneumonia"),
        "negative_predictive_value": rate(~y, ~positive, "every image is predicted as pneumonia"),
        "f1": bootstrap(weighted_f1, "there is no PNEUMONIA image and none is predicted as pneumonia"),
        "balanced_accuracy": mean_of_proportions(sensitivity, specificity),
        "mcc": bootstrap(weighted_mcc, "all images have one label, or all have the same prediction"),
        **likelihood_ratios(predicted, y, patients),
    }


def _constant_class(sensitivity: Interval, specificity: Interval) -> str:
    """Return why F1 and MCC cannot vary between resamples; "" if they can.

    All images of a class are classified correctly or all incorrectly, or there is no PNEUMONIA image.
    """
    if sensitivity.value is None:
        return sensitivity.reason
    for rate, label in ((sensitivity, "PNEUMONIA"), (specificity, "NORMAL")):
        if rate.value in {0, 1}:
            return f"all {rate.n} {label} images are classified {'correctly' if rate.value else 'incorrectly'}"
    return ""

"""Metrics of scored images, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.card import UncertaintyBand
from pneumoscope.core.interval import Interval
from pneumoscope.core.results import OperatingPointResult, PredictiveValues, ScoredImage
from pneumoscope.statistics.calibration import calibration_error_interval, calibration_intervals, weighted_brier
from pneumoscope.statistics.inputs import BoolArray
from pneumoscope.statistics.intervals import patient_bootstrap, proportion
from pneumoscope.statistics.likelihood_ratios import predictive_values
from pneumoscope.statistics.metrics import confusion, threshold_metrics
from pneumoscope.statistics.roc import auroc_interval, weighted_auprc

__all__ = ["Threshold", "etiology_aurocs", "evaluate_operating_point", "positives", "ranking_metrics"]


class Threshold(Protocol):
    """A threshold to evaluate: an operating point of a card, or a fixed threshold without a model."""

    @property
    def threshold(self) -> float:
        """Threshold on the score; at or above it the decision is pneumonia."""

    @property
    def uncertainty_band(self) -> UncertaintyBand | None:
        """Scores that are classified as uncertain; None if the threshold decides every image."""

    def rule_text(self) -> str:
        """Return how the threshold was chosen, as a phrase."""


def positives(images: Sequence[ScoredImage]) -> BoolArray:
    """Return a mask of the images with pneumonia, shape (n,)."""
    return np.array([image.label == "PNEUMONIA" for image in images])


def ranking_metrics(images: Sequence[ScoredImage], *, seed: int) -> dict[str, Interval]:
    """Return the threshold-free metrics: auroc and auprc of logits; Brier score and calibration of probabilities.

    The keys are auroc, auprc, brier, expected_calibration_error, calibration_slope, calibration_intercept and
    observed_expected_ratio.

    Args:
        images: The images. If all have the same label, all metrics but brier and expected_calibration_error are
            undefined.
        seed: Seed of the bootstraps.
    """
    labels, patients = positives(images), [image.patient for image in images]
    logits = [image.logit for image in images]
    probabilities = [image.probability for image in images]
    auroc = auroc_interval(logits, labels, patients)
    if auroc.value is None:
        # Without normal images, every ranking would have an AUPRC of 1.
        auprc = dataclasses.replace(auroc, method="patient bootstrap", seed=seed)
    else:
        auprc = patient_bootstrap(weighted_auprc, logits, labels, patients, seed=seed, by_label=True)
    return {
        "auroc": auroc,
        "auprc": auprc,
        "brier": patient_bootstrap(weighted_brier, probabilities, labels, patients, seed=seed),
        "expected_calibration_error": calibration_error_interval(probabilities, labels, patients, seed=seed),
        **calibration_intervals(probabilities, labels, patients, seed=seed),
    }


def etiology_aurocs(images: Sequence[ScoredImage]) -> dict[str, Interval]:
    """Return the AUROC of each known pneumonia etiology against all normal images."""
    aurocs = {}
    for etiology in ("bacteria", "virus"):
        subset = [image for image in images if image.label == "NORMAL" or image.etiology == etiology]
        if any(image.etiology == etiology for image in subset):
            logits, patients = [image.logit for image in subset], [image.patient for image in subset]
            aurocs[etiology] = auroc_interval(logits, positives(subset), patients)
    return aurocs


def evaluate_operating_point(
    images: Sequence[ScoredImage],
    point: Threshold,
    *,
    threshold_probability: float,
    seed: int,
    prevalence: float | None = None,
) -> OperatingPointResult:
    """Return the performance at one operating point.

    Args:
        images: The images; at least one.
        point: The threshold, on the score; at or above it the decision is pneumonia.
        threshold_probability: The threshold as a calibrated probability, 0 to 1.
        seed: Seed of the bootstraps.
        prevalence: Prevalence of pneumonia for additional predictive values; None for none.
    """
    labels, patients = positives(images), [image.patient for image in images]
    decisions = np.array([image.score >= point.threshold for image in images])
    return OperatingPointResult(
        threshold=point.threshold,
        rule=point.rule_text(),
        confusion=confusion(decisions, labels),
        metrics=threshold_metrics(decisions, labels, patients, seed=seed),
        by_etiology=_accuracy_by_etiology(images, decisions == labels),
        uncertainty_band=_evaluate_band(images, point.uncertainty_band, labels) if point.uncertainty_band else None,
        threshold_probability=threshold_probability,
        predictive_values=None
        if prevalence is None
        else PredictiveValues(prevalence, **predictive_values(decisions, labels, patients, prevalence)),
    )


def _evaluate_band(
    images: Sequence[ScoredImage], band: UncertaintyBand, labels: BoolArray
) -> dict[str, dict[str, Interval]]:
    scores = np.array([image.score for image in images])
    uncertain = (scores >= band.low) & (scores <= band.high)
    covered = np.where(labels, scores >= band.low, scores <= band.high)
    subsets = {"normal": np.flatnonzero(~labels), "pneumonia": np.flatnonzero(labels)}
    return {
        name: {"uncertain": _fraction(uncertain, images, subset), "covered": _fraction(covered, images, subset)}
        for name, subset in subsets.items()
        if len(subset)
    }


def _accuracy_by_etiology(images: Sequence[ScoredImage], correct: BoolArray) -> Mapping[str, Interval]:
    etiologies = np.array([image.etiology for image in images])
    subsets = {name: np.flatnonzero(etiologies == name) for name in ("normal", "bacteria", "virus")}
    return {name: _fraction(correct, images, subset) for name, subset in subsets.items() if len(subset)}


def _fraction(values: BoolArray, images: Sequence[ScoredImage], subset: npt.NDArray[np.int64]) -> Interval:
    """Return the fraction of True values among a subset of the images."""
    return proportion(values[subset], [images[i].patient for i in subset])

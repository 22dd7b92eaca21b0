"""From scored images to the numbers of an evaluation. Pure: no file, no network, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pneumoscope.bundle.card import OperatingPoint, UncertaintyBand
from pneumoscope.core.results import Interval, OperatingPointResult, ScoredImage
from pneumoscope.statistics.calibration import calibration_error_interval, weighted_brier
from pneumoscope.statistics.inputs import BoolArray
from pneumoscope.statistics.intervals import patient_bootstrap, proportion
from pneumoscope.statistics.metrics import confusion, threshold_metrics
from pneumoscope.statistics.roc import auroc_interval, weighted_auprc

__all__ = ["etiology_aurocs", "evaluate_operating_point", "positives", "ranking_metrics"]


def positives(images: Sequence[ScoredImage]) -> BoolArray:
    """True where pneumonia is present, shape (n,)."""
    return np.array([image.label == "PNEUMONIA" for image in images])


def ranking_metrics(images: Sequence[ScoredImage], *, seed: int) -> dict[str, Interval]:
    """What needs no threshold: auroc and auprc of logits, brier and expected_calibration_error of probabilities.

    Args:
        images: of both labels.
        seed: of the bootstraps.
    """
    labels, patients = positives(images), [image.patient for image in images]
    logits = [image.logit for image in images]
    probabilities = [image.probability for image in images]
    return {
        "auroc": auroc_interval(logits, labels, patients),
        "auprc": patient_bootstrap(weighted_auprc, logits, labels, patients, seed=seed),
        "brier": patient_bootstrap(weighted_brier, probabilities, labels, patients, seed=seed),
        "expected_calibration_error": calibration_error_interval(probabilities, labels, patients, seed=seed),
    }


def etiology_aurocs(images: Sequence[ScoredImage]) -> dict[str, Interval]:
    """AUROC of the pneumonias of each known etiology against all normal images."""
    found = {}
    for etiology in ("bacteria", "virus"):
        chosen = [image for image in images if image.label == "NORMAL" or image.etiology == etiology]
        if any(image.etiology == etiology for image in chosen):
            logits, patients = [image.logit for image in chosen], [image.patient for image in chosen]
            found[etiology] = auroc_interval(logits, positives(chosen), patients)
    return found


def evaluate_operating_point(
    images: Sequence[ScoredImage], point: OperatingPoint, *, seed: int
) -> OperatingPointResult:
    """What happens at one operating point.

    Args:
        images: at least one.
        point: its threshold is on the score; an image at or above it is called pneumonia.
        seed: of the bootstraps.
    """
    labels, patients = positives(images), [image.patient for image in images]
    decisions = np.array([image.score >= point.threshold for image in images])
    return OperatingPointResult(
        threshold=point.threshold,
        rule=point.rule_text(),
        confusion=confusion(decisions, labels),
        metrics=threshold_metrics(decisions, labels, patients, seed=seed),
        by_etiology=_by_etiology(images, decisions == labels),
        uncertainty_band=_evaluate_band(images, point.uncertainty_band, labels) if point.uncertainty_band else None,
    )


def _evaluate_band(
    images: Sequence[ScoredImage], uncertainty_band: UncertaintyBand, labels: BoolArray
) -> dict[str, dict[str, Interval]]:
    scores = np.array([image.score for image in images])
    uncertain = (scores >= uncertainty_band.low) & (scores <= uncertainty_band.high)
    covered = np.where(labels, scores >= uncertainty_band.low, scores <= uncertainty_band.high)
    patients = [image.patient for image in images]

    def share(what: BoolArray, places: Sequence[int]) -> Interval:
        return proportion(what[places], [patients[place] for place in places])

    return {
        name: {"uncertain": share(uncertain, places), "covered": share(covered, places)}
        for name, places in (
            ("normal", np.flatnonzero(~labels).tolist()),
            ("pneumonia", np.flatnonzero(labels).tolist()),
        )
        if places
    }


def _by_etiology(images: Sequence[ScoredImage], correct: BoolArray) -> Mapping[str, Interval]:
    found = {}
    for etiology in ("normal", "bacteria", "virus"):
        places = [place for place, image in enumerate(images) if image.etiology == etiology]
        if places:
            found[etiology] = proportion(correct[places], [images[place].patient for place in places])
    return found

"""Fit the validation-based parts of a bundle's card.

Calibration, intervals, operating points, rejection limits and the reference distribution are fitted to outputs of the
exported network, so that they describe the network used for predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.special import logit

from pneumoscope.bundle.card import (
    COVERAGE,
    INPUT_CLASSES,
    Calibration,
    Card,
    InputCheck,
    Intervals,
    OperatingPoint,
    OutlierSummary,
    Proportion,
    ReferenceDistribution,
    RejectionLimits,
    UncertaintyBand,
)
from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.inference.decision import calibrate, failed_checks
from pneumoscope.inference.network_session import NetworkOutputs, network_rejections
from pneumoscope.inference.session import Outputs
from pneumoscope.runs.recipe import RejectionOptions
from pneumoscope.statistics.calibration import fit_platt
from pneumoscope.statistics.conformal import fit_uncertainty_band, fit_venn_abers
from pneumoscope.statistics.inputs import BoolArray, FloatArray
from pneumoscope.statistics.intervals import proportion
from pneumoscope.statistics.probabilities import adjust_prevalence
from pneumoscope.statistics.thresholds import threshold_at_sensitivity, threshold_at_specificity, youden_threshold

__all__ = [
    "age_limit",
    "fit_calibration",
    "fit_intervals",
    "fit_operating_points",
    "fit_outlier_summary",
    "fit_reference_distribution",
    "fit_rejection_limits",
    "to_proportion",
    "upper_limit",
]

# Target sensitivity of "rule_out" and specificity of "rule_in".
_TARGET = 0.99
# Upper bound of the limit on the probability of "upright", in case the classifier is certain of all validation images.
_MAX_MIN_UPRIGHT = 0.5
# Lower bound of the limit on the score for an age outside the range. Images of another hospital in the same age range
# score higher than validation images, so a limit close to the latter would reject many of them.
_MIN_MAX_AGE_SCORE = 0.5
_UNKNOWN = Proportion(value=0, low=0, high=1, n=1, method="")  # placeholder until the limits are fitted


def fit_calibration(logits: npt.NDArray[np.float32], labels: BoolArray, prevalence: float) -> Calibration:
    """Return the Platt calibration for a prevalence of pneumonia.

    Args:
        logits: Logits of the validation images, shape (n,).
        labels: True for pneumonia, shape (n,).
        prevalence: Prevalence that the probabilities refer to, between 0 and 1.
    """
    slope, intercept = fit_platt(logits, labels)
    # Changing the prevalence adds a constant to every logit; see `adjust_prevalence`.
    intercept += float(logit(prevalence) - logit(labels.mean()))
    return Calibration(slope=slope, intercept=intercept, method="platt", n=len(labels), prevalence=prevalence)


def fit_intervals(logits: npt.NDArray[np.float32], labels: BoolArray, prevalence: float) -> Intervals:
    """Return the Venn-Abers intervals for a prevalence of pneumonia; arguments as for `fit_calibration`."""
    steps = fit_venn_abers(logits, labels)
    low, high = (
        tuple(adjust_prevalence(side, float(labels.mean()), prevalence).tolist()) for side in (steps.low, steps.high)
    )
    return Intervals(edges=tuple(steps.edges), low=low, high=high, method="venn-abers", n=len(labels))


def fit_operating_points(
    scores: FloatArray, labels: BoolArray, patients: Sequence[str], *, augmented: FloatArray | None = None
) -> dict[str, OperatingPoint]:
    """Return the operating points "half", "balanced", "rule_out" and "rule_in".

    Args:
        scores: Scores of the unmodified validation images (sigmoid of the logit), shape (n,), used to compute
            sensitivity and specificity.
        labels: True for pneumonia, shape (n,).
        patients: Patient identifier of each image.
        augmented: Scores of the same images, each augmented once, shape (n,). If given, "balanced" and its uncertainty
            band are fitted to them, and "rule_out" and "rule_in" reach their targets on both; otherwise all are fitted
            to `scores`.
    """
    fitted = scores if augmented is None else augmented
    variants = (scores, fitted)
    n, n_pneumonia = len(labels), int(labels.sum())
    rules: dict[str, dict[str, Any]] = {
        "half": {"rule": "fixed", "threshold": 0.5},
        "balanced": {"rule": "youden", "threshold": youden_threshold(fitted, labels), "n": n},
        "rule_out": {
            "rule": "sensitivity",
            "threshold": min(threshold_at_sensitivity(each, labels, _TARGET) for each in variants),
            "target": _TARGET,
            "n": n_pneumonia,
        },
        "rule_in": {
            "rule": "specificity",
            "threshold": max(threshold_at_specificity(each, labels, _TARGET) for each in variants),
            "target": _TARGET,
            "n": n - n_pneumonia,
        },
    }

    def correct(threshold: float, positive: bool) -> Proportion:
        subset = np.flatnonzero(labels == positive)
        return _proportion((scores[subset] >= threshold) == positive, [patients[i] for i in subset.tolist()])

    return {
        name: OperatingPoint(
            **rule,
            augmented=augmented is not None and rule["rule"] != "fixed",
            sensitivity=correct(rule["threshold"], True),
            specificity=correct(rule["threshold"], False),
            # The other operating points define which error is worse, so they decide every image.
            uncertainty_band=_uncertainty_band(fitted, labels, rule["threshold"]) if name == "balanced" else None,
        )
        for name, rule in rules.items()
    }


def _uncertainty_band(scores: FloatArray, labels: BoolArray, threshold: float) -> UncertaintyBand | None:
    """Return the band of uncertain scores; None if there are too few images for the coverage.

    The band is extended to include the threshold, so that the decision changes from no pneumonia to uncertain to
    pneumonia with increasing score. Extending it can only increase the coverage.
    """
    try:
        band = fit_uncertainty_band(scores, labels, COVERAGE)
    except UndefinedMetricError:
        return None
    n_pneumonia = int(labels.sum())
    return UncertaintyBand(
        low=min(band.low, threshold),
        high=max(band.high, threshold),
        coverage=COVERAGE,
        n_normal=len(labels) - n_pneumonia,
        n_pneumonia=n_pneumonia,
    )


def fit_rejection_limits(
    outputs: Sequence[NetworkOutputs],
    augmented: Sequence[NetworkOutputs],
    options: RejectionOptions,
    patients: Sequence[str],
) -> RejectionLimits:
    """Return limits that reject at most the given fractions of augmented validation images.

    Args:
        outputs: Outputs for the validation images, in batches.
        augmented: Outputs for the same images, each augmented once.
        options: The fractions.
        patients: Patient identifier of each image.
    """
    upright, age_score, distance = _check_values(augmented)
    limits = RejectionLimits(
        input_classes=INPUT_CLASSES,
        min_upright=min(_MAX_MIN_UPRIGHT, -upper_limit(-upright, options.classifier_share)),
        max_age_score=None if age_score is None else age_limit(age_score, options.age_share),
        max_distance=upper_limit(distance, options.distance_share),
        classifier_share=options.classifier_share,
        age_share=None if age_score is None else options.age_share,
        distance_share=options.distance_share,
        rejected=_UNKNOWN,
    )
    return msgspec.structs.replace(limits, rejected=_proportion(_is_rejected(limits, outputs), patients))


def fit_outlier_summary(
    limits: RejectionLimits, outputs: Sequence[NetworkOutputs], patients: Sequence[str], n_train: int
) -> OutlierSummary:
    """Return the fraction of images of patients outside the age range that pass the checks.

    Args:
        limits: The limits.
        outputs: Outputs for the images, in batches.
        patients: Patient identifier of each image.
        n_train: Number of images of the same source that trained the age classifier.
    """
    if not patients:
        return OutlierSummary(n_train=n_train, passed=None)
    return OutlierSummary(
        n_train=n_train,
        passed=_proportion(~_is_rejected(limits, outputs), patients),
        passed_alone={name: _proportion(~values, patients) for name, values in _rejected_by(limits, outputs).items()},
    )


def age_limit(scores: npt.NDArray[np.float32], share: float) -> float:
    """Return the age-score limit exceeded by at most a fraction of the scores; at least 0.5."""
    return max(_MIN_MAX_AGE_SCORE, upper_limit(scores, share))


def upper_limit(values: npt.NDArray[np.float32], share: float) -> float:
    """Return the limit exceeded by at most a fraction of the values."""
    # The tolerance prevents products such as 0.05 * 40 from being rounded down.
    return float(np.sort(values)[-1 - math.floor(share * len(values) + 1e-9)])


def _is_rejected(limits: RejectionLimits, outputs: Sequence[NetworkOutputs]) -> BoolArray:
    return np.asarray(np.any(list(_rejected_by(limits, outputs).values()), axis=0))


def _rejected_by(limits: RejectionLimits, outputs: Sequence[NetworkOutputs]) -> dict[InputCheck, BoolArray]:
    """Return, for each check, a mask of the images that it rejects."""
    upright, age_score, distance = _check_values(outputs)
    return {name: np.asarray(failed) for name, failed in failed_checks(limits, upright, distance, age_score).items()}


def _check_values(
    outputs: Sequence[NetworkOutputs],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None, npt.NDArray[np.float32]]:
    """Return the probability of "upright", the age score (or None) and the OOD distance of all images."""
    upright = [batch.input_classes[:, 0] for batch in outputs if batch.input_classes is not None]
    age_score = [batch.age_score for batch in outputs if batch.age_score is not None]
    distance = [batch.ood_distance for batch in outputs if batch.ood_distance is not None]
    return np.concatenate(upright), np.concatenate(age_score) if age_score else None, np.concatenate(distance)


def fit_reference_distribution(
    card: Card, outputs: Sequence[Outputs], labels: BoolArray
) -> ReferenceDistribution | None:
    """Return the distribution of probabilities of the accepted validation images; None if all are rejected.

    Args:
        card: Card with the calibration and the rejection limits.
        outputs: Outputs for the validation images, in batches.
        labels: True for pneumonia, shape (n,).
    """
    rejections = [rejection for batch in outputs for rejection in network_rejections(card, batch)]
    accepted = np.array([rejection is None for rejection in rejections], dtype=np.bool_)
    if not accepted.any():
        return None
    probabilities = calibrate(card.calibration, np.concatenate([batch.logit for batch in outputs])[accepted])
    return ReferenceDistribution(
        deciles=tuple(np.quantile(probabilities, np.arange(1, 10) / 10).tolist()),
        n=int(accepted.sum()),
        n_pneumonia=int(labels[accepted].sum()),
    )


def to_proportion(interval: Interval) -> Proportion:
    """Return a defined interval of a proportion as a `Proportion` of the card."""
    return msgspec.convert({field: getattr(interval, field) for field in Proportion.__struct_fields__}, Proportion)


def _proportion(values: BoolArray, patients: Sequence[str]) -> Proportion:
    return to_proportion(proportion(values, patients))

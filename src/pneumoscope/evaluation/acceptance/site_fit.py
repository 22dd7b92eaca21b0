"""Fit a model to one hospital, and evaluate the fit by cross-fitting.

Calibration, thresholds and rejection limits are fitted to the labeled images of the site by the rules of the card, each
only if there are enough patients. Cross-fitting evaluates the whole procedure: patients are divided into folds, and
each fold is evaluated with parameters fitted on the other folds. A part that does not improve the cross-fitted metrics
is kept as on the card. Because this choice uses the same metrics, they are slightly optimistic. Sensitivity and
specificity at new thresholds are cross-fitted as well; if they are undefined, the card's threshold is kept.

Probabilities are fitted and evaluated at the prevalence of the images; another prevalence is applied afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from pneumoscope.bundle.card import Calibration, Card, InputCheck, Intervals, OperatingPoint
from pneumoscope.bundle.prevalence import with_prevalence
from pneumoscope.bundle.site_profile import replace_fitted
from pneumoscope.core.interval import Interval
from pneumoscope.evaluation.acceptance.site_images import SiteImages
from pneumoscope.evaluation.fitting import (
    fit_calibration,
    fit_intervals,
    fit_operating_points,
    to_proportion,
    upper_limit,
)
from pneumoscope.inference.decision import calibrate, sigmoid
from pneumoscope.statistics.inputs import BoolArray, FloatArray, IntArray, patient_groups
from pneumoscope.statistics.intervals import proportion

__all__ = [
    "FOLDS",
    "MIN_CALIBRATION",
    "MIN_LIMITS",
    "MIN_PREVALENCE",
    "MIN_TARGET",
    "SiteFit",
    "SiteOutputs",
    "apply_fit",
    "assign_folds",
    "choose_fit",
    "cross_fit",
    "fit_site",
    "outputs_with",
    "rate",
    "sample_prevalence",
]

FOLDS = 5
# Minimum number of patients with images of each label, for recalibration and for the threshold of the highest Youden
# index (Collins 2016, Stat Med 35:214; Vergouwe 2005, J Clin Epidemiol 58:475).
MIN_CALIBRATION = 100
# Minimum number of patients of one label for a threshold at 99%: if none of 300 is missed, the rate is at least 99% at
# 95% confidence.
MIN_TARGET = 300
MIN_LIMITS = 300  # patients; a limit that rejects 1% is based on three of them
MIN_PREVALENCE = 100  # patients
# Upper bound on widening, beyond which a check has little effect: the distance may double, the probability of "upright"
# may halve.
_MAX_WIDENING = 2.0
# Fraction of the images outside a fold, with 5% slack because folds of whole patients differ in size.
_SHARE_OF_OTHERS = 0.95 * (FOLDS - 1) / FOLDS
_MIN_BRIER_GAIN, _MIN_YOUDEN_GAIN = 0.001, 0.01  # smaller gains do not justify a changed card
_TARGET_LABEL = {"rule_out": True, "rule_in": False}


@dataclasses.dataclass(frozen=True)
class SiteFit:
    """The parts of a card that were fitted to a site's images; empty or None where the card is kept.

    Attributes:
        calibration, intervals, operating_points, limits: See `SiteProfile`. Sensitivity and specificity of the
            operating points are cross-fitted if set by `choose_fit`; `fit_site` computes them on the images that chose
            the thresholds.
        recalibrated: True if `calibration` is fitted to the images, False if only its prevalence differs from the card.
        not_changed: Reasons why parts are kept, by part.
    """

    calibration: Calibration | None = None
    intervals: Intervals | None = None
    operating_points: Mapping[str, OperatingPoint] = dataclasses.field(default_factory=dict)
    limits: Mapping[InputCheck, float] = dataclasses.field(default_factory=dict)
    recalibrated: bool = False
    not_changed: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SiteOutputs:
    """Outputs of a model for the images of a site.

    Attributes:
        rejected: True where the image is rejected, shape (n,).
        probabilities: Calibrated probabilities, shape (n,).
        decisions: True for pneumonia at each operating point, with the threshold applied to uncertain images too,
            {name: shape (n,)}.
    """

    rejected: BoolArray
    probabilities: FloatArray
    decisions: Mapping[str, BoolArray]


def choose_fit(card: Card, images: SiteImages, seed: int) -> tuple[SiteFit, SiteOutputs]:
    """Return the parts of the card to change for the site, and the cross-fitted outputs with these parts.

    Rejection limits are replaced only if the site's images are rejected significantly more often than the validation
    images, and the wider limits reject fewer of them. A recalibration must lower the Brier score, and a threshold of
    the highest Youden index must raise the index. A threshold at a target rate is replaced only if the interval of the
    rate with the card's threshold excludes the target.

    Args:
        card: Card of the bundle.
        images: Labeled images of the site.
        seed: Seed of the folds.
    """
    fit = fit_site(card, images)
    after = cross_fit(card, images, seed, fit_limits=bool(fit.limits), recalibrate=fit.recalibrated)
    if fit.limits and (reason := _reason_to_keep_limits(card, images, after)):
        kept: dict[str, str] = dict.fromkeys(map(str, fit.limits), reason)
        fit = fit_site(card, images, fit_limits=False)
        after = cross_fit(card, images, seed, fit_limits=False, recalibrate=fit.recalibrated)
        fit = dataclasses.replace(fit, not_changed={**kept, **fit.not_changed})
    return _keep_improvements(card, images, fit, after)


def fit_site(
    card: Card, images: SiteImages, *, fit_limits: bool = True, recalibrate: bool = True, share: float = 1.0
) -> SiteFit:
    """Return every fit that the number of site images supports, whether or not it improves the metrics.

    Args:
        card: Card of the bundle.
        images: Labeled images of the site.
        fit_limits: Fit the rejection limits; if False, keep the card's limits.
        recalibrate: Fit the calibration; if False, change only its prevalence.
        share: Fraction of the site's images that `images` contains in cross-fitting; scales the minimum numbers of
            patients.
    """
    not_changed: dict[str, str] = {}
    if card.rejection_limits and card.rejection_limits.max_age_score is not None:
        not_changed["age_classifier"] = "the images show nothing about patients outside the age range"
    limits = _fit_limits(card, images, not_changed, share) if fit_limits else {}
    accepted = images.subset(~images.rejected(apply_fit(card, SiteFit(limits=limits))))
    counts = {label: accepted.count_patients(label) for label in (True, False)}
    enough = min(counts.values()) >= share * MIN_CALIBRATION
    calibration, intervals = None, None
    if enough and recalibrate:
        logits, prevalence = accepted.logits.astype(np.float32), sample_prevalence(accepted.labels)
        calibration = fit_calibration(logits, accepted.labels, prevalence)
        intervals = fit_intervals(logits, accepted.labels, prevalence)
    else:
        not_changed["calibration"] = _too_few(MIN_CALIBRATION, counts)
        if accepted.count_patients() >= share * MIN_PREVALENCE:
            calibration, intervals = with_prevalence(card, sample_prevalence(accepted.labels))
        else:
            not_changed["prevalence"] = (
                f"needs {MIN_PREVALENCE} patients with accepted images; there are {accepted.count_patients()}"
            )
    points: dict[str, OperatingPoint] = {}
    if min(counts.values()) > 0:
        points = fit_operating_points(sigmoid(accepted.logits), accepted.labels, list(accepted.patients))
    fitted = {}
    for name, point in points.items():
        if name not in card.operating_points or point.rule == "fixed":
            continue
        if name in _TARGET_LABEL and counts[_TARGET_LABEL[name]] < share * MIN_TARGET:
            label = "with" if _TARGET_LABEL[name] else "without"
            not_changed[name] = (
                f"needs {MIN_TARGET} patients with accepted images {label} pneumonia; there are"
                f" {counts[_TARGET_LABEL[name]]}"
            )
        elif name not in _TARGET_LABEL and not enough:
            not_changed[name] = _too_few(MIN_CALIBRATION, counts)
        else:
            fitted[name] = msgspec.structs.replace(point, site=True)
    return SiteFit(calibration, intervals, fitted, limits, enough and recalibrate, not_changed)


def apply_fit(card: Card, fit: SiteFit) -> Card:
    """Return the card with the fitted parts replaced."""
    return replace_fitted(card, fit.calibration, fit.intervals, fit.operating_points, fit.limits)


def assign_folds(labels: BoolArray, patients: Sequence[str], seed: int) -> IntArray:
    """Return the fold of each image, 0 to `FOLDS` - 1, shape (n,); patients are kept together and labels balanced.

    Args:
        labels: True for pneumonia, shape (n,).
        patients: Patient identifier of each image, "" where unknown.
        seed: Seed of the random order of the patients.
    """
    groups = patient_groups(patients, len(labels))
    is_positive = np.bincount(groups, labels) > 0
    order = np.random.default_rng(seed).permutation(len(is_positive))
    fold = np.empty(len(is_positive), dtype=np.int64)
    start = 0
    for label in (True, False):
        members = order[is_positive[order] == label]
        fold[members] = (np.arange(len(members)) + start) % FOLDS
        start += len(members)
    return fold[groups]


def cross_fit(
    card: Card, images: SiteImages, seed: int, *, fit_limits: bool = True, recalibrate: bool = True
) -> SiteOutputs:
    """Return the outputs for each image with `fit_site` applied to images of other patients.

    Args:
        card, images, fit_limits, recalibrate: See `fit_site`.
        seed: Seed of the folds.
    """
    folds = assign_folds(images.labels, images.patients, seed)
    n = len(images)
    rejected, probabilities = np.zeros(n, dtype=np.bool_), np.zeros(n)
    decisions = {name: np.zeros(n, dtype=np.bool_) for name in card.operating_points}
    for fold in range(FOLDS):
        inside = folds == fold
        if not inside.any():
            continue
        others = images.subset(~inside)
        fit = fit_site(card, others, fit_limits=fit_limits, recalibrate=recalibrate, share=_SHARE_OF_OTHERS)
        fitted = outputs_with(apply_fit(card, fit), images.subset(inside))
        rejected[inside], probabilities[inside] = fitted.rejected, fitted.probabilities
        for name, values in fitted.decisions.items():
            decisions[name][inside] = values
    return SiteOutputs(rejected, probabilities, decisions)


def outputs_with(card: Card, images: SiteImages) -> SiteOutputs:
    """Return the outputs for the images with one card."""
    scores = sigmoid(images.logits)
    return SiteOutputs(
        images.rejected(card),
        calibrate(card.calibration, images.logits),
        {name: np.asarray(scores >= point.threshold) for name, point in card.operating_points.items()},
    )


def sample_prevalence(labels: BoolArray) -> float:
    """Return the fraction of images with pneumonia, (k + 0.5) / (n + 1), which is never 0 or 1."""
    return float((labels.sum() + 0.5) / (len(labels) + 1))


def rate(images: SiteImages, outputs: SiteOutputs, name: str, *, positive: bool) -> Interval:
    """Return the sensitivity (or specificity if not `positive`) of accepted images at an operating point."""
    rows = np.flatnonzero((images.labels == positive) & ~outputs.rejected)
    label = "with" if positive else "without"
    return proportion(
        outputs.decisions[name][rows] == positive,
        [images.patients[i] for i in rows.tolist()],
        reason=f"there is no accepted image {label} pneumonia",
    )


def _fit_limits(card: Card, images: SiteImages, not_changed: dict[str, str], share: float) -> dict[InputCheck, float]:
    """Return wider limits for the OOD detector and the input classifier that reject the same fractions as on the card.

    The age classifier keeps its limit, because its evaluation needs images of patients outside the age range, and the
    site's images contain none.
    """
    limits = card.rejection_limits
    if limits is None:
        return {}
    eligible = images.subset(~images.excluded)
    if eligible.count_patients() < share * MIN_LIMITS:
        reason = (
            f"needs {MIN_LIMITS} patients with images that pixels, header and age do not exclude; there are"
            f" {eligible.count_patients()}"
        )
        not_changed["input_classifier"] = not_changed["ood_detector"] = reason
        return {}
    fitted: dict[InputCheck, float] = {}
    if eligible.distances is not None:
        highest = upper_limit(eligible.distances.astype(np.float32), limits.distance_share)
        highest = min(highest, _MAX_WIDENING * limits.max_distance)
        if highest > limits.max_distance:
            fitted["ood_detector"] = highest
    if eligible.upright is not None:
        lowest = -upper_limit(-eligible.upright.astype(np.float32), limits.classifier_share)
        lowest = max(lowest, limits.min_upright / _MAX_WIDENING)
        if lowest < limits.min_upright:
            fitted["input_classifier"] = lowest
    return fitted


def _reason_to_keep_limits(card: Card, images: SiteImages, after: SiteOutputs) -> str:
    """Return why the card's limits are kept; "" if the new limits are better."""
    assert card.rejection_limits is not None  # fit.limits is not empty
    before = images.rejected(card)
    eligible = np.flatnonzero(~images.excluded)
    observed = proportion(before[eligible], [images.patients[i] for i in eligible.tolist()])
    if observed.low is None or observed.low <= card.rejection_limits.rejected.value:
        return f"the network rejects {observed} of the images, no more than of the validation images apart from chance"
    if after.rejected.sum() >= before.sum():
        return "new limits do not reject fewer images of other patients"
    return ""


def _keep_improvements(card: Card, images: SiteImages, fit: SiteFit, after: SiteOutputs) -> tuple[SiteFit, SiteOutputs]:
    """Return the fit and outputs restricted to the parts that improve the cross-fitted metrics.

    Card and fit are compared on the images accepted with the fit's limits.
    """
    not_changed = dict(fit.not_changed)
    accepted = ~after.rejected
    labels = images.labels[accepted]
    before = dataclasses.replace(outputs_with(card, images), rejected=after.rejected)
    calibration, intervals, recalibrated = fit.calibration, fit.intervals, fit.recalibrated
    probabilities = after.probabilities if calibration else before.probabilities
    if recalibrated:
        shifted, shifted_intervals = with_prevalence(card, sample_prevalence(labels))
        old = calibrate(shifted, images.logits)
        errors = [np.square(each - images.labels)[accepted].mean() for each in (old, probabilities)]
        if errors[0] - errors[1] < _MIN_BRIER_GAIN:
            not_changed["calibration"] = (
                f"recalibration does not lower the Brier score of other patients by {_MIN_BRIER_GAIN:g}"
            )
            calibration, intervals, recalibrated, probabilities = shifted, shifted_intervals, False, old
    points, decisions = dict[str, OperatingPoint](), dict(before.decisions)
    for name, point in fit.operating_points.items():
        sensitivity, specificity = (rate(images, after, name, positive=positive) for positive in (True, False))
        reason = _reason_to_keep_threshold(images, before, after, name, point.target)
        reason = reason or sensitivity.reason or specificity.reason
        if reason:
            not_changed[name] = reason
        else:
            points[name] = msgspec.structs.replace(
                point, sensitivity=to_proportion(sensitivity), specificity=to_proportion(specificity)
            )
            decisions[name] = after.decisions[name]
    kept = dataclasses.replace(
        fit,
        calibration=calibration,
        intervals=intervals,
        recalibrated=recalibrated,
        operating_points=points,
        not_changed=not_changed,
    )
    return kept, SiteOutputs(after.rejected, probabilities, decisions)


def _reason_to_keep_threshold(
    images: SiteImages, before: SiteOutputs, after: SiteOutputs, name: str, target: float | None
) -> str:
    """Return why the card's threshold is kept; "" if the new one is better.

    `before` has the card's threshold, `after` the cross-fitted new one, both with the new limits. Without a target, the
    threshold has the highest Youden index.
    """
    if target is None:
        accepted = ~after.rejected
        new, old = (_youden(each.decisions[name][accepted], images.labels[accepted]) for each in (after, before))
        if new - old < _MIN_YOUDEN_GAIN:
            return f"a new threshold does not raise the Youden index of other patients by {_MIN_YOUDEN_GAIN:g}"
        return ""
    observed = rate(images, before, name, positive=_TARGET_LABEL[name])
    if observed.low is None or observed.high is None or observed.low <= target <= observed.high:
        return f"the card's threshold reaches {target:g} within its interval ({observed})"
    return ""


def _youden(decisions: BoolArray, labels: BoolArray) -> float:
    if labels.all() or not labels.any():
        return 0.0
    return float(decisions[labels].mean() - decisions[~labels].mean())


def _too_few(needed: int, counts: Mapping[bool, int]) -> str:
    return (
        f"needs {needed} patients with accepted images of each label; there are {counts[True]} with and {counts[False]} without"
        " pneumonia"
    )

"""Fit a model to one hospital, and evaluate the fit on images that it was not fitted on.

Calibration, thresholds and rejection limits are fitted on the labeled images of the site by the rules of the card, each only if
there are enough images. Cross-fitting evaluates the whole procedure: patients are divided into folds, and each fold is evaluated
with what was fitted on the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import msgspec
import numpy as np
from scipy.special import logit as log_odds

from pneumoscope.bundle.card import Calibration, Card, InputCheck, Intervals, OperatingPoint
from pneumoscope.bundle.site_profile import replace_fitted
from pneumoscope.evaluation.fitting import fit_calibration, fit_intervals, fit_operating_points, upper_limit
from pneumoscope.inference.decision import calibrate, failed_checks, sigmoid
from pneumoscope.statistics.calibration import adjust_prevalence
from pneumoscope.statistics.inputs import BoolArray, FloatArray, IntArray, patient_groups

__all__ = [
    "FOLDS",
    "MIN_CALIBRATION",
    "MIN_LIMITS",
    "MIN_PREVALENCE",
    "MIN_TARGET",
    "CrossFitted",
    "SiteFit",
    "SiteImages",
    "apply_fit",
    "assign_folds",
    "cross_fit",
    "fit_site",
    "outputs_with",
    "with_prevalence",
]

FOLDS = 5
# Recalibration, and the threshold of the highest Youden index, need this many images of each label (Collins 2016, Stat Med
# 35:214; Vergouwe 2005, J Clin Epidemiol 58:475).
MIN_CALIBRATION = 100
# A threshold at 99% needs this many images of its label: if none of 300 is missed, the rate is at least 99% at 95% confidence.
MIN_TARGET = 300
MIN_LIMITS = 300  # images; a limit that rejects 1% rests on three of them
MIN_PREVALENCE = 100  # images
# Fraction of the images outside a fold; somewhat less, because folds of whole patients have different sizes.
_SHARE_OF_OTHERS = 0.95 * (FOLDS - 1) / FOLDS
_TARGET_LABEL = {"rule_out": True, "rule_in": False}


@dataclasses.dataclass(frozen=True)
class SiteImages:
    """Outputs of the network for labeled images, one row per image.

    Attributes:
        labels: True for pneumonia, shape (n,).
        patients: Patient identifier of each image, "" where unknown.
        excluded: True where pixels, header or age reject the image before the network, shape (n,).
        logits: Logits, shape (n,).
        upright, age_scores, distances: Outputs of the input checks, shape (n,); None if the bundle has no such check.
    """

    labels: BoolArray
    patients: tuple[str, ...]
    excluded: BoolArray
    logits: FloatArray
    upright: FloatArray | None = None
    age_scores: FloatArray | None = None
    distances: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: BoolArray | IntArray) -> Self:
        """Return some of the images, by mask or index."""
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows

        def part(values: FloatArray | None) -> FloatArray | None:
            return None if values is None else values[rows]

        return dataclasses.replace(
            self,
            labels=self.labels[rows],
            patients=tuple(self.patients[i] for i in rows.tolist()),
            excluded=self.excluded[rows],
            logits=self.logits[rows],
            upright=part(self.upright),
            age_scores=part(self.age_scores),
            distances=part(self.distances),
        )

    def rejected(self, card: Card) -> BoolArray:
        """Return True where the image is rejected, with the limits of a card; shape (n,)."""
        if card.rejection_limits is None:
            return self.excluded
        failed = failed_checks(card.rejection_limits, self.upright, self.distances, self.age_scores)
        return np.asarray(self.excluded | np.any([*failed.values()], axis=0) if failed else self.excluded)


@dataclasses.dataclass(frozen=True)
class SiteFit:
    """The parts of a card that were fitted on a site's images; empty or None where a part is kept.

    Attributes:
        calibration, intervals, operating_points, limits: See `SiteProfile`.
        not_changed: Why a part is kept, by part.
    """

    calibration: Calibration | None = None
    intervals: Intervals | None = None
    operating_points: Mapping[str, OperatingPoint] = dataclasses.field(default_factory=dict)
    limits: Mapping[InputCheck, float] = dataclasses.field(default_factory=dict)
    not_changed: Mapping[str, str] = dataclasses.field(default_factory=dict)


def fit_site(
    card: Card, images: SiteImages, prevalence: float | None = None, *, fit_limits: bool = True, share: float = 1.0
) -> SiteFit:
    """Return what the images of a site support.

    Args:
        card: Card of the bundle.
        images: Labeled images of the site.
        prevalence: Prevalence that probabilities are stated for; that of the accepted images if None.
        fit_limits: Fit rejection limits; otherwise the limits of the card are kept.
        share: Fraction of the site's images, for cross-fitting: the needed numbers are for all images.
    """
    not_changed: dict[str, str] = {}
    if card.rejection_limits and card.rejection_limits.max_age_score is not None:
        not_changed["age_classifier"] = "the images show nothing about patients outside the age range"
    limits = _fit_limits(card, images, not_changed, share) if fit_limits else {}
    accepted = images.subset(~images.rejected(apply_fit(card, SiteFit(limits=limits))))
    n_pneumonia = int(accepted.labels.sum())
    n_normal = len(accepted) - n_pneumonia
    calibration, intervals = _fit_probabilities(card, accepted, prevalence, not_changed, share)
    points: dict[str, OperatingPoint] = {}
    if min(n_pneumonia, n_normal) >= 1:
        points = fit_operating_points(sigmoid(accepted.logits), accepted.labels, list(accepted.patients))
    kept = {}
    for name, point in points.items():
        if name not in card.operating_points or point.rule == "fixed":
            continue
        if name in _TARGET_LABEL:
            found, label = (n_pneumonia, "with") if _TARGET_LABEL[name] else (n_normal, "without")
            if found < share * MIN_TARGET:
                not_changed[name] = f"needs {MIN_TARGET} accepted images {label} pneumonia; there are {found}"
                continue
        elif min(n_pneumonia, n_normal) < share * MIN_CALIBRATION:
            not_changed[name] = _too_few(MIN_CALIBRATION, n_pneumonia, n_normal)
            continue
        kept[name] = point
    return SiteFit(calibration, intervals, kept, limits, not_changed)


def apply_fit(card: Card, fit: SiteFit) -> Card:
    """Return the card with the fitted parts."""
    return replace_fitted(card, fit.calibration, fit.intervals, fit.operating_points, fit.limits)


def assign_folds(labels: BoolArray, patients: Sequence[str], seed: int, folds: int = FOLDS) -> IntArray:
    """Return the fold of each image, from 0, shape (n,): all images of a patient in one fold, labels spread evenly.

    Args:
        labels: True for pneumonia, shape (n,).
        patients: Patient identifier of each image, "" where unknown.
        seed: Seed of the random order of the patients.
        folds: Number of folds.
    """
    groups = patient_groups(patients, len(labels))
    is_positive = np.bincount(groups, labels) > 0
    order = np.random.default_rng(seed).permutation(len(is_positive))
    fold = np.empty(len(is_positive), dtype=np.int64)
    start = 0
    for label in (True, False):
        members = order[is_positive[order] == label]
        fold[members] = (np.arange(len(members)) + start) % folds
        start += len(members)
    return fold[groups]


def _fit_limits(card: Card, images: SiteImages, not_changed: dict[str, str], share: float) -> dict[InputCheck, float]:
    """Return limits of the OOD detector and the input classifier that reject the card's fractions of the images.

    Limits only become wider. The age classifier keeps its limit: images of patients outside the age range, on which it would
    have to be evaluated, are not part of the site's images.
    """
    limits = card.rejection_limits
    if limits is None:
        return {}
    eligible = images.subset(~images.excluded)
    if len(eligible) < share * MIN_LIMITS:
        reason = f"needs {MIN_LIMITS} images that header and pixels do not reject; there are {len(eligible)}"
        not_changed["input_classifier"] = not_changed["ood_detector"] = reason
        return {}
    fitted: dict[InputCheck, float] = {}
    if eligible.distances is not None:
        highest = upper_limit(eligible.distances.astype(np.float32), limits.distance_share)
        fitted["ood_detector"] = max(limits.max_distance, highest)
    if eligible.upright is not None:
        lowest = -upper_limit(-eligible.upright.astype(np.float32), limits.classifier_share)
        fitted["input_classifier"] = min(limits.min_upright, lowest)
    return fitted


def _fit_probabilities(
    card: Card, accepted: SiteImages, prevalence: float | None, not_changed: dict[str, str], share: float
) -> tuple[Calibration | None, Intervals | None]:
    """Return a new calibration and intervals; with too few images, those of the card for another prevalence, or None."""
    n_pneumonia = int(accepted.labels.sum())
    n_normal = len(accepted) - n_pneumonia
    if prevalence is None and len(accepted) >= share * MIN_PREVALENCE and min(n_pneumonia, n_normal) > 0:
        prevalence = n_pneumonia / len(accepted)
    if prevalence is None:
        not_changed["calibration"] = f"needs {MIN_PREVALENCE} accepted images of both labels; there are {len(accepted)}"
        return None, None
    if min(n_pneumonia, n_normal) >= share * MIN_CALIBRATION:
        logits = accepted.logits.astype(np.float32)
        return fit_calibration(logits, accepted.labels, prevalence), fit_intervals(logits, accepted.labels, prevalence)
    not_changed["calibration"] = f"only the prevalence was changed: {_too_few(MIN_CALIBRATION, n_pneumonia, n_normal)}"
    return with_prevalence(card, prevalence)


def with_prevalence(card: Card, prevalence: float) -> tuple[Calibration, Intervals | None]:
    """Return calibration and intervals of a card for another prevalence of pneumonia."""
    old = card.calibration
    shift = float(log_odds(prevalence) - log_odds(old.prevalence))
    calibration = msgspec.structs.replace(old, intercept=old.intercept + shift, prevalence=prevalence)
    if card.intervals is None:
        return calibration, None
    low, high = (
        tuple(adjust_prevalence(side, old.prevalence, prevalence).tolist())
        for side in (card.intervals.low, card.intervals.high)
    )
    return calibration, msgspec.structs.replace(card.intervals, low=low, high=high)


def _too_few(needed: int, n_pneumonia: int, n_normal: int) -> str:
    return (
        f"needs {needed} accepted images of each label; there are {n_pneumonia} with and {n_normal} without pneumonia"
    )


@dataclasses.dataclass(frozen=True)
class CrossFitted:
    """Outputs for each image, by what was fitted on images of other patients.

    Attributes:
        rejected: True where the image is rejected, shape (n,).
        probabilities: Calibrated probabilities, shape (n,).
        decisions: True for pneumonia at each operating point, uncertain images included, {name: shape (n,)}.
    """

    rejected: BoolArray
    probabilities: FloatArray
    decisions: Mapping[str, BoolArray]


def cross_fit(
    card: Card, images: SiteImages, prevalence: float | None, seed: int, *, fit_limits: bool = True
) -> CrossFitted:
    """Return cross-fitted outputs of the images: each fold by `fit_site` on the other folds.

    Args:
        card, images, prevalence, fit_limits: See `fit_site`.
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
        fit = fit_site(card, images.subset(~inside), prevalence, fit_limits=fit_limits, share=_SHARE_OF_OTHERS)
        fitted = outputs_with(apply_fit(card, fit), images.subset(inside))
        rejected[inside], probabilities[inside] = fitted.rejected, fitted.probabilities
        for name, values in fitted.decisions.items():
            decisions[name][inside] = values
    return CrossFitted(rejected, probabilities, decisions)


def outputs_with(card: Card, images: SiteImages) -> CrossFitted:
    """Return the outputs of the images with one card."""
    scores = sigmoid(images.logits)
    return CrossFitted(
        images.rejected(card),
        calibrate(card.calibration, images.logits),
        {name: np.asarray(scores >= point.threshold) for name, point in card.operating_points.items()},
    )

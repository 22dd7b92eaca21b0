"""Metrics of an acceptance test: operating points versus the card, calibration, subgroups, sample sizes and verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from pneumoscope.bundle.card import Card, Proportion
from pneumoscope.core.interval import Interval
from pneumoscope.evaluation.acceptance.site_fit import SiteFit, SiteOutputs, choose_fit, outputs_with, rate
from pneumoscope.evaluation.acceptance.site_images import SiteImages
from pneumoscope.imaging.header_fields import HeaderFields
from pneumoscope.statistics.calibration import (
    calibration_error_interval,
    calibration_intervals,
    weighted_brier,
)
from pneumoscope.statistics.inputs import BoolArray, FloatArray
from pneumoscope.statistics.intervals import effective_size, patient_bootstrap, proportion, undefined
from pneumoscope.statistics.noninferiority import NonInferiority, Verdict, compare_with_reference, sample_size
from pneumoscope.statistics.roc import auroc_interval

__all__ = [
    "CalibrationSummary",
    "PointAcceptance",
    "SiteComparison",
    "Subgroup",
    "acceptance_verdict",
    "accepted_fractions",
    "auroc",
    "compare_accepted",
    "find_subgroups",
    "needed_images",
    "point_acceptance",
    "reference_interval",
    "summarize_calibration",
]

# Age groups as (minimum in years, label); as in ICH E11, with infants and toddlers in one group.
_AGE_GROUPS = ((0, "under 2 years"), (2, "2 to 5 years"), (6, "6 to 11 years"), (12, "12 to 17 years"), (18, "adults"))


@dataclasses.dataclass(frozen=True, slots=True)
class PointAcceptance:
    """One operating point at the site; rejected images are excluded.

    Attributes:
        threshold: The card's threshold on the score.
        reference: Sensitivity and specificity on the card.
        tests: Non-inferiority tests of sensitivity and specificity; a metric without accepted images has no test.
        observed: Sensitivity and specificity at the site with the card's threshold.
        needed: Number of images with pneumonia (sensitivity) and without (specificity) that give each test the target
            power; None if no number does (see `noninferiority.sample_size`).
        with_profile: Sensitivity and specificity with the profile's thresholds and limits, cross-fitted.
        profile_threshold: Threshold in the profile; None if the card's threshold is kept.
    """

    threshold: float
    reference: Mapping[str, Interval]
    tests: Mapping[str, NonInferiority]
    observed: Mapping[str, Interval]
    needed: Mapping[str, int | None]
    with_profile: Mapping[str, Interval]
    profile_threshold: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class CalibrationSummary:
    """Calibration of the probabilities of accepted images.

    Attributes:
        slope, intercept: Calibration slope (1 is perfect) and intercept (0 is perfect).
        brier, expected_calibration_error: See `statistics.calibration`.
    """

    slope: Interval
    intercept: Interval
    brier: Interval
    expected_calibration_error: Interval


@dataclasses.dataclass(frozen=True, slots=True)
class Subgroup:
    """Images with one value of a header field, at the operating point of the test.

    Attributes:
        field, value: Field and value; "not stated" if missing.
        n, n_pneumonia: Number of images, and of images with pneumonia.
        rejected: Fraction of rejected images.
        sensitivity, specificity, auroc: Of accepted images.
    """

    field: str
    value: str
    n: int
    n_pneumonia: int
    rejected: Interval
    sensitivity: Interval
    specificity: Interval
    auroc: Interval


@dataclasses.dataclass(frozen=True)
class SiteComparison:
    """Outputs of a model for the images of a site, with and without a site profile.

    Attributes:
        card: The card.
        images: The images.
        before: Outputs with the card.
        fit: Parts of the card that the profile changes.
        after: Outputs with the profile, cross-fitted.
    """

    card: Card
    images: SiteImages
    before: SiteOutputs
    fit: SiteFit
    after: SiteOutputs

    @classmethod
    def of(cls, card: Card, images: SiteImages, seed: int) -> Self:
        """Fit a profile to the images, and return the outputs with and without it.

        Args:
            card, images, seed: See `site_fit.choose_fit`.
        """
        fit, after = choose_fit(card, images, seed)
        return cls(card, images, outputs_with(card, images), fit, after)


def reference_interval(reference: Proportion) -> Interval:
    """Return a proportion on a card as an interval."""
    return Interval(reference.value, reference.low, reference.high, reference.method, reference.n)


def needed_images(card: Card, margin: float, target_power: float) -> dict[str, dict[str, int | None]]:
    """Return the number of accepted images that the tests of sensitivity and specificity need at each operating point.

    Args:
        card: Card of the model.
        margin, target_power: See `accept`.

    Returns:
        {operating point: {"sensitivity": images with pneumonia, "specificity": images without}}; None if no number
        suffices, see `noninferiority.sample_size`.
    """
    return {
        name: {
            metric: sample_size(reference_interval(getattr(point, metric)), margin, target_power)
            for metric in ("sensitivity", "specificity")
        }
        for name, point in card.operating_points.items()
    }


def point_acceptance(compared: SiteComparison, name: str, margin: float, target_power: float) -> PointAcceptance:
    """Return the acceptance results of one operating point.

    Args:
        compared: Outputs at the site.
        name: Name of the operating point.
        margin, target_power: See `accept.accept`.
    """
    images, before, after = compared.images, compared.before, compared.after
    point = compared.card.operating_points[name]
    reference = {
        "sensitivity": reference_interval(point.sensitivity),
        "specificity": reference_interval(point.specificity),
    }
    observed, tests = {}, {}
    for metric, expected in reference.items():
        positive = metric == "sensitivity"
        observed[metric] = rate(images, before, name, positive=positive)
        rows = np.flatnonzero((images.labels == positive) & ~before.rejected)
        if len(rows):
            correct = before.decisions[name][rows] == positive
            n = effective_size(correct, [images.patients[i] for i in rows.tolist()])
            tests[metric] = compare_with_reference(observed[metric], expected, margin, n)
    changed = compared.fit.operating_points.get(name)
    return PointAcceptance(
        threshold=point.threshold,
        reference=reference,
        tests=tests,
        observed=observed,
        needed={metric: sample_size(interval, margin, target_power) for metric, interval in reference.items()},
        with_profile={metric: rate(images, after, name, positive=metric == "sensitivity") for metric in reference},
        profile_threshold=changed.threshold if changed else None,
    )


def accepted_fractions(compared: SiteComparison) -> tuple[Interval | None, Interval | None]:
    """Return the fraction of images that the input checks accept, at the site and in the validation set."""
    limits, images = compared.card.rejection_limits, compared.images
    if limits is None:
        return None, None
    rows = np.flatnonzero(~images.excluded)
    observed = proportion(
        ~compared.before.rejected[rows],
        [images.patients[i] for i in rows.tolist()],
        reason="pixels, header or age exclude all images",
    )
    share = limits.rejected
    return observed, Interval(1 - share.value, 1 - share.high, 1 - share.low, share.method, share.n)


def compare_accepted(
    compared: SiteComparison, accepted: Interval | None, reference: Interval | None, margin: float
) -> NonInferiority | None:
    """Test the fraction of accepted images for non-inferiority; None if it or its reference is undefined.

    Args:
        compared: The images.
        accepted, reference: See `accepted_fractions`.
        margin: Margin of non-inferiority.
    """
    if not accepted or not reference or accepted.value is None:
        return None
    images = compared.images
    rows = np.flatnonzero(~images.excluded)
    n = effective_size(~compared.before.rejected[rows], [images.patients[i] for i in rows.tolist()])
    return compare_with_reference(accepted, reference, margin, n)


def acceptance_verdict(point: PointAcceptance, accepted_test: NonInferiority | None, *, checks_input: bool) -> Verdict:
    """Return the overall verdict; a missing test makes it inconclusive unless another test is inferior."""
    verdicts = {test.verdict for test in (*point.tests.values(), accepted_test) if test}
    if "inferior" in verdicts:
        return "inferior"
    complete = len(point.tests) == 2 and (accepted_test is not None) == checks_input
    return "non_inferior" if complete and verdicts == {"non_inferior"} else "inconclusive"


def auroc(images: SiteImages, rows: BoolArray) -> Interval:
    """Return the AUROC of the images where `rows` is True; undefined unless both labels are present."""
    labels = images.labels[rows]
    if labels.all() or not labels.any():
        return undefined("there are accepted images of one label only", n=len(labels), method="delong")
    patients = [images.patients[i] for i in np.flatnonzero(rows).tolist()]
    return auroc_interval(images.logits[rows], labels, patients)


def summarize_calibration(
    images: SiteImages, rows: BoolArray, probabilities: FloatArray, seed: int
) -> CalibrationSummary:
    """Return calibration slope, intercept, Brier score and calibration error.

    Args:
        images: Images of the site.
        rows: True for the images to use, shape (n,).
        probabilities: Probabilities of pneumonia for all images, shape (n,).
        seed: Seed of the bootstraps.
    """
    labels = images.labels[rows]
    patients = [images.patients[i] for i in np.flatnonzero(rows).tolist()]
    if labels.all() or not labels.any():
        missing = undefined("there are accepted images of one label only", n=len(labels), method="patient bootstrap")
        return CalibrationSummary(missing, missing, missing, missing)
    p = probabilities[rows]
    intervals = calibration_intervals(p, labels, patients, seed=seed)
    return CalibrationSummary(
        intervals["calibration_slope"],
        intervals["calibration_intercept"],
        patient_bootstrap(weighted_brier, p, labels, patients, seed=seed),
        calibration_error_interval(p, labels, patients, seed=seed),
    )


def find_subgroups(
    name: str, images: SiteImages, outputs: SiteOutputs, headers: Sequence[HeaderFields | None]
) -> tuple[Subgroup, ...]:
    """Return the subgroups of each header field that is present in any image."""
    fields: dict[str, list[str]] = {
        "age": [_age_group(header) for header in headers],
        "sex": [header.sex if header else "" for header in headers],
        "view": [header.view if header else "" for header in headers],
        "manufacturer": [header.manufacturer if header else "" for header in headers],
    }
    subgroups = []
    for field, column in fields.items():
        if not any(column):
            continue
        for value in sorted(set(column), key=lambda value: (not value, value)):
            rows = np.array([each == value for each in column])
            part = images.subset(rows)
            inside = SiteOutputs(
                outputs.rejected[rows], outputs.probabilities[rows], {name: outputs.decisions[name][rows]}
            )
            subgroups.append(
                Subgroup(
                    field=field,
                    value=value or "not stated",
                    n=int(rows.sum()),
                    n_pneumonia=int(part.labels.sum()),
                    rejected=proportion(inside.rejected, part.patients),
                    sensitivity=rate(part, inside, name, positive=True),
                    specificity=rate(part, inside, name, positive=False),
                    auroc=auroc(part, ~inside.rejected),
                )
            )
    return tuple(subgroups)


def _age_group(header: HeaderFields | None) -> str:
    if header is None or header.age is None or header.age.years is None:
        return ""
    years = header.age.years
    return next(label for start, label in reversed(_AGE_GROUPS) if years >= start)

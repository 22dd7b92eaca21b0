"""Acceptance test at a hospital: does the model perform there as its card states, and should parts of the card be changed?

Labeled images of the site are compared with the figures on the card, subgroups are listed, and a site profile is fitted (see
`site_fit`). Sensitivity, specificity and the fraction of accepted images are each tested for non-inferiority. The card's
sensitivity and specificity are those of the images that chose its thresholds, so that the comparison is strict.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from pneumoscope import __version__
from pneumoscope.bundle.card import Card, Proportion, short_hash
from pneumoscope.bundle.site_profile import (
    SITE_PROFILE_FORMAT,
    Quantity,
    SiteProfile,
    apply_site_profile,
    check_site_name,
)
from pneumoscope.core.errors import UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.prediction import AgeRequirement
from pneumoscope.core.results import SCHEMA, Interval, RejectionSummary, write_result
from pneumoscope.data.manifest import LABELS, LabeledImage, images_sha256
from pneumoscope.evaluation.fitting import fit_reference_distribution, to_proportion
from pneumoscope.evaluation.selection import check_unseen, count_patients
from pneumoscope.evaluation.site_fit import (
    SiteFit,
    SiteOutputs,
    apply_fit,
    choose_fit,
    outputs_with,
    rate,
    sample_prevalence,
    with_prevalence,
)
from pneumoscope.evaluation.site_images import ScoredSite, SiteImages, load_site_images, score_site_images
from pneumoscope.imaging.header import HeaderFields
from pneumoscope.inference.decision import calibrate
from pneumoscope.inference.session import BundleSession, Outputs
from pneumoscope.inference.writers import csv_line, escape_formula
from pneumoscope.runs.record import now
from pneumoscope.runs.run_folder import find_bundle
from pneumoscope.statistics.calibration import (
    calibration_error_interval,
    weighted_brier,
    weighted_calibration_intercept,
    weighted_calibration_slope,
)
from pneumoscope.statistics.inputs import BoolArray, FloatArray
from pneumoscope.statistics.intervals import effective_size, patient_bootstrap, proportion, undefined
from pneumoscope.statistics.noninferiority import NonInferiority, Verdict, compare_with_reference, sample_size
from pneumoscope.statistics.roc import auroc_interval

__all__ = [
    "IMAGES_FILE",
    "PROFILE_FILE",
    "Acceptance",
    "CalibrationSummary",
    "PointAcceptance",
    "Subgroup",
    "accept",
    "needed_images",
    "reference_interval",
]

PROFILE_FILE, IMAGES_FILE = "site.json", "images.csv"
_MAX_REFERENCE = 2000  # values of each quantity for monitoring
# Age groups in years: from, label; as in ICH E11, with infants and toddlers in one group.
_AGE_GROUPS = ((0, "under 2 years"), (2, "2 to 5 years"), (6, "6 to 11 years"), (12, "12 to 17 years"), (18, "adults"))


@dataclasses.dataclass(frozen=True, slots=True)
class PointAcceptance:
    """One operating point at the site; rejected images are left out.

    Attributes:
        threshold: Threshold of the card, on the score.
        reference: Sensitivity and specificity on the card.
        tests: Non-inferiority of sensitivity and specificity; a metric without accepted images has no test.
        observed: Sensitivity and specificity at the site with the card's threshold.
        needed: Images with pneumonia, for sensitivity, and without, for specificity, that give each test the target power;
            None if there is no such number (see `noninferiority.sample_size`).
        with_profile: Sensitivity and specificity with re-chosen thresholds and limits, cross-fitted.
        profile_threshold: Re-chosen threshold; None if the card's threshold is kept.
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
        field, value: Field and value; "not stated" without a value.
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


@dataclasses.dataclass(frozen=True, slots=True)
class Acceptance:
    """Result of an acceptance test.

    Attributes:
        site: Name of the site.
        bundle, network, onnx_sha256, card_sha256: Name, architecture and hashes of the model.
        images_sha256, n, patients, counts: The images.
        operating_point, margin, target_power, seed: Settings.
        verdict: "non_inferior" if sensitivity, specificity and the fraction of accepted images are, at the operating point;
            "inferior" if one of them is inferior; "inconclusive" otherwise.
        prevalence: Fraction of images with pneumonia.
        stated_prevalence: Prevalence that the profile states probabilities for; None for that of the accepted images.
        rejected, rejected_with_profile: Rejected images with the card's limits, and with the profile, cross-fitted.
        accepted, accepted_reference: Fraction of images that the network's input checks accept, of those that neither pixels nor
            header nor age exclude, at the site and of the validation images; None if the model has no input checks.
        accepted_test: Non-inferiority of that fraction; None without input checks or such images.
        auroc: Of accepted images.
        calibration: Of the card's probabilities, for the prevalence of the accepted images.
        calibration_with_profile: With the profile, cross-fitted, for the prevalence of the accepted images.
        operating_points: By name.
        subgroups: By header fields.
        changed: Parts of the card that the profile replaces.
        limits: Rejection limits on the card and in the profile, for those that it replaces.
        not_changed: Why other parts are kept.
        notes: Remarks about the data.
        version, command: Version of pneumoscope, and the command line.
    """

    site: str
    bundle: str
    network: str
    onnx_sha256: str
    card_sha256: str
    images_sha256: str
    n: int
    patients: int
    counts: Mapping[str, int]
    operating_point: str
    margin: float
    target_power: float
    seed: int
    verdict: Verdict
    prevalence: Interval
    stated_prevalence: float | None
    rejected: RejectionSummary
    rejected_with_profile: Interval
    accepted: Interval | None
    accepted_reference: Interval | None
    accepted_test: NonInferiority | None
    auroc: Interval
    calibration: CalibrationSummary
    calibration_with_profile: CalibrationSummary
    operating_points: Mapping[str, PointAcceptance]
    subgroups: tuple[Subgroup, ...]
    changed: tuple[str, ...]
    limits: Mapping[str, tuple[float, float]]
    not_changed: Mapping[str, str]
    notes: tuple[str, ...]
    version: str
    command: str
    schema: int = SCHEMA
    notice: str = NOTICE


def accept(
    data: Path,
    bundle: Path | None = None,
    *,
    site: str,
    out: Path | None = None,
    operating_point: str = "balanced",
    margin: float = 0.05,
    target_power: float = 0.8,
    prevalence: float | None = None,
    require_age: AgeRequirement = "never",
    seed: int = 0,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Acceptance, SiteProfile]:
    """Test a model on labeled images of a site, and fit a site profile.

    Args:
        data: Folder, manifest CSV or archive of labeled images, without a test split. All images are used.
        bundle: Bundle or run; the model in the package if None.
        site: Name of the site, for the profile and for outputs that use it.
        out: Folder for acceptance.json, acceptance.md, images.csv (one row per image) and site.json; nothing is written if None.
        operating_point: Operating point of the verdict and of the subgroups.
        margin: Largest acceptable decrease of sensitivity, specificity and fraction of accepted images.
        target_power: Power of each test for which the needed number of images is stated.
        prevalence: Prevalence of pneumonia that the profile states probabilities for; that of the accepted images if None, which
            is right for consecutive images only.
        require_age: Images that are rejected if the age of the patient is unknown, as in use.
        seed: Seed of folds and bootstraps.
        command: Command line to record in the result.
        progress: Called with the number of scored images and of all images.

    Returns:
        The result, and the profile.

    Raises:
        UsageError: The operating point is unknown, a number or the name is out of range, or the folder has an acceptance test.
        DatasetError: See `load_site_images`; or the model was trained or calibrated on some of the images.
        BundleError: The bundle cannot be read or run.
        StorageError: A file cannot be written.
    """
    session = BundleSession.load(find_bundle(bundle), require_age=require_age)
    card = session.card
    check_site_name(site)
    _check_settings(card, operating_point, margin, target_power, prevalence)
    if out is not None and any((out / name).exists() for name in (PROFILE_FILE, IMAGES_FILE, "acceptance.json")):
        raise UsageError(f"{str(out)!r} has an acceptance test already", hint="Choose another folder with --out")
    listed = load_site_images(data)
    check_unseen(listed.images, card)
    scored = score_site_images(session, listed, progress)
    images, before = scored.outputs, outputs_with(card, scored.outputs)
    fit, after = choose_fit(card, images, seed)
    profile = _profile(card, fit, scored, listed.images, site=site, prevalence=prevalence, seed=seed)
    points = {
        name: _point(card, name, images, before, after, fit, margin, target_power) for name in card.operating_points
    }
    accepted, accepted_reference = _accepted(card, images, before.rejected)
    accepted_test = None
    if accepted and accepted_reference and accepted.value is not None:
        rows = np.flatnonzero(~images.excluded)
        n = effective_size(~before.rejected[rows], [images.patients[i] for i in rows.tolist()])
        accepted_test = compare_with_reference(accepted, accepted_reference, margin, n)
    for_sample, _ = with_prevalence(card, sample_prevalence(images.labels[~before.rejected]))
    limits = card.rejection_limits
    old_limits = {} if limits is None else {"input_classifier": limits.min_upright, "ood_detector": limits.max_distance}
    result = Acceptance(
        site=site,
        bundle=card.name,
        network=card.network,
        onnx_sha256=card.onnx_sha256,
        card_sha256=card.sha256(),
        images_sha256=images_sha256([image.sha256 for image in listed.images]),
        n=len(images),
        patients=count_patients(listed.images),
        counts={label: sum(image.label == label for image in listed.images) for label in LABELS},
        operating_point=operating_point,
        margin=margin,
        target_power=target_power,
        seed=seed,
        verdict=_verdict(points[operating_point], accepted_test, checks_input=accepted is not None),
        prevalence=proportion(images.labels, images.patients),
        stated_prevalence=prevalence,
        rejected=RejectionSummary(
            proportion(before.rejected, images.patients),
            dict(Counter(each.code for each in scored.rejections if each).most_common()),
        ),
        rejected_with_profile=proportion(after.rejected, images.patients),
        accepted=accepted,
        accepted_reference=accepted_reference,
        accepted_test=accepted_test,
        auroc=_auroc(images, ~before.rejected),
        calibration=_calibration(images, ~before.rejected, calibrate(for_sample, images.logits), seed),
        calibration_with_profile=_calibration(images, ~after.rejected, after.probabilities, seed),
        operating_points=points,
        subgroups=_subgroups(operating_point, images, before, scored.headers),
        changed=_changed(fit, prevalence),
        limits={name: (old_limits[name], value) for name, value in fit.limits.items()},
        not_changed=dict(fit.not_changed),
        notes=(*listed.notes, *_notes(card, images, operating_point)),
        version=__version__,
        command=command,
    )
    if out is not None:
        from pneumoscope.evaluation.acceptance_report import acceptance_markdown

        write_atomically(out / PROFILE_FILE, profile.to_json())
        write_atomically(out / IMAGES_FILE, _images_csv(listed.images, scored, before, operating_point))
        write_result(out, "acceptance", result, acceptance_markdown(result))
    return result, profile


def reference_interval(reference: Proportion) -> Interval:
    """Return a proportion on a card as an interval."""
    return Interval(reference.value, reference.low, reference.high, reference.method, reference.n)


def needed_images(card: Card, margin: float, target_power: float) -> dict[str, dict[str, int | None]]:
    """Return for each operating point how many accepted images the tests of sensitivity and specificity each need.

    Args:
        card: Card of the model.
        margin, target_power: See `accept`.

    Returns:
        {operating point: {"sensitivity": images with pneumonia, "specificity": images without}}; None where there is no such
        number, see `noninferiority.sample_size`.
    """
    return {
        name: {
            metric: sample_size(reference_interval(getattr(point, metric)), margin, target_power)
            for metric in ("sensitivity", "specificity")
        }
        for name, point in card.operating_points.items()
    }


def _check_settings(
    card: Card, operating_point: str, margin: float, target_power: float, prevalence: float | None
) -> None:
    if operating_point not in card.operating_points:
        raise UsageError(
            f"{card.name!r} has no operating point {operating_point!r}",
            hint=f"Known: {', '.join(card.operating_points)}",
        )
    for name, value in (("margin", margin), ("power", target_power), ("prevalence", prevalence)):
        if value is not None and not 0 < value < 1:
            raise UsageError(f"{name} is {value:g}, not between 0 and 1")


def _notes(card: Card, images: SiteImages, operating_point: str) -> list[str]:
    notes = []
    if not any(images.patients):
        notes.append(
            "patients are not stated, so that each image counts as one patient; give a CSV with the column patient"
        )
    if card.operating_points[operating_point].augmented:
        notes.append(
            "the threshold was chosen on validation images that were each augmented once; the card's sensitivity and"
            " specificity are of unmodified ones"
        )
    return notes


def _images_csv(
    images: Sequence[LabeledImage], scored: ScoredSite, outputs: SiteOutputs, operating_point: str
) -> bytes:
    """Return one row per image: its label, and the decision at the operating point or the rejection."""
    rows = [csv_line(("path", "label", "patient", "decision", "rejection_code", "logit", "probability"))]
    for i, (image, rejection) in enumerate(zip(images, scored.rejections, strict=True)):
        decision = "pneumonia" if outputs.decisions[operating_point][i] else "no_pneumonia"
        cells = ("rejected", rejection.code, None, None) if rejection else (
            decision, None, float(scored.outputs.logits[i]), float(outputs.probabilities[i])
        )  # fmt: skip
        path, patient = (escape_formula(text, "'") for text in (image.path, image.patient))
        rows.append(csv_line((path, image.label, patient, *cells)))
    return b"".join(rows)


def _profile(
    card: Card,
    fit: SiteFit,
    scored: ScoredSite,
    images: Sequence[LabeledImage],
    *,
    site: str,
    prevalence: float | None,
    seed: int,
) -> SiteProfile:
    if prevalence is not None:
        calibration, intervals = with_prevalence(apply_fit(card, fit), prevalence)
        fit = dataclasses.replace(fit, calibration=calibration, intervals=intervals)
    fitted = apply_fit(card, fit)
    outputs = scored.outputs
    rejected = outputs.rejected(fitted)
    accepted = outputs.subset(~rejected)
    reference = None
    if len(accepted):
        reference = fit_reference_distribution(
            msgspec.structs.replace(fitted, rejection_limits=None),
            [Outputs(logit=accepted.logits.astype(np.float32))],
            accepted.labels,
        )
    one_per_patient = outputs.first_of_each_patient()
    profile = SiteProfile(
        format=SITE_PROFILE_FORMAT,
        version=__version__,
        created=now(),
        name=site,
        model=card.name,
        onnx_sha256=card.onnx_sha256,
        card_sha256=card.sha256(),
        images_sha256=images_sha256([image.sha256 for image in images]),
        seen=sorted(short_hash(image.sha256) for image in images),
        n=len(images),
        patients=count_patients(images),
        n_pneumonia=int(outputs.labels.sum()),
        seed=seed,
        prevalence=fit.calibration.prevalence if fit.calibration else None,
        prevalence_source="data" if prevalence is None else "stated",
        calibration=fit.calibration,
        intervals=fit.intervals,
        operating_points=dict(fit.operating_points),
        limits=dict(fit.limits),
        rejected=to_proportion(proportion(rejected, outputs.patients)),
        reference_distribution=reference,
        monitoring={
            "logit": _reference_sample(outputs.logits[one_per_patient[~rejected[one_per_patient]]], seed),
            **{
                name: _reference_sample(scored.statistics[name][one_per_patient], seed)
                for name in get_args(Quantity)
                if name != "logit"
            },
        },
        monitored_patients=len(one_per_patient),
        monitored_rejected=int(rejected[one_per_patient].sum()),
        not_changed=dict(fit.not_changed),
    )
    profile = msgspec.structs.replace(profile, sha256=profile.content_sha256())
    apply_site_profile(card, profile)  # raises if it would not be accepted
    return profile


def _reference_sample(values: FloatArray, seed: int) -> list[float]:
    """Return the values, sorted and rounded to 7 digits; a random sample of them if there are many."""
    if len(values) > _MAX_REFERENCE:
        values = np.random.default_rng(seed).choice(values, _MAX_REFERENCE, replace=False)
    return sorted(float(f"{value:.7g}") for value in values.tolist())


def _changed(fit: SiteFit, prevalence: float | None) -> tuple[str, ...]:
    calibration = ["calibration"] if fit.recalibrated else []
    if not fit.recalibrated and (fit.calibration is not None or prevalence is not None):
        calibration = ["prevalence"]
    return (*calibration, *fit.operating_points, *fit.limits)


# --- figures ---------------------------------------------------------------------------------------------------------


def _point(
    card: Card,
    name: str,
    images: SiteImages,
    before: SiteOutputs,
    after: SiteOutputs,
    fit: SiteFit,
    margin: float,
    target_power: float,
) -> PointAcceptance:
    point = card.operating_points[name]
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
    changed = fit.operating_points.get(name)
    return PointAcceptance(
        threshold=point.threshold,
        reference=reference,
        tests=tests,
        observed=observed,
        needed={metric: sample_size(interval, margin, target_power) for metric, interval in reference.items()},
        with_profile={metric: rate(images, after, name, positive=metric == "sensitivity") for metric in reference},
        profile_threshold=changed.threshold if changed else None,
    )


def _accepted(card: Card, images: SiteImages, rejected: BoolArray) -> tuple[Interval | None, Interval | None]:
    """Return the fraction of images that the input checks accept, and that of the validation images."""
    if card.rejection_limits is None:
        return None, None
    rows = np.flatnonzero(~images.excluded)
    observed = proportion(
        ~rejected[rows], [images.patients[i] for i in rows.tolist()], reason="pixels, header or age exclude all images"
    )
    limits = card.rejection_limits.rejected
    return observed, Interval(1 - limits.value, 1 - limits.high, 1 - limits.low, limits.method, limits.n)


def _verdict(point: PointAcceptance, accepted_test: NonInferiority | None, *, checks_input: bool) -> Verdict:
    """Return the verdict of all tests; a missing test is inconclusive."""
    verdicts = {test.verdict for test in (*point.tests.values(), accepted_test) if test}
    if "inferior" in verdicts:
        return "inferior"
    complete = len(point.tests) == 2 and (accepted_test is not None) == checks_input
    return "non_inferior" if complete and verdicts == {"non_inferior"} else "inconclusive"


def _auroc(images: SiteImages, rows: BoolArray) -> Interval:
    labels = images.labels[rows]
    if labels.all() or not labels.any():
        return undefined("there are accepted images of one label only", n=len(labels), method="delong")
    patients = [images.patients[i] for i in np.flatnonzero(rows).tolist()]
    return auroc_interval(images.logits[rows], labels, patients)


def _calibration(images: SiteImages, rows: BoolArray, probabilities: FloatArray, seed: int) -> CalibrationSummary:
    labels = images.labels[rows]
    patients = [images.patients[i] for i in np.flatnonzero(rows).tolist()]
    if labels.all() or not labels.any():
        missing = undefined("there are accepted images of one label only", n=len(labels), method="patient bootstrap")
        return CalibrationSummary(missing, missing, missing, missing)
    p = probabilities[rows]
    # Probabilities of 0 and 1 have no logit.
    inside = np.clip(p, 1e-12, 1 - 1e-12)
    log_odds = np.log(inside) - np.log1p(-inside)
    return CalibrationSummary(
        patient_bootstrap(weighted_calibration_slope, log_odds, labels, patients, seed=seed),
        patient_bootstrap(weighted_calibration_intercept, log_odds, labels, patients, seed=seed),
        patient_bootstrap(weighted_brier, p, labels, patients, seed=seed),
        calibration_error_interval(p, labels, patients, seed=seed),
    )


def _subgroups(
    name: str, images: SiteImages, outputs: SiteOutputs, headers: Sequence[HeaderFields | None]
) -> tuple[Subgroup, ...]:
    """Return the subgroups of each header field that some image states."""
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
                    auroc=_auroc(part, ~inside.rejected),
                )
            )
    return tuple(subgroups)


def _age_group(header: HeaderFields | None) -> str:
    if header is None or header.age is None or header.age.years is None:
        return ""
    years = header.age.years
    return next(label for start, label in reversed(_AGE_GROUPS) if years >= start)

"""Acceptance test at a hospital: compare a model's performance with its card, and fit a site profile.

The metrics of labeled images of the site are compared with those on the card, also by subgroup, and a site profile is
fitted (see `site_fit`). Sensitivity, specificity and the fraction of accepted images are each tested for
non-inferiority. The card's sensitivity and specificity were measured on the images that chose its thresholds and are
optimistic, so the comparison is strict.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from pneumoscope import __version__
from pneumoscope.bundle.card import Card
from pneumoscope.bundle.prevalence import with_prevalence
from pneumoscope.bundle.site_profile import SiteProfile, check_site_name
from pneumoscope.core.errors import UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.interval import Interval
from pneumoscope.core.prediction_codes import AgeRequirement, Assumption
from pneumoscope.core.prediction_messages import notice
from pneumoscope.core.result_forms import write_result
from pneumoscope.core.results import SCHEMA, RejectionSummary
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.manifest import LABELS, LabeledImage, images_sha256
from pneumoscope.evaluation.acceptance.metrics import (
    CalibrationSummary,
    PointAcceptance,
    SiteComparison,
    Subgroup,
    acceptance_verdict,
    accepted_fractions,
    auroc,
    compare_accepted,
    find_subgroups,
    point_acceptance,
    summarize_calibration,
)
from pneumoscope.evaluation.acceptance.site_fit import SiteFit, SiteOutputs, sample_prevalence
from pneumoscope.evaluation.acceptance.site_images import (
    ScoredSite,
    SiteImages,
    SiteList,
    load_site_images,
    score_site_images,
)
from pneumoscope.evaluation.acceptance.site_profile import create_profile
from pneumoscope.evaluation.selection import check_unseen, count_patients, count_unknown_patients
from pneumoscope.inference.decision import calibrate
from pneumoscope.inference.session import BundleSession
from pneumoscope.inference.writers import csv_line, escape_formula
from pneumoscope.runs.run_folder import find_bundle
from pneumoscope.statistics.intervals import proportion
from pneumoscope.statistics.noninferiority import NonInferiority, Verdict

__all__ = [
    "IMAGES_FILE",
    "PROFILE_FILE",
    "Acceptance",
    "accept",
]

PROFILE_FILE, IMAGES_FILE = "site.json", "images.csv"


@dataclasses.dataclass(frozen=True, slots=True)
class Acceptance:
    """Result of an acceptance test.

    Attributes:
        site: Name of the site.
        bundle, network, onnx_sha256, card_sha256: Name, architecture and hashes of the model.
        images_sha256, n, patients, counts: The images.
        unknown_patients: Number of images of unknown patients, each of which counts as a patient; None in records of
            earlier versions.
        operating_point, margin, target_power, seed: Settings.
        verdict: "non_inferior" if sensitivity, specificity and the fraction of accepted images are non-inferior at the
            operating point; "inferior" if any of them is inferior; "inconclusive" otherwise.
        prevalence: Fraction of images with pneumonia.
        stated_prevalence: User-specified prevalence for the profile's probabilities; None for the prevalence of the
            accepted images.
        rejected, rejected_with_profile: Images rejected with the card's limits, and with the profile, cross-fitted.
        accepted, accepted_reference: Fraction of images accepted by the network's input checks, among images not
            excluded by pixels, header or age, at the site and in the validation set; None if the model has no input
            checks.
        accepted_test: Non-inferiority of that fraction; None without input checks or such images.
        auroc: Of accepted images.
        calibration: Of the card's probabilities, at the prevalence of the accepted images.
        calibration_with_profile: With the profile, cross-fitted, at the prevalence of the accepted images.
        operating_points: By name.
        subgroups: By header fields.
        changed: Parts of the card that the profile replaces.
        limits: Replaced rejection limits: value on the card and in the profile.
        not_changed: Reasons why other parts are kept.
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
    unknown_patients: int | None = None
    schema: int = SCHEMA
    notice: str = NOTICE


@dataclasses.dataclass(frozen=True)
class AcceptanceSettings:
    """Settings of an acceptance test; see `accept`."""

    site: str
    operating_point: str
    margin: float
    target_power: float
    prevalence: float | None
    seed: int

    def check(self, card: Card) -> None:
        """Raise if the settings are invalid for a model.

        Raises:
            UsageError: The operating point is unknown, or the name or a number is out of range.
        """
        check_site_name(self.site)
        if self.operating_point not in card.operating_points:
            raise UsageError(
                f"{card.name!r} has no operating point {self.operating_point!r}",
                hint=f"Known: {', '.join(card.operating_points)}",
            )
        for name, value in (("margin", self.margin), ("power", self.target_power), ("prevalence", self.prevalence)):
            if value is not None and not 0 < value < 1:
                raise UsageError(f"{name} is {value:g}, not between 0 and 1")


def accept(
    data: Path,
    bundle: Path | None = None,
    *,
    site: str | None = None,
    out: Path | None = None,
    labels: LabelMapping | None = None,
    operating_point: str = "balanced",
    margin: float = 0.05,
    target_power: float = 0.8,
    prevalence: float | None = None,
    require_age: AgeRequirement = "never",
    assume: Collection[Assumption] = (),
    seed: int = 0,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Acceptance, SiteProfile]:
    """Test a model on labeled images of a site, and fit a site profile.

    Args:
        data: Folder, manifest CSV or archive of labeled images, without a test split. All images are used.
        bundle: Bundle or run; the model in the package if None.
        site: Name of the site, used in the profile and in outputs made with it; if None, the name of the folder or the
            stem of the file.
        out: Folder for acceptance.json, acceptance.md, images.csv (one row per image) and site.json; None writes no
            files.
        labels: Names of columns and labels of the data.
        operating_point: Operating point of the verdict and of the subgroups.
        margin: Largest acceptable decrease of sensitivity, specificity and fraction of accepted images.
        target_power: Target power of each test, for the reported sample sizes.
        prevalence: Prevalence of pneumonia that the profile's probabilities refer to; that of the accepted images if
            None, which is valid for consecutive images only.
        require_age: Images that are rejected if the age of the patient is unknown, as in production.
        assume: Overrides of DICOM headers, as in production; see `load_model`.
        seed: Seed of folds and bootstraps.
        command: Command line to record in the result.
        progress: Called with the number of scored images and the total.

    Returns:
        The result and the profile.

    Raises:
        UsageError: The operating point is unknown, a number or the name is out of range, or the folder already contains
            an acceptance test.
        DatasetError: See `load_site_images`; or the model was trained or calibrated on some of the images.
        BundleError: The bundle cannot be read or run.
        StorageError: A file cannot be written.
    """
    if site is None:
        named = data if data.name.strip(".") else data.resolve()  # "." and ".." do not name the folder
        site = named.stem if data.is_file() else named.name
    settings = AcceptanceSettings(site, operating_point, margin, target_power, prevalence, seed)
    session = BundleSession.load(find_bundle(bundle), require_age=require_age, assume=assume)
    card = session.card
    settings.check(card)
    if out is not None and any((out / name).exists() for name in (PROFILE_FILE, IMAGES_FILE, "acceptance.json")):
        raise UsageError(f"{str(out)!r} has an acceptance test already", hint="Choose another folder with --out")
    listed = load_site_images(data, labels)
    check_unseen(listed.images, card)
    scored = score_site_images(session, listed, progress)
    compared = SiteComparison.of(card, scored.outputs, seed)
    profile = create_profile(compared, scored, listed.images, name=site, prevalence=prevalence, seed=seed)
    result = _summarize(compared, listed, scored, settings, command)
    if out is not None:
        from pneumoscope.evaluation.acceptance.report import acceptance_markdown

        write_atomically(out / PROFILE_FILE, profile.to_json())
        write_atomically(out / IMAGES_FILE, _images_csv(listed.images, scored, compared.before, operating_point))
        write_result(out, "acceptance", result, acceptance_markdown(result))
    return result, profile


def _summarize(
    compared: SiteComparison, listed: SiteList, scored: ScoredSite, settings: AcceptanceSettings, command: str
) -> Acceptance:
    """Return the test result."""
    card, images, fit = compared.card, compared.images, compared.fit
    before, after = compared.before, compared.after
    points = {
        name: point_acceptance(compared, name, settings.margin, settings.target_power) for name in card.operating_points
    }
    accepted, accepted_reference = accepted_fractions(compared)
    accepted_test = compare_accepted(compared, accepted, accepted_reference, settings.margin)
    for_sample, _ = with_prevalence(card, sample_prevalence(images.labels[~before.rejected]))
    probabilities = calibrate(for_sample, images.logits)
    return Acceptance(
        site=settings.site,
        bundle=card.name,
        network=card.network,
        onnx_sha256=card.onnx_sha256,
        card_sha256=card.sha256(),
        images_sha256=images_sha256([image.sha256 for image in listed.images]),
        n=len(images),
        patients=count_patients(listed.images),
        unknown_patients=count_unknown_patients(listed.images),
        counts={label: sum(image.label == label for image in listed.images) for label in LABELS},
        operating_point=settings.operating_point,
        margin=settings.margin,
        target_power=settings.target_power,
        seed=settings.seed,
        verdict=acceptance_verdict(points[settings.operating_point], accepted_test, checks_input=accepted is not None),
        prevalence=proportion(images.labels, images.patients),
        stated_prevalence=settings.prevalence,
        rejected=RejectionSummary(
            proportion(before.rejected, images.patients),
            dict(Counter(each.code for each in scored.rejections if each).most_common()),
        ),
        rejected_with_profile=proportion(after.rejected, images.patients),
        accepted=accepted,
        accepted_reference=accepted_reference,
        accepted_test=accepted_test,
        auroc=auroc(images, ~before.rejected),
        calibration=summarize_calibration(images, ~before.rejected, probabilities, settings.seed),
        calibration_with_profile=summarize_calibration(images, ~after.rejected, after.probabilities, settings.seed),
        operating_points=points,
        subgroups=find_subgroups(settings.operating_point, images, before, scored.headers),
        changed=_changed(fit, settings.prevalence),
        limits=_replaced_limits(card, fit),
        not_changed=dict(fit.not_changed),
        notes=(*listed.notes, *_notes(card, images, settings.operating_point)),
        version=__version__,
        command=command,
        notice=notice(card.population),
    )


def _replaced_limits(card: Card, fit: SiteFit) -> dict[str, tuple[float, float]]:
    """Return the replaced rejection limits as (card, fit) pairs."""
    limits = card.rejection_limits
    old = {} if limits is None else {"input_classifier": limits.min_upright, "ood_detector": limits.max_distance}
    return {name: (old[name], value) for name, value in fit.limits.items()}


def _notes(card: Card, images: SiteImages, operating_point: str) -> list[str]:
    notes = []
    if not any(images.patients):
        notes.append(
            "patients are not stated, so that each image counts as one patient; give a CSV with the column patient"
        )
    point = card.operating_points[operating_point]
    if point.augmented and point.target is None:
        notes.append(
            "the threshold was chosen on validation images that were each augmented once; unmodified images can have other"
            " logits"
        )
    return notes


def _images_csv(
    images: Sequence[LabeledImage], scored: ScoredSite, outputs: SiteOutputs, operating_point: str
) -> bytes:
    """Return one CSV row per image: its label, and the decision at the operating point or the rejection."""
    rows = [csv_line(("path", "label", "patient", "decision", "rejection_code", "logit", "probability"))]
    for i, (image, rejection) in enumerate(zip(images, scored.rejections, strict=True)):
        decision = "pneumonia" if outputs.decisions[operating_point][i] else "no_pneumonia"
        cells = ("rejected", rejection.code, None, None) if rejection else (
            decision, None, float(scored.outputs.logits[i]), float(outputs.probabilities[i])
        )  # fmt: skip
        path, patient = (escape_formula(text, "'") for text in (image.path, image.patient))
        rows.append(csv_line((path, image.label, patient, *cells)))
    return b"".join(rows)


def _changed(fit: SiteFit, prevalence: float | None) -> tuple[str, ...]:
    calibration = ["calibration"] if fit.recalibrated else []
    if not fit.recalibrated and (fit.calibration is not None or prevalence is not None):
        calibration = ["prevalence"]
    return (*calibration, *fit.operating_points, *fit.limits)

"""Acceptance test at a hospital: does the model perform there as its card states, and what should be changed?

Labeled images of the site are compared with the figures on the card, subgroups are listed, and a site profile is fitted (see
`site_fit`). Sensitivity, specificity and the fraction of accepted images are each tested for non-inferiority. Figures with the
profile are cross-fitted, so that no image is evaluated with what was fitted on it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np

from pneumoscope import __version__
from pneumoscope.bundle.card import Card, Proportion, short_hash
from pneumoscope.bundle.site_profile import SITE_PROFILE_FORMAT, SiteProfile, apply_site_profile
from pneumoscope.core.errors import DatasetError, UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.prediction import Rejection
from pneumoscope.core.results import SCHEMA, Interval, RejectionSummary, write_result
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import LABELS, LabeledImage, images_sha256
from pneumoscope.evaluation.evaluate import decode_images
from pneumoscope.evaluation.fitting import fit_reference_distribution
from pneumoscope.evaluation.selection import check_unseen, count_patients, unreadable_error
from pneumoscope.evaluation.site_fit import (
    CrossFitted,
    SiteFit,
    SiteImages,
    apply_fit,
    cross_fit,
    fit_site,
    outputs_with,
    with_prevalence,
)
from pneumoscope.imaging.decode import EXTENSIONS
from pneumoscope.imaging.header import HeaderFields, read_header_fields
from pneumoscope.imaging.preprocess import PreprocessedImage, preprocess_image
from pneumoscope.imaging.statistics import image_statistics
from pneumoscope.inference.decision import calibrate
from pneumoscope.inference.session import BundleSession, Outputs, network_rejections
from pneumoscope.runs.record import now
from pneumoscope.runs.run_folder import find_bundle
from pneumoscope.statistics.calibration import (
    calibration_error_interval,
    weighted_brier,
    weighted_calibration_intercept,
    weighted_calibration_slope,
)
from pneumoscope.statistics.inputs import BoolArray, FloatArray
from pneumoscope.statistics.intervals import patient_bootstrap, proportion, undefined
from pneumoscope.statistics.noninferiority import NonInferiority, Verdict, compare_with_reference, sample_size
from pneumoscope.statistics.roc import auroc_interval

__all__ = [
    "PROFILE_FILE",
    "Acceptance",
    "CalibrationSummary",
    "PointAcceptance",
    "Subgroup",
    "accept",
    "reference_interval",
]

PROFILE_FILE = "site.json"
_BATCH = 32
_MAX_REFERENCE = 2000  # values of each quantity for monitoring
# Age groups in years: from, label. Infants, and the paediatric subpopulations of the FDA.
_AGE_GROUPS = ((0, "under 2 years"), (2, "2 to 5 years"), (6, "6 to 11 years"), (12, "12 to 17 years"), (18, "adults"))


@dataclasses.dataclass(frozen=True, slots=True)
class PointAcceptance:
    """One operating point at the site; rejected images are left out.

    Attributes:
        threshold: Threshold of the card, on the score.
        reference: Sensitivity and specificity on the card.
        tests: Non-inferiority of sensitivity and specificity.
        observed: Sensitivity and specificity at the site with the card's threshold.
        needed: Images with pneumonia, for sensitivity, and without, for specificity, that give the target power; None if
            more than `noninferiority.MAX_SAMPLE`, or if the card's own interval is wider than the margin.
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
        rejected, rejected_with_profile: Rejected images with the card's limits, and with the profile, cross-fitted.
        accepted, accepted_reference: Fraction of images that the network's input checks accept, of those that neither pixels nor
            header nor age exclude, at the site and of the validation images; None if the model has no input checks.
        accepted_test: Non-inferiority of that fraction; None without input checks or such images.
        auroc: Of accepted images.
        calibration: Of the card's probabilities, for the prevalence of the site.
        calibration_with_profile: With the profile, cross-fitted.
        operating_points: By name.
        subgroups: By header fields.
        changed: Parts of the card that the profile replaces.
        not_changed: Why other parts are kept.
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
    not_changed: Mapping[str, str]
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
    seed: int = 0,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Acceptance, SiteProfile]:
    """Test a model on labeled images of a site, and fit a site profile.

    Args:
        data: Folder, manifest CSV or archive of labeled images. All images are used, whatever their split.
        bundle: Bundle or run; the model in the package if None.
        site: Name of the site, for the profile and for outputs that use it.
        out: Folder for acceptance.json, acceptance.md and site.json; nothing is written if None.
        operating_point: Operating point of the verdict and of the subgroups.
        margin: Largest acceptable decrease of sensitivity, specificity and fraction of accepted images.
        target_power: Power for which the needed number of images is stated.
        prevalence: Prevalence of pneumonia at the site; the fraction of the images if None, which is right only for
            consecutive images.
        seed: Seed of folds and bootstraps.
        command: Command line to record in the result.
        progress: Called with the number of scored images and of all images.

    Returns:
        The result, and the profile.

    Raises:
        UsageError: The operating point is unknown, or a number is out of range.
        DatasetError: Images are unreadable, of one label only, test images of a public set, or were used to train the model.
        BundleError: The bundle cannot be read or run.
        StorageError: A file cannot be written.
    """
    session = BundleSession.load(find_bundle(bundle))
    card = session.card
    _check_settings(card, operating_point, margin, target_power, prevalence)
    root, images = _load_images(data)
    check_unseen(images, card)
    scored, rejections, headers, statistics = _score(session, root, images, progress)
    card_outputs = outputs_with(card, scored)
    fit = fit_site(card, scored, prevalence)
    fitted = cross_fit(card, scored, prevalence, seed)
    if fit.limits and (reason := _limits_are_good(card, scored, card_outputs, fitted)):
        kept_limits: dict[str, str] = dict.fromkeys(map(str, fit.limits), reason)
        fit = fit_site(card, scored, prevalence, fit_limits=False)
        fit = dataclasses.replace(fit, not_changed={**kept_limits, **fit.not_changed})
        fitted = cross_fit(card, scored, prevalence, seed, fit_limits=False)
    fit = _keep_improvements(card, scored, card_outputs, fitted, fit, prevalence)
    fitted = _with_kept_parts(card, scored, card_outputs, fitted, fit, prevalence)
    profile = _profile(card, fit, scored, images, statistics, site=site, prevalence=prevalence, seed=seed)
    stated_prevalence = _prevalence(scored, card_outputs.rejected, prevalence)
    points = {
        name: _point(card, name, scored, card_outputs, fitted, fit, margin, target_power)
        for name in card.operating_points
    }
    accepted, accepted_reference = _accepted(card, scored, card_outputs.rejected)
    accepted_test = None
    if accepted and accepted_reference and accepted.value is not None:
        accepted_test = compare_with_reference(accepted, accepted_reference, margin)
    result = Acceptance(
        site=site,
        bundle=card.name,
        network=card.network,
        onnx_sha256=card.onnx_sha256,
        card_sha256=card.sha256(),
        images_sha256=images_sha256([image.sha256 for image in images]),
        n=len(images),
        patients=count_patients(images),
        counts={label: sum(image.label == label for image in images) for label in LABELS},
        operating_point=operating_point,
        margin=margin,
        target_power=target_power,
        seed=seed,
        verdict=_verdict([*points[operating_point].tests.values(), *([accepted_test] if accepted_test else [])]),
        prevalence=proportion(scored.labels, scored.patients),
        rejected=RejectionSummary(
            proportion(card_outputs.rejected, scored.patients),
            dict(Counter(each.code for each in rejections if each).most_common()),
        ),
        rejected_with_profile=proportion(fitted.rejected, scored.patients),
        accepted=accepted,
        accepted_reference=accepted_reference,
        accepted_test=accepted_test,
        auroc=_auroc(scored, ~card_outputs.rejected),
        calibration=_calibration(
            scored,
            ~card_outputs.rejected,
            calibrate(with_prevalence(card, stated_prevalence)[0], scored.logits),
            seed,
        ),
        calibration_with_profile=_calibration(scored, ~fitted.rejected, fitted.probabilities, seed),
        operating_points=points,
        subgroups=_subgroups(card, operating_point, scored, card_outputs.rejected, headers),
        changed=_changed(fit),
        not_changed=dict(fit.not_changed),
        version=__version__,
        command=command,
    )
    if out is not None:
        from pneumoscope.evaluation.acceptance_report import acceptance_markdown

        write_atomically(out / PROFILE_FILE, profile.to_json())
        write_result(out, "acceptance", result, acceptance_markdown(result))
    return result, profile


def reference_interval(reference: Proportion) -> Interval:
    """Return a proportion on a card as an interval."""
    return Interval(reference.value, reference.low, reference.high, reference.method, reference.n)


# --- images ----------------------------------------------------------------------------------------------------------


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


def _load_images(data: Path) -> tuple[Path, tuple[LabeledImage, ...]]:
    """Return the folder that paths are relative to, and all images, each content once."""
    manifest = load_manifest(data)
    unreadable = [
        (path, reason)
        for path, reason in manifest.unreadable
        if PurePosixPath(path).suffix.lower() in EXTENSIONS and not PurePosixPath(path).name.startswith(".")
    ]
    if unreadable:
        raise unreadable_error(unreadable, "site")
    if manifest.split("test") and len(manifest.counts()) > 1:
        raise DatasetError(
            f"{str(data)!r} is divided into splits and has test images, which are reserved for `pneumoscope evaluate`",
            hint="Give a folder or a CSV with the images of the site only",
        )
    first: dict[str, LabeledImage] = {}
    for image in manifest:
        if first.setdefault(image.sha256, image).label != image.label:
            raise DatasetError(
                f"{first[image.sha256].path!r} and {image.path!r} are the same image with different labels",
                hint="Correct the labels; find such images with: pneumoscope check-data DATA",
            )
    missing = [label for label in LABELS if not any(image.label == label for image in first.values())]
    if missing:
        raise DatasetError(f"{str(data)!r} has no {missing[0]} image", hint="An acceptance test needs both labels")
    return manifest.root, tuple(first.values())


def _score(
    session: BundleSession,
    root: Path,
    images: Sequence[LabeledImage],
    progress: Callable[[int, int], None] | None,
) -> tuple[SiteImages, list[Rejection | None], list[HeaderFields | None], dict[str, list[float]]]:
    """Return outputs, rejections and header fields of all images, in order, and their image statistics by name."""
    card = session.card
    unreadable: list[tuple[str, str]] = []
    by_file: list[Rejection | None] = []
    outputs: list[Outputs] = []
    batch: list[PreprocessedImage] = []
    statistics: dict[str, list[float]] = {}

    def flush() -> None:
        if batch:
            outputs.append(session.outputs(np.stack([image.pixels for image in batch])))
            by_file.extend(session.reject_by_file(image) for image in batch)
            batch.clear()
            if progress:
                progress(len(by_file), len(images))

    for radiograph in decode_images(root, images, card.preprocessing.min_side, unreadable):
        batch.append(preprocess_image(radiograph, card.preprocessing))
        for name, value in image_statistics(batch[-1].pixels).items():
            statistics.setdefault(name, []).append(value)
        if len(batch) == _BATCH:
            flush()
    flush()
    if unreadable:
        raise unreadable_error(unreadable, "site")
    by_network = [each for part in outputs for each in network_rejections(card, part)]

    def column(name: str) -> FloatArray | None:
        parts = [getattr(part, name) for part in outputs]
        return None if parts[0] is None else np.concatenate(parts).astype(np.float64)

    classes = column("input_classes")
    logits = column("logit")
    assert logits is not None
    scored = SiteImages(
        labels=np.array([image.positive for image in images]),
        patients=tuple(image.patient for image in images),
        excluded=np.array([rejection is not None for rejection in by_file]),
        logits=logits,
        upright=None if classes is None else classes[:, 0],
        age_scores=column("age_score"),
        distances=column("ood_distance"),
    )
    rejections = [first or second for first, second in zip(by_file, by_network, strict=True)]
    return scored, rejections, [read_header_fields(root / image.path) for image in images], statistics


# --- profile ---------------------------------------------------------------------------------------------------------


def _keep_improvements(
    card: Card,
    scored: SiteImages,
    before: CrossFitted,
    after: CrossFitted,
    fit: SiteFit,
    prevalence: float | None,
) -> SiteFit:
    """Return the fit without parts that do not improve the cross-fitted figures.

    A recalibration must lower the Brier score, and a threshold of the highest Youden index must raise it. A threshold at a
    target rate is replaced only if the interval of the card's threshold at the site excludes the target.
    """
    not_changed = dict(fit.not_changed)
    calibration, intervals = fit.calibration, fit.intervals
    both = ~before.rejected & ~after.rejected
    labels = scored.labels[both]
    if calibration is not None and "calibration" not in not_changed and len(labels):
        kept = with_prevalence(card, _prevalence(scored, before.rejected, prevalence))
        old = np.square(calibrate(kept[0], scored.logits[both]) - labels).mean()
        if np.square(after.probabilities[both] - labels).mean() >= old:
            not_changed["calibration"] = (
                "only the prevalence was changed: recalibration does not lower the Brier score of other patients"
            )
            calibration, intervals = kept
    points = dict(fit.operating_points)
    for name, point in fit.operating_points.items():
        if point.target is None:
            if _youden(after.decisions[name][both], labels) <= _youden(before.decisions[name][both], labels):
                not_changed[name] = "a new threshold does not raise the Youden index of other patients"
                del points[name]
            continue
        observed = _rate(scored, before, name, positive=name == "rule_out")
        if observed.low is not None and observed.high is not None and observed.low <= point.target <= observed.high:
            not_changed[name] = f"the card's threshold reaches {point.target:g} within its interval ({observed})"
            del points[name]
    return dataclasses.replace(
        fit,
        calibration=calibration,
        intervals=intervals,
        operating_points=points,
        not_changed=not_changed,
    )


def _limits_are_good(card: Card, scored: SiteImages, before: CrossFitted, after: CrossFitted) -> str:
    """Return why the card's limits are kept; "" if new limits are better."""
    assert card.rejection_limits is not None  # there are new limits
    eligible = np.flatnonzero(~scored.excluded)
    observed = proportion(before.rejected[eligible], [scored.patients[i] for i in eligible.tolist()])
    if observed.low is None or observed.low <= card.rejection_limits.rejected.value:
        return f"the network rejects {observed} of the images, no more than of the validation images apart from chance"
    if after.rejected.sum() >= before.rejected.sum():
        return "new limits do not reject fewer images of other patients"
    return ""


def _with_kept_parts(
    card: Card,
    scored: SiteImages,
    before: CrossFitted,
    after: CrossFitted,
    fit: SiteFit,
    prevalence: float | None,
) -> CrossFitted:
    """Return the cross-fitted outputs, with the card's outputs for parts that are kept."""
    probabilities = after.probabilities
    if fit.calibration is None:
        probabilities = before.probabilities
    elif "calibration" in fit.not_changed:
        kept, _ = with_prevalence(card, _prevalence(scored, before.rejected, prevalence))
        probabilities = calibrate(kept, scored.logits)
    return CrossFitted(
        after.rejected,
        probabilities,
        {
            name: after.decisions[name] if name in fit.operating_points else values
            for name, values in before.decisions.items()
        },
    )


def _profile(
    card: Card,
    fit: SiteFit,
    scored: SiteImages,
    images: Sequence[LabeledImage],
    statistics: Mapping[str, Sequence[float]],
    *,
    site: str,
    prevalence: float | None,
    seed: int,
) -> SiteProfile:
    fitted = apply_fit(card, fit)
    rejected = scored.rejected(fitted)
    interval = proportion(rejected, scored.patients)
    accepted = scored.subset(~rejected)
    reference = None
    if len(accepted):
        outputs = Outputs(logit=accepted.logits.astype(np.float32))
        reference = fit_reference_distribution(
            msgspec.structs.replace(fitted, rejection_limits=None), [outputs], accepted.labels
        )
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
        n_pneumonia=int(scored.labels.sum()),
        seed=seed,
        prevalence=fit.calibration.prevalence if fit.calibration else None,
        prevalence_source="data" if prevalence is None else "stated",
        calibration=fit.calibration,
        intervals=fit.intervals,
        operating_points=dict(fit.operating_points),
        limits=dict(fit.limits),
        rejected=msgspec.convert(
            {field: getattr(interval, field) for field in Proportion.__struct_fields__}, Proportion
        ),
        reference_distribution=reference,
        monitoring={
            name: _reference_sample(values, seed)
            for name, values in {
                "probability": calibrate(fitted.calibration, accepted.logits).tolist(),
                **statistics,
            }.items()
            if len(values)
        },
        not_changed=dict(fit.not_changed),
    )
    profile = msgspec.structs.replace(profile, sha256=profile.content_sha256())
    apply_site_profile(card, profile)  # raises if it would not be accepted
    return profile


def _reference_sample(values: Sequence[float], seed: int) -> list[float]:
    """Return the values, sorted and rounded; a random sample of them if there are many."""
    if len(values) > _MAX_REFERENCE:
        values = np.random.default_rng(seed).choice(values, _MAX_REFERENCE, replace=False).tolist()
    return sorted(float(f"{value:.5g}") for value in values)


def _changed(fit: SiteFit) -> tuple[str, ...]:
    calibration = (
        [] if fit.calibration is None else ["prevalence" if "calibration" in fit.not_changed else "calibration"]
    )
    return (*calibration, *fit.operating_points, *fit.limits)


# --- figures ---------------------------------------------------------------------------------------------------------


def _prevalence(scored: SiteImages, rejected: BoolArray, stated: float | None) -> float:
    """Return the stated prevalence, or that of the accepted images, kept away from 0 and 1."""
    labels = scored.labels[~rejected]
    return stated if stated is not None else float((labels.sum() + 0.5) / (len(labels) + 1))


def _rate(scored: SiteImages, outputs: CrossFitted, name: str, *, positive: bool) -> Interval:
    """Return the sensitivity, or the specificity if not `positive`, of accepted images."""
    rows = np.flatnonzero((scored.labels == positive) & ~outputs.rejected)
    correct = outputs.decisions[name][rows] == positive
    label = "with" if positive else "without"
    return proportion(
        correct, [scored.patients[i] for i in rows.tolist()], reason=f"there is no accepted image {label} pneumonia"
    )


def _point(
    card: Card,
    name: str,
    scored: SiteImages,
    before: CrossFitted,
    after: CrossFitted,
    fit: SiteFit,
    margin: float,
    target_power: float,
) -> PointAcceptance:
    point = card.operating_points[name]
    reference = {
        "sensitivity": reference_interval(point.sensitivity),
        "specificity": reference_interval(point.specificity),
    }
    observed = {metric: _rate(scored, before, name, positive=metric == "sensitivity") for metric in reference}
    changed = fit.operating_points.get(name)
    return PointAcceptance(
        threshold=point.threshold,
        reference=reference,
        tests={
            metric: compare_with_reference(interval, reference[metric], margin)
            for metric, interval in observed.items()
            if interval.value is not None
        },
        observed=observed,
        needed={metric: sample_size(interval, margin, target_power) for metric, interval in reference.items()},
        with_profile={metric: _rate(scored, after, name, positive=metric == "sensitivity") for metric in reference},
        profile_threshold=changed.threshold if changed else None,
    )


def _accepted(card: Card, scored: SiteImages, rejected: BoolArray) -> tuple[Interval | None, Interval | None]:
    """Return the fraction of images that the input checks accept, and that of the validation images."""
    if card.rejection_limits is None:
        return None, None
    rows = np.flatnonzero(~scored.excluded)
    observed = proportion(
        ~rejected[rows], [scored.patients[i] for i in rows.tolist()], reason="pixels, header or age exclude all images"
    )
    limits = card.rejection_limits.rejected
    return observed, Interval(1 - limits.value, 1 - limits.high, 1 - limits.low, limits.method, limits.n)


def _verdict(tests: Sequence[NonInferiority]) -> Verdict:
    verdicts = {test.verdict for test in tests}
    if "inferior" in verdicts:
        return "inferior"
    return "non_inferior" if len(tests) >= 2 and verdicts == {"non_inferior"} else "inconclusive"


def _auroc(scored: SiteImages, rows: BoolArray) -> Interval:
    labels = scored.labels[rows]
    if labels.all() or not labels.any():
        return undefined("there are accepted images of one label only", n=len(labels), method="delong")
    patients = [scored.patients[i] for i in np.flatnonzero(rows).tolist()]
    return auroc_interval(scored.logits[rows], labels, patients)


def _calibration(scored: SiteImages, rows: BoolArray, probabilities: FloatArray, seed: int) -> CalibrationSummary:
    labels = scored.labels[rows]
    patients = [scored.patients[i] for i in np.flatnonzero(rows).tolist()]
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


def _youden(decisions: BoolArray, labels: BoolArray) -> float:
    if labels.all() or not labels.any():
        return 0.0
    return float(decisions[labels].mean() - decisions[~labels].mean())


def _subgroups(
    card: Card, name: str, scored: SiteImages, rejected: BoolArray, headers: Sequence[HeaderFields | None]
) -> tuple[Subgroup, ...]:
    """Return the subgroups of each header field that some image states."""
    values: dict[str, list[str]] = {
        "age": [_age_group(header) for header in headers],
        "sex": [header.sex if header else "" for header in headers],
        "view": [header.view if header else "" for header in headers],
        "manufacturer": [header.manufacturer if header else "" for header in headers],
    }
    outputs = dataclasses.replace(outputs_with(card, scored), rejected=rejected)
    subgroups = []
    for field, column in values.items():
        if not any(column):
            continue
        for value in sorted(set(column), key=lambda value: (not value, value)):
            rows = np.array([each == value for each in column])
            part = scored.subset(rows)
            inside = CrossFitted(rejected[rows], outputs.probabilities[rows], {name: outputs.decisions[name][rows]})
            subgroups.append(
                Subgroup(
                    field=field,
                    value=value or "not stated",
                    n=int(rows.sum()),
                    n_pneumonia=int(part.labels.sum()),
                    rejected=proportion(rejected[rows], part.patients),
                    sensitivity=_rate(part, inside, name, positive=True),
                    specificity=_rate(part, inside, name, positive=False),
                    auroc=_auroc(part, ~rejected[rows]),
                )
            )
    return tuple(subgroups)


def _age_group(header: HeaderFields | None) -> str:
    if header is None or header.age is None or header.age.years is None:
        return ""
    years = header.age.years
    return next(label for start, label in reversed(_AGE_GROUPS) if years >= start)

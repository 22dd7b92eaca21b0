"""Render the model card of a bundle as Markdown from its card and `evidence` files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from pneumoscope.bundle.bundle_folder import is_included, read_any_bundle
from pneumoscope.bundle.card import Card, InputCheck, Proportion, RejectionLimits
from pneumoscope.bundle.evidence import Json, images_text, interval_text, read_evidence, unusable_images
from pneumoscope.bundle.model_card_measurements import (
    data_shortcuts,
    markdown_table,
    measurement_sections,
    performance_sections,
    reliability_table,
)
from pneumoscope.bundle.model_card_texts import INTENDED_USE, INTENDED_USERS, how_to_use, out_of_scope, purpose
from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.bundle.multiclass_model_card import class_failures, class_probability_sections, class_sections
from pneumoscope.core.errors import BundleError
from pneumoscope.core.prediction_messages import notice, population_sentence
from pneumoscope.core.result_forms import with_minus_signs

__all__ = ["expected_structure", "model_card"]

_CHECK_NAMES: dict[InputCheck, str] = {
    "input_classifier": "input classifier",
    "age_classifier": "age classifier",
    "ood_detector": "OOD detector",
}
_NO_LICENSE = "Not stated. Weights are derived from the images that they were trained on, and their license may apply."
_LICENSE = (
    "Weights that ship with pneumoscope are licensed under Apache-2.0. Weights trained on the public pediatric radiographs are"
    " derived from data by Kermany, Zhang and Goldbaum, Mendeley Data, doi:10.17632/rscbjbr9sj, licensed under CC BY 4.0."
)


def model_card(folder: Path, evaluation: Path | None = None) -> str:
    """Return the model card of a bundle as Markdown.

    Args:
        folder: Folder of the bundle.
        evaluation: See `evidence.read_evidence`.

    Raises:
        BundleError: See `bundle_folder.read_any_bundle` and `evidence.read_evidence`; or an evidence file has an unexpected
            structure.
    """
    card, _ = read_any_bundle(folder)
    evidence = read_evidence(folder, card, evaluation)
    with expected_structure(folder):
        sections = _sections(card, evidence)
    return "\n\n".join(sections) + "\n"


@contextlib.contextmanager
def expected_structure(folder: Path) -> Iterator[None]:
    """Convert exceptions caused by evidence of an unexpected structure to BundleError.

    Args:
        folder: Folder of the bundle.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, msgspec.MsgspecError) as error:
        raise BundleError(
            f"the evidence in {str(folder / 'evidence')!r} has an unexpected structure ({type(error).__name__}: {error})",
            hint="Remove it, or measure again",
        ) from error


def _sections(card: Card | MulticlassCard, evidence: Mapping[str, Json | None]) -> list[str]:
    evaluation, robustness = evidence["evaluation"], evidence["robustness"]
    start = [f"# Model card: {card.name}", notice(card.population), *_intended_use(card)]
    if isinstance(card, Card):
        sections = [
            *performance_sections(evaluation, robustness),
            *_operating_points(card, evaluation),
            *_probability(card, evaluation),
            *_rejection(card, evaluation, robustness),
            *measurement_sections(**{name: found for name, found in evidence.items() if name != "evaluation"}),
        ]
    else:
        sections = [
            *class_sections(evaluation),
            *class_failures(evaluation),
            *class_probability_sections(card, evaluation),
            *_rejection(card, evaluation, None),
            *data_shortcuts(evidence["audit"]),
        ]
    return [*start, *sections, *_network(card), "## License", _LICENSE if is_included(card) else _NO_LICENSE]


def _intended_use(card: Card | MulticlassCard) -> list[str]:
    ages = ""
    if card.age_range:
        ages = f" Images that state an age outside {card.age_range[0]:g} to {card.age_range[1]:g} years are rejected."
    rows = [
        ("purpose", f"The model {purpose(card)}."),
        ("intended use", INTENDED_USE),
        ("users", INTENDED_USERS),
        ("population", f"{population_sentence(card.population)}{ages}"),
        ("not for", out_of_scope(card)),
        ("before use", how_to_use(card)),
    ]
    return ["## Intended use and limits", markdown_table(("", ""), rows)]


def _network(card: Card | MulticlassCard) -> list[str]:
    counts = {
        split: ", ".join(f"{n:,} {label}" for label, n in labels.items()) for split, labels in card.counts.items()
    }
    preprocessing = card.preprocessing
    crop = (
        "resized to a square" if preprocessing.crop == "squash" else "cropped to the central square, resized to a side"
    )
    rows = [
        ("network", f"{card.network}, {card.parameters:,} parameters, {card.onnx_bytes / 1e6:.1f} MB"),
        ("SHA-256 of the network file", f"`{card.onnx_sha256}`"),
        ("created", f"{card.created} by pneumoscope {card.version}"),
        (
            "input",
            f"grayscale image, {crop} of {preprocessing.size} pixels (preprocessing version {preprocessing.version})",
        ),
        *((f"images, {split or 'no split'}", text) for split, text in counts.items()),
        ("validation split by", card.split_by),
        ("SHA-256 of the manifest", f"`{card.manifest_sha256}`"),
        ("seed", str(card.seed)),
        ("epoch of the weights", str(card.best_epoch)),
        ("trained on", ", ".join(f"{name} {value}" for name, value in card.machine.items())),
        (
            "exported network compared with PyTorch",
            f"logits differ by at most {card.parity.largest:.1e} (relative) on {card.parity.images} images",
        ),
    ]
    recipe = "\n".join(
        f"{table}.{key} = {value}"
        for table, fields in card.recipe.items()
        if isinstance(fields, Mapping)
        for key, value in fields.items()
    )
    return [
        "## Network and training",
        markdown_table(("", ""), rows),
        *(["Recipe:", f"```text\n{recipe}\n```"] if recipe else []),
    ]


def _operating_points(card: Card, evaluation: Json | None) -> list[str]:
    rows = [
        (
            name,
            f"{point.threshold:.4g}",
            point.rule_text(),
            _proportion(point.sensitivity),
            _proportion(point.specificity),
        )
        for name, point in card.operating_points.items()
    ]
    sections = [
        "## Operating points",
        "An image is classified as pneumonia if its score (before calibration) is at or above the threshold. The thresholds were"
        " chosen on validation images, so the metrics on these images are optimistic; the metrics on test images follow below.",
        markdown_table(("name", "threshold", "rule", "sensitivity, validation", "specificity, validation"), rows),
    ]
    if evaluation:
        rows = []
        for name, point in evaluation["operating_points"].items():
            confusion = point["confusion"]
            rows.append(
                (
                    name,
                    *(interval_text(point["metrics"][metric]) for metric in ("sensitivity", "specificity", "accuracy")),
                    f"{confusion['tp']} of {confusion['tp'] + confusion['fn']}",
                    f"{confusion['tn']} of {confusion['tn'] + confusion['fp']}",
                )
            )
        heading = ("name", "sensitivity", "specificity", "accuracy", "true positives", "true negatives")
        sections += [f"On {images_text(evaluation)}:", markdown_table(heading, rows)]
    return sections


def _probability(card: Card, evaluation: Json | None) -> list[str]:
    calibration = card.calibration
    method = (
        f"calibrated by Platt scaling on {calibration.n} validation images: slope {calibration.slope:.3f}, intercept"
        f" {with_minus_signs(f'{calibration.intercept:.3f}')}"
        if calibration.method == "platt"
        else "the score itself, without calibration"
    )
    odds = (1 - calibration.prevalence) / calibration.prevalence
    factor = "" if odds == 1 else f"{odds:.3g} x "
    sections = [
        "## Probability and uncertainty",
        f"The probability is {method}. It refers to a prevalence of pneumonia of {calibration.prevalence:.0%}. For another"
        f" prevalence q, multiply the odds, p / (1 - p), by {factor}q / (1 - q). Decisions do not depend on the prevalence.",
    ]
    if evaluation:
        error = evaluation["metrics"]["expected_calibration_error"]
        sections.append(f"Expected calibration error on {images_text(evaluation)}: {interval_text(error)}.")
        if bins := evaluation.get("reliability"):
            sections.append(reliability_table(bins, "pneumonia"))
    if card.intervals:
        sections.append(
            f"The interval of the probability is a Venn-Abers prediction from {card.intervals.n} validation images."
        )
    for name, point in card.operating_points.items():
        band = point.uncertainty_band
        if not band:
            continue
        sections.append(
            f"At the operating point {name}, images with scores from {band.low:.4g} to {band.high:.4g} are classified as"
            f" uncertain: split conformal prediction for each label, coverage {band.coverage:.0%}, from {band.n_normal} normal"
            f" images and {band.n_pneumonia} pneumonias."
        )
        measured = evaluation and evaluation["operating_points"].get(name, {}).get("uncertainty_band")
        if evaluation and measured:
            rows = [
                (label, interval_text(row["covered"]), interval_text(row["uncertain"]))
                for label, row in measured.items()
            ]
            sections += [
                f"On {images_text(evaluation)}:",
                markdown_table(("label", "correct or uncertain", "uncertain"), rows),
            ]
    return sections


def _rejection(card: Card | MulticlassCard, evaluation: Json | None, robustness: Json | None) -> list[str]:
    sections = [
        "## Rejected images",
        "Every bundle rejects images that are blank, in color, too small or too narrow for a chest radiograph.",
    ]
    limits = card.rejection_limits
    if limits is None:
        sections.append("This bundle has no input checks beyond that: it gives a probability for any photograph.")
    else:
        classes = ", ".join(name.replace("_", " ") for name in limits.input_classes[1:])
        sections += [
            f"An input classifier distinguishes upright chest radiographs from other images ({classes}). An image is rejected if"
            f" its probability of being upright is below {limits.min_upright:.3f}.",
            *_age_classifier(limits, card.age_range),
            "An out-of-distribution detector measures the Mahalanobis distance of an image's features from those of the training"
            " images, in a network that was not trained on radiographs; training images have a distance of about 1. An image is"
            f" rejected if its distance is above {limits.max_distance:.2f}.",
            f"The limits were set to reject at most {_shares(limits)} of mildly augmented validation images.{_floors(limits)} Of"
            f" the original validation images, together they reject {_proportion(limits.rejected)}.",
            *_outliers(limits),
        ]
    if card.age_range:
        sections.append(
            f"An image is rejected if its header states an age outside {card.age_range[0]:g} to {card.age_range[1]:g} years."
            " Most image files state no age: they get a prediction with a warning if they pass the other checks, and"
            f" `--require-age always` rejects them.{_risk_without_age(limits)}"
        )
    if evaluation and evaluation.get("rejected"):
        rejected = evaluation["rejected"]
        codes = "; ".join(f"{code.replace('_', ' ')} ({count})" for code, count in rejected["reasons"].items())
        sections.append(
            f"Of {images_text(evaluation)}, it rejects {interval_text(rejected['share'])}"
            + (f": {codes}." if codes else ".")
        )
    if robustness:
        rows = [
            (row["name"], str(row["rejected"]["n"]), interval_text(row["rejected"]), str(row["predicted_pneumonia"]))
            for row in unusable_images(robustness)
        ]
        sections.append(
            markdown_table(("images that should be rejected", "n", "rejected", "classified as pneumonia"), rows)
        )
    return sections


def _age_classifier(limits: RejectionLimits, age_range: tuple[float, float] | None) -> list[str]:
    if limits.max_age_score is None or age_range is None:
        return []
    return [
        f"An age classifier estimates from the image whether the patient is outside {age_range[0]:g} to {age_range[1]:g} years."
        " It was trained by outlier exposure, with images of other patients. An image is rejected if its score, 0 to 1, is above"
        f" {limits.max_age_score:.3f}."
    ]


def _shares(limits: RejectionLimits) -> str:
    age = "" if limits.age_share is None else f", {limits.age_share:.1%} (age)"
    return f"{limits.classifier_share:.1%} (input classifier){age} and {limits.distance_share:.1%} (distance)"


def _floors(limits: RejectionLimits) -> str:
    """Return a sentence that lists the limits capped at 0.5, or "" if there are none."""
    floors = [
        *(["a probability of being upright of at least 0.5"] if limits.min_upright <= 0.5 else []),
        *(["an age score of at most 0.5"] if (limits.max_age_score or 0) >= 0.5 else []),
    ]
    if not floors:
        return ""
    text = " and ".join(floors)
    return f" {text[0].upper()}{text[1:]} always pass{'es' if len(floors) == 1 else ''}."


def _outliers(limits: RejectionLimits) -> list[str]:
    if not limits.outliers:
        return [
            "**This card has no figures on images of patients outside the population that pass these checks**: expect confident"
            " predictions for some of them."
        ]
    rows = [
        (
            name,
            f"{group.n_train:,}",
            _proportion(group.passed) if group.passed else "no other patients",
            *(_share(group.passed_alone.get(check)) for check in _CHECK_NAMES),
        )
        for name, group in limits.outliers.items()
    ]
    return [
        "Images of patients outside the age range that would pass all checks and receive a prediction. Where known, these"
        " patients were not used to train the age classifier; the hospitals are the same, and images of other hospitals may pass"
        " more often. The last columns show the fraction that would pass one check alone.",
        markdown_table(("source", "images in training", "passed, other patients", *_CHECK_NAMES.values()), rows),
        *_contributions(limits),
    ]


def _contributions(limits: RejectionLimits) -> list[str]:
    """Return how many images of all sources pass each check on its own, or an empty list if not measured."""
    parts = []
    for check, name in _CHECK_NAMES.items():
        alone = [found for group in limits.outliers.values() if (found := group.passed_alone.get(check))]
        if alone:
            passed = sum(round(each.value * each.n) for each in alone)
            parts.append(f"the {name}, {passed} of {sum(each.n for each in alone)} would pass")
    if not parts:
        return []
    return [f"With only {'; with only '.join(parts)}. Only the age classifier was trained on such patients."]


def _risk_without_age(limits: RejectionLimits | None) -> str:
    """Return how many images of patients outside the age range passed all checks, or "" if not measured."""
    measured = {} if limits is None else {name: group.passed for name, group in limits.outliers.items() if group.passed}
    if not measured:
        return ""
    counts = ", ".join(
        f"{round(each.value * each.n)} of {each.n} ({name}; 95% interval up to {each.high:.1%})"
        for name, each in measured.items()
    )
    return (
        f" The measured risk of such a prediction for a patient of another age: {counts}; for patients of other hospitals it is"
        " unknown."
    )


def _share(proportion: Proportion | None) -> str:
    return "" if proportion is None else f"{proportion.value:.3f}"


def _proportion(proportion: Proportion) -> str:
    return f"{proportion.value:.3f} [{proportion.low:.3f}, {proportion.high:.3f}], n = {proportion.n}"

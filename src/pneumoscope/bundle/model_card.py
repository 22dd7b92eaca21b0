"""Render the model card of a bundle as Markdown, entirely from the bundle's own files.

Measurements made after the export are in the bundle's folder `evidence/`, as the commands wrote them: `evaluation.json`
(`evaluate`), `robustness.json` (`robustness`), `shortcuts.json` (`shortcuts`), `saliency_check.json` (`saliency-check`) and
`audit.json` (`check-data --json`). The page states which of them are missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import Card, InputCheck, Proportion, RejectionLimits
from pneumoscope.core.errors import BundleError
from pneumoscope.core.prediction_messages import notice

__all__ = ["EVIDENCE", "Json", "model_card", "read_evidence"]

# Command that writes each evidence file.
EVIDENCE = {
    "evaluation": "pneumoscope evaluate BUNDLE --data DATA --out BUNDLE/evidence",
    "robustness": "pneumoscope robustness BUNDLE --data MANIFEST --out BUNDLE/evidence",
    "shortcuts": "pneumoscope shortcuts BUNDLE --data MANIFEST --out BUNDLE/evidence",
    "saliency_check": "pneumoscope saliency-check BUNDLE --data MANIFEST --out BUNDLE/evidence",
    "phantom_saliency_check": "pneumoscope saliency-check PHANTOM_RUN --data PHANTOMS --masks MASKS --json"
    " > BUNDLE/evidence/phantom_saliency_check.json",
    "audit": "pneumoscope check-data DATA --json > BUNDLE/evidence/audit.json",
}
_ETIOLOGIES = {
    "normal": "normal images",
    "bacteria": "images of bacterial pneumonia",
    "virus": "images of viral pneumonia",
}
_MAX_FAILURES = 8
_CHECK_NAMES: dict[InputCheck, str] = {
    "input_classifier": "input classifier",
    "age_classifier": "age classifier",
    "ood_detector": "OOD detector",
}
_LICENSE = (
    "Weights that ship with pneumoscope are licensed under Apache-2.0. Weights trained on the public pediatric radiographs are"
    " derived from data by Kermany, Zhang and Goldbaum, Mendeley Data, doi:10.17632/rscbjbr9sj, licensed under CC BY 4.0."
)

Json = Mapping[str, Any]


def model_card(folder: Path) -> str:
    """Return the model card of a bundle as Markdown.

    Args:
        folder: Folder of the bundle.

    Raises:
        BundleError: See `read_bundle`; or an evidence file is not JSON, belongs to another bundle or has another structure.
    """
    card, _ = read_bundle(folder)
    evidence = read_evidence(folder, card)
    try:
        sections = _sections(card, **evidence)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"the evidence in {str(folder / 'evidence')!r} has an unexpected structure ({type(error).__name__}: {error})",
            hint="Remove it, or measure again",
        ) from error
    return "\n\n".join(sections) + "\n"


def read_evidence(folder: Path, card: Card) -> dict[str, Json | None]:
    """Return the measurements in the folder of a bundle by name of `EVIDENCE`; None for those that are missing.

    Raises:
        BundleError: A file is not JSON, or belongs to another bundle.
    """
    return {name: _read_evidence(folder / "evidence" / f"{name}.json", card) for name in EVIDENCE}


def _sections(
    card: Card,
    *,
    evaluation: Json | None,
    robustness: Json | None,
    shortcuts: Json | None,
    saliency_check: Json | None,
    phantom_saliency_check: Json | None,
    audit: Json | None,
) -> list[str]:
    return [
        f"# Model card: {card.name}",
        notice(card.population),
        *_overview(card),
        *_operating_points(card, evaluation),
        *_probability(card, evaluation),
        *_rejection(card, evaluation, robustness),
        *_performance(evaluation),
        *_subgroups(evaluation),
        *_robustness(robustness),
        *_heatmaps(saliency_check),
        *_localization(phantom_saliency_check),
        *_network_shortcuts(shortcuts),
        *_data_shortcuts(audit),
        *_failures(evaluation, robustness),
        "## License",
        _LICENSE,
    ]


def _read_evidence(path: Path, card: Card) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    hint = f"Measure again: {EVIDENCE[path.stem]}"
    try:
        evidence = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read the evidence {str(path)!r}: {error}", hint=hint) from error
    if not isinstance(evidence, dict):
        raise BundleError(f"the evidence {str(path)!r} is not a JSON object", hint=hint)
    if evidence.get("site"):
        raise BundleError(
            f"the evidence {str(path)!r} was measured with the site profile {evidence['site']!r}", hint=hint
        )
    if path.stem == "phantom_saliency_check":  # of a network with the same architecture, trained on phantoms
        if evidence.get("network", card.network) != card.network:
            raise BundleError(
                f"the evidence {str(path)!r} is of the network {evidence.get('network')}, not {card.network}", hint=hint
            )
        return evidence
    sha256 = evidence.get("bundle_sha256", evidence.get("onnx_sha256", card.onnx_sha256))
    if sha256 != card.onnx_sha256:
        raise BundleError(
            f"the evidence {str(path)!r} belongs to the network {str(sha256)[:16]}, not to this one,"
            f" {card.onnx_sha256[:16]}",
            hint=hint,
        )
    return evidence


def _overview(card: Card) -> list[str]:
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
    return ["## Overview", _table(("", ""), rows), *(["Recipe:", f"```text\n{recipe}\n```"] if recipe else [])]


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
        _table(("name", "threshold", "rule", "sensitivity, validation", "specificity, validation"), rows),
    ]
    if evaluation:
        rows = []
        for name, point in evaluation["operating_points"].items():
            confusion = point["confusion"]
            rows.append(
                (
                    name,
                    *(_interval(point["metrics"][metric]) for metric in ("sensitivity", "specificity", "accuracy")),
                    f"{confusion['tp']} of {confusion['tp'] + confusion['fn']}",
                    f"{confusion['tn']} of {confusion['tn'] + confusion['fp']}",
                )
            )
        heading = ("name", "sensitivity", "specificity", "accuracy", "true positives", "true negatives")
        sections += [f"On {_images(evaluation)}:", _table(heading, rows)]
    return sections


def _probability(card: Card, evaluation: Json | None) -> list[str]:
    calibration = card.calibration
    method = (
        f"calibrated by Platt scaling on {calibration.n} validation images: slope {calibration.slope:.3f}, intercept"
        f" {calibration.intercept:.3f}"
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
        sections.append(f"Expected calibration error on {_images(evaluation)}: {_interval(error)}.")
        if bins := evaluation.get("reliability"):
            rows = [
                (
                    f"{each['low']:.3f} to {each['high']:.3f}",
                    f"{each['mean_probability']:.3f}",
                    _interval(each["observed_rate"]),
                )
                for each in bins
            ]
            sections.append(_table(("probability", "mean", "observed rate of pneumonia [95% interval]"), rows))
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
            rows = [(label, _interval(row["covered"]), _interval(row["uncertain"])) for label, row in measured.items()]
            sections += [f"On {_images(evaluation)}:", _table(("label", "correct or uncertain", "uncertain"), rows)]
    return sections


def _rejection(card: Card, evaluation: Json | None, robustness: Json | None) -> list[str]:
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
            f"The limits were set to reject at most {_shares(limits)} of mildly augmented validation images. Of the original"
            f" validation images, together they reject {_proportion(limits.rejected)}.",
            *_outliers(limits),
        ]
    if card.age_range:
        sections.append(
            f"An image is rejected if its header states an age outside {card.age_range[0]:g} to {card.age_range[1]:g} years."
            " Most image files state no age; `--require-age always` rejects them."
        )
    if evaluation and evaluation.get("rejected"):
        rejected = evaluation["rejected"]
        codes = "; ".join(f"{code.replace('_', ' ')} ({count})" for code, count in rejected["reasons"].items())
        sections.append(
            f"Of {_images(evaluation)}, it rejects {_interval(rejected['share'])}" + (f": {codes}." if codes else ".")
        )
    if robustness:
        rows = [
            (row["name"], str(row["rejected"]["n"]), _interval(row["rejected"]), str(row["predicted_pneumonia"]))
            for row in _unusable_images(robustness)
        ]
        sections.append(_table(("images that should be rejected", "n", "rejected", "classified as pneumonia"), rows))
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


def _outliers(limits: RejectionLimits) -> list[str]:
    if not limits.outliers:
        return [
            "**How many images of patients outside the population pass these checks has not been measured**: expect confident"
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
        "Images of patients outside the age range that pass all checks, and would get a prediction. The patients are others than"
        " those that the age classifier was trained on, as far as they are known; the hospitals are the same, and images of"
        " other hospitals may pass more often. The last columns state how many would pass one check alone.",
        _table(("source", "images in training", "passed, other patients", *_CHECK_NAMES.values()), rows),
    ]


def _share(proportion: Proportion | None) -> str:
    return "" if proportion is None else f"{proportion.value:.3f}"


def _performance(evaluation: Json | None) -> list[str]:
    if not evaluation:
        return ["## Performance", f"Not measured yet: `{EVIDENCE['evaluation']}`."]
    rows = [(name.replace("_", " "), _interval(value)) for name, value in evaluation["metrics"].items()]
    rows += [
        (f"AUROC, {_ETIOLOGIES.get(name, name)}", _interval(value))
        for name, value in evaluation["auroc_by_etiology"].items()
    ]
    number = evaluation.get("test_evaluation")
    ledger = f" This is evaluation number {number} on these test images." if number else ""
    return ["## Performance", f"On {_images(evaluation)}.{ledger}", _table(("", "value [95% interval]"), rows)]


def _subgroups(evaluation: Json | None) -> list[str]:
    if not evaluation:
        return []
    rows = [
        (name, _ETIOLOGIES.get(etiology, etiology), _interval(correct))
        for name, point in evaluation["operating_points"].items()
        for etiology, correct in point["by_etiology"].items()
    ]
    table = [_table(("operating point", "images", "classified correctly [95% interval]"), rows)] if rows else []
    return [
        "## Subgroups",
        "Evaluations have no subgroups by age or sex: image files such as JPEG state neither. `pneumoscope accept` lists"
        " subgroups by age, sex, view and manufacturer for DICOM files.",
        *table,
    ]


def _heatmaps(check: Json | None) -> list[str]:
    if not check:
        return ["## Heatmaps", f"Not measured yet: `{EVIDENCE['saliency_check']}`."]
    rows = [
        (name, *(_interval(check[name][column]) for column in ("heatmap", "random", "improvement")))
        for name in ("deletion", "insertion")
    ]
    randomized = [
        (row["name"], _interval(row["correlation"]), _interval(row["magnitude_correlation"]))
        for row in check["randomization"]
    ]
    shape = " x ".join(str(side) for side in check["heatmap_shape"])
    return [
        "## Heatmaps",
        f"{shape} positions, on {check['n']} {check['split']} images. Area under the curve of the predicted class's score when"
        " pixels are removed (deletion, lower is better) or added (insertion, higher is better) in the order of the heatmap, and"
        " of random heatmaps with the same power spectrum. No expert has marked the disease on these images, so that nothing"
        " shows whether heatmaps lie on it.",
        _table(("curve", "heatmap", "random heatmap", "improvement"), rows),
        "Rank correlation with the heatmaps after layers were randomized; near 0 is expected. Correlations of magnitudes are to"
        " be compared with that of another image, in the last row:",
        _table(("randomized", "correlation", "correlation of magnitudes"), randomized),
    ]


def _localization(check: Json | None) -> list[str]:
    if not check:
        return ["### Localization on phantoms", f"Not measured yet: `{EVIDENCE['phantom_saliency_check']}`."]
    found = check["localization"]
    rows = [
        ("largest contribution inside the opacity", _interval(found["peak_inside"])),
        ("positive contributions inside the opacity", _interval(found["energy_inside"])),
        ("expected by chance (area of the opacity)", _interval(found["area"])),
    ]
    shape = " x ".join(str(side) for side in check["heatmap_shape"])
    return [
        "### Localization on phantoms",
        f"The position of the opacity in a phantom is known. A network with the same architecture was trained on phantoms alone;"
        f" its heatmaps have {shape} positions. On {found['n']} phantoms of the {check['split']} split:",
        _table(("on phantoms", "value [95% interval]"), rows),
        f"`{check['command']}`",
    ]


def _robustness(robustness: Json | None) -> list[str]:
    if not robustness:
        return ["## Robustness", f"Not measured yet: `{EVIDENCE['robustness']}`."]
    rows = []
    sizes = [robustness["sizes"]] if robustness["sizes"] else []
    for row in [*sizes, *robustness["formats"], *robustness["changes"]]:
        largest = "none" if row["largest"] is None else f"{row['largest']:.3f}"
        rows.append((row["name"], _interval(row["changed"]), largest))
    return [
        "## Robustness",
        f"On {robustness['n']} {robustness['split']} images; the full-size images are a separate set.",
        _table(("variant of the same image", "changed decisions", "largest change of probability"), rows),
    ]


def _network_shortcuts(shortcuts: Json | None) -> list[str]:
    if not shortcuts:
        return ["## Shortcuts of the network", f"Not measured yet: `{EVIDENCE['shortcuts']}`."]
    rows = [("whole image", _interval(shortcuts["whole"]))]
    rows += [(row["name"], _interval(row["auroc"])) for row in shortcuts["controls"]]
    return [
        "## Shortcuts of the network",
        f"AUROC of the network on {shortcuts['n']} {shortcuts['split']} images, split by {shortcuts['split_by']}, of which it"
        " sees a part. With the center blanked, 0.5 is chance; above it, the network can use the border, markers or the scanner.",
        _table(("the network sees", "AUROC [95% interval]"), rows),
    ]


def _data_shortcuts(audit: Json | None) -> list[str]:
    if not audit:
        return ["## Shortcuts in the data", f"Not measured yet: `{EVIDENCE['audit']}`."]
    rows = [(name.replace("_", " "), _interval(value)) for name, value in audit["shortcuts"].items()]
    return [
        "## Shortcuts in the data",
        "Cross-validated AUROC of simple models that see no lung; 0.5 is chance. A network trained on the data may have learned"
        " the same shortcuts.",
        _table(("control", "AUROC [95% interval]"), rows),
    ]


def _failures(evaluation: Json | None, robustness: Json | None) -> list[str]:
    """Return the largest error rates of all measurements, in descending order."""
    failures: list[tuple[float, str]] = []
    for name, point in (evaluation or {}).get("operating_points", {}).items():
        for etiology, correct in point["by_etiology"].items():
            if correct["value"] is not None:
                rate = 1 - correct["value"]
                text = f"{rate:.1%} of the {correct['n']} {_ETIOLOGIES[etiology]} are misclassified."
                failures.append((rate, f"At the operating point {name}, {text}"))
    for row in (robustness or {}).get("changes", []):
        rate = row["changed"]["value"]
        failures.append((rate, f"{rate:.1%} of decisions change if the image is altered: {row['name']}."))
    for row in _unusable_images(robustness) if robustness else []:
        rate = 1 - row["rejected"]["value"]
        text = f"{rate:.1%} of {row['rejected']['n']} images that should be rejected ({row['name']}) are not rejected."
        failures.append((rate, text))
    worst = sorted(failures, key=lambda failure: -failure[0])[:_MAX_FAILURES]
    lines = [f"- {text}" for rate, text in worst if rate > 0]
    if not lines:
        return []
    return ["## Known failures", "The highest error rates of all measurements above:", "\n".join(lines)]


def _unusable_images(robustness: Json) -> list[Json]:
    return [*robustness["corruptions"], *robustness["other_images"]]


def _images(evaluation: Json) -> str:
    counts = ", ".join(f"{n} {label}" for label, n in evaluation["counts"].items())
    return f"{evaluation['n']} {evaluation['split']} images ({counts}; {evaluation['patients']} patients)"


def _interval(interval: Json) -> str:
    if interval["value"] is None:
        return f"undefined: {interval['reason']}"
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _proportion(proportion: Proportion) -> str:
    return f"{proportion.value:.3f} [{proportion.low:.3f}, {proportion.high:.3f}], n = {proportion.n}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)

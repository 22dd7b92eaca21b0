"""The model card for people: all of it read from the bundle, none of it typed.

What was measured after the bundle was made lies beside it in `evidence/`, as the commands wrote it: `evaluation.json`
(`evaluate`), `robustness.json` (`robustness`) and `audit.json` (`check-data --json`). What is not there is said to be
missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumoscope.bundle.card import Card, Share, read_bundle
from pneumoscope.core.errors import BundleError
from pneumoscope.core.i18n import NOTICE

__all__ = ["EVIDENCE", "model_card"]

# Where each measurement lies, and what makes it.
EVIDENCE = {
    "evaluation": "pneumoscope evaluate BUNDLE --data DATA --out BUNDLE/evidence",
    "robustness": "pneumoscope robustness BUNDLE --data MANIFEST --out BUNDLE/evidence",
    "audit": "pneumoscope check-data DATA --json > BUNDLE/evidence/audit.json",
}
_KINDS = {"normal": "normal images", "bacteria": "bacterial pneumonias", "virus": "viral pneumonias"}
_ATTRIBUTION = (
    "Weights that ship with pneumoscope are licensed under Apache-2.0. Where weights were learned from the public radiographs of"
    " children, those are by Kermany, Zhang and Goldbaum, Mendeley Data, doi:10.17632/rscbjbr9sj, licensed under CC BY 4.0."
)


def model_card(folder: Path) -> str:
    """The card of a bundle as Markdown.

    Args:
        folder: of the bundle.
    Raises:
        BundleError: see `read_bundle`; or evidence beside it is no JSON, of another bundle, or not as our commands write
            it.
    """
    card, _ = read_bundle(folder)
    evidence = {name: _read(folder / "evidence" / f"{name}.json", card) for name in EVIDENCE}
    try:
        parts = _parts(card, **evidence)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"the evidence in {str(folder / 'evidence')!r} is not what our commands write ({type(error).__name__}: {error})",
            hint="Remove it, or make it again",
        ) from error
    return "\n\n".join(parts) + "\n"


def _parts(
    card: Card, *, evaluation: dict[str, Any] | None, robustness: dict[str, Any] | None, audit: dict[str, Any] | None
) -> list[str]:
    return [
        f"# Model card: {card.name}",
        NOTICE,
        *_what(card),
        *_points(card, evaluation),
        *_probability(card, evaluation),
        *_refusals(card, evaluation, robustness),
        *_figures(evaluation),
        *_robustness(robustness),
        *_shortcuts(audit),
        *_failures(evaluation, robustness),
        "## Licence",
        _ATTRIBUTION,
    ]


def _read(path: Path, card: Card) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{str(path)!r} is no evidence: {error}", hint=f"Make it again: {EVIDENCE[path.stem]}"
        ) from error
    of = found.get("bundle_sha256", found.get("onnx_sha256", card.onnx_sha256)) if isinstance(found, dict) else None
    if of != card.onnx_sha256:
        raise BundleError(
            f"{str(path)!r} is of the network {str(of)[:16]}, not of this one, {card.onnx_sha256[:16]}",
            hint=f"Make it again: {EVIDENCE[path.stem]}",
        )
    return dict(found)


def _what(card: Card) -> list[str]:
    counts = {name: ", ".join(f"{n:,} {label}" for label, n in of.items()) for name, of in card.counts.items()}
    preprocessing = card.preprocessing
    how = "stretched to a square" if preprocessing.crop == "squash" else "cut to the square of its short side"
    rows = [
        ("network", f"{card.network}, {card.parameters:,} parameters, {card.onnx_bytes / 1e6:.1f} MB"),
        ("SHA-256 of the network file", f"`{card.onnx_sha256}`"),
        ("made", f"{card.created} by pneumoscope {card.version}"),
        (
            "takes",
            f"one image in grey, {how} of {preprocessing.size} pixels (version {preprocessing.version} of the preprocessing)",
        ),
        *((f"images, {name or 'no split'}", text) for name, text in counts.items()),
        ("validation images set apart by", card.split_by),
        ("SHA-256 of the manifest", f"`{card.manifest_sha256}`"),
        ("seed", str(card.seed)),
        ("epoch kept", str(card.best_epoch)),
        ("trained on", ", ".join(f"{name} {value}" for name, value in card.machine.items())),
        (
            "exported network against torch",
            f"{card.parity.largest:.1e} of the logit at most, on {card.parity.images} images",
        ),
    ]
    recipe = "\n".join(
        f"{table}.{key} = {value}" for table, fields in card.recipe.items() if isinstance(fields, Mapping)
        for key, value in fields.items()
    )  # fmt: skip
    return ["## What it is", _table(("", ""), rows), *(["The recipe:", f"```text\n{recipe}\n```"] if recipe else [])]


def _points(card: Card, evaluation: Mapping[str, Any] | None) -> list[str]:
    rows = [
        (name, f"{point.threshold:.4g}", point.rule_text(), _share(point.sensitivity), _share(point.specificity))
        for name, point in card.operating_points.items()
    ]
    parts = [
        "## Operating points",
        "An image is called pneumonia where its score, before calibration, is at the threshold or above. Thresholds were set on"
        " validation images and are kind to those: what they come to on test images stands below.",
        _table(("name", "threshold", "rule", "sensitivity, validation", "specificity, validation"), rows),
    ]
    if evaluation:
        rows = [
            (
                name,
                *(_interval(point["metrics"][metric]) for metric in ("sensitivity", "specificity", "accuracy")),
                "{tp} of {all}".format(
                    tp=point["confusion"]["tp"], all=point["confusion"]["tp"] + point["confusion"]["fn"]
                ),
                "{tn} of {all}".format(
                    tn=point["confusion"]["tn"], all=point["confusion"]["tn"] + point["confusion"]["fp"]
                ),
            )
            for name, point in evaluation["operating_points"].items()
        ]
        heading = ("name", "sensitivity", "specificity", "accuracy", "pneumonias found", "normal images cleared")
        parts += [f"On {_images(evaluation)}:", _table(heading, rows)]
    return parts


def _probability(card: Card, evaluation: Mapping[str, Any] | None) -> list[str]:
    made = card.calibration
    method = (
        f"Platt's logistic curve, fitted on {made.n} validation images: slope {made.slope:.3f}, intercept {made.intercept:.3f}"
        if made.method == "platt"
        else "the score itself; it was not calibrated"
    )
    parts = [
        "## Probability, and how sure it is",
        f"The probability is {method}. It is stated for images of which {made.prevalence:.0%} show pneumonia. Where another share"
        " s does, multiply its odds, p / (1 - p), by"
        f" {(1 - made.prevalence) / made.prevalence:.3g} s / (1 - s). Decisions do not depend on it.",
    ]
    if evaluation:
        error = evaluation["metrics"]["expected_calibration_error"]
        parts.append(f"Expected calibration error on {_images(evaluation)}: {_interval(error)}.")
    if card.intervals:
        parts.append(f"Its interval is by Venn-Abers prediction from {card.intervals.n} validation images.")
    for name, point in card.operating_points.items():
        uncertainty_band = point.uncertainty_band
        if not uncertainty_band:
            continue
        parts.append(
            f"At the operating point {name}, images with scores from {uncertainty_band.low:.4g} to {uncertainty_band.high:.4g} are called uncertain:"
            f" split-conformal for each label, coverage {uncertainty_band.coverage:.0%}, from {uncertainty_band.n_normal} normal images and"
            f" {uncertainty_band.n_pneumonia} pneumonias."
        )
        measured = evaluation and evaluation["operating_points"].get(name, {}).get("uncertainty_band")
        if evaluation and measured:
            rows = [(label, _interval(row["covered"]), _interval(row["uncertain"])) for label, row in measured.items()]
            parts += [
                f"On {_images(evaluation)}:",
                _table(("label", "called rightly or uncertain", "uncertain"), rows),
            ]
    return parts


def _refusals(card: Card, evaluation: Mapping[str, Any] | None, robustness: Mapping[str, Any] | None) -> list[str]:
    parts = [
        "## What it refuses",
        "Pictures that are blank, in colour, too small or too narrow for a chest are rejected by any bundle.",
    ]
    limits = card.rejection_limits
    if limits is None:
        parts.append(
            "This one knows nothing else that it should refuse: it will call a photograph normal or pneumonia."
        )
    else:
        parts.append(
            f"A second network tells images as they should be from other pictures ({', '.join(limits.input_classes[1:])}); below a"
            f" probability of {limits.min_upright:.3f} a picture is rejected."
        )
        parts.append(
            "An image is rejected, too, where what describes it (the middle of a network that was never trained on images) lies"
            f" farther from what describes the training images than {limits.max_distance:.2f} (Mahalanobis distance;"
            " training images are at about 1). It is the only guard against images of another population, such as adults for a"
            " network that learned from children; a short distance is no proof that an image is of the right one."
        )
        parts.append(
            f"Of validation images, each once a little askew and lit otherwise, at most {limits.classifier_share:.1%} were to be"
            f" rejected by the first and {limits.distance_share:.1%} by the second limit. Of them as they are it rejects"
            f" {_share(limits.rejected)}."
        )
    if card.age_range:
        parts.append(
            f"An image whose header states that the patient is not {card.age_range[0]:g} to {card.age_range[1]:g} years old is rejected. Most"
            " pictures state no age. **How many images of adults pass then has not been measured** on other images than the few at"
            " hand when this was chosen: expect a confident call on some."
        )
    if evaluation and evaluation.get("rejected"):
        refused = evaluation["rejected"]
        reasons = "; ".join(f"{reason} ({count})" for reason, count in refused["reasons"].items())
        parts.append(
            f"Of {_images(evaluation)} it refuses {_interval(refused['share'])}" + (f": {reasons}." if reasons else ".")
        )
    if robustness:
        rows = [
            (row["name"], str(row["rejected"]["n"]), _interval(row["rejected"]), str(row["predicted_pneumonia"]))
            for row in [*robustness["corruptions"], *robustness["other_images"]]
        ]
        parts.append(_table(("what should be rejected", "n", "rejected", "called pneumonia"), rows))
    return parts


def _figures(evaluation: Mapping[str, Any] | None) -> list[str]:
    if not evaluation:
        return ["## Figures", f"Not measured yet: `{EVIDENCE['evaluation']}`."]
    rows = [(name.replace("_", " "), _interval(value)) for name, value in evaluation["metrics"].items()]
    rows += [
        (f"AUROC, {_KINDS.get(name, name)}", _interval(value))
        for name, value in evaluation["auroc_by_etiology"].items()
    ]
    look = f" Look {evaluation['look']} at these images." if evaluation.get("look") else ""
    return ["## Figures", f"On {_images(evaluation)}.{look}", _table(("", "value [95% interval]"), rows)]


def _robustness(robustness: Mapping[str, Any] | None) -> list[str]:
    if not robustness:
        return ["## Robustness", f"Not measured yet: `{EVIDENCE['robustness']}`."]
    rows = []
    for row in [
        *([robustness["sizes"]] if robustness["sizes"] else []),
        *robustness["formats"],
        *robustness["changes"],
    ]:
        largest = "none" if row["largest"] is None else f"{row['largest']:.3f}"
        rows.append((row["name"], _interval(row["changed"]), largest))
    return [
        "## Robustness",
        f"On {robustness['n']} {robustness['split']} images; images at full size are others.",
        _table(("the same image as", "decisions changed", "largest change of probability"), rows),
    ]


def _shortcuts(audit: Mapping[str, Any] | None) -> list[str]:
    if not audit:
        return ["## Shortcuts in the data", f"Not measured yet: `{EVIDENCE['audit']}`."]
    rows = [(name.replace("_", " "), _interval(value)) for name, value in audit["shortcuts"].items()]
    return [
        "## Shortcuts in the data",
        "What a model that must not know the answer finds out from these, as cross-validated AUROC; 0.5 is nothing. A network"
        " trained on the data may have learned it too.",
        _table(("control", "AUROC [95% interval]"), rows),
    ]


def _failures(evaluation: Mapping[str, Any] | None, robustness: Mapping[str, Any] | None) -> list[str]:
    """What goes wrong most, in order."""
    found: list[tuple[float, str]] = []
    for name, point in (evaluation or {}).get("operating_points", {}).items():
        for etiology, share in point["by_etiology"].items():
            if share["value"] is not None:
                missed = 1 - share["value"]
                words = f"{missed:.1%} of the {share['n']} {_KINDS[etiology]} were called wrongly."
                found.append((missed, f"At the operating point {name}, {words}"))
    for row in (robustness or {}).get("changes", []):
        share = row["changed"]["value"]
        found.append((share, f"{share:.1%} of decisions changed on images {row['name']}."))
    for row in [*(robustness or {}).get("corruptions", []), *(robustness or {}).get("other_images", [])]:
        missed = 1 - row["rejected"]["value"]
        found.append(
            (
                missed,
                f"{missed:.1%} of {row['rejected']['n']} pictures that should be rejected ({row['name']}) were judged.",
            )
        )
    worst = [f"- {words}" for share, words in sorted(found, key=lambda each: -each[0])[:8] if share > 0]
    if not worst:
        return []
    return ["## Known failures", "The largest shares of errors of all that was measured above:", "\n".join(worst)]


def _images(evaluation: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{n} {label}" for label, n in evaluation["counts"].items())
    return f"{evaluation['n']} {evaluation['split']} images ({counts}; {evaluation['patients']} patients)"


def _interval(interval: Mapping[str, Any]) -> str:
    if interval["value"] is None:
        return f"none: {interval['reason']}"
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _share(share: Share) -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}], n = {share.n}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)

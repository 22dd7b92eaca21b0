"""Model card sections of multiclass bundles; see `model_card`."""

from __future__ import annotations

from pneumoscope.bundle.evidence import EVIDENCE, Json, images_text, interval_text
from pneumoscope.bundle.model_card_measurements import (
    failure_section,
    ledger_text,
    markdown_table,
    metric_rows,
    reliability_table,
    subgroup_table,
)
from pneumoscope.bundle.multiclass_card import MulticlassCard

__all__ = ["class_failures", "class_probability_sections", "class_sections"]

_NOT_MEASURABLE = (
    "Robustness, heatmaps and shortcuts of the network are not measured: `pneumoscope robustness`, `saliency-check` and"
    " `shortcuts` need a model for NORMAL and PNEUMONIA."
)
_SET_METRICS = {"coverage": "contain the class", "single": "one class", "empty": "no class", "mean_size": "mean size"}


def class_probability_sections(card: MulticlassCard, evaluation: Json | None) -> list[str]:
    """Return the sections on probabilities and prediction sets, including measurements of the evaluation."""
    calibration = card.calibration
    method = (
        f"the softmax of the logits divided by a temperature of {calibration.temperature:.3f}, which was fitted on"
        f" {calibration.n} validation images"
        if calibration.method == "temperature"
        else "the softmax of the logits, without calibration"
    )
    sections = [
        "## Probabilities and prediction sets",
        f"The classes are {', '.join(card.classes)}. Their probabilities are {method}. The most probable class is predicted.",
        *filter(None, [calibration.remark()]),
    ]
    if evaluation:
        error = interval_text(evaluation["metrics"]["expected_calibration_error"])
        sections.append(f"Expected calibration error of the highest probability on {images_text(evaluation)}: {error}.")
        for name, result in evaluation["by_class"].items():
            if bins := result["reliability"]:
                sections.append(reliability_table(bins, name))
    if card.prediction_sets is None:
        sections.append(f"There are no prediction sets: {card.reason_without_sets()}.")
        return sections
    sets = card.prediction_sets
    rows = [(name, f"{each.threshold:.4g}", str(each.n)) for name, each in sets.classes.items()]
    sections += [
        "A prediction set has all classes that stay possible: those with a probability at or above a threshold. Class-conditional"
        f" conformal prediction chose the thresholds on validation images, for a coverage of {sets.coverage:.0%} of each class.",
        markdown_table(("class", "threshold", "validation images"), rows),
    ]
    if evaluation and evaluation["sets"]:
        measured = [("all", evaluation["sets"])]
        measured += [(name, result["sets"]) for name, result in evaluation["by_class"].items() if result["sets"]]
        measurements = [(name, *(interval_text(each[metric]) for metric in _SET_METRICS)) for name, each in measured]
        sections += [
            f"Prediction sets on {images_text(evaluation)}:",
            markdown_table(("images of the class", *_SET_METRICS.values()), measurements),
        ]
    return sections


def class_sections(evaluation: Json | None) -> list[str]:
    """Return the sections on performance per class, and note which measurements are unavailable."""
    if not evaluation:
        return ["## Performance", f"Not measured yet: `{EVIDENCE['evaluation']}`.", _NOT_MEASURABLE]
    classes, by_class = evaluation["classes"], evaluation["by_class"]
    confusion = [(name, *map(str, counts)) for name, counts in zip(classes, evaluation["confusion"], strict=True)]
    metrics = list(by_class[classes[0]]["metrics"])
    rows = [
        (metric.replace("_", " "), *(interval_text(by_class[name]["metrics"][metric]) for name in classes))
        for metric in metrics
    ]
    pairs = [
        (f"{pair['first']} or {pair['second']}", str(pair["n"]), interval_text(pair["metrics"]["auroc"]))
        for pair in evaluation["pairs"]
    ]
    return [
        "## Performance",
        f"On {images_text(evaluation)}.{ledger_text(evaluation)}",
        markdown_table(("", "value [95% interval]"), metric_rows(evaluation["metrics"])),
        "Images by class (rows) and predicted class (columns):",
        markdown_table(("", *classes), confusion),
        "Each class against the rest:",
        markdown_table(("", *classes), rows),
        "Each class against another one, among the images of these two:",
        markdown_table(("classes", "images", "AUROC [95% interval]"), pairs),
        _NOT_MEASURABLE,
        *_subgroups(evaluation),
    ]


def _subgroups(evaluation: Json) -> list[str]:
    table = subgroup_table(evaluation)
    return ["## Subgroups", *(table or ["Not measured yet: add `--by COLUMN,...` to the evaluation."])]


def class_failures(evaluation: Json | None) -> list[str]:
    """Return the section with the highest misclassification rates in descending order."""
    failures = []
    if evaluation:
        for name, counts in zip(evaluation["classes"], evaluation["confusion"], strict=True):
            for other, count in zip(evaluation["classes"], counts, strict=True):
                if name != other and count:
                    rate = count / sum(counts)
                    text = f"{rate:.1%} of the {sum(counts)} images of the class {name} are predicted as {other}."
                    failures.append((rate, text))
    return failure_section(failures)

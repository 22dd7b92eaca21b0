"""Checklist facts from the records of multiclass models; see `checklist_facts`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pneumoscope.core.interval import Interval
from pneumoscope.core.messages import counted
from pneumoscope.core.multiclass_results import MulticlassComparison, MulticlassEvaluation
from pneumoscope.evaluation.multiclass.inputs import ComparedClasses
from pneumoscope.reporting import labels
from pneumoscope.reporting.checklist_facts import (
    SHARED_FACTS,
    Fact,
    mean_intervals,
    mean_sentence,
    paired_tests,
    selection,
    single_runs,
)
from pneumoscope.reporting.evidence_facts import CLASS_EVIDENCE_FACTS
from pneumoscope.reporting.subgroup_facts import SUBGROUP_FACTS
from pneumoscope.reporting.updating_facts import CALIBRATION_OF_FOLDS, UPDATING_FACTS, calibration_fact

__all__ = ["CLASS_FACTS"]

_OVERALL = ("macro_auroc", "macro_auprc", "brier", "log_loss")
_DECIDED = ("accuracy", "balanced_accuracy")
_OF_CLASS = ("sensitivity", "specificity", "precision")


def _metrics(c: MulticlassComparison, runs: Sequence[ComparedClasses]) -> Fact:
    names = [
        label
        for key, label in labels.CLASS_METRICS.items()
        if any(key in run.evaluation.metrics and run.evaluation.metrics[key].value is not None for run in runs)
    ]
    reliability = any(result.reliability for run in runs for result in run.evaluation.by_class.values())
    diagrams = "; reliability diagrams" if reliability else ""
    return Fact(f"{', '.join(names)}; each class against the rest, and each pair of classes{diagrams}.", "metrics")


def _uncertainty(c: MulticlassComparison, runs: Sequence[ComparedClasses]) -> Fact:
    singles = single_runs(c.groups, runs)
    overall = [
        (label, run.evaluation.metrics[key])
        for run in singles
        for key, label in labels.CLASS_METRICS.items()
        if key in run.evaluation.metrics
    ]
    means = mean_intervals(c.groups, labels.CLASS_METRICS)
    return Fact(labels.interval_note([*means, *overall, *_intervals_of_classes(singles)]), "metrics")


def _intervals_of_classes(runs: Sequence[ComparedClasses]) -> list[tuple[str, Interval]]:
    return [
        (f"{labels.METRICS[key]} of a class", interval)
        for run in runs
        for result in run.evaluation.by_class.values()
        for key, interval in result.metrics.items()
    ]


def _tests(c: MulticlassComparison, runs: Sequence[ComparedClasses]) -> Fact | None:
    return paired_tests(c.pairs, labels.CLASS_PAIR_METRICS)


def _performance(c: MulticlassComparison, runs: Sequence[ComparedClasses]) -> Fact:
    return Fact(_of_runs(c, runs, _OVERALL), "metrics")


def _accuracy(c: MulticlassComparison, runs: Sequence[ComparedClasses]) -> Fact:
    by_class = " ".join(f"{run.name}: {_text_of_classes(run.evaluation)}." for run in single_runs(c.groups, runs))
    text = f"With the most probable class of each image: {_of_runs(c, runs, _DECIDED)}"
    return Fact(f"{text} {by_class}", "classes") if by_class else Fact(text, "metrics")


def _text_of_classes(evaluation: MulticlassEvaluation) -> str:
    return "; ".join(
        f"{name} against the rest: {_text(result.metrics, {key: labels.METRICS[key] for key in _OF_CLASS})}"
        for name, result in evaluation.by_class.items()
    )


def _of_runs(c: MulticlassComparison, runs: Sequence[ComparedClasses], keys: Sequence[str]) -> str:
    """Return the metrics of each run as sentences; for several seeds or folds, only the mean and its spread."""
    names = {key: labels.CLASS_METRICS[key] for key in keys}
    means = [sentence for group in c.groups if (sentence := mean_sentence(group, names))]
    return " ".join(
        means + [f"{run.name}: {_text(run.evaluation.metrics, names)}." for run in single_runs(c.groups, runs)]
    )


def _text(metrics: Mapping[str, Interval], names: Mapping[str, str]) -> str:
    return ", ".join(f"{title} {metrics[key]}" for key, title in names.items() if key in metrics)


def _calibration(c: MulticlassComparison, runs: Sequence[ComparedClasses]) -> Fact | None:
    if c.is_cross_validation:
        return CALIBRATION_OF_FOLDS
    key = "expected_calibration_error"
    measured = [run for run in runs if key in run.evaluation.metrics]
    text = _of_runs(c, measured, (key,))
    names = {each: labels.METRICS[each] for each in labels.CLASS_CALIBRATION}
    by_class = [
        f"{run.name}, by class: {'; '.join(parts)}."
        for run in single_runs(c.groups, measured)
        if (
            parts := [
                f"{name}: {found}"
                for name, result in run.evaluation.by_class.items()
                if (found := _text(result.metrics, names))
            ]
        )
    ]
    # If all of these are undefined, the page has no calibration section.
    metrics = [result.metrics for run in runs for result in run.evaluation.by_class.values()]
    shown = any(each[name].value is not None for each in metrics for name in names if name in each)
    return calibration_fact(c, " ".join([text, *by_class]) if text else "", "calibration" if shown else "metrics")


def _confusion(c: MulticlassComparison, runs: Sequence[ComparedClasses]) -> Fact:
    groups = [f"{group.name}: one matrix for each of {group.members_text()}." for group in c.groups]
    matrices = []
    for run in single_runs(c.groups, runs):
        classes = run.evaluation.classes
        rows = "; ".join(
            f"of {counted(sum(counts), 'image')} of {name}, "
            + ", ".join(f"{count} predicted as {other}" for other, count in zip(classes, counts, strict=True) if count)
            for name, counts in zip(classes, run.evaluation.confusion, strict=True)
            if sum(counts)
        )
        matrices.append(f"{run.name}: {rows}.")
    return Fact(" ".join(groups + matrices), "confusion")


def _errors(c: MulticlassComparison, runs: Sequence[ComparedClasses]) -> Fact | None:
    sentences = []
    for run in single_runs(c.groups, runs):
        classes = run.evaluation.classes
        wrong = [
            f"{count} of {name} predicted as {other}"
            for name, counts in zip(classes, run.evaluation.confusion, strict=True)
            for other, count in zip(classes, counts, strict=True)
            if count and other != name
        ]
        sentences.append(f"{run.name}: {', '.join(wrong) or 'no image is predicted as another class'}.")
    return Fact(" ".join(sentences), "confusion") if sentences else None


def _thresholds(c: MulticlassComparison, runs: Sequence[ComparedClasses]) -> Fact:
    text = "The predicted class is the one with the highest probability; no threshold chooses it."
    coverages = dict.fromkeys(run.evaluation.coverage for run in _with_sets(runs))
    if not coverages:
        return Fact(text, "metrics")
    stated = " or ".join(f"{coverage:.0%}" for coverage in coverages)
    return Fact(
        f"{text} An image is uncertain unless its prediction set has this class only; the sets were fitted on validation images"
        f" for a coverage of {stated} of each class.",
        "sets",
    )


def _with_sets(runs: Sequence[ComparedClasses]) -> list[ComparedClasses]:
    return [run for run in runs if run.evaluation.coverage is not None]


def _output(c: MulticlassComparison, runs: Sequence[ComparedClasses]) -> Fact:
    if _with_sets(runs):
        return Fact(
            "A probability for each class, 0 to 1, the class with the highest one, and the set of possible classes.",
            "metrics",
        )
    return Fact("A probability for each class, 0 to 1, and the class with the highest one.", "metrics")


def _utility(c: MulticlassComparison, runs: Sequence[ComparedClasses]) -> None:
    """Return None: net benefit is only defined for binary decisions."""


def _selection(c: MulticlassComparison, runs: Sequence[ComparedClasses]) -> Fact | None:
    return selection(runs, "runs")


CLASS_FACTS: dict[str, Callable[[MulticlassComparison, Sequence[ComparedClasses]], Fact | None]] = {
    **SHARED_FACTS,
    **CLASS_EVIDENCE_FACTS,
    **SUBGROUP_FACTS,
    **UPDATING_FACTS,
    "accuracy": _accuracy,
    "calibration": _calibration,
    "confusion": _confusion,
    "errors": _errors,
    "metrics": _metrics,
    "output": _output,
    "performance": _performance,
    "selection": _selection,
    "tests": _tests,
    "thresholds": _thresholds,
    "uncertainty": _uncertainty,
    "utility": _utility,
}

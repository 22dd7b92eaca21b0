"""Checklist facts from the records of binary models (NORMAL and PNEUMONIA); see `checklist_facts`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pneumoscope.core.comparison import Comparison
from pneumoscope.core.messages import counted
from pneumoscope.reporting import labels
from pneumoscope.reporting.checklist_facts import (
    SHARED_FACTS,
    Fact,
    by_text,
    mean_intervals,
    mean_sentence,
    paired_tests,
    selection,
    single_runs,
)
from pneumoscope.reporting.evidence_facts import EVIDENCE_FACTS
from pneumoscope.reporting.run_data import RunData
from pneumoscope.reporting.subgroup_facts import SUBGROUP_FACTS
from pneumoscope.reporting.updating_facts import CALIBRATION_OF_FOLDS, UPDATING_FACTS, calibration_fact

__all__ = ["BINARY_FACTS"]


def _metrics(c: Comparison, runs: Sequence[RunData]) -> Fact:
    names = {key: label for key, label in labels.METRICS.items() if all(key in run.summary.test for run in runs)}
    if c.is_cross_validation:  # metrics of probabilities are excluded
        kept = [label for key, label in names.items() if any(key in group.metrics for group in c.groups)]
        return Fact(f"{', '.join(kept)}.", "metrics")
    return Fact(f"{', '.join(names.values())}; decision curves and reliability diagrams.", "metrics")


def _uncertainty(c: Comparison, runs: Sequence[RunData]) -> Fact:
    singles = [
        (label, run.summary.test[key])
        for run in single_runs(c.groups, runs)
        for key, label in labels.METRICS.items()
        if key in run.summary.test
    ]
    return Fact(labels.interval_note([*mean_intervals(c.groups, labels.METRICS), *singles]), "metrics")


def _tests(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    return paired_tests(c.pairs, labels.PAIR_METRICS)


def _performance(c: Comparison, runs: Sequence[RunData]) -> Fact:
    return Fact(_of_runs(c, runs, ("auroc", "auprc", "brier")), "metrics")


def _accuracy(c: Comparison, runs: Sequence[RunData]) -> Fact:
    text = _of_runs(c, runs, ("sensitivity", "specificity", "precision", "negative_predictive_value"))
    return Fact(f"At the operating point {c.operating_point}: {text}", "metrics")


def _calibration(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    if c.is_cross_validation:
        return CALIBRATION_OF_FOLDS
    # Earlier evaluations have only the calibration error.
    keys = [key for key in _CALIBRATION if all(key in run.summary.test for run in runs)]
    return calibration_fact(c, _of_runs(c, runs, keys), "calibration")


_CALIBRATION = ("calibration_slope", "calibration_intercept", "observed_expected_ratio", "expected_calibration_error")


def _of_runs(c: Comparison, runs: Sequence[RunData], keys: Sequence[str]) -> str:
    """Return the metrics of each run as sentences; empty if an evaluation lacks one.

    For several seeds or folds, only the mean and its spread are given, because a single one may be better by chance.
    """
    if not all(key in run.summary.test for run in runs for key in keys):
        return ""
    names = {key: labels.METRICS[key] for key in keys}
    sentences = [sentence for group in c.groups if (sentence := mean_sentence(group, names))]
    sentences += [
        f"{run.name}: {', '.join(f'{title} {run.summary.test[key]}' for key, title in names.items())}."
        for run in single_runs(c.groups, runs)
    ]
    return " ".join(sentences)


def _utility(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    return None if c.is_cross_validation else Fact("Decision curves of all runs.", "net_benefit")


def _confusion(c: Comparison, runs: Sequence[RunData]) -> Fact:
    text = " ".join(
        f"{run.name}: {m.tp} true positives, {m.fn} false negatives, {m.tn} true negatives, {m.fp} false positives."
        for run in single_runs(c.groups, runs)
        for m in (run.summary.confusion,)
    )
    groups = " ".join(f"{group.name}: one matrix for each of {group.members_text()}." for group in c.groups)
    return Fact(" ".join(filter(None, (groups, text))), "confusion")


def _errors(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    text = " ".join(
        f"{run.name}: {counted(m.fn, 'false negative')} and {counted(m.fp, 'false positive')} at {c.operating_point}."
        for run in single_runs(c.groups, runs)
        for m in (run.summary.confusion,)
    )
    return Fact(text, "confusion") if text else None


def _thresholds(c: Comparison, runs: Sequence[RunData]) -> Fact:
    text = by_text(
        (run.name, f"{'; '.join(f'{name} at {point.threshold_text()} ({point.rule})' for name, point in points)}.")
        for run in runs
        for points in (run.evaluation.operating_points.items(),)
    )
    return Fact(f"{text} None was chosen on the evaluated images.", "operating_points")


def _output(c: Comparison, runs: Sequence[RunData]) -> Fact:
    return Fact("A probability of pneumonia, 0 to 1, and a decision at each operating point.", "operating_points")


def _selection(c: Comparison, runs: Sequence[RunData]) -> Fact | None:
    return selection(runs, "training")


BINARY_FACTS: dict[str, Callable[[Comparison, Sequence[RunData]], Fact | None]] = {
    **SHARED_FACTS,
    **EVIDENCE_FACTS,
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

"""Tables of multiclass comparisons; see `tables`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pneumoscope.core.interval import Interval
from pneumoscope.core.multiclass_results import MulticlassComparison
from pneumoscope.core.result_forms import method_name
from pneumoscope.evaluation.multiclass.inputs import ComparedClasses
from pneumoscope.reporting import labels
from pneumoscope.reporting.metric_columns import columns_note, metric_columns
from pneumoscope.reporting.table_forms import Cell, Table
from pneumoscope.reporting.tables import differences_table, flow_table, group_table

__all__ = ["class_tables"]

_SETS = {"coverage": "Coverage", "single": "One class", "empty": "No class", "mean_size": "Mean number of classes"}
_PAIR = {
    "auroc": labels.METRICS["auroc"],
    "accuracy": labels.METRICS["accuracy"],
    "sensitivity": "Sensitivity for the class",
    "specificity": "Sensitivity for the other class (specificity)",
}


def class_tables(comparison: MulticlassComparison, runs: Sequence[ComparedClasses]) -> tuple[Table, ...]:
    """Return the non-empty tables of a multiclass comparison."""
    tables = (
        flow_table([(run.name, run.evaluation) for run in runs]),
        _metrics(comparison),
        group_table(comparison.groups, labels.CLASS_METRICS),
        _confusion(runs),
        *_classes(runs),
        _pairs_of_classes(runs),
        _sets(runs),
        _subgroups(runs),
        differences_table([(run.name, run.evaluation) for run in runs], _metric_label),
        _paired_tests(comparison),
    )
    return tuple(table for table in tables if table.rows)


def _metrics(comparison: MulticlassComparison) -> Table:
    names = {key: label for key, label in labels.CLASS_METRICS.items() if key in comparison.runs[0].metrics}
    columns = metric_columns(comparison.groups, [(run.name, run.metrics) for run in comparison.runs])
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (label, *(column.cells[key] for column in columns)) for key, label in names.items()
    )
    caption = f"Metrics over all classes on {comparison.images['n']} images."
    headings = ("Metric", *(column.title for column in columns))
    return Table("metrics", caption, headings, rows, columns_note(columns, names))


def _confusion(runs: Sequence[ComparedClasses]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (run.name, name, *counts)
        for run in runs
        for name, counts in zip(run.evaluation.classes, run.evaluation.confusion, strict=True)
    ]
    columns = ("Run", "Class", *(f"Predicted as {name}" for name in runs[0].evaluation.classes))
    return Table("confusion", "Number of images by class and predicted class.", columns, tuple(rows))


def _classes(runs: Sequence[ComparedClasses]) -> tuple[Table, Table]:
    """Return the ranking and decision metrics of each class, and calibration metrics unless all are undefined."""
    metrics = [result.metrics for run in runs for result in run.evaluation.by_class.values()]
    names = [key for key in labels.METRICS if all(key in each for each in metrics)]  # earlier evaluations lack some
    decided = [key for key in names if key not in labels.CLASS_CALIBRATION]
    calibration = [key for key in names if key in labels.CLASS_CALIBRATION]
    measured = any(each[key].value is not None for each in metrics for key in calibration)
    return (
        _class_table("classes", "Each class against the rest.", runs, decided),
        _class_table("class-calibration", "Calibration of each class.", runs if measured else (), calibration),
    )


def _class_table(name: str, caption: str, runs: Sequence[ComparedClasses], keys: Collection[str]) -> Table:
    names = {key: labels.METRICS[key] for key in keys}
    rows: list[tuple[Cell, ...]] = [
        (run.name, label, result.n, *(result.metrics[key] for key in keys))
        for run in runs
        for label, result in run.evaluation.by_class.items()
    ]
    metrics = [result.metrics for run in runs for result in run.evaluation.by_class.values()]
    return Table(name, caption, ("Run", "Class", "Images", *names.values()), tuple(rows), _note(names, metrics))


def _pairs_of_classes(runs: Sequence[ComparedClasses]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (run.name, pair.first, pair.second, pair.n, *(pair.metrics[key] for key in _PAIR))
        for run in runs
        for pair in run.evaluation.pairs
    ]
    caption = "Each class against another, among the images of these two, by the probability of the first given one of the two."
    columns = ("Run", "Class", "Other class", "Images", *_PAIR.values())
    note = _note(_PAIR, [pair.metrics for run in runs for pair in run.evaluation.pairs])
    return Table("class-pairs", caption, columns, tuple(rows), note)


def _sets(runs: Sequence[ComparedClasses]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        evaluation = run.evaluation
        by_class = [(name, result.n, result.sets) for name, result in evaluation.by_class.items()]
        rows += [
            (run.name, name, n, evaluation.coverage, *(sets[key] for key in _SETS))
            for name, n, sets in (("all", evaluation.n, evaluation.sets), *by_class)
            if sets
        ]
    metrics = [sets for run in runs for sets in (run.evaluation.sets,) if sets]
    columns = ("Run", "Class", "Images", "Stated coverage", *_SETS.values())
    return Table("prediction-sets", "Prediction sets by class.", columns, tuple(rows), _note(_SETS, metrics))


def _subgroups(runs: Sequence[ComparedClasses]) -> Table:
    groups = [(run, group) for run in runs for group in run.evaluation.subgroups]
    names = [*groups[0][1].metrics] if groups else []
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (run.name, f"{group.column}: {group.value}", group.n, *(group.metrics[key] for key in names))
        for run, group in groups
    )
    titles = {key: _metric_label(key) for key in names}
    columns = ("Run", "Subgroup", "Images", *titles.values())
    return Table(
        "subgroups", "Results by subgroup.", columns, rows, _note(titles, [group.metrics for _, group in groups])
    )


def _metric_label(key: str) -> str:
    """Return the label of a metric of subgroups or differences, such as "Sensitivity for virus"."""
    metric, _, name = key.partition(", ")
    return f"{labels.METRICS[metric]} for {name}" if name else labels.CLASS_METRICS[metric]


def _paired_tests(comparison: MulticlassComparison) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            labels.CLASS_PAIR_METRICS[pair.metric],
            pair.a,
            pair.b,
            pair.difference,
            pair.p,
            pair.p_holm,
            method_name(pair.test),
            {"a": f"{pair.a} is higher", "b": f"{pair.b} is higher"}.get(pair.verdict, "no significant difference"),
        )
        for pair in comparison.pairs
    )
    columns = ("Metric", "Run", "Minus run", "Difference", "p", "Holm p", "Test", "Result")
    return Table("pairs", "Paired tests on the same images.", columns, rows)


def _note(names: Mapping[str, str], metrics: Sequence[Mapping[str, Interval]]) -> str:
    return labels.interval_note((label, each[key]) for each in metrics for key, label in names.items())

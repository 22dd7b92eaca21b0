"""Tables of a comparison, as `table_forms.Table`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from pneumoscope.core.comparison import Comparison, RunGroup, SeedSpread
from pneumoscope.core.image_flow import ImageCount
from pneumoscope.core.interval import Interval
from pneumoscope.core.multiclass_results import MulticlassEvaluation
from pneumoscope.core.result_forms import decimals_to_distinguish, method_name
from pneumoscope.core.results import Evaluation
from pneumoscope.reporting import labels
from pneumoscope.reporting.displayed_bins import displayed_bins
from pneumoscope.reporting.metric_columns import columns_note, metric_columns
from pneumoscope.reporting.run_data import RunData
from pneumoscope.reporting.run_evidence import evidence_tables
from pneumoscope.reporting.table_forms import Cell, Table

__all__ = ["comparison_tables", "differences_table", "flow_table", "group_table", "reliability_table"]


def comparison_tables(comparison: Comparison, runs: Sequence[RunData]) -> tuple[Table, ...]:
    """Return the non-empty tables of a comparison.

    Args:
        comparison: The comparison.
        runs: Its runs.
    """
    tables = (
        flow_table([(run.name, run.evaluation) for run in runs]),
        _metrics(comparison, runs),
        group_table(comparison.groups, labels.METRICS),
        _operating_points(comparison, runs),
        _predictive_values(runs),
        _pairs(comparison),
        *(() if comparison.is_cross_validation else (_decision_curves(runs), reliability_table(runs))),
        _subgroups(runs),
        _interactions(runs),
        differences_table([(run.summary.name, run.evaluation) for run in runs]),
        *evidence_tables(runs),
    )
    return tuple(table for table in tables if table.rows)


def flow_table(evaluations: Sequence[tuple[str, Evaluation | MulticlassEvaluation]]) -> Table:
    """Return the flow of images of each run.

    Args:
        evaluations: Name and evaluation of each run.
    """

    def patients(count: ImageCount) -> tuple[Cell, Cell]:
        """Return the numbers of known patients and of images of unknown patients.

        Records of earlier versions count unknown patients as known.
        """
        unknown = count.unknown_patients
        known = count.patients - (unknown or 0)
        return "unknown" if unknown and not known else known, unknown

    rows: list[tuple[Cell, ...]] = []
    for name, evaluation in evaluations:
        flow = evaluation.flow
        if flow:
            rows.append((name, f"labeled images of {flow.source}", flow.labeled.images, *patients(flow.labeled)))
            rows += [
                (name, f"not evaluated: {split}", count.images, *patients(count))
                for split, count in flow.other_splits.items()
            ]
            rows.append((name, "not evaluated: cannot be read", flow.unreadable, None, None))
            rows.append((name, "not evaluated: other files", flow.skipped, None, None))
        count = ImageCount(evaluation.n, evaluation.patients, evaluation.unknown_patients)
        rows.append((name, "evaluated", evaluation.n, *patients(count)))
        rows += [(name, f"evaluated: {label}", count, None, None) for label, count in evaluation.counts.items()]
        if flow and flow.copies is not None:
            rows.append((name, "evaluated: identical to an earlier one", flow.copies, None, None))
            rows.append((name, "evaluated: with another label elsewhere", flow.contradictory, None, None))
        rejected = evaluation.rejected
        if rejected:
            rows.append((name, "evaluated: rejected by predict", sum(rejected.reasons.values()), None, None))
    columns = ("Run", "Images", "Number of images", "Number of patients", "Images of unknown patients")
    return Table("flow", "Flow of images.", columns, tuple(rows))


def _metrics(comparison: Comparison, runs: Sequence[RunData]) -> Table:
    names = [(key, label) for key, label in labels.METRICS.items() if all(key in run.summary.test for run in runs)]
    if comparison.is_cross_validation:  # metrics of probabilities are excluded
        names = [(key, label) for key, label in names if any(key in group.metrics for group in comparison.groups)]
    columns = metric_columns(comparison.groups, [(run.summary.name, run.summary.intervals()) for run in runs])
    rows = tuple((label, *(column.cells[key] for column in columns)) for key, label in names)
    caption = f"Metrics on {comparison.images['n']} images, at the operating point {comparison.operating_point}."
    headings = ("Metric", *(column.title for column in columns))
    return Table("metrics", caption, headings, rows, columns_note(columns, dict(names)))


def group_table(groups: Sequence[RunGroup], names: Mapping[str, str]) -> Table:
    """Return the mean and spread over the runs of each group.

    Args:
        groups: Seeds or folds.
        names: Label of each metric to include.
    """
    spreads = [(group, names[key], spread) for group in groups for key, spread in group.metrics.items() if key in names]
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (group.name, len(group.runs), label, _mean(spread), spread.sd, spread.minimum, spread.maximum)
        for group, label, spread in spreads
    )
    unit = groups[0].unit if groups else "seeds"
    columns = ("Recipe", unit.capitalize(), "Metric", "Mean", "Standard deviation", "Lowest", "Highest")
    intervals = labels.interval_note((label, spread.mean) for _, label, spread in spreads)
    note = " ".join(filter(None, (intervals, labels.means_note(spread for *_, spread in spreads))))
    caption = "Folds of a cross-validation." if unit == "folds" else "Runs of one recipe with several seeds."
    return Table(unit, caption, columns, rows, note)


def _mean(spread: SeedSpread) -> Interval:
    """Return the mean, without the reason that the note states for all metrics."""
    return dataclasses.replace(spread.mean, reason="") if spread.lacks_method else spread.mean


_POINT_METRICS = (
    "sensitivity",
    "specificity",
    "accuracy",
    "precision",
    "negative_predictive_value",
    "positive_likelihood_ratio",
    "negative_likelihood_ratio",
)


def _operating_points(comparison: Comparison, runs: Sequence[RunData]) -> Table:
    points = [(run, name, point) for run in runs for name, point in run.evaluation.operating_points.items()]
    keys = [key for key in _POINT_METRICS if all(key in point.metrics for _, _, point in points)]
    rows = tuple(
        (
            run.summary.name,
            name,
            point.rule,
            point.threshold,
            point.threshold_probability,
            *(point.metrics[key] for key in keys),
            point.confusion.tp,
            point.confusion.fn,
            point.confusion.tn,
            point.confusion.fp,
        )
        for run, name, point in points
    )
    note = labels.interval_note((labels.METRICS[key], point.metrics[key]) for _, _, point in points for key in keys)
    columns = (
        *("Run", "Operating point", "Threshold", "Score", "Probability"),
        *(labels.METRICS[key] for key in keys),
        *("TP", "FN", "TN", "FP"),
    )
    return Table("operating_points", f"Operating points on {comparison.images['n']} images.", columns, rows, note)


def _predictive_values(runs: Sequence[RunData]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (run.summary.name, name, at.prevalence, at.precision, at.negative_predictive_value)
        for run in runs
        for name, point in run.evaluation.operating_points.items()
        if (at := point.predictive_values)
    ]
    columns = ("Run", "Operating point", "Prevalence", "Precision", "Negative predictive value")
    note = _note(("predictive values", cell) for row in rows for cell in row[3:])
    return Table("predictive_values", "Predictive values at a stated prevalence.", columns, tuple(rows), note)


def _pairs(comparison: Comparison) -> Table:
    rows = tuple(
        (
            f"{pair.a} \N{MINUS SIGN} {pair.b}",
            labels.PAIR_METRICS[pair.metric],
            pair.difference,
            pair.p,
            pair.p_holm,
            method_name(pair.test),
            {"a": f"{pair.a} is higher", "b": f"{pair.b} is higher"}.get(pair.verdict, "no significant difference"),
        )
        for pair in comparison.pairs
    )
    columns = ("Pair", "Metric", "Difference", "p", "Holm p", "Test", "Result")
    note = labels.interval_note((labels.PAIR_METRICS[pair.metric], pair.difference) for pair in comparison.pairs)
    caption = (
        f"Paired tests on {comparison.images['n']} images. A difference is the first of the pair minus the second: above 0, the"
        " first is higher."
    )
    return Table("pairs", caption, columns, rows, note)


def _decision_curves(runs: Sequence[RunData]) -> Table:
    rows = [
        (run.summary.name, step.threshold_probability, step.net_benefit, step.treat_all, step.gain)
        for run in runs
        for step in run.evaluation.decision_curve
    ]
    columns = ("Run", "Threshold probability", "Net benefit", "Treat all", "Gain")
    note = _note(("net benefit", row[2]) for row in rows)
    caption = "Net benefit; gain over the better of treating everyone and no one."
    return Table("net_benefit", caption, columns, tuple(rows), note)


def reliability_table(runs: Sequence[RunData]) -> Table:
    """Return the mean probability and the observed rate of pneumonia in each interval of the probability."""
    bins = {run.summary.name: displayed_bins(run.evaluation.reliability) for run in runs}
    rows = [
        (name, each.low, each.high, each.observed_rate.n, each.mean_probability, each.observed_rate)
        for name, of_run in bins.items()
        for each in of_run
    ]
    columns = ("Run", "Lowest probability", "Highest probability", "Images", "Mean probability", "Observed rate")
    note = _note(("observed rate", row[-1]) for row in rows)
    decimals = max(decimals_to_distinguish((each.low, each.high) for each in of_run) for of_run in bins.values())
    caption = "Observed rate of pneumonia by predicted probability."
    return Table("reliability", caption, columns, tuple(rows), note, decimals)


def _subgroups(runs: Sequence[RunData]) -> Table:
    keys = ("auroc", "accuracy", "sensitivity", "specificity")
    groups = [(run, group) for run in runs for group in run.evaluation.subgroups]
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            run.summary.name,
            f"{group.column}: {group.value}",
            group.operating_point,
            group.n,
            group.counts.get("PNEUMONIA", 0),
            *(group.metrics[key] for key in keys),
        )
        for run, group in groups
    )
    columns = ("Run", "Subgroup", "Operating point", "Images", "PNEUMONIA", *(labels.METRICS[key] for key in keys))
    note = labels.interval_note((labels.METRICS[key], group.metrics[key]) for _, group in groups for key in keys)
    return Table("subgroups", "Results by subgroup.", columns, rows, note)


def _interactions(runs: Sequence[RunData]) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            run.summary.name,
            test.column,
            ", ".join(test.groups),
            labels.METRICS.get(test.metric, test.metric),
            test.operating_point or "",
            test.p,
            test.p_holm,
            method_name(test.test),
            test.reason,
        )
        for run in runs
        for test in run.evaluation.interactions
    )
    columns = ("Run", "Column", "Subgroups", "Metric", "Operating point", "p", "Holm p", "Test", "Reason")
    caption = "Tests of whether a metric differs between subgroups; Holm correction over all tests of an evaluation."
    return Table("interactions", caption, columns, rows)


def differences_table(
    evaluations: Sequence[tuple[str, Evaluation | MulticlassEvaluation]], label: Callable[[str], str] = str
) -> Table:
    """Return the differences of each run from other images.

    Args:
        evaluations: Name and evaluation of each run.
        label: Returns the label for a name in `SetDifference.named_intervals`.
    """
    found = [(run, each) for run, evaluation in evaluations if (each := evaluation.difference)]
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (run, difference.reference, difference.reference_n, label(name), interval)
        for run, difference in found
        for name, interval in difference.named_intervals().items()
    )
    columns = ("Run", "Reference", "Images of the reference", "Metric", "Difference")
    remarks = " ".join(dict.fromkeys(difference.remark for _, difference in found if difference.remark))
    note = " ".join(filter(None, [_note((str(row[3]), row[4]) for row in rows), remarks]))
    caption = "Differences from other images: these images minus those of the reference."
    return Table("differences", caption, columns, rows, note)


def _note(intervals: Iterable[tuple[str, Cell]]) -> str:
    return labels.interval_note((name, cell) for name, cell in intervals if isinstance(cell, Interval))

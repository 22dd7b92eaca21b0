"""Render the comparison of runs as a self-contained HTML file: no scripts or requests; light, dark and print styles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pneumoscope.core.comparison import Comparison
from pneumoscope.core.files import write_atomically
from pneumoscope.core.interval import Interval
from pneumoscope.core.results import DecisionCurvePoint
from pneumoscope.reporting import labels
from pneumoscope.reporting.checklist_facts import PLACES
from pneumoscope.reporting.checklists import Checklist
from pneumoscope.reporting.comparison_figures import ComparisonFigures, draw_figures
from pneumoscope.reporting.metric_columns import MetricColumn, columns_note, metric_columns
from pneumoscope.reporting.run_data import RunData, load_run_data, record_rows
from pneumoscope.reporting.run_evidence import evidence_tables
from pneumoscope.reporting.style import drawing
from pneumoscope.reporting.tables import group_table
from pneumoscope.reporting.templating import environment, theme

__all__ = ["comparison_page", "write_comparison_page"]

# Metrics in the operating-point table.
_OPERATING_POINT_METRICS = (
    "sensitivity",
    "specificity",
    "accuracy",
    "positive_likelihood_ratio",
    "negative_likelihood_ratio",
)
# Metrics in the subgroup table.
_SUBGROUP_METRICS = ("auroc", "sensitivity", "specificity")


def write_comparison_page(comparison: Comparison, runs: Sequence[Path], out: Path) -> Path:
    """Write the page of a comparison and return its path. The same input gives the same bytes.

    Args:
        comparison: Comparison of these runs.
        runs: Folders in the order of the comparison: run folders, each with `epochs.csv`, `run.json`, `recipe.toml`,
            and `evaluation.json` and `predictions.csv` of the compared evaluation; or folders with only the last two.
        out: HTML file to write. Missing parent folders are created.

    Raises:
        RunError: A folder contains a different run than the comparison has at this position, or lacks a file.
        StorageError: The file cannot be written.
    """
    data = load_run_data(comparison, runs)
    write_atomically(out, comparison_page(comparison, data, draw_figures(comparison, data)))
    return out


def comparison_page(
    comparison: Comparison, data: Sequence[RunData], figures: ComparisonFigures, checklists: Sequence[Checklist] = ()
) -> str:
    """Return the page of a comparison.

    Args:
        comparison: The comparison.
        data: Its runs.
        figures: Its figures.
        checklists: Filled checklists to display.
    """
    with drawing():
        return (
            environment()
            .get_template("comparison.html")
            .render(
                c=comparison,
                runs=data,
                figures=figures,
                theme=theme(),
                findings=_findings(comparison),
                metrics=[
                    (key, label)
                    for key, label in labels.METRICS.items()
                    if all(key in run.summary.test for run in data) and _is_shown(key, comparison)
                ],
                columns=_columns(comparison, data),
                runs_by_name={run.summary.name: run for run in data},
                etiologies=_etiologies(data),
                evidence=evidence_tables(data),
                decision_steps=_decision_steps(data),
                notes=_notes(comparison, data),
                labels=labels,
                checklists=checklists,
                places=PLACES,
                record_rows=record_rows,
            )
        )


def _columns(comparison: Comparison, runs: Sequence[RunData]) -> tuple[MetricColumn, ...]:
    return metric_columns(comparison.groups, [(run.summary.name, run.summary.intervals()) for run in runs])


def _is_shown(metric: str, comparison: Comparison) -> bool:
    """Return whether to display a metric; cross-validations have means for only some metrics."""
    return not comparison.is_cross_validation or any(metric in group.metrics for group in comparison.groups)


def _findings(comparison: Comparison) -> dict[str, list[str]]:
    """Return the sentences in three groups; those of non-significant pairs are many and displayed folded."""
    significant = {pair.sentence: pair.verdict in {"a", "b"} for pair in comparison.pairs}
    return {
        "general": [sentence for sentence in comparison.sentences if sentence not in significant],
        "significant": [sentence for sentence in comparison.sentences if significant.get(sentence) is True],
        "not_significant": [sentence for sentence in comparison.sentences if significant.get(sentence) is False],
    }


def _etiologies(runs: Sequence[RunData]) -> list[str]:
    """Return the etiologies of the evaluated images, in the order of `ETIOLOGIES`; empty if no pneumonia has one."""
    names = {name for run in runs for point in run.evaluation.operating_points.values() for name in point.by_etiology}
    if names <= {"normal"}:
        return []
    return [name for name in labels.ETIOLOGIES if name in names]


def _decision_steps(runs: Sequence[RunData]) -> list[tuple[DecisionCurvePoint, ...]]:
    """Return every other step of the decision curves, for all runs; empty if an evaluation lacks them."""
    if not all(run.evaluation.decision_curve for run in runs):
        return []
    return list(zip(*(run.evaluation.decision_curve[1::2] for run in runs), strict=True))


def _notes(comparison: Comparison, runs: Sequence[RunData]) -> dict[str, str]:
    """Return a sentence on the interval methods for each part of the page."""
    operating_points = [point for run in runs for point in run.evaluation.operating_points.values()]
    tests = [run.summary.test for run in runs]
    rows = comparison.reference.rows if comparison.reference else ()
    return {
        "metrics": columns_note(_columns(comparison, runs), labels.METRICS),
        **{metric: _note((metric, test[metric]) for test in tests if metric in test) for metric in ("auroc", "auprc")},
        "operating_points": _note(
            (key, value)
            for point in operating_points
            for key, value in point.metrics.items()
            if key in _OPERATING_POINT_METRICS
        ),
        "ratios": _note(
            (key, value)
            for point in operating_points
            for key, value in point.metrics.items()
            if key in {"positive_likelihood_ratio", "negative_likelihood_ratio"}
        ),
        "predictive_values": labels.interval_note(
            (labels.METRICS[key], value)
            for point in operating_points
            if point.predictive_values
            for key, value in point.predictive_values.named_intervals().items()
        ),
        "decision_curve": labels.interval_note(
            ("net benefit", step.net_benefit) for run in runs for step in run.evaluation.decision_curve
        ),
        "subgroups": _note(
            (key, value)
            for run in runs
            for group in run.evaluation.subgroups
            for key, value in group.metrics.items()
            if key in _SUBGROUP_METRICS
        ),
        "differences": _note(
            item
            for run in runs
            if run.evaluation.difference
            for item in run.evaluation.difference.named_intervals().items()
        ),
        "etiology": labels.interval_note(
            [("fraction correct", value) for point in operating_points for value in point.by_etiology.values()]
            + [("AUROC", value) for run in runs for value in run.evaluation.auroc_by_etiology.values()]
        ),
        **{
            f"pairs by {metric}": labels.interval_note(
                (label, pair.difference) for pair in comparison.pairs if pair.metric == metric
            )
            for metric, label in labels.PAIR_METRICS.items()
        },
        "seeds": group_table(comparison.groups, labels.METRICS).note,
        "reference": _note((key, value) for row in rows for key, value in row.metrics.items()),
        "difference": labels.interval_note(("difference", row.difference) for row in rows if row.difference),
    }


def _note(intervals: Iterable[tuple[str, Interval]]) -> str:
    return labels.interval_note((labels.METRICS.get(key, key), interval) for key, interval in intervals)

"""The comparison as one HTML file that opens anywhere: no other host, no script, light or dark, screen or paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pneumoscope.core.files import write_atomically
from pneumoscope.core.results import Comparison, Interval
from pneumoscope.reporting import wording
from pneumoscope.reporting.comparison_figures import draw_figures
from pneumoscope.reporting.run_data import RunData, load_run_data
from pneumoscope.reporting.templating import environment, theme

__all__ = ["write_comparison_page"]

# What the table of operating points shows.
_AT_POINTS = ("sensitivity", "specificity", "accuracy")


def write_comparison_page(comparison: Comparison, runs: Sequence[Path], out: Path) -> Path:
    """Write the report of a comparison.

    Args:
        comparison: of these runs.
        runs: the runs' folders, in the comparison's order, each with `epochs.csv`, `run.json`, `recipe.toml`,
            `evaluation/test/evaluation.json` and `evaluation/test/predictions.csv`.
        out: the HTML file to write; its folder is made.
    Returns:
        `out`. The same input gives the same bytes.
    Raises:
        RunError: a folder is not the run that stands in its place, or lacks a file.
        StorageError: the file cannot be written.
    """
    material = load_run_data(comparison, runs)
    pages = environment()
    pages.filters |= {
        name: getattr(wording, name) for name in ("duration", "method_name", "p_value", "plain", "signed")
    }
    page = pages.get_template("comparison.html").render(
        c=comparison,
        runs=material,
        gallery=draw_figures(comparison, material),
        theme=theme(),
        findings=_findings(comparison),
        metrics=[(key, title) for key, title in wording.METRICS.items() if key in material[0].summary.test],
        ours={run.summary.name: run for run in material},
        etiologies=_etiologies(material),
        notes=_notes(comparison, material),
        words=wording,
    )
    write_atomically(out, page)
    return out


def _findings(comparison: Comparison) -> dict[str, list[str]]:
    """The sentences by what they say, since those of pairs that are alike are many and of little use to a reader."""
    verdicts = {pair.sentence: pair.verdict in {"a", "b"} for pair in comparison.pairs}
    return {
        "general": [sentence for sentence in comparison.sentences if sentence not in verdicts],
        "told_apart": [sentence for sentence in comparison.sentences if verdicts.get(sentence) is True],
        "not_told_apart": [sentence for sentence in comparison.sentences if verdicts.get(sentence) is False],
    }


def _etiologies(runs: Sequence[RunData]) -> list[str]:
    """The etiologies that any run was judged by, in the fixed order."""
    found = {name for run in runs for point in run.evaluation.operating_points.values() for name in point.by_etiology}
    return [name for name in wording.ETIOLOGIES if name in found]


def _notes(comparison: Comparison, runs: Sequence[RunData]) -> dict[str, str]:
    """How the intervals of each part of the page were made."""
    operating_points = [point for run in runs for point in run.evaluation.operating_points.values()]
    tests = [run.summary.test for run in runs]
    rows = comparison.reference.rows if comparison.reference else ()
    return {
        "metrics": _note((key, test[key]) for test in tests for key in wording.METRICS if key in test),
        **{metric: _note((metric, test[metric]) for test in tests if metric in test) for metric in ("auroc", "auprc")},
        "operating_points": _note(
            (key, value) for point in operating_points for key, value in point.metrics.items() if key in _AT_POINTS
        ),
        "etiology": wording.interval_note(
            [("share called correctly", value) for point in operating_points for value in point.by_etiology.values()]
            + [("AUROC", value) for run in runs for value in run.evaluation.auroc_by_etiology.values()]
        ),
        **{f"pairs by {metric}": _pair_note(comparison, metric) for metric in wording.PAIR_METRICS},
        "reference": _note((key, value) for row in rows for key, value in row.metrics.items()),
        "difference": wording.interval_note(("difference", row.difference) for row in rows if row.difference),
    }


def _note(named: Any) -> str:
    return wording.interval_note((wording.METRICS.get(key, key), value) for key, value in named)


def _pair_note(comparison: Comparison, metric: str) -> str:
    pairs: list[tuple[str, Interval]] = [
        (wording.PAIR_METRICS[metric], pair.difference) for pair in comparison.pairs if pair.metric == metric
    ]
    return wording.interval_note(pairs)

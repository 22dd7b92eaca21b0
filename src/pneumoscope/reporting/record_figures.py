"""Draw the figures of evaluations and comparisons in memory, as in a report; see `core.with_figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumoscope.core.comparison import Comparison
from pneumoscope.core.multiclass_results import MulticlassComparison, MulticlassEvaluation
from pneumoscope.core.results import Evaluation
from pneumoscope.evaluation.comparison.compare import compare_evaluated
from pneumoscope.evaluation.comparison.inputs import EvaluatedRun
from pneumoscope.evaluation.multiclass.compare import multiclass_comparison
from pneumoscope.evaluation.multiclass.inputs import ComparedClasses
from pneumoscope.inference.decision import DEFAULT_OPERATING_POINT
from pneumoscope.reporting.comparison_figures import figures_with_legends
from pneumoscope.reporting.multiclass_figures import class_figures_by_name
from pneumoscope.reporting.named_figure import NamedFigure
from pneumoscope.reporting.run_data import run_data

__all__ = ["draw_record"]


def draw_record(record: Any, source: Sequence[Any]) -> Mapping[str, NamedFigure]:
    """Return the figures of an evaluation or a comparison by name.

    Args:
        record: `Evaluation`, `Comparison`, `MulticlassEvaluation` or `MulticlassComparison`.
        source: The scored images of an evaluation, or the compared runs of a comparison.
    """
    match record:
        case Evaluation():
            run = EvaluatedRun(record.name, record.name, Path(record.name), None, record, tuple(source))
            points = record.operating_points
            point = DEFAULT_OPERATING_POINT if DEFAULT_OPERATING_POINT in points else next(iter(points))
            return _draw(compare_evaluated([run], record.split, point), [run])
        case Comparison():
            return _draw(record, source)
        case MulticlassEvaluation():
            classes = ComparedClasses(record.name, record.name, Path(record.name), None, record, tuple(source))
            return class_figures_by_name(multiclass_comparison([classes]), [classes])
        case MulticlassComparison():
            return class_figures_by_name(record, source)
    raise AssertionError(record)


def _draw(comparison: Comparison, runs: Sequence[EvaluatedRun]) -> Mapping[str, NamedFigure]:
    data = [
        run_data(index, summary, run) for index, (summary, run) in enumerate(zip(comparison.runs, runs, strict=True))
    ]
    return figures_with_legends(comparison, data)

"""Draw the figures of a comparison, each with a text alternative."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pneumoscope.core.comparison import Comparison
from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.messages import counted, of_patients_text
from pneumoscope.reporting.curves import curves_figure, curves_label
from pneumoscope.reporting.displayed_bins import displayed_bins
from pneumoscope.reporting.figures import (
    Curve,
    decision_curve_figure,
    differences_figure,
    histogram_figure,
    metric_figure,
    overlay_figure,
    reliability_figure,
)
from pneumoscope.reporting.flow_diagram import flow_figure
from pneumoscope.reporting.labels import METRICS, PAIR_METRICS
from pneumoscope.reporting.metric_columns import metric_columns
from pneumoscope.reporting.named_figure import DECISION_CURVES, NamedFigure
from pneumoscope.reporting.run_data import RunData
from pneumoscope.reporting.style import GROUP_STYLE, drawing
from pneumoscope.reporting.templating import format_value
from pneumoscope.statistics.calibration import reliability_bins
from pneumoscope.statistics.decision_curve import net_benefit
from pneumoscope.statistics.roc import precision_recall_curve, roc_curve

__all__ = ["ComparisonFigures", "draw_figures", "figures_with_legends"]

# Metrics drawn as bars; the table lists all. Metrics for which lower is better are excluded, because their bars would
# mislead.
_BAR_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "f1",
    "sensitivity",
    "specificity",
    "precision",
    "auroc",
    "auprc",
    "mcc",
)


@dataclasses.dataclass(frozen=True)
class ComparisonFigures:
    """Figures of a comparison page.

    Attributes:
        flow: One figure per run.
        metrics: One figure per metric.
        roc, precision_recall: The whole curve and its corner; empty if a class has no images.
        undefined: Reason why `roc` and `precision_recall` are empty, else "".
        reliability, histograms: One figure per run; no reliability for folds, whose validation images fitted the
            calibration.
        decision_curves: One figure of all runs; None for folds.
        curves: One figure per run with a training record.
        differences: One figure per metric of the paired tests.
    """

    flow: tuple[NamedFigure, ...]
    metrics: tuple[NamedFigure, ...]
    roc: tuple[NamedFigure, ...]
    precision_recall: tuple[NamedFigure, ...]
    undefined: str
    reliability: tuple[NamedFigure, ...]
    histograms: tuple[NamedFigure, ...]
    decision_curves: NamedFigure | None
    curves: tuple[NamedFigure, ...]
    differences: dict[str, NamedFigure]

    def all(self) -> tuple[NamedFigure, ...]:
        """Return all figures, in the order of the page."""
        groups = (self.flow, self.metrics, self.roc, self.precision_recall, self.reliability, self.histograms)
        figures = [figure for group in groups for figure in group]
        decision_curves = (self.decision_curves,) if self.decision_curves else ()
        return (*figures, *decision_curves, *self.curves, *self.differences.values())


def draw_figures(comparison: Comparison, runs: Sequence[RunData]) -> ComparisonFigures:
    """Return all figures of a comparison of these runs."""
    operating_point = comparison.operating_point
    with drawing():
        try:
            roc, precision_recall = (
                _roc_figures(runs, operating_point),
                _precision_recall_figures(runs, operating_point),
            )
            undefined = ""
        except UndefinedMetricError as error:
            roc, precision_recall, undefined = (), (), error.message
        return ComparisonFigures(
            flow=tuple(_flow_figure(run, operating_point) for run in runs),
            metrics=_metric_figures(comparison, runs),
            roc=roc,
            precision_recall=precision_recall,
            undefined=undefined,
            reliability=() if comparison.is_cross_validation else tuple(map(_reliability_figure, runs)),
            histograms=tuple(_histogram_figure(run, operating_point) for run in runs),
            decision_curves=None if comparison.is_cross_validation else _decision_curves(runs),
            curves=tuple(_training_figure(run) for run in runs if run.epochs),
            differences=_difference_figures(comparison),
        )


def figures_with_legends(comparison: Comparison, runs: Sequence[RunData]) -> dict[str, NamedFigure]:
    """Return all figures of a comparison by name, with a legend where needed."""
    figures = {figure.key: figure for figure in draw_figures(comparison, runs).all()}
    for figure in figures.values():
        figure.add_legend(runs)
    return figures


def _metric_figures(comparison: Comparison, runs: Sequence[RunData]) -> tuple[NamedFigure, ...]:
    svgs = []
    columns = metric_columns(comparison.groups, [(run.summary.name, run.summary.intervals()) for run in runs])
    names = [column.name for column in columns]
    styles = [GROUP_STYLE if column.is_group else runs[column.runs[0]].style for column in columns]
    for metric in _BAR_METRICS:
        title = METRICS[metric]
        values = [column.value(metric) for column in columns]
        points = [[member[metric].value for member in column.members] for column in columns]
        text = ", ".join(
            f"{column.title} {'undefined' if value.value is None else format_value(value.value)}"
            for column, value in zip(columns, values, strict=True)
        )
        figure = metric_figure(title, names, values, styles, points)
        svgs.append(NamedFigure(figure, f"metric-{metric}", f"{title} of each run with its interval: {text}"))
    return tuple(svgs)


def _roc_figures(runs: Sequence[RunData], operating_point: str) -> tuple[NamedFigure, ...]:
    curves = []
    for run in runs:
        x, y, _ = roc_curve(run.scores.logit, run.scores.positive)
        position = _position(run, operating_point, "specificity", "sensitivity")
        curves.append(Curve(x, y, None if position is None else (1 - position[0], position[1]), run.style))
    axes = ("1 \N{MINUS SIGN} specificity", "sensitivity")
    whole = overlay_figure(curves, labels=axes, title="ROC", chance=((0, 1), (0, 1)))
    corner = overlay_figure(curves, labels=axes, title="Upper left corner", window=(0, 0.5, 0.5, 1))
    text = "ROC curves: " + _areas(runs, "auroc")
    return (
        NamedFigure(whole, "roc", text, legend=True),
        NamedFigure(corner, "roc-corner", f"{text}; enlarged upper left corner", legend=True),
    )


def _precision_recall_figures(runs: Sequence[RunData], operating_point: str) -> tuple[NamedFigure, ...]:
    curves = []
    for run in runs:
        x, y, _ = precision_recall_curve(run.scores.logit, run.scores.positive)
        position = _position(run, operating_point, "sensitivity", "precision")
        curves.append(Curve(np.r_[0, x], np.r_[y[0], y], position, run.style, steps=True))
    prevalence = float(runs[0].scores.positive.mean())
    axes = ("sensitivity", "precision")
    chance = ((0.0, 1.0), (prevalence, prevalence))
    whole = overlay_figure(curves, labels=axes, title="Precision-recall", chance=chance)
    corner = overlay_figure(curves, labels=axes, title="Upper right corner", window=(0.6, 1, 0.6, 1))
    text = "Precision-recall curves: " + _areas(runs, "auprc")
    return (
        NamedFigure(whole, "pr", text, legend=True),
        NamedFigure(corner, "pr-corner", f"{text}; enlarged upper right corner", legend=True),
    )


def _position(run: RunData, operating_point: str, x: str, y: str) -> tuple[float, float] | None:
    """Return two metrics of a run at the operating point; None if either is undefined."""
    metrics = run.evaluation.operating_points[operating_point].metrics
    horizontal, vertical = metrics[x].value, metrics[y].value
    return None if horizontal is None or vertical is None else (horizontal, vertical)


def _areas(runs: Sequence[RunData], metric: str) -> str:
    values = [(run.summary.name, run.summary.test[metric].value) for run in runs]
    return ", ".join(f"{name} {METRICS[metric]} {format_value(value)}" for name, value in values if value is not None)


def _flow_figure(run: RunData, operating_point: str) -> NamedFigure:
    figure = flow_figure(run.summary.name, run.evaluation, operating_point)
    counts, evaluation = run.summary.confusion, run.evaluation
    of_patients = of_patients_text(evaluation.patients, evaluation.unknown_patients, evaluation.n)
    label = (
        f"Flow of images of {run.summary.name}: {counted(run.evaluation.n, 'evaluated image')} {of_patients};"
        f" {counts.tp + counts.fp} with the decision pneumonia, of which {counts.tp} show it;"
        f" {counts.fn + counts.tn} without, of which {counts.fn} show it"
    )
    return NamedFigure(figure, f"flow-{run.index}", label)


def _reliability_figure(run: RunData) -> NamedFigure:
    name, bins = run.summary.name, displayed_bins(reliability_bins(run.scores.probability, run.scores.positive))
    label = f"Reliability diagram of {name}: observed rate of pneumonia by predicted probability in {len(bins)} bins"
    return NamedFigure(reliability_figure(name, bins, run.style), f"reliability-{run.index}", label)


def _histogram_figure(run: RunData, operating_point: str) -> NamedFigure:
    name, threshold = run.summary.name, run.evaluation.operating_points[operating_point].threshold
    figure = histogram_figure(name, run.scores.score, run.scores.positive, threshold, run.style)
    label = f"Scores of {name} by label; the threshold is {format_value(threshold)}"
    return NamedFigure(figure, f"histogram-{run.index}", label)


def _decision_curves(runs: Sequence[RunData]) -> NamedFigure:
    thresholds = np.arange(1, 100) / 100
    benefits = [net_benefit(run.scores.probability, run.scores.positive, thresholds) for run in runs]
    # All runs have the same labels and therefore the same net benefit of treating everyone.
    curves = [(benefit, run.style) for (benefit, _), run in zip(benefits, runs, strict=True)]
    figure = decision_curve_figure(thresholds, curves, benefits[0][1])
    names = ", ".join(run.summary.name for run in runs)
    label = f"Net benefit by threshold probability of {names}, and of treating everyone"
    return NamedFigure(figure, DECISION_CURVES, label, legend=True)


def _training_figure(run: RunData) -> NamedFigure:
    name, best_epoch = run.summary.name, run.summary.best_epoch
    figure = curves_figure(run.epochs, run.style, title=name, best=best_epoch)
    return NamedFigure(figure, f"curves-{run.index}", curves_label(name, run.epochs, best_epoch))


def _difference_figures(comparison: Comparison) -> dict[str, NamedFigure]:
    svgs = {}
    for metric, title in PAIR_METRICS.items():
        pairs = [pair for pair in comparison.pairs if pair.metric == metric]
        if pairs:
            label = f"Differences in {title} of {len(pairs)} pairs of runs with their intervals, as in the table"
            svgs[metric] = NamedFigure(
                differences_figure(f"Difference in {title}", pairs), f"differences-{metric}", label
            )
    return svgs

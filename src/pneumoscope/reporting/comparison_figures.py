"""All figures of a comparison as inline SVG, each with the words for those who cannot see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.results import Comparison
from pneumoscope.reporting.curves import curves_figure, curves_label
from pneumoscope.reporting.figures import (
    Line,
    differences_figure,
    histogram_figure,
    metric_figure,
    overlay_figure,
    reliability_figure,
)
from pneumoscope.reporting.run_data import RunData
from pneumoscope.reporting.style import drawing
from pneumoscope.reporting.svg import inline_svg
from pneumoscope.reporting.wording import METRICS, PAIR_METRICS, plain
from pneumoscope.statistics.calibration import reliability
from pneumoscope.statistics.roc import precision_recall_curve, roc_curve

__all__ = ["ComparisonFigures", "draw_figures"]

# Shown as bars; the table has all. What is better when lower would mislead beside these.
_BARS = (
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
    """Inline SVG, ready for the page.

    Attributes:
        metrics: one a metric.
        roc, precision_recall: the whole square and its corner; empty where a class has no image.
        undefined: why those two are empty; "" otherwise.
        reliability, histograms, curves: one a run.
        differences: by the metric of the pairs.
    """

    metrics: tuple[Markup, ...]
    roc: tuple[Markup, ...]
    precision_recall: tuple[Markup, ...]
    undefined: str
    reliability: tuple[Markup, ...]
    histograms: tuple[Markup, ...]
    curves: tuple[Markup, ...]
    differences: dict[str, Markup]


def draw_figures(comparison: Comparison, runs: Sequence[RunData]) -> ComparisonFigures:
    """Draw everything."""
    with drawing():
        try:
            roc, precision_recall, undefined = _roc(comparison, runs), _precision_recall(comparison, runs), ""
        except UndefinedMetricError as error:
            roc, precision_recall, undefined = (), (), error.message
        return ComparisonFigures(
            metrics=_metrics(runs),
            roc=roc,
            precision_recall=precision_recall,
            undefined=undefined,
            reliability=tuple(map(_reliability, runs)),
            histograms=tuple(_histogram(comparison.operating_point, run) for run in runs),
            curves=tuple(map(_curves, runs)),
            differences=_differences(comparison),
        )


def _svg(figure: Figure, key: str, label: str) -> Markup:
    # The SVG is made by an XML writer, which escapes every name in it.
    return Markup(inline_svg(figure, key=key, label=label))  # noqa: S704


def _metrics(runs: Sequence[RunData]) -> tuple[Markup, ...]:
    found = []
    for metric in _BARS:
        title = METRICS[metric]
        values = [run.summary.test[metric] for run in runs]
        names = [run.summary.name for run in runs]
        said = ", ".join(
            f"{name} {'not defined' if value.value is None else plain(value.value)}"
            for name, value in zip(names, values, strict=True)
        )
        figure = metric_figure(title, names, values, [run.look for run in runs])
        found.append(_svg(figure, f"metric-{metric}", f"{title} of each run with its interval: {said}"))
    return tuple(found)


def _roc(comparison: Comparison, runs: Sequence[RunData]) -> tuple[Markup, ...]:
    lines = []
    for run in runs:
        x, y, _ = roc_curve(run.scores.logit, run.scores.positive)
        at = _at(run, comparison.operating_point, "specificity", "sensitivity")
        lines.append(Line(x, y, None if at is None else (1 - at[0], at[1]), run.look))
    labels = ("1 \N{MINUS SIGN} specificity", "sensitivity")
    whole = overlay_figure(lines, labels=labels, title="ROC", chance=((0, 1), (0, 1)))
    corner = overlay_figure(lines, labels=labels, title="Its upper left corner", window=(0, 0.5, 0.5, 1))
    said = "ROC curves: " + _areas(runs, "auroc")
    return _svg(whole, "roc", said), _svg(corner, "roc-corner", f"{said}; the upper left corner enlarged")


def _precision_recall(comparison: Comparison, runs: Sequence[RunData]) -> tuple[Markup, ...]:
    lines = []
    for run in runs:
        x, y, _ = precision_recall_curve(run.scores.logit, run.scores.positive)
        at = _at(run, comparison.operating_point, "sensitivity", "precision")
        lines.append(Line(np.r_[0, x], np.r_[y[0], y], at, run.look, steps=True))
    share = float(runs[0].scores.positive.mean())
    labels = ("sensitivity", "precision")
    whole = overlay_figure(lines, labels=labels, title="Precision and recall", chance=((0, 1), (share, share)))
    corner = overlay_figure(lines, labels=labels, title="Its upper right corner", window=(0.6, 1, 0.6, 1))
    said = "Precision-recall curves: " + _areas(runs, "auprc")
    return _svg(whole, "pr", said), _svg(corner, "pr-corner", f"{said}; the upper right corner enlarged")


def _at(run: RunData, point: str, x: str, y: str) -> tuple[float, float] | None:
    metrics = run.evaluation.operating_points[point].metrics
    across, up = metrics[x].value, metrics[y].value
    return None if across is None or up is None else (across, up)


def _areas(runs: Sequence[RunData], metric: str) -> str:
    values = [(run.summary.name, run.summary.test[metric].value) for run in runs]
    return ", ".join(f"{name} {METRICS[metric]} {plain(value)}" for name, value in values if value is not None)


def _reliability(run: RunData) -> Markup:
    bins = reliability(run.scores.probability, run.scores.positive)
    figure = reliability_figure(run.summary.name, bins, run.look)
    label = f"Reliability of {run.summary.name}: share with pneumonia against predicted probability in {len(bins)} bins"
    return _svg(figure, f"reliability-{run.index}", label)


def _histogram(point: str, run: RunData) -> Markup:
    threshold = run.evaluation.operating_points[point].threshold
    figure = histogram_figure(run.summary.name, run.scores.score, run.scores.positive, threshold, run.look)
    label = f"Scores of {run.summary.name} by label; the threshold is {plain(threshold)}"
    return _svg(figure, f"histogram-{run.index}", label)


def _curves(run: RunData) -> Markup:
    best, name = run.summary.best_epoch, run.summary.name
    figure = curves_figure(run.epochs, run.look, title=name, best=best)
    return _svg(figure, f"curves-{run.index}", curves_label(name, run.epochs, best))


def _differences(comparison: Comparison) -> dict[str, Markup]:
    found = {}
    for metric, title in PAIR_METRICS.items():
        pairs = [pair for pair in comparison.pairs if pair.metric == metric]
        if pairs:
            label = f"Differences in {title} of {len(pairs)} pairs of runs with their intervals; the table lists them"
            found[metric] = _svg(differences_figure(f"Difference in {title}", pairs), f"differences-{metric}", label)
    return found

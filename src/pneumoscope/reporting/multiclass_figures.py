"""Draw multiclass figures: flow of images, confusion matrix, ROC curves, reliability, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pneumoscope.core.messages import counted, of_patients_text
from pneumoscope.core.multiclass_results import MulticlassComparison, MulticlassEvaluation
from pneumoscope.evaluation.multiclass.inputs import ComparedClasses
from pneumoscope.evaluation.multiclass.metrics import class_scores
from pneumoscope.reporting.displayed_bins import displayed_bins
from pneumoscope.reporting.figures import Curve, differences_figure, overlay_figure, reliability_figure
from pneumoscope.reporting.flow_diagram import class_flow_figure
from pneumoscope.reporting.labels import CLASS_PAIR_METRICS
from pneumoscope.reporting.named_figure import NamedFigure
from pneumoscope.reporting.style import COLORS, RunStyle, drawing, new_figure, run_style, short
from pneumoscope.reporting.templating import format_value
from pneumoscope.statistics.probabilities import log_odds
from pneumoscope.statistics.roc import roc_curve

__all__ = ["class_figures_by_name", "confusion_figure", "draw_class_figures", "one_vs_rest_figure"]

_INK, _MUTED = (COLORS[name][0] for name in ("ink", "muted"))
_CELL = 74  # pixels
_DARK = 0.55  # fraction of the row above which cell text uses the light color


def draw_class_figures(
    comparison: MulticlassComparison, runs: Sequence[ComparedClasses]
) -> dict[str, tuple[NamedFigure, ...]]:
    """Return the figures of a comparison by kind: "flow", "confusion", "roc", "reliability" and "differences".

    "flow", "confusion" and "roc" have one figure per run, "reliability" one per run and class. A class without images
    has no ROC curve. There is no reliability diagram if some of the images were used to fit the calibration.
    """
    with drawing():
        return {
            "flow": tuple(
                NamedFigure(class_flow_figure(run.name, run.evaluation), f"flow-{i}", _flow_label(run))
                for i, run in enumerate(runs)
            ),
            "confusion": tuple(
                NamedFigure(confusion_figure(run.name, run.evaluation), f"confusion-{i}", _confusion_label(run))
                for i, run in enumerate(runs)
            ),
            "roc": tuple(
                NamedFigure(one_vs_rest_figure(run), f"roc-{i}", _roc_label(run)) for i, run in enumerate(runs)
            ),
            "reliability": tuple(
                NamedFigure(
                    reliability_figure(
                        f"{short(run.name)}: {name}" if len(runs) > 1 else name,
                        displayed_bins(result.reliability),
                        run_style(k),
                        event=name,
                    ),
                    f"reliability-{i}-{k}",
                    f"Reliability diagram of {run.name}: observed rate of {name} by its probability in"
                    f" {len(displayed_bins(result.reliability))} bins",
                )
                for i, run in enumerate(runs)
                for k, (name, result) in enumerate(run.evaluation.by_class.items())
                if result.reliability
            ),
            "differences": tuple(
                NamedFigure(
                    differences_figure(f"Difference in {title}", pairs),
                    f"differences-{metric.replace('_', '-')}",
                    f"Differences in {title} of {len(pairs)} pairs of runs with their intervals, as in the table",
                )
                for metric, title in CLASS_PAIR_METRICS.items()
                if (pairs := [pair for pair in comparison.pairs if pair.metric == metric])
            ),
        }


def class_figures_by_name(comparison: MulticlassComparison, runs: Sequence[ComparedClasses]) -> dict[str, NamedFigure]:
    """Return the figures of a comparison by name, such as "roc-0"; see `draw_class_figures`."""
    return {figure.key: figure for group in draw_class_figures(comparison, runs).values() for figure in group}


def confusion_figure(title: str, evaluation: MulticlassEvaluation) -> Figure:
    """Return the confusion matrix: classes in rows, predicted classes in columns, cells tinted by row fraction.

    Must be called within `style.drawing()`.
    """
    counts = np.array(evaluation.confusion, dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    fractions = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    names = [short(name) for name in evaluation.classes]
    side = _CELL * len(names)
    figure = new_figure(side + 130, side + 90)
    axes: Axes = figure.subplots()
    # Rectangles instead of an image keep the SVG free of raster data.
    style = run_style(0)
    for (row, column), fraction in np.ndenumerate(fractions):
        axes.fill(
            column + np.array([-0.5, 0.5, 0.5, -0.5]),
            row + np.array([-0.5, -0.5, 0.5, 0.5]),
            color=style.color,
            alpha=0.8 * float(fraction),
            linewidth=0,
        )
        color = COLORS["surface"][0] if fraction > _DARK else _INK
        axes.text(column, row - 0.1, f"{counts[row, column]:.0f}", ha="center", va="center", color=color, fontsize=12)
        text = f"{100 * fraction:.1f}%" if totals[row, 0] else "–"
        axes.text(column, row + 0.22, text, ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(names)), names, color=_INK)
    axes.set_yticks(range(len(names)), names, color=_INK)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("class")
    axes.set_title(short(title))
    axes.spines[:].set_color(COLORS["grid"][0])
    return figure


def one_vs_rest_figure(run: ComparedClasses) -> Figure:
    """Return the ROC curve of each class against the rest, with a legend. Must be called within `style.drawing()`."""
    classes = run.evaluation.classes
    scores = class_scores(run.images, classes)
    ranking = log_odds(scores.probabilities)
    curves: list[Curve] = []
    legend: list[tuple[str, RunStyle]] = []
    for k, name in enumerate(classes):
        member, metrics = scores.targets == k, run.evaluation.by_class[name].metrics
        if not member.any() or member.all():
            continue
        x, y, _ = roc_curve(ranking[:, k], member)
        specificity, sensitivity = metrics["specificity"].value, metrics["sensitivity"].value
        assert specificity is not None  # both the class and the rest have images
        assert sensitivity is not None
        curves.append(Curve(x, y, (1 - specificity, sensitivity), run_style(k)))
        legend.append((short(name), run_style(k)))
    figure = overlay_figure(
        curves,
        labels=("1 \N{MINUS SIGN} specificity", "sensitivity"),
        title=f"One against the rest: {short(run.name)}",
        chance=((0, 1), (0, 1)),
    )
    lines = [Line2D([], [], color=style.color, linestyle=style.line) for _, style in legend]
    figure.legend(
        lines, [name for name, _ in legend], loc="outside lower center", ncols=3, frameon=False, fontsize=10,
        labelcolor=_MUTED,
    )  # fmt: skip
    return figure


def _flow_label(run: ComparedClasses) -> str:
    evaluation = run.evaluation
    predicted = ", ".join(
        f"{sum(row[index] for row in evaluation.confusion)} predicted as {name}"
        for index, name in enumerate(evaluation.classes)
    )
    of_patients = of_patients_text(evaluation.patients, evaluation.unknown_patients, evaluation.n)
    return f"Flow of images of {run.name}: {counted(evaluation.n, 'evaluated image')} {of_patients}; {predicted}"


def _confusion_label(run: ComparedClasses) -> str:
    rows = "; ".join(
        f"{sum(counts)} {name}: "
        + ", ".join(f"{count} as {other}" for other, count in zip(run.evaluation.classes, counts, strict=True))
        for name, counts in zip(run.evaluation.classes, run.evaluation.confusion, strict=True)
    )
    return f"Confusion matrix of {run.name}: {rows}"


def _roc_label(run: ComparedClasses) -> str:
    areas = ", ".join(
        f"{name} {'undefined' if (area := result.metrics['auroc'].value) is None else format_value(area)}"
        for name, result in run.evaluation.by_class.items()
    )
    return f"ROC curves of {run.name}, each class against the rest, with their AUROC: {areas}"

"""Draw figures of a comparison from results of `statistics` and `evaluation`; nothing is computed here.

Each figure is legible on a phone at its original size, and pages place several side by side. Legends are part of the
page.

All functions must be called within `style.drawing()`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from pneumoscope.core.comparison import PairedTest
from pneumoscope.core.interval import Interval
from pneumoscope.core.results import ReliabilityBin
from pneumoscope.reporting.style import COLORS, RunStyle, new_figure, short, show_grid

__all__ = [
    "Curve",
    "decision_curve_figure",
    "differences_figure",
    "estimates_figure",
    "histogram_figure",
    "metric_figure",
    "overlay_figure",
    "reliability_figure",
]

FloatArray = npt.NDArray[np.float64]
_INK, _MUTED, _SURFACE = (COLORS[name][0] for name in ("ink", "muted", "surface"))
_HISTOGRAM_TICKS = (5, 25, 100, 250, 500, 1000, 2500, 5000, 10_000)


@dataclasses.dataclass(frozen=True)
class Curve:
    """ROC or precision-recall curve of one run.

    Attributes:
        x, y: Points of the curve, 0 to 1, shape (n,).
        operating_point: Coordinates of the operating point; None if undefined.
        style: Style of the run.
        steps: Whether to draw a step function, as for average precision, instead of straight lines.
    """

    x: FloatArray
    y: FloatArray
    operating_point: tuple[float, float] | None
    style: RunStyle
    steps: bool = False


def metric_figure(
    title: str,
    names: Sequence[str],
    values: Sequence[Interval],
    styles: Sequence[RunStyle],
    points: Sequence[Sequence[float | None]] = (),
) -> Figure:
    """Return a bar chart of one metric: one bar per run with its interval, and the value beside it.

    Args:
        title: Label of the metric.
        names, values, styles: Name, value and style of each run or group, from top to bottom.
        points: Values of the runs of each group, drawn as points; empty for a single run.
    """
    figure = new_figure(300, 58 + 25 * len(names))
    axes: Axes = figure.subplots()
    show_grid(axes, "x")
    for row, (value, style) in enumerate(zip(values, styles, strict=True)):
        if value.value is None:
            axes.text(0.02, row, "undefined", va="center", color=_MUTED, fontsize=10)
            continue
        axes.barh(row, value.value, height=0.62, color=style.color, alpha=0.85, linewidth=0)
        if value.low is not None and value.high is not None:
            # An outline in the background color keeps the line visible on bars of any color.
            for color, width in ((_SURFACE, 4.0), (_INK, 1.4)):
                axes.plot([value.low, value.high], [row, row], color=color, linewidth=width, solid_capstyle="butt")
        axes.text(1.03, row, f"{value.value:.3f}", va="center", fontsize=10, transform=axes.get_yaxis_transform())
    for row, members in enumerate(points):
        found = [each for each in members if each is not None]
        if found:
            axes.plot(found, [row] * len(found), "o", markersize=4, markerfacecolor=_SURFACE, markeredgecolor=_INK,
                      markeredgewidth=1, clip_on=False, zorder=4)  # fmt: skip
    axes.set_yticks(range(len(names)), [short(name) for name in names], color=_INK)
    axes.set_ylim(len(names) - 0.45, -0.55)
    lowest = min([0.0, *(value.low for value in values if value.low is not None)])
    axes.set_xlim(-1 if lowest < 0 else 0, 1)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_title(title)
    return figure


def overlay_figure(
    curves: Sequence[Curve],
    *,
    labels: tuple[str, str],
    title: str = "",
    window: tuple[float, float, float, float] = (0, 1, 0, 1),
    chance: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> Figure:
    """Return the ROC or precision-recall curves of all runs in one square plot.

    Args:
        curves: One curve per run.
        labels: Labels of the horizontal and vertical axes.
        title: Title of the figure.
        window: Left, right, bottom and top of the visible area.
        chance: x and y coordinates of the ends of the no-skill line; None for no line.
    """
    figure = new_figure(380, 372)
    axes: Axes = figure.subplots()
    show_grid(axes)
    if chance is not None:
        axes.plot(*chance, color=_MUTED, linewidth=0.9, linestyle=(0, (2, 3)))
    for curve in curves:
        drawstyle = "steps-pre" if curve.steps else "default"
        axes.plot(curve.x, curve.y, color=curve.style.color, linestyle=curve.style.line, drawstyle=drawstyle)
    for curve in curves:
        if curve.operating_point is not None:
            x, y = curve.operating_point
            axes.plot([x], [y], marker="o", markersize=7, linestyle="", markeredgewidth=1.8,
                      markerfacecolor=_SURFACE, markeredgecolor=curve.style.color, zorder=4)  # fmt: skip
    left, right, bottom, top = window
    margin = 0.015
    axes.set_xlim(left - margin * (right - left), right + margin * (right - left))
    axes.set_ylim(bottom - margin * (top - bottom), top + margin * (top - bottom))
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title)
    axes.set_box_aspect(1)
    axes.spines[:].set_visible(False)
    return figure


def decision_curve_figure(
    thresholds: FloatArray, curves: Sequence[tuple[FloatArray, RunStyle]], treat_all: FloatArray
) -> Figure:
    """Return the net benefit by threshold probability for all runs, treating everyone, and treating no one.

    Args:
        thresholds: Threshold probabilities, shape (k,).
        curves: Net benefit, shape (k,), and style of each run.
        treat_all: Net benefit of treating everyone, shape (k,).
    """
    figure = new_figure(520, 330)
    axes: Axes = figure.subplots()
    show_grid(axes)
    axes.axhline(0, color=_INK, linewidth=0.9)
    axes.plot(thresholds, treat_all, color=_MUTED, linewidth=1.2, linestyle=(0, (2, 3)))
    for values, style in curves:
        axes.plot(thresholds, values, color=style.color, linestyle=style.line)
    highest = max(float(treat_all.max()), *(float(values.max()) for values, _ in curves), 0.05)
    # Values far below 0 only show that treating everyone is harmful.
    axes.set_ylim(-0.25 * highest, 1.08 * highest)
    axes.set_xlim(0, 1)
    axes.set_xlabel("threshold probability")
    axes.set_ylabel("net benefit")
    axes.set_title("Decision curves")
    axes.spines[:].set_visible(False)
    return figure


def reliability_figure(
    title: str, bins: Sequence[ReliabilityBin], style: RunStyle, *, event: str = "pneumonia"
) -> Figure:
    """Return a reliability diagram: observed rate of an event by its predicted probability, with intervals.

    Args:
        title: Name of the run or class.
        bins: Bins to draw; see `displayed_bins`.
        style: Style of the run.
        event: What the probability is of.
    """
    figure = new_figure(300, 300)
    axes: Axes = figure.subplots()
    show_grid(axes)
    axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.9, linestyle=(0, (2, 3)))
    for each in bins:
        ends = np.array([each.observed_rate.low, each.observed_rate.high])
        axes.plot([each.mean_probability] * 2, ends, color=style.color, linewidth=1.2, alpha=0.6)
    x = np.array([each.mean_probability for each in bins])
    y = np.array([each.observed_rate.value for each in bins])
    axes.plot(x, y, color=style.color, linewidth=1, marker="o", markersize=5, markeredgewidth=0, clip_on=False)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_box_aspect(1)
    axes.set_xlabel("predicted probability")
    axes.set_ylabel(f"observed rate of {short(event)}")
    axes.set_title(short(title))
    axes.spines[:].set_visible(False)
    return figure


def histogram_figure(
    title: str, scores: FloatArray, positive: npt.NDArray[np.bool_], threshold: float, style: RunStyle
) -> Figure:
    """Return a histogram of scores: PNEUMONIA upward in the run's color, NORMAL downward in gray, and the threshold.

    Args:
        title: Name of the run.
        scores: Scores before calibration, 0 to 1, shape (n,).
        positive: True where pneumonia is present, shape (n,).
        threshold: Threshold on the score.
        style: Style of the run.
    """
    figure = new_figure(300, 262)
    axes: Axes = figure.subplots()
    show_grid(axes, "y")
    edges = np.linspace(0, 1, 21)
    up, _ = np.histogram(scores[positive], edges)
    down, _ = np.histogram(scores[~positive], edges)
    bars: Any = {"x": (edges[:-1] + edges[1:]) / 2, "width": 0.044, "linewidth": 0}
    axes.bar(height=up, color=style.color, alpha=0.9, **bars)
    axes.bar(height=-down, color=_MUTED, alpha=0.6, **bars)
    axes.axhline(0, color=_MUTED, linewidth=0.8)
    axes.axvline(threshold, color=_INK, linewidth=1, linestyle=(0, (3, 2)))
    limit = max(int(up.max()), int(down.max()), 1) * 1.12
    # The square-root scale keeps the few misclassified images visible next to the many at both ends.
    axes.set_yscale("function", functions=(_signed_root, _signed_square))
    axes.set_ylim(-limit, limit)
    axes.set_xlim(-0.01, 1.01)
    ticks = [count for count in _HISTOGRAM_TICKS if count < limit] or [1]
    axes.yaxis.set_major_locator(FixedLocator([*(-count for count in ticks), 0, *ticks]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):.0f}"))
    axes.minorticks_off()
    axes.text(0.03, 0.97, "PNEUMONIA", ha="left", va="top", color=_MUTED, fontsize=10, transform=axes.transAxes)
    axes.text(0.97, 0.03, "NORMAL", ha="right", va="bottom", color=_MUTED, fontsize=10, transform=axes.transAxes)
    axes.set_xlabel("score")
    axes.set_ylabel("images")
    axes.set_title(short(title))
    axes.spines[:].set_visible(False)
    return figure


def _signed_root(count: FloatArray) -> FloatArray:
    return np.sign(count) * np.sqrt(np.abs(count))


def _signed_square(root: FloatArray) -> FloatArray:
    return np.sign(root) * np.square(root)


def differences_figure(title: str, pairs: Sequence[PairedTest]) -> Figure:
    """Return the differences of pairs with their intervals; non-significant ones are gray and hollow.

    Args:
        title: Title of the figure.
        pairs: Paired tests of one metric, from top to bottom.
    """
    figure = new_figure(380, 70 + 24 * len(pairs))
    axes: Axes = figure.subplots()
    show_grid(axes, "x")
    axes.axvline(0, color=_INK, linewidth=0.9)
    for row, pair in enumerate(pairs):
        value = pair.difference
        if value.value is None or value.low is None or value.high is None:
            axes.text(0, row, "  undefined", va="center", color=_MUTED, fontsize=10)
            continue
        is_significant = pair.verdict != "not distinguishable"
        color = _INK if is_significant else _MUTED
        axes.plot([value.low, value.high], [row, row], color=color, linewidth=1.6 if is_significant else 1.1)
        axes.plot([value.value], [row], marker="o", markersize=6, linestyle="", markeredgewidth=1.4,
                  markeredgecolor=color, markerfacecolor=color if is_significant else _SURFACE)  # fmt: skip
    axes.set_yticks(
        range(len(pairs)), [f"{short(pair.a)} \N{MINUS SIGN} {short(pair.b)}" for pair in pairs], color=_INK
    )
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_title(title)
    axes.spines[:].set_visible(False)
    return figure


def estimates_figure(
    title: str, rows: Sequence[tuple[str, Interval]], unit: str, *, reference: float | None = None
) -> Figure:
    """Return values between 0 and 1 with their intervals, one row each.

    Args:
        title: Title of the figure.
        rows: Name and value of each row, from top to bottom.
        unit: Label of the axis.
        reference: Position of a dashed line, such as 0.5 for chance; the axis then starts just below it or below the
            lowest interval. None for an axis from 0 to 1 without a line.
    """
    figure = new_figure(480, 64 + 30 * len(rows))
    axes: Axes = figure.subplots()
    show_grid(axes, "x")
    for row, (_, value) in enumerate(rows):
        if value.value is None or value.low is None or value.high is None:
            axes.text(reference or 0, row, "  undefined", va="center", color=_MUTED, fontsize=10)
            continue
        axes.plot([value.low, value.high], [row, row], color=_INK, linewidth=2, solid_capstyle="butt", clip_on=False)
        axes.plot([value.value], [row], "o", color=COLORS["run-1"][0], markersize=8, clip_on=False)
        axes.text(1.03, row, f"{value.value:.3f}", va="center", fontsize=10, transform=axes.get_yaxis_transform())
    axes.set_yticks(range(len(rows)), [short(name, 40) for name, _ in rows], color=_INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    lows = [value.low for _, value in rows if value.low is not None]
    axes.set_xlim(0 if reference is None else min([reference - 0.05, *(low - 0.02 for low in lows)]), 1)
    if reference is not None:
        axes.axvline(reference, color=_MUTED, linewidth=1.2, dashes=(4, 2))
    axes.set_xlabel(unit)
    axes.set_title(title)
    axes.spines[:].set_visible(False)
    return figure

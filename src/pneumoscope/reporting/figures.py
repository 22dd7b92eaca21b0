"""The figures of a comparison. They draw what `statistics` and `results` computed and compute nothing themselves.

Every figure is small enough to be read on a phone at its own size; a page sets several side by side. Legends are the
page's. Each function draws inside `style.drawing()`.
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

from pneumoscope.core.results import Interval, PairedTest
from pneumoscope.reporting.style import COLOURS, RunStyle, new_figure, short, show_grid
from pneumoscope.statistics.calibration import ReliabilityBin

__all__ = [
    "Line",
    "differences_figure",
    "histogram_figure",
    "metric_figure",
    "overlay_figure",
    "reliability_figure",
]

FloatArray = npt.NDArray[np.float64]
_INK, _MUTED, _SURFACE = (COLOURS[name][0] for name in ("ink", "muted", "surface"))
_SMALL = (300, 262)


@dataclasses.dataclass(frozen=True)
class Line:
    """One run's curve in a square of shares.

    Attributes:
        x, y: the curve, shape (n,), 0 to 1.
        at: the operating point on it; None where it does not exist.
        look: the run's.
        steps: the curve is flat up to each point, as average precision adds it up; else straight lines.
    """

    x: FloatArray
    y: FloatArray
    at: tuple[float, float] | None
    look: RunStyle
    steps: bool = False


def metric_figure(title: str, names: Sequence[str], values: Sequence[Interval], looks: Sequence[RunStyle]) -> Figure:
    """One metric as a bar a run with its interval, the number beside it.

    Args:
        title: the metric in words.
        names, values, looks: a run each, top to bottom.
    """
    figure = new_figure(300, 58 + 25 * len(names))
    axes: Axes = figure.subplots()
    show_grid(axes, "x")
    for row, (value, look) in enumerate(zip(values, looks, strict=True)):
        if value.value is None:
            axes.text(0.02, row, "not defined", va="center", color=_MUTED, fontsize=10)
            continue
        axes.barh(row, value.value, height=0.62, color=look.colour, alpha=0.85, linewidth=0)
        if value.low is not None and value.high is not None:
            # The line lies in a gap of the page's ground, to be seen on a bar of any colour.
            for colour, width in ((_SURFACE, 4.0), (_INK, 1.4)):
                axes.plot([value.low, value.high], [row, row], color=colour, linewidth=width, solid_capstyle="butt")
        axes.text(1.03, row, f"{value.value:.3f}", va="center", fontsize=10, transform=axes.get_yaxis_transform())
    axes.set_yticks(range(len(names)), [short(name) for name in names], color=_INK)
    axes.set_ylim(len(names) - 0.45, -0.55)
    lowest = min([0.0, *(value.low for value in values if value.low is not None)])
    axes.set_xlim(-1 if lowest < 0 else 0, 1)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_title(title)
    return figure


def overlay_figure(
    lines: Sequence[Line],
    *,
    labels: tuple[str, str],
    title: str = "",
    window: tuple[float, float, float, float] = (0, 1, 0, 1),
    chance: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> Figure:
    """All runs' curves in one square: ROC or precision-recall.

    Args:
        lines: a run each.
        labels: of the horizontal and the vertical axis.
        title: above it.
        window: left, right, bottom, top of what is shown.
        chance: the ends (x's, y's) of the line of a reader who guesses.
    """
    figure = new_figure(380, 372)
    axes: Axes = figure.subplots()
    show_grid(axes)
    if chance is not None:
        axes.plot(*chance, color=_MUTED, linewidth=0.9, linestyle=(0, (2, 3)))
    for line in lines:
        drawstyle = "steps-pre" if line.steps else "default"
        axes.plot(line.x, line.y, color=line.look.colour, linestyle=line.look.line, drawstyle=drawstyle)
    for line in lines:
        if line.at is not None:
            axes.plot(*[[value] for value in line.at], marker="o", markersize=7, linestyle="", markeredgewidth=1.8,
                      markerfacecolor=_SURFACE, markeredgecolor=line.look.colour, zorder=4)  # fmt: skip
    left, right, bottom, top = window
    slack = 0.015
    axes.set_xlim(left - slack * (right - left), right + slack * (right - left))
    axes.set_ylim(bottom - slack * (top - bottom), top + slack * (top - bottom))
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title)
    axes.set_box_aspect(1)
    axes.spines[:].set_visible(False)
    return figure


def reliability_figure(title: str, bins: Sequence[ReliabilityBin], look: RunStyle) -> Figure:
    """Predicted probability against the share of images with pneumonia, with the interval of each share."""
    figure = new_figure(300, 300)
    axes: Axes = figure.subplots()
    show_grid(axes)
    axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.9, linestyle=(0, (2, 3)))
    for each in bins:
        interval = np.array([each.observed.low, each.observed.high])
        axes.plot([each.probability] * 2, interval, color=look.colour, linewidth=1.2, alpha=0.6)
    x = np.array([each.probability for each in bins])
    y = np.array([each.observed.value for each in bins])
    axes.plot(x, y, color=look.colour, linewidth=1, marker="o", markersize=5, markeredgewidth=0, clip_on=False)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_box_aspect(1)
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("share with pneumonia")
    axes.set_title(short(title))
    axes.spines[:].set_visible(False)
    return figure


def histogram_figure(
    title: str, scores: FloatArray, positive: npt.NDArray[np.bool_], threshold: float, look: RunStyle
) -> Figure:
    """Images by score: pneumonia upward in the run's colour, normal downward in grey, the threshold as a line.

    Args:
        title: the run's name.
        scores: before calibration, shape (n,), 0 to 1.
        positive: True where pneumonia is present, shape (n,).
        threshold: on the score.
        look: the run's.
    """
    figure = new_figure(*_SMALL)
    axes: Axes = figure.subplots()
    show_grid(axes, "y")
    edges = np.linspace(0, 1, 21)
    up, _ = np.histogram(scores[positive], edges)
    down, _ = np.histogram(scores[~positive], edges)
    place: Any = {"x": (edges[:-1] + edges[1:]) / 2, "width": 0.044, "linewidth": 0}
    axes.bar(height=up, color=look.colour, alpha=0.9, **place)
    axes.bar(height=-down, color=_MUTED, alpha=0.6, **place)
    axes.axhline(0, color=_MUTED, linewidth=0.8)
    axes.axvline(threshold, color=_INK, linewidth=1, linestyle=(0, (3, 2)))
    most = max(int(up.max()), int(down.max()), 1) * 1.12
    # By the square root: the few images on the wrong side are what one looks for, beside the many at both ends.
    axes.set_yscale("function", functions=(_signed_root, _signed_square))
    axes.set_ylim(-most, most)
    axes.set_xlim(-0.01, 1.01)
    ticks = [count for count in (5, 25, 100, 250, 500, 1000, 2500, 5000, 10_000) if count < most] or [1]
    axes.yaxis.set_major_locator(FixedLocator([*(-count for count in ticks), 0, *ticks]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):.0f}"))
    axes.minorticks_off()
    axes.text(0.03, 0.97, "pneumonia", ha="left", va="top", color=_MUTED, fontsize=10, transform=axes.transAxes)
    axes.text(0.97, 0.03, "normal", ha="right", va="bottom", color=_MUTED, fontsize=10, transform=axes.transAxes)
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
    """Differences of pairs with their intervals around zero; pairs that cannot be told apart are drawn in grey.

    Args:
        title: the metric in words.
        pairs: top to bottom, all of one metric.
    """
    figure = new_figure(380, 70 + 24 * len(pairs))
    axes: Axes = figure.subplots()
    show_grid(axes, "x")
    axes.axvline(0, color=_INK, linewidth=0.9)
    for row, pair in enumerate(pairs):
        value = pair.difference
        if value.value is None or value.low is None or value.high is None:
            axes.text(0, row, "  not defined", va="center", color=_MUTED, fontsize=10)
            continue
        apart = pair.verdict != "not distinguishable"
        colour = _INK if apart else _MUTED
        axes.plot([value.low, value.high], [row, row], color=colour, linewidth=1.6 if apart else 1.1)
        axes.plot([value.value], [row], marker="o", markersize=6, linestyle="", markeredgewidth=1.4,
                  markeredgecolor=colour, markerfacecolor=colour if apart else _SURFACE)  # fmt: skip
    axes.set_yticks(
        range(len(pairs)), [f"{short(pair.a)} \N{MINUS SIGN} {short(pair.b)}" for pair in pairs], color=_INK
    )
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_title(title)
    axes.spines[:].set_visible(False)
    return figure

"""Figures show the given values in the style of the run."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pneumoscope.core.comparison import PairedTest
from pneumoscope.core.interval import Interval
from pneumoscope.core.results import ReliabilityBin
from pneumoscope.reporting.figures import (
    Curve,
    differences_figure,
    histogram_figure,
    metric_figure,
    overlay_figure,
    reliability_figure,
)
from pneumoscope.reporting.style import COLORS, drawing, run_style


def interval(value: float | None, low: float | None = None, high: float | None = None) -> Interval:
    return Interval(value, low, high, "wilson", 10, reason="" if value is not None else "undefined")


def axes_of(figure: Figure) -> Axes:
    (axes,) = figure.axes
    return axes


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_metric_figure_shows_values_as_bars_and_intervals_as_lines() -> None:
    values = [interval(0.75, 0.7, 0.8), interval(0.5, 0.4, 0.65)]
    with drawing():
        axes = axes_of(metric_figure("Accuracy", ["a", "b"], values, [run_style(0), run_style(1)]))
    assert [bar.get_width() for bar in axes.patches] == [0.75, 0.5]
    assert [list(line.get_xdata()) for line in axes.get_lines()][1::2] == [[0.7, 0.8], [0.4, 0.65]]
    assert texts(axes) == ["0.750", "0.500"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_xlim() == (0, 1)


def test_an_undefined_metric_has_text_and_no_bar() -> None:
    with drawing():
        axes = axes_of(metric_figure("Precision", ["a"], [interval(None)], [run_style(0)]))
    assert not axes.patches
    assert texts(axes) == ["undefined"]


def test_a_metric_without_interval_has_a_bar_and_no_line() -> None:
    with drawing():
        axes = axes_of(metric_figure("Precision", ["a"], [interval(0.5)], [run_style(0)]))
    assert len(axes.patches) == 1
    assert not axes.get_lines()


def test_the_axis_extends_to_negative_values() -> None:
    with drawing():
        axes = axes_of(metric_figure("MCC", ["a"], [interval(-0.2, -0.4, 0.1)], [run_style(0)]))
    assert axes.get_xlim() == (-1, 1)


def test_overlay_figure_shows_curves_and_operating_points_in_the_style_of_the_run() -> None:
    first_curve = Curve(np.array([0, 0.2, 1]), np.array([0, 0.9, 1]), (0.2, 0.9), run_style(1))
    second_curve = Curve(np.array([0, 1]), np.array([0, 1]), None, run_style(2), steps=True)
    with drawing():
        axes = axes_of(overlay_figure([first_curve, second_curve], labels=("x", "y"), chance=((0, 1), (0, 1))))
    _, first, second, ring = axes.get_lines()
    assert first.get_xydata().tolist() == [[0, 0], [0.2, 0.9], [1, 1]]
    assert (first.get_color(), second.get_color()) == (COLORS["run-1"][0], COLORS["run-2"][0])
    assert (first.get_drawstyle(), second.get_drawstyle()) == ("default", "steps-pre")
    assert ring.get_xydata().tolist() == [[0.2, 0.9]]
    assert ring.get_markeredgecolor() == COLORS["run-1"][0]


def test_reliability_figure_shows_each_bin_with_its_interval() -> None:
    bins = [
        ReliabilityBin(0, 0.2, 0.1, interval(0.25, 0.05, 0.5)),
        ReliabilityBin(0.7, 1, 0.8, interval(0.75, 0.5, 0.9)),
    ]
    with drawing():
        axes = axes_of(reliability_figure("a", bins, run_style(0)))
    _, *intervals, points = axes.get_lines()
    assert [line.get_xydata().tolist() for line in intervals] == [[[0.1, 0.05], [0.1, 0.5]], [[0.8, 0.5], [0.8, 0.9]]]
    assert points.get_xydata().tolist() == [[0.1, 0.25], [0.8, 0.75]]


def test_histogram_counts_pneumonia_upward_and_normal_downward() -> None:
    scores = np.array([0.0, 0.01, 0.52, 0.97, 1.0, 1.0])
    positive = np.array([False, False, True, False, True, True])
    with drawing():
        axes = axes_of(histogram_figure("a", scores, positive, 0.4, run_style(0)))
    heights = [bar.get_height() for bar in axes.patches]
    assert sum(height for height in heights if height > 0) == 3
    assert sum(height for height in heights if height < 0) == -3
    assert heights[19] == 2
    assert heights[20] == -2
    assert list(axes.get_lines()[-1].get_xdata()) == [0.4, 0.4]


@pytest.mark.parametrize("positive", [True, False])
def test_histogram_of_one_label(positive: bool) -> None:
    with drawing():
        axes = axes_of(histogram_figure("a", np.array([0.3]), np.array([positive]), 0.5, run_style(0)))
    assert sum(abs(bar.get_height()) for bar in axes.patches) == 1


def test_significant_differences_are_filled_others_hollow_and_undefined_ones_have_text() -> None:
    def pair(verdict: str, difference: Interval) -> PairedTest:
        return PairedTest("a", "b", "auroc", difference, "delong", 0.5, 0.5, verdict, "")

    significant, not_significant, undefined = (
        pair("a", interval(0.2, 0.1, 0.3)),
        pair("not distinguishable", interval(0.05, 0.01, 0.09)),
        pair("not distinguishable", interval(0.0)),
    )
    with drawing():
        axes = axes_of(differences_figure("Difference", [significant, not_significant, undefined]))
    _, line, filled, _, hollow = axes.get_lines()
    assert list(line.get_xdata()) == [0.1, 0.3]
    assert filled.get_xydata().tolist() == [[0.2, 0.0]]
    assert filled.get_markerfacecolor() == COLORS["ink"][0]
    assert hollow.get_markerfacecolor() == COLORS["surface"][0]
    assert texts(axes) == ["  undefined"]
    assert axes.get_yticklabels()[0].get_text() == "a \N{MINUS SIGN} b"

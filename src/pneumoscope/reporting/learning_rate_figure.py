"""The loss by learning rate."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from pneumoscope.reporting.style import new_figure, run_style, short, show_grid

__all__ = ["learning_rate_figure"]


def learning_rate_figure(
    rates: Sequence[float], losses: Sequence[float], suggestion: float | None, *, title: str
) -> Figure:
    """Return the loss by learning rate, with a ring at the suggested rate.

    Args:
        rates, losses: Learning rates and losses, at least one of each.
        suggestion: Suggested rate, one of the rates; None for none.
        title: Name of the recipe.
    """
    figure = new_figure(480, 300)
    axes = figure.subplots()
    show_grid(axes)
    style = run_style(0)
    axes.plot(rates, losses, color=style.color)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss, moving average")
    axes.set_title(short(title), loc="left")
    if suggestion is not None:
        at = list(rates).index(suggestion)
        axes.plot([suggestion], [losses[at]], "o", markersize=9, markerfacecolor="none", color=style.color)
    return figure

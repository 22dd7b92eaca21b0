"""Learning curves: accuracy and loss per epoch, and loss by learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pneumoscope.core.files import write_atomically
from pneumoscope.core.messages import counted
from pneumoscope.reporting.style import COLORS, RunStyle, drawing, new_figure, run_style, short, show_grid
from pneumoscope.reporting.svg import standalone_svg
from pneumoscope.runs.epochs import Epoch, read_epochs

__all__ = ["curves_figure", "curves_label", "learning_rate_figure", "write_curves"]


def write_curves(run: Path, out: Path, *, best: int) -> Path:
    """Write the learning curves of one run to an SVG file, and return its path.

    Args:
        run: Run folder.
        out: SVG file to write. Missing parent folders are created.
        best: Selected epoch.

    Raises:
        RunError: See `read_epochs`.
        StorageError: The file cannot be written.
    """
    epochs = read_epochs(run)
    name = run.resolve().name
    with drawing():
        figure = curves_figure(epochs, run_style(0), title=name, best=best, wide=True)
        text = standalone_svg(figure, label=curves_label(name, epochs, best))
    write_atomically(out, text)
    return out


def curves_label(name: str, epochs: Sequence[Epoch], best: int | None) -> str:
    """Return the text alternative of the figure."""
    start = f"Accuracy and loss of {name} over {counted(len(epochs), 'epoch')}"
    return start if best is None else f"{start}; epoch {best} was selected"


def curves_figure(
    epochs: Sequence[Epoch], style: RunStyle, *, title: str, best: int | None, wide: bool = False
) -> Figure:
    """Return accuracy and loss per epoch: training dotted, validation solid, averages as thin lines.

    Args:
        epochs: Epochs, at least one.
        style: Style of the run.
        title: Name of the run.
        best: Selected epoch to mark; None for no mark.
        wide: Place the panels side by side, for a file, instead of one above the other, for a page.
    """
    figure = new_figure(720, 300) if wide else new_figure(300, 360)
    upper, lower = figure.subplots(1, 2) if wide else figure.subplots(2, 1, sharex=True)
    _panel(upper, epochs, "accuracy", style, best)
    _panel(lower, epochs, "loss", style, best)
    upper.set_ylabel("accuracy")
    lower.set_ylabel("loss")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("epoch")
    if wide:
        upper.set_xlabel("epoch")
        figure.suptitle(short(title), x=0.01, ha="left", fontsize=12, fontweight="bold")
        handles, labels = upper.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=10)
    else:
        upper.set_title(short(title))
    figure.align_ylabels([upper, lower])
    return figure


def _panel(axes: Axes, epochs: Sequence[Epoch], metric: str, style: RunStyle, best: int | None) -> None:
    x = [row.epoch for row in epochs]
    train, validation = ([getattr(row, f"{split}_{metric}") for row in epochs] for split in ("train", "validation"))
    marker = "o" if len(x) == 1 else None  # a line through one point is invisible
    muted = COLORS["muted"][0]
    show_grid(axes, "y")
    axes.plot(x, train, color=muted, linestyle=(0, (1.4, 1.4)), marker=marker, label="train")
    axes.plot(x, validation, color=style.color, marker=marker, label="validation")
    for values, color, name in ((train, muted, "train"), (validation, style.color, "validation")):
        axes.axhline(float(np.mean(values)), color=color, linewidth=0.7, alpha=0.75, label=f"{name}, average")
    if best is not None and best in x:
        axes.plot([best], [validation[x.index(best)]], marker="o", markersize=7, linestyle="", label="selected epoch", zorder=5,
                  markerfacecolor=COLORS["surface"][0], markeredgecolor=style.color, markeredgewidth=1.8)  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=8))
    axes.set_xlim(x[0] - 0.5, x[-1] + 0.5)


def learning_rate_figure(
    rates: Sequence[float], losses: Sequence[float], suggestion: float | None, *, title: str
) -> Figure:
    """Return the loss by learning rate, with a ring at the suggested rate.

    Args:
        rates, losses: Learning rates and losses, at least one of each.
        suggestion: Suggested rate, one of the rates; None without one.
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

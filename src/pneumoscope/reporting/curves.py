"""How a run learned: accuracy and loss of every epoch, so that overfitting and unrest are seen, not only the end."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pneumoscope.core.errors import RunError
from pneumoscope.core.files import write_atomically
from pneumoscope.reporting.files import read_text
from pneumoscope.reporting.style import COLOURS, RunStyle, drawing, new_figure, run_style, short, show_grid
from pneumoscope.reporting.svg import standalone_svg

__all__ = ["EPOCHS_FILE", "Epochs", "curves_figure", "curves_label", "read_epochs", "write_curves"]

EPOCHS_FILE = "epochs.csv"
_COLUMNS = ("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Epochs:
    """What happened in each epoch of one run; arrays of shape (epochs,), not a number where nothing was measured.

    Attributes:
        epoch: from 1.
        train_accuracy, validation_accuracy: shares, 0 to 1.
        train_loss, validation_loss: mean binary cross-entropy in nats.
    """

    epoch: npt.NDArray[np.int64]
    train_accuracy: FloatArray
    validation_accuracy: FloatArray
    train_loss: FloatArray
    validation_loss: FloatArray

    @property
    def best(self) -> int | None:
        """The first epoch with the highest validation accuracy; None where none was measured."""
        if np.isnan(self.validation_accuracy).all():
            return None
        return int(self.epoch[np.nanargmax(self.validation_accuracy)])


def read_epochs(run: Path) -> Epochs:
    """The epochs of a run, from its `epochs.csv`.

    Raises:
        RunError: the file is missing or holds no epoch, or a column is missing, or a value is not a number (its row
            is named).
    """
    path = run / EPOCHS_FILE
    rows = list(csv.DictReader(read_text(path).splitlines()))
    if not rows:
        raise RunError(f"{path} holds no epoch", hint="Finish the run: pneumoscope train RECIPE --out RUN --resume")
    missing = [name for name in _COLUMNS if name not in rows[0]]
    if missing:
        raise RunError(f"{path} has no column {missing[0]!r} (it has: {', '.join(rows[0])})")
    values = {name: np.array([_number(row[name], name, path, i) for i, row in enumerate(rows, 1)]) for name in _COLUMNS}
    whole = values.pop("epoch")
    for row, number in enumerate(whole, 1):
        if not float(number).is_integer():
            raise RunError(f"{path}, row {row}: epoch is {rows[row - 1]['epoch']!r}, not a whole number")
    return Epochs(epoch=whole.astype(np.int64), **values)


def _number(text: str | None, column: str, path: Path, row: int) -> float:
    if not text:
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise RunError(f"{path}, row {row}: {column} is {text!r}, not a number") from None


def write_curves(run: Path, out: Path, *, best: int | None = None) -> Path:
    """Accuracy and loss curves of one run as one SVG file.

    Args:
        run: the run's folder.
        out: the file to write; its folder is made.
        best: the epoch that was kept; left out, it is the first with the highest validation accuracy.
    Returns:
        `out`.
    Raises:
        RunError: as `read_epochs`.
        StorageError: the file cannot be written.
    """
    epochs = read_epochs(run)
    name, best = run.resolve().name, epochs.best if best is None else best
    with drawing():
        figure = curves_figure(epochs, run_style(0), title=name, best=best, wide=True)
        text = standalone_svg(figure, label=curves_label(name, epochs, best))
    write_atomically(out, text)
    return out


def curves_label(name: str, epochs: Epochs, best: int | None) -> str:
    """The figure in words."""
    n = len(epochs.epoch)
    start = f"Accuracy and loss of {name} over {n} epoch{'s' if n > 1 else ''}"
    return start if best is None else f"{start}; the weights of epoch {best} were kept"


def curves_figure(epochs: Epochs, look: RunStyle, *, title: str, best: int | None, wide: bool = False) -> Figure:
    """Accuracy and loss per epoch, training dotted and validation solid, the averages over epochs as thin lines.

    Args:
        epochs: at least one.
        look: the run's colour.
        title: the run's name.
        best: the epoch whose weights were kept; None marks none.
        wide: side by side, for a file; else one above the other, for a phone and for small multiples.
    """
    figure = new_figure(720, 300) if wide else new_figure(300, 360)
    upper, lower = figure.subplots(1, 2) if wide else figure.subplots(2, 1, sharex=True)
    _panel(upper, epochs, epochs.train_accuracy, epochs.validation_accuracy, look, best)
    _panel(lower, epochs, epochs.train_loss, epochs.validation_loss, look, best)
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


def _panel(
    axes: Axes, epochs: Epochs, train: FloatArray, validation: FloatArray, look: RunStyle, best: int | None
) -> None:
    x = epochs.epoch
    marker = "o" if len(x) == 1 else None  # a line through one point cannot be seen
    muted = COLOURS["muted"][0]
    show_grid(axes, "y")
    axes.plot(x, train, color=muted, linestyle=(0, (1.4, 1.4)), marker=marker, label="train")
    axes.plot(x, validation, color=look.colour, marker=marker, label="validation")
    for values, colour, name in ((train, muted, "train"), (validation, look.colour, "validation")):
        known = values[~np.isnan(values)]
        if known.size:
            axes.axhline(float(known.mean()), color=colour, linewidth=0.7, alpha=0.75, label=f"{name}, average")
    if best is not None and best in x:
        at = float(validation[np.flatnonzero(x == best)[0]])
        axes.plot([best], [at], marker="o", markersize=7, linestyle="", label="epoch kept", zorder=5,
                  markerfacecolor=COLOURS["surface"][0], markeredgecolor=look.colour, markeredgewidth=1.8)  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=8))
    axes.set_xlim(float(x[0]) - 0.5, float(x[-1]) + 0.5)

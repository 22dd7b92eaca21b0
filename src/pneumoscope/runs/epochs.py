"""Metrics of each epoch (`epochs.csv`), and selection of the best epoch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pneumoscope.core.errors import RunError
from pneumoscope.runs.run_folder import EPOCHS_FILE, read_text

__all__ = ["Epoch", "best_epoch", "count_plateaus", "epochs_csv", "is_stopped_early", "read_epochs"]


class Epoch(NamedTuple):
    """One row of `epochs.csv`.

    Attributes:
        epoch: Epoch number, from 1.
        train_loss, train_accuracy: Means over the training batches, with dropout and augmentation.
        validation_loss, validation_accuracy, validation_auroc: At the end of the epoch; accuracy at threshold 0.5.
        learning_rate: Learning rate after the last step.
        seconds: Wall-clock time, including validation.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_auroc: float
    learning_rate: float
    seconds: float

    def metrics(self) -> dict[str, float]:
        """Return all columns except the epoch number."""
        return {name: value for name, value in self._asdict().items() if name != "epoch"}


def best_epoch(epochs: Sequence[Epoch], select: Literal["accuracy", "auroc", "loss", "last"]) -> Epoch:
    """Return the earliest epoch with the best validation metric; or the last epoch for "last"."""
    if select == "last":
        return epochs[-1]
    if select == "loss":
        return min(epochs, key=lambda row: row.validation_loss)
    if select == "auroc":
        return max(epochs, key=lambda row: row.validation_auroc)
    return max(epochs, key=lambda row: row.validation_accuracy)


def is_stopped_early(
    epochs: Sequence[Epoch], select: Literal["accuracy", "auroc", "loss", "last"], patience: int | None
) -> bool:
    """Return whether the metric has not improved for `patience` epochs; False without patience."""
    return bool(epochs) and patience is not None and epochs[-1].epoch - best_epoch(epochs, select).epoch >= patience


def count_plateaus(losses: Sequence[float], patience: int) -> int:
    """Return how often the loss did not decrease for `patience` epochs; the count restarts after each time."""
    lowest, waited, plateaus = math.inf, 0, 0
    for loss in losses:
        waited = 0 if loss < lowest else waited + 1
        lowest = min(lowest, loss)
        if waited == patience:
            plateaus, waited = plateaus + 1, 0
    return plateaus


def epochs_csv(epochs: Sequence[Epoch]) -> str:
    """Return the epochs as CSV text, with numbers in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Epoch._fields)
    writer.writerows(epochs)
    return out.getvalue()


def read_epochs(run: Path) -> tuple[Epoch, ...]:
    """Return the epochs of a run, at least one.

    Raises:
        RunError: The file or a column is missing, the file has no rows, or a value is not a finite number.
    """
    path = run / EPOCHS_FILE
    reader = csv.DictReader(read_text(path).splitlines())
    missing = [name for name in Epoch._fields if name not in (reader.fieldnames or ())]
    if missing:
        raise RunError(f"{path} has no column {missing[0]!r} (it has: {', '.join(reader.fieldnames or ())})")
    rows = tuple(_parse_row(row, f"{path}, row {number}") for number, row in enumerate(reader, start=1))
    if not rows:
        raise RunError(f"{path} has no rows", hint="Finish the run: pneumoscope train RECIPE --out RUN --resume")
    return rows


def _parse_row(row: dict[str, str], place: str) -> Epoch:
    values: dict[str, float] = {}
    for name in Epoch._fields:
        try:
            values[name] = int(row[name]) if name == "epoch" else float(row[name])
        except (TypeError, ValueError):
            values[name] = math.nan
        if not math.isfinite(values[name]):
            expected = "a whole number" if name == "epoch" else "a finite number"
            raise RunError(f"{place}: {name} is {row[name]!r}, not {expected}")
    return Epoch(**values)  # type: ignore[arg-type]

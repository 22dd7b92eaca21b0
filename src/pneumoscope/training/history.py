"""What happened in each epoch, and which one is kept."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Literal, NamedTuple

__all__ = ["Epoch", "best_epoch", "history_csv"]


class Epoch(NamedTuple):
    """One row of `epochs.csv`.

    Attributes:
        epoch: counted from 1.
        train_loss, train_accuracy: over the images as they were seen, dropout and augmentation included.
        validation_loss, validation_accuracy, validation_auroc: at the end of the epoch; accuracy at the threshold 0.5.
        learning_rate: after the last step.
        seconds: wall clock, validation included.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_auroc: float
    learning_rate: float
    seconds: float


def best_epoch(history: Sequence[Epoch], select: Literal["accuracy", "auroc", "loss", "last"]) -> Epoch:
    """The epoch whose validation figure is best, the earlier one at a tie; or the last one."""
    if select == "last":
        return history[-1]
    if select == "loss":
        return min(history, key=lambda row: row.validation_loss)
    if select == "auroc":
        return max(history, key=lambda row: row.validation_auroc)
    return max(history, key=lambda row: row.validation_accuracy)


def history_csv(history: Sequence[Epoch]) -> str:
    """The rows as CSV text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Epoch._fields)
    writer.writerows(history)
    return out.getvalue()

"""Progress of training on standard error: a bar on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

import sys

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, RichProgressBar

from pneumoscope.training.classifier import Classifier

__all__ = ["EpochLines", "progress_callback"]


class EpochLines(Callback):
    """Print one line per epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the metrics and the estimated time left, in the first process only."""
        assert isinstance(pl_module, Classifier)
        if not trainer.is_global_zero:
            return
        epochs, total = pl_module.history, pl_module.recipe.training.epochs
        row = epochs[-1]
        left = sum(each.seconds for each in epochs) / len(epochs) * (total - row.epoch)
        print(
            f"{pl_module.recipe.name}: epoch {row.epoch}/{total},"
            f" train loss {row.train_loss:.3f} accuracy {row.train_accuracy:.3f},"
            f" validation loss {row.validation_loss:.3f} accuracy {row.validation_accuracy:.3f}, {left / 60:.0f} min left",
            file=sys.stderr,
            flush=True,
        )


def progress_callback() -> Callback:
    """Return Lightning's progress bar where standard error is a terminal, `EpochLines` elsewhere."""
    return RichProgressBar(console_kwargs={"stderr": True}) if sys.stderr.isatty() else EpochLines()

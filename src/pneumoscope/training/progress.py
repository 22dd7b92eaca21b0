"""What a person sees of a long run: a bar on a terminal, a line an epoch in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pneumoscope.training.classifier import Classifier

__all__ = ["ShowProgress"]


class ShowProgress(Callback):
    """Epoch, loss, accuracy and the time left, on standard error."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._begun = time.monotonic()
        self._first = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the bar where standard error is a terminal."""
        self._begun, self._first = time.monotonic(), trainer.current_epoch
        if not (trainer.is_global_zero and sys.stderr.isatty()):
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        steps = int(trainer.num_training_batches)
        self._task = self._bar.add_task(
            "starting", total=steps * (trainer.max_epochs or 0), completed=steps * trainer.current_epoch
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            loss = float(outputs["loss"])
            last = _last(pl_module)
            self._bar.update(
                self._task,
                advance=1,
                description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} loss {loss:.3f}{last}",
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print a line where there is no bar."""
        if not trainer.is_global_zero or self._bar is not None or not isinstance(pl_module, Classifier):
            return
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
        left = (time.monotonic() - self._begun) / (done - self._first) * (total - done)
        print(
            f"{pl_module.recipe.name}: epoch {done}/{total}{_last(pl_module)}, {left / 60:.0f} min left",
            file=sys.stderr,
            flush=True,
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bar away."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the bar away before the error is printed."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _last(pl_module: pl.LightningModule) -> str:
    history = pl_module.history if isinstance(pl_module, Classifier) else []
    if not history:
        return ""
    row = history[-1]
    return (
        f", train loss {row.train_loss:.3f} accuracy {row.train_accuracy:.3f},"
        f" validation {row.validation_loss:.3f} {row.validation_accuracy:.3f}"
    )

"""Lightning callbacks and plugins: crash-safe checkpoints, early stopping and progress on standard error.

Each file is replaced atomically. The best weights are written before the training state: if the process is killed between the
two, resuming repeats the epoch deterministically and writes the same weights again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, RichProgressBar
from lightning.pytorch.plugins.io import CheckpointIO
from rich.console import Console
from rich.progress import track
from safetensors.torch import save

from pneumoscope.core.errors import StorageError
from pneumoscope.core.files import write_atomically
from pneumoscope.runs.epochs import best_epoch, epochs_csv, is_stopped_early
from pneumoscope.runs.run_folder import CHECKPOINT_FILE, EPOCHS_FILE, WEIGHTS_FILE
from pneumoscope.training.classifier import Classifier

__all__ = [
    "AtomicCheckpointIO",
    "BestAndLastCheckpoint",
    "EarlyStopping",
    "EpochLog",
    "completed_epochs",
    "progress_callback",
    "track_steps",
]


class AtomicCheckpointIO(CheckpointIO):
    """Checkpoint I/O with atomic writes; loading accepts only tensors and plain values."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Replace the file atomically.

        Raises:
            StorageError: The disk is full; the existing file is unchanged.
        """
        try:
            write_atomically(Path(path), lambda file: torch.save(checkpoint, file))
        except RuntimeError as error:
            # torch.save converts an OSError of the file to a RuntimeError.
            raise StorageError(
                f"cannot write {str(path)!r}: {error}", hint="Free some space, then train again with --resume"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return a checkpoint."""
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class BestAndLastCheckpoint(Checkpoint):
    """Checkpoint callback that saves the best weights, the training state and `epochs.csv` after each epoch.

    Args:
        run: Run folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the weights, then the training state and `epochs.csv`."""
        assert isinstance(pl_module, Classifier)
        history, select = pl_module.history, pl_module.recipe.training.select
        if trainer.is_global_zero and best_epoch(history, select) is history[-1]:
            state = pl_module.evaluated_network.state_dict()
            tensors = {name: value.contiguous().cpu() for name, value in state.items()}
            write_atomically(self.run / WEIGHTS_FILE, save(tensors))
        trainer.save_checkpoint(self.run / CHECKPOINT_FILE)
        if trainer.is_global_zero:
            write_atomically(self.run / EPOCHS_FILE, epochs_csv(history))


class EarlyStopping(Callback):
    """Callback that stops a run when the validation metric has not improved for `early_stopping` epochs, if set."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop all processes; they share the same history."""
        assert isinstance(pl_module, Classifier)
        options = pl_module.recipe.training
        if is_stopped_early(pl_module.history, options.select, options.early_stopping):
            trainer.should_stop = True


def completed_epochs(run: Path) -> int:
    """Return the number of completed epochs in a run's training state, or 0 if there is none."""
    file = run / CHECKPOINT_FILE
    # Memory-mapped, because the tensors can be hundreds of megabytes.
    return len(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["history"]) if file.exists() else 0


class EpochLog(Callback):
    """Callback that prints one line per epoch to standard error."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the metrics and the estimated remaining time, from the first process only."""
        assert isinstance(pl_module, Classifier)
        if not trainer.is_global_zero:
            return
        epochs, total = pl_module.history, pl_module.recipe.training.epochs
        last = epochs[-1]
        remaining = sum(epoch.seconds for epoch in epochs) / len(epochs) * (total - last.epoch)
        print(
            f"{pl_module.recipe.name}: epoch {last.epoch}/{total},"
            f" train loss {last.train_loss:.3f} accuracy {last.train_accuracy:.3f},"
            f" validation loss {last.validation_loss:.3f} accuracy {last.validation_accuracy:.3f},"
            f" {remaining / 60:.0f} min left",
            file=sys.stderr,
            flush=True,
        )


def track_steps(count: int, description: str) -> Iterator[int]:
    """Yield 0 to count - 1 and report progress: a bar on a terminal, otherwise a line on standard error every tenth of the steps.

    Args:
        count: Number of steps.
        description: Text beside the bar, such as "training the input classifier".
    """
    if sys.stderr.isatty():
        yield from track(range(count), description, console=Console(stderr=True), transient=True)
        return
    start = time.monotonic()
    print(f"{description}: {count} steps", file=sys.stderr, flush=True)
    for step in range(count):
        yield step
        done = step + 1
        if done % max(1, count // 10) == 0 and done < count:
            minutes = (time.monotonic() - start) / done * (count - done) / 60
            print(f"{description}: step {done}/{count}, {minutes:.0f} min left", file=sys.stderr, flush=True)


def progress_callback() -> Callback:
    """Return Lightning's progress bar if standard error is a terminal, and an `EpochLog` otherwise."""
    return RichProgressBar(console_kwargs={"stderr": True}) if sys.stderr.isatty() else EpochLog()

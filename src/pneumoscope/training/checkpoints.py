"""What survives a kill: the state at the end of the last whole epoch, and the weights of the best one.

Both files are replaced in one step. The best weights are written before the state that counts them in: killed between the
two, the epoch is repeated with the same numbers and writes the same weights again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors.torch import save

from pneumoscope.core.errors import StorageError
from pneumoscope.core.files import write_atomically
from pneumoscope.runs.epochs import best_epoch, epochs_csv
from pneumoscope.runs.run_folder import CHECKPOINT_FILE, EPOCHS_FILE, WEIGHTS_FILE
from pneumoscope.training.classifier import Classifier

__all__ = ["AtomicCheckpoints", "KeepBestAndLast", "epochs_done"]


class AtomicCheckpoints(CheckpointIO):
    """Lightning's checkpoints through `write_atomically`, read back as tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Replace the file in one step.

        Raises:
            StorageError: the disk is full; the file before is kept.
        """
        try:
            write_atomically(Path(path), lambda file: torch.save(checkpoint, file))
        except RuntimeError as error:
            # torch's writer turns an OSError below it into a RuntimeError of its own.
            raise StorageError(
                f"cannot write {str(path)!r}: {error}", hint="Free some space, then train again with --resume"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read one."""
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete one."""
        Path(path).unlink(missing_ok=True)


class KeepBestAndLast(Checkpoint):
    """At the end of each epoch: best weights where it was the best so far, then the state, then `epochs.csv`.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write."""
        assert isinstance(pl_module, Classifier)
        history, select = pl_module.history, pl_module.recipe.training.select
        if trainer.is_global_zero and best_epoch(history, select) is history[-1]:
            tensors = {name: value.contiguous().cpu() for name, value in pl_module.kept.state_dict().items()}
            write_atomically(self.run / WEIGHTS_FILE, save(tensors))
        trainer.save_checkpoint(self.run / CHECKPOINT_FILE)
        if trainer.is_global_zero:
            write_atomically(self.run / EPOCHS_FILE, epochs_csv(history))


def epochs_done(run: Path) -> int:
    """Whole epochs that a run's state holds; 0 where there is no state yet."""
    state = run / CHECKPOINT_FILE
    # Mapped, not read: the tensors are hundreds of megabytes.
    return len(torch.load(state, map_location="cpu", weights_only=True, mmap=True)["history"]) if state.exists() else 0

"""Learning-rate range test with Lightning: raise the rate at each step and record the loss.

Source: Smith 2017, WACV, "Cyclical learning rates for training neural networks", section 3.3.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor

from pneumoscope.core.errors import DivergedError, UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.messages import counted
from pneumoscope.data.hashing import Progress
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.reporting.curves import learning_rate_figure
from pneumoscope.reporting.style import drawing
from pneumoscope.reporting.svg import standalone_svg
from pneumoscope.runs.recipe import Recipe
from pneumoscope.training.callbacks import AtomicCheckpointIO
from pneumoscope.training.classifier import Classifier
from pneumoscope.training.data_module import Batch, derive_seed
from pneumoscope.training.inputs import create_network, load_images, prepare_arrays
from pneumoscope.training.optimizers import create_optimizer
from pneumoscope.training.trainer import (
    Devices,
    create_data_module,
    label_weights,
    resolve_precision,
    training_settings,
)

__all__ = ["LEARNING_RATE_CURVE", "LEARNING_RATE_TABLE", "RateSearch", "find_learning_rate", "steepest_rate"]

LEARNING_RATE_TABLE = "learning-rate.csv"
LEARNING_RATE_CURVE = "learning-rate.svg"
_MIN_STEPS = 20
_SKIPPED_FIRST = 10  # steps excluded from the suggestion, like the last one
_SMOOTHING = 0.98  # decay of Lightning's moving average


class RateSearch(NamedTuple):
    """Result of a range test.

    Attributes:
        rates: Learning rate at each step.
        losses: Moving average of the loss after each step. The search ends early once it exceeds four times its minimum.
        suggestion: Rate at which the loss falls most steeply on a logarithmic axis; None if it never falls or there are too few
            steps.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float | None

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write learning-rate.csv and learning-rate.svg and return their paths.

        Args:
            folder: Output folder.
            name: Name of the recipe.

        Raises:
            StorageError: A file cannot be written.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("learning_rate", "loss"))
        writer.writerows(zip(self.rates, self.losses, strict=True))
        text = f"Loss of {name} by learning rate, {len(self.rates)} steps"
        with drawing():
            figure = learning_rate_figure(self.rates, self.losses, self.suggestion, title=name)
            curve = standalone_svg(figure, label=text)
        return (
            write_atomically(folder / LEARNING_RATE_TABLE, out.getvalue()),
            write_atomically(folder / LEARNING_RATE_CURVE, curve),
        )


class _RangeTest(Classifier):
    """Classifier without a schedule; a non-finite loss ends the search instead of failing.

    Attributes:
        on_step: Callback with the number of finished steps.
    """

    on_step: Callable[[int], None] = staticmethod(lambda _: None)
    _finished = 0

    def configure_optimizers(self) -> Any:
        """Return only the optimizer; Lightning sets its learning rate."""
        return create_optimizer(self.recipe.optimizer, self.network.parameters())

    def on_train_epoch_start(self) -> None:
        """Reset the sums; there is no schedule to update."""
        self._train_sums = torch.zeros(3, device=self.device)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of a batch, or None if it is not finite."""
        try:
            return super().training_step(batch, index)
        except DivergedError:
            self.trainer.should_stop = True
            return None  # type: ignore[return-value]  # Lightning then skips the step

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Update the moving average and count the step."""
        super().on_train_batch_end(*arguments)
        self._finished += 1
        self.on_step(self._finished)


def find_learning_rate(
    recipe: Recipe,
    data: Path,
    *,
    labels: LabelMapping | None = None,
    lowest: float = 1e-7,
    highest: float = 1.0,
    steps: int = 100,
    devices: Devices | None = None,
    progress: Progress | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> RateSearch:
    """Raise the learning rate exponentially over a number of training steps and return the loss at each step.

    No run folder is written and the weights are discarded. Validation and test images are not used.

    Args:
        recipe: Recipe; its learning rate and schedule are ignored.
        data, labels: See `train.train_run`.
        lowest, highest: First and last learning rate.
        steps: Number of steps, one batch each.
        devices: Device type; the search uses one device.
        progress: See `train.train_run`.
        log: Callback for messages: the number of steps and, without a terminal, each finished tenth; see also
            `train.train_run`.

    Raises:
        UsageError: There are too few steps, or `lowest` is not below `highest`.
        PneumoscopeError: See `train.train_run`.
    """
    _check_range(lowest, highest, steps)
    devices = devices or Devices()
    devices.check_available()
    manifest, _ = load_images(recipe, data, labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.training.seed, 0))
        network, weights = create_network(recipe, manifest)
        for note in weights.notes:
            log(f"note: {note}")
        arrays = prepare_arrays(recipe, manifest, network, weights, progress)
        data_module = create_data_module(recipe, arrays)
        model = _RangeTest(
            recipe,
            network,
            label_weights(recipe, arrays),
            data_module.steps_per_epoch(1),
            on_features=arrays.features is not None,
        )
        log(
            f"{steps} steps, each with {counted(recipe.training.batch, 'image')}; the learning rate rises from {lowest:g} to"
            f" {highest:g}"
        )
        model.on_step = _log_steps(steps, log)
        with tempfile.TemporaryDirectory() as folder, training_settings(), _quiet():
            finder = Tuner(_trainer(recipe, devices, folder, steps)).lr_find(
                model, datamodule=data_module, min_lr=lowest, max_lr=highest, num_training=steps, update_attr=False
            )
    assert finder is not None  # Lightning returns None only with fast_dev_run
    return _result(finder)


def _check_range(lowest: float, highest: float, steps: int) -> None:
    if steps < _MIN_STEPS:
        raise UsageError(f"the number of steps is {steps}; the minimum is {_MIN_STEPS}", hint="Give a larger number")
    if not 0 < lowest < highest:
        raise UsageError(
            f"the lowest learning rate is {lowest:g} and the highest {highest:g}",
            hint="Give a lowest rate above 0 that is below the highest",
        )


def _trainer(recipe: Recipe, devices: Devices, folder: str, steps: int) -> pl.Trainer:
    """Return a trainer that does not validate and writes no files."""
    precision = resolve_precision(recipe, devices)
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="gpu" if devices.gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        max_epochs=-1,
        gradient_clip_val=recipe.optimizer.clip or None,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=steps + 1,  # never
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )


def _result(finder: Any) -> RateSearch:
    """Return the rates and losses recorded by Lightning, dropping non-finite losses."""
    pairs = []
    for step, (rate, loss) in enumerate(zip(*finder.results.values(), strict=False), 1):
        # The moving average starts at 0; Lightning's bias correction is off by one step.
        corrected = float(loss) * (1 - _SMOOTHING ** (step + 1)) / (1 - _SMOOTHING**step)
        if math.isfinite(corrected):
            pairs.append((float(rate), corrected))
    rates, losses = tuple(rate for rate, _ in pairs), tuple(loss for _, loss in pairs)
    return RateSearch(rates, losses, steepest_rate(rates, losses))


def steepest_rate(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the rate at which the loss falls most steeply against the log rate, or None if it never falls."""
    inner = slice(_SKIPPED_FIRST, -1)
    if len(rates[inner]) < 2:
        return None
    slopes = np.gradient(losses[inner], np.log(rates[inner]))
    index = int(np.argmin(slopes))
    return rates[inner][index] if slopes[index] < 0 else None


def _log_steps(steps: int, log: Callable[[str], None]) -> Callable[[int], None]:
    """Return a callback that logs each tenth of the steps unless a terminal shows the progress bar."""
    stderr = sys.stderr  # kept because `_quiet` redirects it

    def on_step(finished: int) -> None:
        if 10 * finished // steps > 10 * (finished - 1) // steps and not stderr.isatty():
            with contextlib.redirect_stderr(stderr):
                log(f"{finished} of {steps} steps ({100 * finished // steps}%)")

    return on_step


@contextlib.contextmanager
def _quiet() -> Any:
    """Suppress Lightning's progress bar unless standard error is a terminal."""
    if sys.stderr.isatty():
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield

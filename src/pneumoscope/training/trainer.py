"""Lightning's Trainer, configured for reproducible, resumable and quiet runs from a script, a notebook or a test."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from timm.layers.norm_act import convert_sync_batchnorm
from torch.multiprocessing.spawn import ProcessRaisedException

import pneumoscope.core.errors
from pneumoscope.core.errors import PneumoscopeError, RunError
from pneumoscope.data.manifest import LabelledImage
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.runs.epochs import Epoch
from pneumoscope.runs.recipe import Recipe
from pneumoscope.runs.run_folder import CHECKPOINT_FILE, TENSORBOARD_FOLDER
from pneumoscope.training.checkpoints import AtomicCheckpoints, KeepBestAndLast
from pneumoscope.training.classifier import Classifier
from pneumoscope.training.data_module import ImageArrays, ImageDataModule
from pneumoscope.training.devices import Devices
from pneumoscope.training.progress import EpochLines, progress_callback

__all__ = ["run_trainer"]

_LIGHTNING = ("lightning.pytorch", "lightning.fabric")


def run_trainer(
    recipe: Recipe,
    network: ClassifierNetwork,
    arrays: ImageArrays,
    out: Path,
    devices: Devices,
    precision: str,
    *,
    callbacks: Sequence[Callback] = (),
) -> list[Epoch]:
    """Train until the last epoch, from the last checkpoint where there is one.

    Args:
        recipe: Of the run.
        network: With its starting weights. Read `WEIGHTS_FILE` for the trained ones.
        arrays: Images or features.
        out: The run folder.
        devices: To train on.
        precision: "32" or "bf16".
        callbacks: Further Lightning callbacks.
    Returns:
        The metrics of every epoch, those before an interruption included.
    Raises:
        DivergedError, StorageError: See `train.train`.
    """
    settings = recipe.training
    batches = ImageDataModule(arrays, batch=settings.batch, seed=settings.seed, augmentation=recipe.augmentation)
    world = devices.world
    if devices.gpu and world > 1:
        # Not `sync_batchnorm=True`: Lightning calls torch's conversion, which drops the activations inside timm's layers.
        # A copy, because SyncBatchNorm runs on GPUs only. CPU processes each use the statistics of their own share of a batch.
        network = convert_sync_batchnorm(copy.deepcopy(network))  # type: ignore[no-untyped-call]
    model = Classifier(
        recipe,
        network.to(memory_format=torch.channels_last if devices.gpu else network.memory_format),
        _label_weights(recipe, arrays.train),
        batches.steps_an_epoch(world),
        on_features=arrays.features is not None,
    )
    state = out / CHECKPOINT_FILE
    progress = progress_callback()
    with _interruptible(), _settings():
        trainer = pl.Trainer(
            accelerator="gpu" if devices.gpu else "cpu",
            devices=devices.world // devices.nodes,
            num_nodes=devices.nodes,
            strategy=_strategy(devices, world),
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            max_epochs=settings.epochs,
            # Some CUDA kernels have no deterministic form; there the run warns and goes on.
            deterministic="warn" if devices.gpu else True,
            gradient_clip_val=recipe.optimizer.clip or None,
            callbacks=[KeepBestAndLast(out), progress, *callbacks],
            plugins=[AtomicCheckpoints()] if world == 1 else None,
            logger=TensorBoardLogger(out, name=TENSORBOARD_FOLDER, version=""),
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            enable_progress_bar=not isinstance(progress, EpochLines),
            enable_model_summary=False,
            enable_checkpointing=True,
            log_every_n_steps=1,
        )
        _translating_spawned_errors(
            lambda: trainer.fit(
                model, datamodule=batches, ckpt_path=state if state.exists() else None, weights_only=True
            )
        )
    # Read back from disk: where other processes trained, this one's model knows nothing of it.
    return [Epoch(**row) for row in AtomicCheckpoints().load_checkpoint(state)["history"]]


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    # At Ctrl-C Lightning ends the process, and ignores the signal from then on; whoever called is to decide that.
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from stop


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    # Those of a process that trains, and afterwards what was there before.
    switches: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), switches.fill_uninitialized_memory
    levels = {name: logging.getLogger(name).level for name in _LIGHTNING}
    with warnings.catch_warnings():
        try:
            _settle()
            yield
        finally:
            torch.use_deterministic_algorithms(before[0])
            switches.fill_uninitialized_memory = before[1]
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _settle() -> None:
    # Lightning asks torch for deterministic algorithms, and torch then also fills every new array with NaN to show reads of
    # what was never written. That is for finding faults, and takes time.
    switches: Any = torch.utils.deterministic
    switches.fill_uninitialized_memory = False
    # Lightning tells which accelerators it did not find, and advertises.
    for name in _LIGHTNING:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Batches come from an array in memory: worker processes, which Lightning recommends, would only be in the way.
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)


class _SettledProcesses(DDPStrategy):
    """Lightning's, whose spawned processes begin with the settings of the one that starts them."""

    def setup_environment(self) -> None:
        """The first thing that such a process does."""
        _settle()
        super().setup_environment()


def _strategy(devices: Devices, world: int) -> Any:
    if world == 1:
        return "auto"
    backend = "nccl" if devices.gpu else "gloo"
    # Spawned processes work from a script, a notebook and a test alike; over several nodes torchrun starts them.
    start: Any = "popen" if devices.nodes > 1 else "spawn"
    return _SettledProcesses(
        process_group_backend=backend,
        start_method=start,
        checkpoint_io=AtomicCheckpoints(),
        find_unused_parameters=False,
    )


def _label_weights(recipe: Recipe, images: tuple[LabelledImage, ...]) -> tuple[float, float]:
    if recipe.training.class_weights == "none":
        return (1.0, 1.0)
    positive = sum(image.positive for image in images)
    return (len(images) / (2 * (len(images) - positive)), len(images) / (2 * positive))


def _translating_spawned_errors(run: Callable[[], None]) -> None:
    """Run, and turn a spawned process's error, which arrives as the text of its traceback, into the error that it was."""
    try:
        run()
    except ProcessRaisedException as error:
        found = re.search(r"^pneumoscope\.errors\.(\w+): (.+)$", str(error), re.MULTILINE)
        if found is None:
            raise RunError(f"a training process failed: {str(error).strip().splitlines()[-1]}") from error
        kind: type[PneumoscopeError] = getattr(pneumoscope.core.errors, found.group(1))
        translated = kind.__new__(kind)
        PneumoscopeError.__init__(translated, found.group(2))
        raise translated from error

"""Lightning's loop, set up so that a run is reproducible, resumable, quiet, and the same from a script, a notebook or a test."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from timm.layers.norm_act import convert_sync_batchnorm
from torch.multiprocessing.spawn import ProcessRaisedException

import pneumoscope.core.errors
from pneumoscope.core.errors import PneumoscopeError, RunError, UsageError
from pneumoscope.data.manifest import LabelledImage
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.training.checkpoints import STATE, AtomicCheckpoints, KeepBestAndLast
from pneumoscope.training.classifier import Classifier
from pneumoscope.training.data_module import ImageArrays, ImageDataModule
from pneumoscope.training.events import EventLog
from pneumoscope.training.history import Epoch
from pneumoscope.training.progress import ShowProgress
from pneumoscope.training.recipe import Recipe

__all__ = ["Devices", "bf16_is_native", "device_name", "fit", "precision_here"]

_LIGHTNING = ("lightning.pytorch", "lightning.fabric")


@dataclasses.dataclass(frozen=True, slots=True)
class Devices:
    """On what a run trains.

    Attributes:
        accelerator: "cpu", "gpu", or "auto" for a GPU where there is one.
        count: devices on each node; 0 takes one CPU, or every GPU.
        nodes: machines; each starts the same command under torchrun.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    count: int = 0
    nodes: int = 1

    @property
    def gpu(self) -> bool:
        """True where a GPU is used."""
        return self.accelerator == "gpu" or (self.accelerator == "auto" and torch.cuda.is_available())

    @property
    def world(self) -> int:
        """Devices in all."""
        here = self.count or (torch.cuda.device_count() if self.gpu else 1)
        return here * self.nodes

    @property
    def first(self) -> bool:
        """True in the process that writes: over several nodes torchrun starts this program in each, and numbers them."""
        return self.nodes == 1 or os.environ.get("RANK", "0") == "0"

    def refuse_missing(self) -> None:
        """Raise where GPUs are asked for that are not there.

        Raises:
            UsageError: saying how many are asked for and how many there are.
        """
        asked, there = max(self.count, 1), torch.cuda.device_count()
        if self.gpu and asked > there:
            raise UsageError(
                f"training on {asked} GPU{'s' * (asked > 1)} is asked for; torch finds {there} on this machine",
                hint="Use --accelerator cpu, or fewer --devices",
            )


def bf16_is_native(*, gpu: bool) -> bool:
    """True where the processor (or GPU) computes in bf16; where it is emulated it is far slower than float32."""
    if gpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


def precision_here(recipe: Recipe, devices: Devices) -> str:
    """ "32" or "bf16", as asked or by what the device computes in."""
    asked = recipe.training.precision
    if asked == "auto":
        return "bf16" if bf16_is_native(gpu=devices.gpu) else "32"
    return asked


def device_name(devices: Devices) -> str:
    """For the record: "cpu", "2 x cpu", or the GPU's name."""
    name = torch.cuda.get_device_name() if devices.gpu else "cpu"
    return name if devices.world == 1 else f"{devices.world} x {name}"


def fit(
    recipe: Recipe,
    network: ClassifierNetwork,
    arrays: ImageArrays,
    out: Path,
    devices: Devices,
    precision: str,
    *,
    watch: Sequence[Callback] = (),
) -> list[Epoch]:
    """Train until the last epoch, from the last checkpoint where there is one.

    Args:
        recipe: of the run.
        network: with its starting weights; its weights afterwards are of no use, read `BEST`.
        arrays: images or features.
        out: the run's folder.
        devices: to train on.
        precision: "32" or "bf16".
        watch: further callbacks of Lightning's.
    Returns:
        Every epoch's figures, those before an interruption included.
    Raises:
        DivergedError, StorageError: see `fit.train`.
    """
    settings = recipe.training
    batches = ImageDataModule(arrays, batch=settings.batch, seed=settings.seed, augmentation=recipe.augmentation)
    world = devices.world
    if devices.gpu and world > 1:
        # timm's conversion, because torch's drops the activations inside timm's layers; of a copy, so that the caller's network
        # stays one for any device. On CPUs see `batch_norm`.
        network = convert_sync_batchnorm(copy.deepcopy(network))  # type: ignore[no-untyped-call]
    model = Classifier(
        recipe,
        network.to(memory_format=torch.channels_last if devices.gpu else network.memory_format),
        _label_weights(recipe, arrays.train),
        batches.steps_an_epoch(world),
        on_features=arrays.features is not None,
    )
    state = out / STATE
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
            callbacks=[KeepBestAndLast(out), ShowProgress(), *watch],
            plugins=[AtomicCheckpoints()] if world == 1 else None,
            logger=EventLog(out / "tensorboard"),
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            enable_progress_bar=False,
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

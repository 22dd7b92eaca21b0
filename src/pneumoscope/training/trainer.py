"""Devices, and Lightning's Trainer configured for reproducible, resumable runs from scripts, notebooks and tests."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import logging
import multiprocessing
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import reduction
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from timm.layers.norm_act import convert_sync_batchnorm
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from pneumoscope.core import errors
from pneumoscope.core.errors import PneumoscopeError, RunError, UsageError
from pneumoscope.core.messages import counted
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.runs.epochs import Epoch, is_stopped_early
from pneumoscope.runs.recipe import Recipe
from pneumoscope.runs.run_folder import CHECKPOINT_FILE, LoggerName
from pneumoscope.training.callbacks import (
    AtomicCheckpointIO,
    BestAndLastCheckpoint,
    EarlyStopping,
    EpochLog,
    progress_callback,
)
from pneumoscope.training.classifier import Classifier
from pneumoscope.training.data_module import ImageArrays, ImageDataModule
from pneumoscope.training.loggers import CompleteCsvLog, create_loggers

__all__ = [
    "Devices",
    "bf16_is_native",
    "create_data_module",
    "device_name",
    "label_weights",
    "resolve_precision",
    "run_trainer",
    "training_settings",
]

_LIGHTNING_LOGGERS = ("lightning.pytorch", "lightning.fabric")


@dataclasses.dataclass(frozen=True, slots=True)
class Devices:
    """Devices to train on.

    Attributes:
        accelerator: "cpu", "gpu", or "auto" to use a GPU if available.
        count: Devices per node; 0 for one CPU process or all GPUs.
        nodes: Number of machines; torchrun starts the same command on each.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    count: int = 0
    nodes: int = 1

    @property
    def gpu(self) -> bool:
        """True if training uses GPUs."""
        return self.accelerator == "gpu" or (self.accelerator == "auto" and torch.cuda.is_available())

    @property
    def world_size(self) -> int:
        """Number of processes over all nodes, one per device."""
        per_node = self.count or (torch.cuda.device_count() if self.gpu else 1)
        return per_node * self.nodes

    @property
    def is_first_node(self) -> bool:
        """True in the process that writes the run folder; with several nodes, torchrun sets the rank."""
        return self.nodes == 1 or os.environ.get("RANK", "0") == "0"

    def check_available(self) -> None:
        """Raise if more GPUs are requested than available.

        Raises:
            UsageError: Contains both numbers.
        """
        requested, available = max(self.count, 1), torch.cuda.device_count()
        if self.gpu and requested > available:
            raise UsageError(
                f"training on {counted(requested, 'GPU')} was requested; torch finds {available} on this machine",
                hint="Use --accelerator cpu, or fewer --devices",
            )


def bf16_is_native(*, gpu: bool) -> bool:
    """Return whether the CPU or GPU supports bf16 natively; emulated bf16 is far slower than float32."""
    if gpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def resolve_precision(recipe: Recipe, devices: Devices) -> str:
    """Return the precision, "32" or "bf16", resolving "auto" for the device."""
    precision = recipe.training.precision
    if precision == "auto":
        return "bf16" if bf16_is_native(gpu=devices.gpu) else "32"
    return precision


def device_name(devices: Devices) -> str:
    """Return "cpu" or the GPU's name, with the number of devices if there are several, such as "2 x cpu"."""
    name = torch.cuda.get_device_name() if devices.gpu else "cpu"
    return name if devices.world_size == 1 else f"{devices.world_size} x {name}"


def run_trainer(
    recipe: Recipe,
    network: ClassifierNetwork,
    arrays: ImageArrays,
    out: Path,
    devices: Devices,
    precision: str,
    *,
    loggers: Sequence[LoggerName] = ("tensorboard",),
    lock: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> list[Epoch]:
    """Train to the last epoch, resuming from a checkpoint if there is one, and return the metrics of all epochs.

    Args:
        recipe: Recipe of the run.
        network: Network with its initial weights. The trained weights are written to `WEIGHTS_FILE`.
        arrays: Images or features.
        out: Run folder.
        devices: Devices to train on.
        precision: "32" or "bf16".
        loggers: Names of the loggers of the epoch metrics.
        lock: File descriptor of the folder's lock, inherited by spawned processes; None without a lock.
        callbacks: Additional Lightning callbacks.

    Raises:
        DivergedError, StorageError: See `train.train_run`.
        RunError: A spawned process failed or was terminated.
    """
    data_module = create_data_module(recipe, arrays)
    world_size = devices.world_size
    if devices.gpu and world_size > 1:
        # Lightning's `sync_batchnorm=True` uses torch's conversion, which drops the activations inside timm's layers.
        # Convert a copy, because SyncBatchNorm runs on GPUs only; CPU processes normalize by their own part of a batch.
        network = convert_sync_batchnorm(copy.deepcopy(network))  # type: ignore[no-untyped-call]
    model = Classifier(
        recipe,
        network.to(memory_format=torch.channels_last if devices.gpu else network.memory_format),
        label_weights(recipe, arrays),
        data_module.steps_per_epoch(world_size),
        on_features=arrays.features is not None,
    )
    checkpoint = out / CHECKPOINT_FILE
    progress = progress_callback()
    with _keyboard_interrupt(), training_settings():
        trainer = pl.Trainer(
            accelerator="gpu" if devices.gpu else "cpu",
            devices=world_size // devices.nodes,
            num_nodes=devices.nodes,
            strategy=_strategy(devices, lock),
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            max_epochs=recipe.training.epochs,
            # Some CUDA kernels have no deterministic implementation.
            deterministic="warn" if devices.gpu else True,
            gradient_clip_val=recipe.optimizer.clip or None,
            callbacks=[BestAndLastCheckpoint(out), EarlyStopping(), CompleteCsvLog(), progress, *callbacks],
            plugins=[AtomicCheckpointIO()] if world_size == 1 else None,
            logger=create_loggers(loggers, out, recipe),
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            enable_progress_bar=not isinstance(progress, EpochLog),
            enable_model_summary=False,
            enable_checkpointing=True,
            log_every_n_steps=1,
        )
        if not _is_stopped_early(recipe, checkpoint):
            _reraise_worker_errors(
                lambda: trainer.fit(
                    model,
                    datamodule=data_module,
                    ckpt_path=checkpoint if checkpoint.exists() else None,
                    weights_only=True,
                )
            )
    # Read from disk: if spawned processes trained, the model in this process has no history.
    return _history(checkpoint)


def create_data_module(recipe: Recipe, arrays: ImageArrays) -> ImageDataModule:
    """Return the data module of a recipe.

    Args:
        recipe: Recipe of the run.
        arrays: Images or features of the run.
    """
    settings = recipe.training
    return ImageDataModule(
        arrays,
        batch=settings.batch,
        seed=settings.seed,
        augmentation=recipe.augmentation,
        views=2 if settings.consistency else 1,
    )


def _history(checkpoint: Path) -> list[Epoch]:
    return [Epoch(**row) for row in AtomicCheckpointIO().load_checkpoint(checkpoint)["history"]]


def _is_stopped_early(recipe: Recipe, checkpoint: Path) -> bool:
    """Return whether the run was interrupted after early stopping had ended training."""
    options = recipe.training
    if options.early_stopping is None or not checkpoint.exists():
        return False
    return is_stopped_early(_history(checkpoint), options.select, options.early_stopping)


@contextlib.contextmanager
def _keyboard_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C; Lightning would exit the process and ignore the signal afterwards."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error


@contextlib.contextmanager
def training_settings() -> Iterator[None]:
    """Apply the process-wide settings of training and restore the previous ones on exit."""
    torch_settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch_settings.fill_uninitialized_memory
    levels = {name: logging.getLogger(name).level for name in _LIGHTNING_LOGGERS}
    with warnings.catch_warnings():
        try:
            _apply_training_settings()
            yield
        finally:
            torch.use_deterministic_algorithms(before[0])
            torch_settings.fill_uninitialized_memory = before[1]
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _apply_training_settings() -> None:
    # In deterministic mode, torch fills new tensors with NaN to expose reads of uninitialized memory, which is slow.
    torch_settings: Any = torch.utils.deterministic
    torch_settings.fill_uninitialized_memory = False
    # Silence Lightning's messages about unused accelerators and its advertisements.
    for name in _LIGHTNING_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Batches come from an array in memory, so the worker processes that Lightning recommends would only cost time.
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)


class _InheritedLock:
    """Lock that spawned processes inherit; it is held until the last of them has exited."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __getstate__(self) -> Any:
        return reduction.DupFd(self.descriptor)

    def __setstate__(self, duplicate: Any) -> None:
        self.descriptor = duplicate.detach()


class _SpawnStrategy(DDPStrategy):
    """DDP strategy that applies the training settings in spawned processes and terminates them with their parent."""

    lock: _InheritedLock | None = None

    def setup_environment(self) -> None:
        """Apply the settings; Lightning calls this method first in each process."""
        _end_with_parent()
        if multiprocessing.parent_process() is not None:
            gc.freeze()  # exempt half a million long-lived PyTorch objects from collection
        _apply_training_settings()
        super().setup_environment()

    def on_train_start(self) -> None:
        """Restore the default SIGTERM action in spawned processes, because Lightning's handler waits for the others forever."""
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        super().on_train_start()


def _end_with_parent() -> None:
    """Make the kernel terminate this spawned process when its parent exits for any reason.

    The sentinel is a pipe that the parent holds open. When the parent's end is closed, the kernel sends SIGIO, whose default
    action terminates the process. torch requests SIGINT instead, which Lightning handles by waiting for the other processes.
    """
    parent = multiprocessing.parent_process()
    if parent is None or os.name != "posix":
        return
    import fcntl

    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    if not parent.is_alive():  # it exited while this process was starting
        os.kill(os.getpid(), signal.SIGKILL)


def _strategy(devices: Devices, lock: int | None) -> Any:
    if devices.world_size == 1:
        return "auto"
    # Spawning works from scripts, notebooks and tests; on several nodes, torchrun starts the processes.
    start_method: Any = "popen" if devices.nodes > 1 else "spawn"
    strategy = _SpawnStrategy(
        process_group_backend="nccl" if devices.gpu else "gloo",
        start_method=start_method,
        checkpoint_io=AtomicCheckpointIO(),
        find_unused_parameters=False,
    )
    if lock is not None and start_method == "spawn" and os.name == "posix":
        strategy.lock = _InheritedLock(lock)
    return strategy


def label_weights(recipe: Recipe, arrays: ImageArrays) -> tuple[float, ...]:
    """Return the loss weight of each class."""
    if recipe.training.class_weights == "none":
        return (1.0,) * len(arrays.classes)
    counts = np.bincount(arrays.targets(arrays.train), minlength=len(arrays.classes))
    return tuple((len(arrays.train) / (len(arrays.classes) * counts)).tolist())


def _reraise_worker_errors(run: Callable[[], None]) -> None:
    """Call a function and re-raise errors of spawned processes with their original type; torch only forwards the traceback."""
    try:
        run()
    except ProcessExitedException as error:
        raise RunError(
            f"a training process was ended ({error.signal_name or f'exit status {error.exit_code}'})",
            hint="Complete epochs are saved. To continue, repeat the command with --resume",
        ) from error
    except ProcessRaisedException as error:
        match = re.search(rf"^{re.escape(errors.__name__)}\.(\w+): (.+)$", str(error), re.MULTILINE)
        if match is None:
            raise RunError(f"a training process failed: {str(error).strip().splitlines()[-1]}") from error
        error_type: type[PneumoscopeError] = getattr(errors, match.group(1))
        reraised = error_type.__new__(error_type)
        PneumoscopeError.__init__(reraised, match.group(2))
        raise reraised from error

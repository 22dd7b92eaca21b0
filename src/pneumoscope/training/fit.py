"""From a recipe and labelled films to a finished run. Lightning runs the loop; this checks before and keeps after."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.multiprocessing.spawn import ProcessRaisedException

import pneumoscope.errors
from pneumoscope.dataset.cache import prepare_films
from pneumoscope.dataset.contents import Progress
from pneumoscope.dataset.layouts import load_manifest
from pneumoscope.dataset.manifest import LABELS, Film, Manifest
from pneumoscope.dataset.split import split
from pneumoscope.errors import DatasetError, PneumoscopeError, RunError
from pneumoscope.networks.build import build
from pneumoscope.networks.network import Network
from pneumoscope.networks.weights import load_weights
from pneumoscope.report.curves import write_curves
from pneumoscope.training.checkpoints import BEST, STATE, AtomicCheckpoints, KeepBestAndLast
from pneumoscope.training.classifier import Classifier
from pneumoscope.training.export import export
from pneumoscope.training.films import FilmArrays, FilmBatches, derive_seed
from pneumoscope.training.frozen import keep_features
from pneumoscope.training.history import Epoch, best_epoch
from pneumoscope.training.progress import ShowProgress
from pneumoscope.training.recipe import Recipe
from pneumoscope.training.run import BUNDLE, CURVES, begin, finish, read_run

__all__ = ["Devices", "bf16_is_native", "split_as_asked", "train"]


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


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    devices: Devices | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a recipe's network and write its bundle.

    Args:
        recipe: what to train and how.
        data: a folder, archive or CSV of labelled films, or a manifest that `split` wrote.
        out: the run's folder.
        resume: go on with the run in that folder from the end of its last whole epoch; a finished one is left as it is.
        devices: one CPU or every GPU where None.
        progress: called with (films done, films in all) while films are prepared for the first time.
    Returns:
        What stands in `run.json` (see `training.run`).
    Raises:
        PatientLeakError: a patient is in two splits and the recipe does not say `by = "image"`.
        DatasetError: no film, or one label only, in train or validation.
        RunError: the folder is in use or another run's.
        DivergedError: the loss is not a number any more; the last good checkpoint is kept.
        StorageError: the disk is full; the last good checkpoint is kept.
    """
    devices = devices or Devices()
    manifest = split_as_asked(load_manifest(data), recipe, str(data))
    facts = {"device": _device_name(devices), "precision": _precision(recipe, devices)}
    begin(out, recipe, manifest, facts, resume=resume)
    if read_run(out)["state"] == "finished":
        return read_run(out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.training.seed, 0))
        network = _build(recipe)
        arrays = _arrays(recipe, manifest, network, progress)
        history = _fit(recipe, network, arrays, out, devices, facts["precision"])
        best = best_epoch(history, recipe.training.select)
        load_weights(network, out / BEST)
        export(network.cpu().eval(), recipe, manifest, arrays, out / BUNDLE, best_epoch=best.epoch)
    write_curves(out, out / CURVES, best=best.epoch)
    return finish(
        out,
        {
            "best_epoch": best.epoch,
            "average_train_accuracy": sum(row.train_accuracy for row in history) / len(history),
            "average_validation_accuracy": sum(row.validation_accuracy for row in history) / len(history),
            "best_validation_accuracy": best.validation_accuracy,
            "seconds": sum(row.seconds for row in history),
        },
    )


def split_as_asked(manifest: Manifest, recipe: Recipe, where: str) -> Manifest:
    """The films as the recipe's run sees them.

    A manifest that was split by `split` is taken as it is; other films are split by the recipe.

    Args:
        manifest: as loaded.
        recipe: its [data] says how to split, and whether a split by image is meant.
        where: the data's name for messages.
    Raises:
        PatientLeakError, DatasetError: see `train`.
    """
    how = recipe.data
    if manifest.by == "given" and how.by != "given":
        manifest = split(manifest, by=how.by, validation=how.validation, seed=recipe.training.seed)
    if how.by != "image":
        manifest.refuse_leaks(where)
    for name in ("train", "validation"):
        found = {label: sum(film.label == label for film in manifest.split(name)) for label in LABELS}
        for label, count in found.items():
            if count < 2:
                raise DatasetError(
                    f"{where}: the {name} split has {count} {label} films ({sum(found.values())} in all); two of each label"
                    " are the least",
                    advice="Split again: pneumoscope split DATA --out MANIFEST.csv; or give more films",
                )
    return manifest


def bf16_is_native(*, gpu: bool) -> bool:
    """True where the processor (or GPU) computes in bf16; where it is emulated it is a hundred times slower than float32."""
    if gpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


def _precision(recipe: Recipe, devices: Devices) -> str:
    asked = recipe.training.precision
    if asked == "auto":
        return "bf16" if bf16_is_native(gpu=devices.gpu) else "32"
    return asked


def _device_name(devices: Devices) -> str:
    count = max(devices.count, 1) * devices.nodes
    name = torch.cuda.get_device_name() if devices.gpu else "cpu"
    return name if count == 1 else f"{count} x {name}"


def _build(recipe: Recipe) -> Network:
    choice = recipe.network
    return build(
        choice.name,
        image_size=choice.image_size,
        weights=choice.weights,
        keep_fc8=choice.keep_fc8,
        dropout=choice.dropout,
    )


def _arrays(recipe: Recipe, manifest: Manifest, network: Network, progress: Progress | None) -> FilmArrays:
    train_films, validation_films = manifest.split("train"), manifest.split("validation")
    arrays = FilmArrays(manifest.root, train_films, validation_films, recipe.preparation)
    prepared = prepare_films(manifest.root, (*train_films, *validation_films), recipe.preparation, progress)
    if recipe.network.freeze == "convolutions":
        return dataclasses.replace(arrays, features=keep_features(network, prepared, progress))
    return arrays


def _fit(
    recipe: Recipe, network: Network, arrays: FilmArrays, out: Path, devices: Devices, precision: str
) -> list[Epoch]:
    settings = recipe.training
    batches = FilmBatches(arrays, batch=settings.batch, seed=settings.seed, augmentation=recipe.augmentation)
    world = max(devices.count, 1) * devices.nodes
    model = Classifier(
        recipe,
        network.to(memory_format=torch.channels_last if devices.gpu else network.memory_format),
        _label_weights(recipe, arrays.train),
        batches.steps_an_epoch(world),
        on_features=arrays.features is not None,
    )
    state = out / STATE
    with _reproducible(), _quiet(), warnings.catch_warnings():
        trainer = pl.Trainer(
            accelerator="gpu" if devices.gpu else "cpu",
            devices=devices.count or (-1 if devices.gpu else 1),
            num_nodes=devices.nodes,
            strategy=_strategy(devices, world),
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            max_epochs=settings.epochs,
            deterministic=True,
            gradient_clip_val=recipe.optimizer.clip or None,
            callbacks=[KeepBestAndLast(out), ShowProgress()],
            plugins=[AtomicCheckpoints()] if world == 1 else None,
            logger=TensorBoardLogger(out, name="", version="tensorboard"),
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=True,
        )
        # Batches come from an array in memory: worker processes, which Lightning recommends, would only be in the way.
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)
        _translating_spawned_errors(
            lambda: trainer.fit(
                model, datamodule=batches, ckpt_path=state if state.exists() else None, weights_only=True
            )
        )
    # Read back from disk: where other processes trained, this one's model knows nothing of it.
    return [Epoch(**row) for row in AtomicCheckpoints().load_checkpoint(state)["history"]]


@contextlib.contextmanager
def _reproducible() -> Iterator[None]:
    # Lightning asks torch for deterministic algorithms, and torch then also fills every new array with NaN to show reads of
    # what was never written. That is for finding faults and costs a tenth of the speed.
    switches: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), switches.fill_uninitialized_memory
    switches.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        switches.fill_uninitialized_memory = before[1]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Lightning tells which accelerators it did not find, and advertises.
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strategy(devices: Devices, world: int) -> Any:
    if world == 1:
        return "auto"
    backend = "nccl" if devices.gpu else "gloo"
    # Spawned processes work from a script, a notebook and a test alike; over several nodes torchrun starts them.
    start: Any = "popen" if devices.nodes > 1 else "spawn"
    return DDPStrategy(
        process_group_backend=backend,
        start_method=start,
        checkpoint_io=AtomicCheckpoints(),
        find_unused_parameters=False,
    )


def _label_weights(recipe: Recipe, films: tuple[Film, ...]) -> tuple[float, float]:
    if recipe.training.class_weights == "none":
        return (1.0, 1.0)
    positive = sum(film.positive for film in films)
    return (len(films) / (2 * (len(films) - positive)), len(films) / (2 * positive))


def _translating_spawned_errors(run: Callable[[], None]) -> None:
    """Run, and turn a spawned process's error, which arrives as the text of its traceback, into the error that it was."""
    try:
        run()
    except ProcessRaisedException as error:
        found = re.search(r"^pneumoscope\.errors\.(\w+): (.+)$", str(error), re.MULTILINE)
        if found is None:
            raise RunError(f"a training process failed: {str(error).strip().splitlines()[-1]}") from error
        kind: type[PneumoscopeError] = getattr(pneumoscope.errors, found.group(1))
        translated = kind.__new__(kind)
        PneumoscopeError.__init__(translated, found.group(2))
        raise translated from error

"""Train a recipe: check the inputs, run the trainer, write the bundle and complete the run folder."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pneumoscope.bundle.bundle_folder import CARD_FILE, NETWORK_FILE
from pneumoscope.bundle.card import Card, short_hash
from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.core.errors import DivergedError, ParityError, UsageError
from pneumoscope.core.files import remove_temporary_files
from pneumoscope.core.messages import counted
from pneumoscope.data.folds import Fold
from pneumoscope.data.hashing import Progress
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.manifest import Manifest
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.models.input_checks import FeatureExtractor
from pneumoscope.models.weights import LoadedWeights, load_weights, weights_sha256
from pneumoscope.reporting.curves import write_curves
from pneumoscope.runs.epochs import Epoch, best_epoch
from pneumoscope.runs.recipe import Recipe
from pneumoscope.runs.record import (
    RunRecord,
    check_output_folder,
    check_starting_weights,
    create_run,
    finish_run,
    lock_run,
    read_run,
    record_resumption,
    recorded_labels,
)
from pneumoscope.runs.run_folder import (
    BUNDLE_FOLDER,
    CHECKPOINT_FILE,
    CURVES_FILE,
    EPOCHS_FILE,
    MANIFEST_FILE,
    OUTLIERS_FILE,
    RECIPE_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    LoggerName,
    is_run_folder,
)
from pneumoscope.training.callbacks import completed_epochs
from pneumoscope.training.data_module import ImageArrays, derive_seed
from pneumoscope.training.export import export
from pneumoscope.training.inputs import TrainingInputs, create_network, prepare_arrays
from pneumoscope.training.loggers import check_loggers
from pneumoscope.training.multiclass_export import export_multiclass
from pneumoscope.training.trainer import Devices, device_name, resolve_precision, run_trainer

__all__ = ["train_run"]

# A run that cannot be exported is reported as diverged if both losses are at least this multiple of the loss of
# guessing.
_DIVERGED_LOSS = 2
# Files that `train_run` writes atomically; leftover temporary files are deleted at the start.
_RUN_FILES = (
    *(RECIPE_FILE, MANIFEST_FILE, OUTLIERS_FILE, RUN_FILE, EPOCHS_FILE, CURVES_FILE, CHECKPOINT_FILE, WEIGHTS_FILE),
    *(f"{BUNDLE_FOLDER}/{name}" for name in (NETWORK_FILE, CARD_FILE)),
)


def train_run(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    outliers: Path | None = None,
    labels: LabelMapping | None = None,
    fold: Fold | None = None,
    resume: bool = False,
    devices: Devices | None = None,
    loggers: Sequence[LoggerName] = ("tensorboard",),
    progress: Progress | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> RunRecord:
    """Train a recipe's network, write its bundle and return the run record.

    Args:
        recipe: Recipe of the run.
        data: Folder, archive or CSV of labeled images, or a manifest written by `pneumoscope split`.
        out: Run folder; with several nodes, on a shared disk.
        outliers: Images of patients outside the age range: folder or CSV, see `data.outliers`. Required if and only if the
            recipe trains an age classifier.
        labels: Column and label names of the data. Default: those of the resumed run, else those of the recipe.
        fold: Cross-validation fold to validate on; None without cross-validation. See `run_series.train_folds`.
        resume: Resume the run in the folder after its last complete epoch. A finished run is left unchanged.
        devices: Devices to train on; None for one CPU process or all GPUs.
        loggers: Loggers of the epoch metrics; see `loggers`.
        progress: Callback with the number of images preprocessed so far and the total.
        log: Callback for messages to the user.

    Returns:
        The run record. With several nodes, only the first process finishes the run; the others return earlier, with the state
        "running".

    Raises:
        PatientLeakError: A patient is in two splits and the recipe does not set `by = "image"`.
        ManifestError: Byte-identical images are in two splits.
        UnreadableImageError: An image cannot be opened or decoded.
        DatasetError: The training or validation split has too few images of a label, or the outliers cannot be used.
        RecipeError: The network or recipe supports only NORMAL and PNEUMONIA, but the data have other classes.
        UsageError: The recipe trains an age classifier but `outliers` is missing, or the reverse; a batch has fewer than two
            images per device; or more GPUs are requested than available.
        RunError: The folder is in use or contains another run, the initial weights changed since the run was started, or a
            training process was terminated.
        DivergedError: The loss is not finite (the last good checkpoint is kept), or too high to export the network.
        StorageError: The disk is full; the last good checkpoint is kept.
        MissingExtraError: The package of the initial weights or of a logger is not installed.
        UnknownNameError: `labels` renames a label that no image has.
    """
    devices = devices or Devices()
    devices.check_available()
    check_loggers(loggers)
    if recipe.training.batch < 2 * devices.world_size:
        raise UsageError(
            f"training.batch is {recipe.training.batch} on {devices.world_size} devices; each device needs at least two"
            " images",
            hint="Increase training.batch, or use fewer devices",
        )
    is_resumed = labels is None and resume
    labels = recorded_labels(out) if is_resumed else labels
    inputs = TrainingInputs.load(recipe, data, labels, outliers=outliers, fold=fold, recorded=is_resumed)
    if (record := _finished_run(out, inputs, devices, resume=resume)) is not None:
        return record
    # With several nodes, the first process locks the folder on behalf of all.
    with lock_run(out) if devices.is_first_node else contextlib.nullcontext() as lock:
        # Check again: another process may have started or finished the run before the lock was acquired.
        if (record := _finished_run(out, inputs, devices, resume=resume)) is not None:
            return record
        if not devices.is_first_node:
            return _train(inputs, out, devices, loggers, lock, progress, lambda message: None)
        for note in inputs.manifest.notes:
            log(f"note: {note}")
        for name in _RUN_FILES:
            remove_temporary_files(out / name)
        return _train(inputs, out, devices, loggers, lock, progress, log)


def _finished_run(out: Path, inputs: TrainingInputs, devices: Devices, *, resume: bool) -> RunRecord | None:
    """Return the record if the folder contains a finished run, otherwise None; raise if the folder cannot be used."""
    if devices.is_first_node:
        check_output_folder(out, inputs.recipe, inputs.manifest, inputs.outliers, resume=resume)
    record = read_run(out) if is_run_folder(out) else None
    return record if record and record.state == "finished" else None


def _train(
    inputs: TrainingInputs,
    out: Path,
    devices: Devices,
    loggers: Sequence[LoggerName],
    lock: int | None,
    progress: Progress | None,
    log: Callable[[str], None],
) -> RunRecord:
    recipe, manifest = inputs.recipe, inputs.manifest
    precision = _precision(recipe, out, devices, log)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.training.seed, 0))
        network, loaded = create_network(recipe, manifest)
        for note in loaded.notes:
            log(f"note: {note}")
        if recipe.rejection.steps:
            FeatureExtractor()  # fail before training if its weights are missing
        # Exclude random weights, which may differ between machines.
        initial_weights = weights_sha256(network, without=loaded.random if recipe.network.weights != "none" else ())
        check_starting_weights(out, initial_weights)
        _note_seen_images(loaded, manifest, log)
        arrays = prepare_arrays(recipe, manifest, network, loaded, progress)
        # Create the folder only after weights and images are loaded, so that a failed start leaves no folder behind.
        if devices.is_first_node:
            _record_start(inputs, out, devices, precision, initial_weights)
        history = run_trainer(recipe, network, arrays, out, devices, precision, loggers=loggers, lock=lock)
        if not devices.is_first_node:
            return read_run(out)
        best = best_epoch(history, recipe.training.select)
        load_weights(network, out / WEIGHTS_FILE)
        card = _write_bundle(inputs, network.cpu().eval(), arrays, out, best, loaded)
        if isinstance(card, MulticlassCard) and (remark := card.calibration.remark()):
            log(f"warning: {remark}")
    write_curves(out, out / CURVES_FILE, best=best.epoch)
    return finish_run(
        out,
        {
            "best_epoch": best.epoch,
            "average_train_accuracy": sum(epoch.train_accuracy for epoch in history) / len(history),
            "average_validation_accuracy": sum(epoch.validation_accuracy for epoch in history) / len(history),
            "best_validation_accuracy": best.validation_accuracy,
            "seconds": sum(epoch.seconds for epoch in history),
        },
    )


def _record_start(inputs: TrainingInputs, out: Path, devices: Devices, precision: str, initial_weights: str) -> None:
    """Create the run folder, or record the resumption in an existing one."""
    device = device_name(devices)
    if is_run_folder(out):
        record_resumption(out, completed_epochs(out), device=device, precision=precision)
        return
    create_run(
        out,
        inputs.recipe,
        inputs.manifest,
        inputs.outliers,
        fold=inputs.fold,
        device=device,
        precision=precision,
        weights_sha256=initial_weights,
        labels=inputs.labels,
    )


def _write_bundle(
    inputs: TrainingInputs,
    network: ClassifierNetwork,
    arrays: ImageArrays,
    out: Path,
    best: Epoch,
    loaded: LoadedWeights,
) -> Card | MulticlassCard:
    """Write the bundle of the selected epoch to the run folder and return its card.

    Raises:
        DivergedError: The loss is too high to export the network.
    """
    write = export if inputs.manifest.binary else export_multiclass
    try:
        return write(inputs, network, arrays, out / BUNDLE_FOLDER, best_epoch=best.epoch, seen_before=loaded.seen)
    except ParityError as error:
        # The outputs of a diverged network are so large that rounding errors dominate.
        guessing = math.log(len(inputs.manifest.classes))
        if min(best.train_loss, best.validation_loss) < _DIVERGED_LOSS * guessing:
            raise
        raise _diverged(inputs.recipe, best, guessing) from error


def _diverged(recipe: Recipe, epoch: Epoch, guessing: float) -> DivergedError:
    return DivergedError(
        f"run {recipe.name!r} diverged: in the selected epoch, {epoch.epoch}, the train loss is {epoch.train_loss:.3g} and the"
        f" validation loss {epoch.validation_loss:.3g}, where guessing has {guessing:.2f}; such a network cannot be exported",
        hint=f"Lower optimizer.learning_rate (it is {recipe.optimizer.learning_rate:g}) or set optimizer.clip, and train in"
        " another folder",
    )


def _precision(recipe: Recipe, out: Path, devices: Devices, log: Callable[[str], None]) -> str:
    """Return the precision of the run; a resumed run keeps its original precision, even on a different machine."""
    precision = resolve_precision(recipe, devices)
    recorded = read_run(out).precision if is_run_folder(out) else precision
    if recorded != precision:
        log(f"note: the run continues in precision {recorded}, as it was started; a new run here would use {precision}")
    return recorded


def _note_seen_images(loaded: LoadedWeights, manifest: Manifest, log: Callable[[str], None]) -> None:
    """Log a note if the initial weights were trained on validation or test images, before training rather than at evaluation."""
    for split in ("validation", "test"):
        images = manifest.split(split)
        seen = sum(short_hash(image.sha256) in loaded.seen for image in images)
        if seen:
            effect = "cannot be evaluated on them" if split == "test" else "is too good on them"
            log(
                f"note: {seen} of {counted(len(images), f'{split} image')} trained or validated the initial weights; the new"
                f" model {effect}"
            )

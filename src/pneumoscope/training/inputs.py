"""Inputs of a training run: images with splits and labels, outliers, the initialized network and the arrays."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Self

import numpy as np

from pneumoscope.core.errors import DatasetError, RecipeError, UnreadableImageError, UsageError
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
from pneumoscope.models.weights import LoadedWeights
from pneumoscope.runs.recipe import Recipe
from pneumoscope.training.data_module import ImageArrays
from pneumoscope.training.frozen_features import cache_features
from pneumoscope.training.norm_statistics import MAX_IMAGES, estimate_norm_statistics

__all__ = ["TrainingInputs", "apply_split", "create_network", "labels_of_recipe", "load_images", "prepare_arrays"]

_MIN_IMAGES_PER_LABEL = 2


@dataclasses.dataclass(frozen=True)
class TrainingInputs:
    """Recipe of a run and the images it is trained on.

    Attributes:
        recipe: Recipe of the run.
        manifest: Images with their splits.
        labels: Label mapping of the data; None if there is none.
        outliers: Images outside the age range; None if the recipe trains no age classifier.
        fold: Cross-validation fold; None without cross-validation.
    """

    recipe: Recipe
    manifest: Manifest
    labels: LabelMapping | None
    outliers: Outliers | None
    fold: Fold | None

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        data: Path,
        labels: LabelMapping | None,
        *,
        outliers: Path | None,
        fold: Fold | None,
        recorded: bool,
    ) -> Self:
        """Load the images of a run.

        Args:
            recipe, data, labels, outliers, fold: See `train.train_run`.
            recorded: True if the mapping was recorded by a run that is being resumed; see `load_manifest`.

        Raises:
            PneumoscopeError: See `train.train_run`.
        """
        manifest, labels = load_images(recipe, data, labels, fold=fold, recorded=recorded)
        return cls(recipe, manifest, labels, _load_outliers(outliers, recipe, manifest), fold)


def load_images(
    recipe: Recipe,
    data: Path,
    labels: LabelMapping | None,
    *,
    fold: Fold | None = None,
    recorded: bool = False,
) -> tuple[Manifest, LabelMapping | None]:
    """Return the images of a run with their splits, and the label mapping with the recipe's label column.

    Args:
        recipe, data, labels, fold: See `train.train_run`.
        recorded: True if the mapping was recorded by a run that is being resumed; see `load_manifest`.

    Raises:
        PneumoscopeError: See `train.train_run`.
    """
    labels = labels_of_recipe(recipe, labels)
    loaded = load_manifest(data, labels=labels, recorded=recorded)
    _check_readable(loaded)
    manifest = apply_split(loaded, recipe, str(data), fold)
    _check_recipe(recipe, manifest)
    return manifest, labels


def labels_of_recipe(recipe: Recipe, labels: LabelMapping | None) -> LabelMapping | None:
    """Return the label mapping with the recipe's label column, unless the mapping already specifies one."""
    if recipe.data.labels == ETIOLOGY_COLUMN and not (labels and labels.label_column):
        return dataclasses.replace(labels or LabelMapping(), label_column=ETIOLOGY_COLUMN)
    return labels


def _check_recipe(recipe: Recipe, manifest: Manifest) -> None:
    """Raise if the recipe sets an option that multiclass networks do not support."""
    if not manifest.binary and recipe.training.prevalence is not None:
        raise RecipeError(
            f"recipe {recipe.name!r}: training.prevalence is {recipe.training.prevalence:g}, the prevalence of pneumonia, and the"
            f" data have the classes {', '.join(manifest.classes)}",
            hint="Unset it: --set training.prevalence=none",
        )


def _check_readable(manifest: Manifest) -> None:
    """Raise if an image could not be opened: skipping it would silently change the training set.

    Raises:
        UnreadableImageError: Contains the first path and the number of unreadable images.
    """
    if manifest.unreadable:
        path, reason = manifest.unreadable[0]
        more = f" (and {counted(len(manifest.unreadable) - 1, 'more image')})" if len(manifest.unreadable) > 1 else ""
        raise UnreadableImageError(path, f"{reason}{more}", hint=UNREADABLE_HINT)


def apply_split(manifest: Manifest, recipe: Recipe, name: str, fold: Fold | None = None) -> Manifest:
    """Return the images with the splits of a run.

    Splits from a `pneumoscope split` manifest, or from any CSV with train and validation images, are kept. Other images are
    split as the recipe specifies.

    Args:
        manifest: Loaded manifest.
        recipe: Recipe of the run; its [data] table specifies how to split.
        name: Name of the data for messages.
        fold: Cross-validation fold: training and validation images are divided again; see `data.folds`.

    Raises:
        PatientLeakError, ManifestError, DatasetError: See `train.train_run`.
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


def _load_outliers(path: Path | None, recipe: Recipe, manifest: Manifest) -> Outliers | None:
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


def create_network(recipe: Recipe, manifest: Manifest) -> tuple[ClassifierNetwork, LoadedWeights]:
    """Return the recipe's network for the classes of the data, initialized, and a record of its initial weights."""
    options = recipe.network.model_dump(exclude={"name", "weights", "freeze"})
    options |= {"outputs": 1 if manifest.binary else len(manifest.classes), "classes": manifest.classes}
    return create_initialized(recipe.network.name, recipe.network.weights, options)


def prepare_arrays(
    recipe: Recipe, manifest: Manifest, network: ClassifierNetwork, loaded: LoadedWeights, progress: Progress | None
) -> ImageArrays:
    """Preprocess the images of a run, and estimate missing batch-norm statistics of the network from training images.

    Args:
        recipe: Recipe of the run.
        manifest: Images with their splits.
        network: Network of the run; its batch norms are updated if their statistics were folded into the initial weights.
        loaded: Record of the initial weights.
        progress: See `train.train_run`.
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

"""Folds of a cross-validation: the training images divided by patient, each part once the validation images."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import DatasetError
from pneumoscope.core.messages import counted
from pneumoscope.data.manifest import LabeledImage, Manifest, identical_images

__all__ = ["Fold", "select_fold"]


@dataclasses.dataclass(frozen=True, slots=True)
class Fold:
    """One fold of a cross-validation.

    Attributes:
        number: Number of the fold, from 1.
        count: Number of folds.
    """

    number: int
    count: int


def select_fold(manifest: Manifest, fold: Fold, seed: int) -> Manifest:
    """Return the manifest with the images of one fold for validation, and the other training images for training.

    The training and validation images are divided by scikit-learn's `StratifiedGroupKFold`: all images of a patient, and
    byte-identical images, are in one fold, and the labels have about the same shares in each. An image without a known patient
    counts as a patient. All other images keep their split, so test images stay apart.

    Args:
        manifest: A manifest with splits.
        fold: The fold.
        seed: Seed of the division; folds of the same seed and images belong together.

    Raises:
        DatasetError: A label has fewer patients than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    pool = [image for image in manifest if image.split in ("train", "validation")]
    groups = _groups(pool)
    for label in sorted({image.label for image in pool}):
        units = len({group for group, image in zip(groups, pool, strict=True) if image.label == label})
        if units < fold.count:
            raise DatasetError(
                f"{counted(fold.count, 'fold')} need as many patients of each label; {label} has {counted(units, 'patient')}"
                " in the training images",
                hint="Use fewer folds, or add images of other patients",
            )
    divider = StratifiedGroupKFold(fold.count, shuffle=True, random_state=seed)
    labels = np.array([image.label for image in pool])
    _, chosen = list(divider.split(np.zeros(len(pool)), labels, groups))[fold.number - 1]
    validation = {pool[index].path for index in chosen.tolist()}
    pooled = {image.path for image in pool}

    def split(image: LabeledImage) -> str:
        if image.path not in pooled:
            return image.split
        return "validation" if image.path in validation else "train"

    images = tuple(dataclasses.replace(image, split=split(image)) for image in manifest)
    return dataclasses.replace(manifest, images=images, split_by="patient")


def _groups(images: Sequence[LabeledImage]) -> npt.NDArray[np.int64]:
    """Return the number of the group of each image: its patient, together with the patients of byte-identical images."""
    group_of = {(image.patient, "" if image.patient else image.path): index for index, image in enumerate(images)}
    numbers = [group_of[image.patient, "" if image.patient else image.path] for image in images]
    index_of = {image.path: index for index, image in enumerate(images)}
    members: dict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(numbers):
        members[number].append(index)
    for first, *others in identical_images(images):
        kept = numbers[index_of[first.path]]
        for other in others:
            merged = numbers[index_of[other.path]]
            if merged != kept:
                moved = members.pop(merged)
                members[kept] += moved
                for index in moved:
                    numbers[index] = kept
    return np.array(numbers, dtype=np.int64)

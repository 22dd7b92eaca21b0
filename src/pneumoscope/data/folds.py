"""Cross-validation folds: the training images divided by patient, with each fold serving once for validation."""

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
        number: Number of the fold, starting at 1.
        count: Number of folds.
    """

    number: int
    count: int


def select_fold(manifest: Manifest, fold: Fold, seed: int) -> Manifest:
    """Return the manifest with one fold as the validation split and the other folds as the training split.

    The training and validation images are divided with scikit-learn's `StratifiedGroupKFold`: all images of a patient, and
    byte-identical images, are in the same fold, and labels have about the same proportions in each. An image without a known
    patient counts as a separate patient. Other images keep their split, so test images stay separate.

    Args:
        manifest: Manifest with splits.
        fold: Fold to select.
        seed: Seed of the division; all folds of a cross-validation need the same seed and images.

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
    """Return the group number of each image; a group is a patient, merged with the patients of byte-identical images."""
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

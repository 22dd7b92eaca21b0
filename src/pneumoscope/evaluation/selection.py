"""Select the images of an evaluation, and check that the model was not fitted on them."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from pneumoscope.bundle.card import Card, short_hash
from pneumoscope.core.errors import DatasetError, ThresholdError, UsageError
from pneumoscope.core.messages import counted
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.layouts import SPLIT_FOLDERS, load_manifest
from pneumoscope.data.manifest import LABELS, LabeledImage, Manifest
from pneumoscope.runs.record import read_run, recorded_labels
from pneumoscope.runs.run_folder import MANIFEST_FILE, is_run_folder
from pneumoscope.statistics.inputs import count_unknown

__all__ = [
    "balanced_sample",
    "check_predicted_images",
    "check_thresholds",
    "check_unseen",
    "count_patients",
    "count_unknown_patients",
    "draw_sample",
    "images_of_split",
    "load_images_of_classes",
    "load_labeled_images",
    "select_images",
    "select_unreserved_images",
    "unreadable_error",
]

_SPLITS = ("train", "validation", "test", "all")
_RESERVED = ("test", "all")
_MAX_LISTED = 5
_EVALUATION = "an evaluation"
_HINT = (
    "Predictions of several classes need a column for each class: probability_CLASS, or name them with"
    " --probability-column CLASS=NAME"
)


def load_labeled_images(
    data: Path, labels: LabelMapping | None, run: Path | None = None, *, task: str = _EVALUATION
) -> Manifest:
    """Return the manifest of a binary data set.

    Args:
        data: Folder, manifest CSV or archive.
        labels: Names of its columns and labels; those of the run if None.
        run: Run or other folder of a model; None without one.
        task: Purpose of the images, as in `Manifest.check_binary`.

    Raises:
        DatasetError: The classes are not NORMAL and PNEUMONIA.
        PneumoscopeError: See `load_manifest`.
    """
    manifest = load_images_of_classes(data, labels, run)
    manifest.check_binary(task)
    return manifest


def check_predicted_images(manifest: Manifest) -> None:
    """Raise unless the classes of the data set of a file of predictions are NORMAL and PNEUMONIA."""
    manifest.check_binary(_EVALUATION, hint=_HINT)


def load_images_of_classes(
    data: Path, labels: LabelMapping | None, run: Path | None = None, *, classes: Sequence[str] = ()
) -> Manifest:
    """Return the manifest of a data set with any classes.

    Args:
        data, labels, run: See `load_labeled_images`.
        classes: The classes of a multiclass model, of which the data may contain any subset; those of the data if
            empty.

    Raises:
        DatasetError: A label is not one of the classes.
        PneumoscopeError: See `load_manifest`.
    """
    mapping = recorded_labels(run) if labels is None and run is not None else labels
    if classes:
        mapping = dataclasses.replace(mapping or LabelMapping(), classes=tuple(classes))
    return load_manifest(data, labels=mapping, recorded=labels is None)


def select_images(
    data: Path,
    split: str,
    run_manifest: Path | None,
    note: Callable[[str], None] | None = None,
    *,
    labels: LabelMapping | None = None,
    both_labels: bool = True,
) -> tuple[Path, tuple[LabeledImage, ...]]:
    """Return the images of one split, with content hashes.

    The test split comes from the data set if it has one. The other splits come from a CSV file with splits, except for
    the training and validation images of a cross-validation fold. Otherwise the split comes from the manifest of the
    run.

    Args:
        data: Folder, manifest CSV or archive.
        split: "train", "validation", "test", or "all" for all images that are not "unused".
        run_manifest: `RUN/manifest.csv`; None to evaluate a bundle without a run.
        note: Called with each remark about the data, such as the number of skipped files.
        labels: Names of columns and labels of the data; those of the run if None.
        both_labels: Raise if all images have the same label.

    Returns:
        The folder that paths are relative to, and the images in manifest order.

    Raises:
        UsageError: The split is unknown, or neither data nor run specify which images belong to it.
        DatasetError: The split is empty, or lacks a label although both are needed, an image cannot be opened, or an
            image of the run is missing from the data.
    """
    manifest = load_labeled_images(data, labels, None if run_manifest is None else run_manifest.parent)
    if note:
        for each in manifest.notes:
            note(each)
    return manifest.root, images_of_split(manifest, data, split, run_manifest, both_labels=both_labels)


def images_of_split(
    manifest: Manifest, data: Path, split: str, run_manifest: Path | None, *, both_labels: bool = True
) -> tuple[LabeledImage, ...]:
    """Return the images of one split of a manifest; see `select_images`.

    Args:
        manifest: Manifest of the data.
        data, split, run_manifest, both_labels: See `select_images`.

    Raises:
        UsageError, DatasetError: See `select_images`.
    """
    if split not in _SPLITS:
        raise UsageError(f"there is no split {split!r}", hint=f"Known: {', '.join(_SPLITS)}")
    if split == "all":
        _check_readable(manifest, split)
        images = tuple(image for image in manifest if image.split != "unused")
    elif _is_split_by_run(manifest, split, run_manifest, data):
        images = _images_of_run(manifest, split, run_manifest, data)
    else:
        _check_readable(manifest, split)
        images = manifest.split(split)
    if not images:
        counts = ", ".join(f"{name or 'no split'} {sum(n.values())}" for name, n in manifest.counts().items())
        raise DatasetError(
            f"{str(data)!r} has no image in the split {split!r} (images: {counts})", hint="Choose another with --split"
        )
    missing = [label for label in LABELS if not any(image.label == label for image in images)]
    if missing and both_labels:
        raise DatasetError(
            f"the split {split!r} has images of one label only ({counted(len(images), 'image')}): there is no {missing[0]} image",
            hint="Choose a split with images of both labels",
        )
    return images


def _is_split_by_run(manifest: Manifest, split: str, run_manifest: Path | None, data: Path) -> bool:
    """Return whether the split is defined by the manifest of the run instead of the data set.

    Training creates the validation split of a folder, the test split of a data set without one, and the splits of a CSV
    file without any. A cross-validation fold has its own training and validation images, even if the CSV file defines
    splits.
    """
    has_run = run_manifest is not None and run_manifest.is_file()
    if split != "test" and (data.suffix.lower() != ".csv" or _is_of_fold(run_manifest)):
        return True
    if manifest.split(split):
        return False
    return has_run or not any(image.split for image in manifest)


def _is_of_fold(run_manifest: Path | None) -> bool:
    if run_manifest is None or not is_run_folder(run_manifest.parent):
        return False
    return read_run(run_manifest.parent).fold is not None


def _images_of_run(manifest: Manifest, split: str, run_manifest: Path | None, data: Path) -> tuple[LabeledImage, ...]:
    """Return the images that the run assigned to the split, matched by content, with their current paths."""
    if run_manifest is None or not run_manifest.is_file():
        source = f"{str(run_manifest)!r} is missing" if run_manifest else "there is no manifest of a run"
        raise UsageError(
            f"cannot tell which images of {str(data)!r} are in the {split} split: {source}",
            hint="Give a manifest with splits as the data (make one: pneumoscope split DATA --out CSV), or a run folder with its"
            " manifest.csv; `evaluate --split all` takes all images",
        )
    text = run_manifest.read_text(encoding="utf-8")
    expected = Manifest.from_csv(text, manifest.root, str(run_manifest)).split(split)
    paths: dict[str, list[str]] = defaultdict(list)
    for image in manifest:
        paths[image.sha256].append(image.path)
    missing = [image.path for image in expected if image.sha256 not in paths]
    if missing:
        raise DatasetError(
            f"{str(data)!r} lacks {len(missing):,} of the {counted(len(expected), f'{split} image')} in {str(run_manifest)!r}"
            f" (compared by content); the first is {missing[0]}",
            hint="Give the data that the run was trained on; or evaluate all of these images with --split all",
        )

    def current_path(image: LabeledImage) -> str:
        # Among files with the same content, prefer the one with the same name.
        name = PurePosixPath(image.path).name
        return min(paths[image.sha256], key=lambda path: (PurePosixPath(path).name != name, path))

    return tuple(dataclasses.replace(image, path=current_path(image)) for image in expected)


def _check_readable(manifest: Manifest, split: str) -> None:
    """Raise if an image of the split could not be opened. Other files and splits are ignored."""
    unreadable = []
    for path, reason in manifest.unreadable:
        split_of_file = manifest.unreadable_splits.get(
            path, SPLIT_FOLDERS.get(PurePosixPath(path).parts[0].lower(), "")
        )
        if split_of_file == split or (split == "all" and split_of_file != "unused"):
            unreadable.append((path, reason))
    if unreadable:
        raise unreadable_error(unreadable, split)


def unreadable_error(unreadable: Sequence[tuple[str, str]], split: str) -> DatasetError:
    """Return the error for unreadable images of a split. They are never skipped, because n would be wrong.

    Args:
        unreadable: Path and reason of each image; at least one.
        split: The split of the images.
    """
    images = counted(len(unreadable), "image" if split == "all" else f"{split} image")
    listed = "; ".join(f"{path}: {reason}" for path, reason in unreadable[:_MAX_LISTED])
    more = f"; and {len(unreadable) - _MAX_LISTED} more" if len(unreadable) > _MAX_LISTED else ""
    return DatasetError(
        f"{images} cannot be read ({listed}{more})",
        hint="Repair the files, or give a manifest CSV without them as --data",
    )


class SeenImages(Protocol):
    """The part of a card that lists the images the network was trained on."""

    @property
    def name(self) -> str:
        """Name of the model."""

    @property
    def seen(self) -> Mapping[str, Sequence[str]]:
        """`short_hash` of the training and validation images, by split."""


def check_unseen(images: Sequence[LabeledImage], card: SeenImages) -> None:
    """Raise if any image, compared by content, was a training or validation image of the model.

    Raises:
        DatasetError: The model has seen images; the message gives their number, split and first path.
    """
    for split in ("train", "validation"):
        seen = set(card.seen.get(split, ()))
        shared = [image.path for image in images if short_hash(image.sha256) in seen]
        if shared:
            raise DatasetError(
                f"{card.name!r} used {len(shared)} of the {len(images)} images as {split} images (compared by content);"
                f" the first is {shared[0]}",
                hint="Use other images, or train with a manifest that excludes these: pneumoscope split DATA",
            )


def check_thresholds(images: Sequence[LabeledImage], card: Card, operating_points: Sequence[str]) -> None:
    """Raise if a threshold would be evaluated on images that it was chosen on.

    Raises:
        ThresholdError: The message names the first such operating point and the number of images.
    """
    seen = set(card.seen.get("validation", ()))
    shared = sum(short_hash(image.sha256) in seen for image in images)
    chosen = [
        name
        for name in operating_points
        if name in card.operating_points and card.operating_points[name].rule != "fixed"
    ]
    if shared and chosen:
        raise ThresholdError(
            f"the threshold of the operating point {chosen[0]!r} was chosen on {shared} of these {len(images)} images and"
            " cannot be evaluated on them",
            hint="Evaluate the fixed threshold (--operating-point half), or choose another split",
        )


def select_unreserved_images(
    target: Path, data: Path, split: str, labels: LabelMapping | None = None
) -> tuple[Path, tuple[LabeledImage, ...]]:
    """Return the validation or training images; see `select_images`.

    Args:
        target: Run folder or bundle.
        data: Folder, manifest CSV or archive.
        split: "validation" or "train". Test images are reserved for `evaluate`, which records every test-set
            evaluation.
        labels: See `select_images`.

    Raises:
        UsageError: The split is "test" or "all"; or see `select_images`.
        DatasetError: See `select_images`.
    """
    if split in _RESERVED:
        raise UsageError(
            "test images are reserved for evaluations, which are recorded",
            hint="Choose --split validation, or evaluate with: pneumoscope evaluate",
        )
    return select_images(data, split, target / MANIFEST_FILE, labels=labels)


def draw_sample(
    target: Path,
    data: Path,
    split: str,
    per_label: int,
    rng: np.random.Generator,
    labels: LabelMapping | None = None,
) -> tuple[Path, tuple[LabeledImage, ...]]:
    """Return a random sample of validation or training images; see `balanced_sample`.

    Args:
        target, data, split: See `select_unreserved_images`.
        per_label: Number of images of each label; smaller if a label has fewer.
        rng: Random number generator.
        labels: See `select_images`.

    Returns:
        The folder that paths are relative to, and the images, ordered by label.

    Raises:
        UsageError, DatasetError: See `select_unreserved_images`.
    """
    root, images = select_unreserved_images(target, data, split, labels)
    return root, balanced_sample(images, per_label, rng)


def count_patients(images: Iterable[LabeledImage]) -> int:
    """Return the number of patients; an image without a known patient counts as one."""
    return len({image.patient or image.path for image in images})


def count_unknown_patients(images: Iterable[LabeledImage]) -> int:
    """Return the number of images without a known patient."""
    return count_unknown(image.patient for image in images)


def balanced_sample(
    images: Sequence[LabeledImage], per_label: int, rng: np.random.Generator
) -> tuple[LabeledImage, ...]:
    """Return a random sample with as many normal images as pneumonias, ordered by label and then as given.

    Args:
        images: Images of both labels.
        per_label: Number of images of each label; smaller if a label has fewer.
        rng: Random number generator.
    """
    by_label = [[image for image in images if image.label == label] for label in LABELS]
    count = min(per_label, *map(len, by_label))
    return tuple(group[i] for group in by_label for i in sorted(rng.permutation(len(group))[:count]))

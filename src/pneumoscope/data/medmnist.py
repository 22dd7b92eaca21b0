"""MedMNIST archives (.npz), whose images are rows of an array instead of files.

The path of an image is "pneumoniamnist.npz#train/17": the archive, MedMNIST's split name, and the row.
"""

from __future__ import annotations

import functools
import hashlib
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import LayoutError, UnreadableImageError
from pneumoscope.data.manifest import LABELS, LabeledImage, Manifest
from pneumoscope.imaging.decode import Radiograph

__all__ = ["is_archive_path", "load_medmnist", "pixels_sha256", "read_archive_image"]

_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_ORGANS = (
    *(
        "bladder",
        "femur-left",
        "femur-right",
        "heart",
        "kidney-left",
        "kidney-right",
        "liver",
        "lung-left",
        "lung-right",
    ),
    *("pancreas", "spleen"),
)
# Classes of archives with gray images and one label per image, by file name prefix, in the order of their numbers.
# Source: Yang et al., MedMNIST v2, Scientific Data 2023.
_CLASSES: dict[str, tuple[str, ...]] = {
    "pneumoniamnist": LABELS,
    "breastmnist": ("malignant", "normal, benign"),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
    "tissuemnist": (
        "Collecting Duct, Connecting Tubule",
        "Distal Convoluted Tubule",
        "Glomerular endothelial cells",
        "Interstitial endothelial cells",
        "Leukocytes",
        "Podocytes",
        "Proximal Tubule Segments",
        "Thick Ascending Limb",
    ),
}
_PATH = re.compile(r"(?P<archive>.+\.npz)#(?P<split>train|val|test)/(?P<row>\d+)")
_HINT = "Expected a MedMNIST archive such as pneumoniamnist.npz with train_images, train_labels, ..."
_MAX_SHOWN = 8
_CACHED_SPLITS = 3  # all splits of one archive


def is_archive_path(path: str) -> bool:
    """Return whether a path refers to an image in an archive."""
    return _PATH.fullmatch(path) is not None


def load_medmnist(file: Path) -> Manifest:
    """Return the manifest of a MedMNIST archive, with SHA-256 hashes of the pixels.

    Known archives have named classes. For other archives, labels are the numbers as text, and `classes` is () because the
    classes are not yet determined.

    Raises:
        LayoutError: The file is not an archive of `{train,val,test}_{images,labels}` with grayscale images and one non-negative
            integer label per image.
    """
    with _open_archive(file) as archive:
        splits = [split for split in _SPLITS if f"{split}_images" in archive.files]
        if not splits:
            names = ", ".join(archive.files[:_MAX_SHOWN]) or "nothing"
            raise LayoutError(f"{str(file)!r} has no train_images (it contains: {names})", hint=_HINT)
        images = {split: _read_images(file, archive, split) for split in splits}
        labels = {split: _read_labels(file, archive, split, len(images[split])) for split in splits}
    numbers = {int(value) for values in labels.values() for value in values}
    classes = _known_classes(file, numbers)
    labels_of = dict(enumerate(classes)) if classes else {number: str(number) for number in numbers}
    return Manifest(
        tuple(
            _labeled_image(file, split, row, pixels, labels_of[int(value)])
            for split in splits
            for row, (pixels, value) in enumerate(zip(images[split], labels[split], strict=True))
        ),
        file.resolve().parent,
        classes=classes,
    )


def read_archive_image(root: Path, path: str) -> Radiograph:
    """Return one image of an archive.

    Args:
        root: Folder of the archive.
        path: Path such as "pneumoniamnist.npz#train/17".

    Raises:
        UnreadableImageError: The archive or row does not exist.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise UnreadableImageError(path, "not a path of a MedMNIST image", hint="Expected FILE.npz#train/17")
    file, row = root / match["archive"], int(match["row"])
    try:
        status = file.stat()
        images = _cached_images(file, match["split"], status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise UnreadableImageError(path, error.strerror or type(error).__name__) from error
    except LayoutError as error:
        raise UnreadableImageError(path, error.message) from error
    if row >= len(images):
        raise UnreadableImageError(path, f"the archive has {len(images)} images in that split")
    return Radiograph(np.ascontiguousarray(images[row]), path, "NPZ", "L")


def pixels_sha256(pixels: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256 of the pixels in row order."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _open_archive(file: Path) -> Any:
    try:
        archive = np.load(file, allow_pickle=False)  # unpickling objects could run code
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise LayoutError(f"{str(file)!r} is not a NumPy archive ({error})", hint=_HINT) from error
    if not hasattr(archive, "files"):
        raise LayoutError(f"{str(file)!r} is one array, not an archive", hint=_HINT)
    return archive


def _read_array(file: Path, archive: Any, key: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(archive[key])
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise LayoutError(f"{str(file)!r}: cannot read {key} ({error})", hint=_HINT) from error


def _read_images(file: Path, archive: Any, split: str) -> npt.NDArray[np.uint8]:
    images = _read_array(file, archive, f"{split}_images")
    if images.ndim != 3 or images.dtype != np.uint8:
        raise LayoutError(
            f"{str(file)!r}: {split}_images has shape {images.shape} and type {images.dtype}, expected (images, height,"
            " width) of uint8",
            hint=_HINT,
        )
    return images


# A split is compressed as a whole, so recent ones are kept in memory. Time and size in the key detect changes.
@functools.lru_cache(maxsize=_CACHED_SPLITS)
def _cached_images(file: Path, split: str, _modified_ns: int, _size: int) -> npt.NDArray[np.uint8]:
    with _open_archive(file) as archive:
        return _read_images(file, archive, split)


def _read_labels(file: Path, archive: Any, split: str, count: int) -> npt.NDArray[Any]:
    """Return the numeric label of each image, shape (count,)."""
    labels = _read_array(file, archive, f"{split}_labels")
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise LayoutError(
            f"{str(file)!r}: {split}_labels has {labels.shape[1]} labels for each image, and an image has one class here",
            hint="Use an archive with one label for each image, or a CSV with one class for each image",
        )
    labels = labels.reshape(-1)
    whole = labels.dtype.kind in "biuf" and ((labels >= 0) & (labels == np.floor(labels))).all()
    if len(labels) != count or not whole:
        raise LayoutError(
            f"{str(file)!r}: {split}_labels has {len(labels)} values from {sorted(set(labels.tolist()))[:5]} for {count}"
            " images, expected one number from 0 for each",
            hint=_HINT,
        )
    return labels


def _known_classes(file: Path, numbers: Collection[int]) -> tuple[str, ...]:
    """Return the class names in order of their numbers, or () for an archive that is not from MedMNIST."""
    known = next((classes for name, classes in _CLASSES.items() if file.name.lower().startswith(name)), ())
    if known and (unknown := set(numbers) - set(range(len(known)))):
        raise LayoutError(
            f"{str(file)!r} has the label {min(unknown)}, and {len(known)} classes: 0 ({known[0]}) to {len(known) - 1}"
            f" ({known[-1]})",
            hint=_HINT,
        )
    return known


def _labeled_image(file: Path, split: str, row: int, pixels: npt.NDArray[np.uint8], label: str) -> LabeledImage:
    etiology = "normal" if label == LABELS[0] else ""
    return LabeledImage(f"{file.name}#{split}/{row}", label, etiology, "", _SPLITS[split], pixels_sha256(pixels))

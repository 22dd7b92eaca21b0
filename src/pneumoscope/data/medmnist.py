"""MedMNIST archives: images that are rows of an array instead of files.

An image's path is "pneumoniamnist.npz#train/17": the archive, its split in MedMNIST's word, and the row.
"""

from __future__ import annotations

import functools
import hashlib
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import LayoutError, UnreadableImageError
from pneumoscope.data.manifest import LABELS, LabelledImage, Manifest
from pneumoscope.imaging.decode import Radiograph

__all__ = ["is_archived", "load_npz", "pixels_sha256", "read_archived"]

_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_ETIOLOGY = {"NORMAL": "normal", "PNEUMONIA": ""}
_PATH = re.compile(r"(?P<archive>.+\.npz)#(?P<split>train|val|test)/(?P<row>\d+)")


def is_archived(path: str) -> bool:
    """True for the path of an image inside an archive."""
    return _PATH.fullmatch(path) is not None


def load_npz(file: Path) -> Manifest:
    """The images of one MedMNIST archive; the SHA-256 is of an image's pixel bytes.

    Raises:
        LayoutError: not an archive of `{train,val,test}_{images,labels}` with grey images and labels 0 (normal) and 1
            (pneumonia).
    """
    with _opened(file) as archive:
        names = {name for name in _SPLITS if f"{name}_images" in archive.files}
        if not names:
            found = ", ".join(archive.files[:8]) or "nothing"
            raise LayoutError(f"{str(file)!r} has no train_images (it holds: {found})", hint=_EXPECTED)
        images = tuple(image for name in _SPLITS if name in names for image in _images(file, archive, name))
    return Manifest(images, file.resolve().parent)


def read_archived(root: Path, path: str) -> Radiograph:
    """One image of an archive.

    Raises:
        UnreadableImageError: no such archive or row.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise UnreadableImageError(path, "not a path into a MedMNIST archive", hint="Such a path is FILE.npz#train/17")
    file, row = root / match["archive"], int(match["row"])
    try:
        status = file.stat()
        images = _grey_split(file, match["split"], status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise UnreadableImageError(path, error.strerror or type(error).__name__) from error
    except LayoutError as error:
        raise UnreadableImageError(path, error.message) from error
    if row >= len(images):
        raise UnreadableImageError(path, f"the archive has {len(images)} images of that split")
    return Radiograph(np.ascontiguousarray(images[row]), path, "NPZ", "L")


def pixels_sha256(pixels: npt.NDArray[np.uint8]) -> str:
    """SHA-256 of the pixel bytes, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


_EXPECTED = "Expected a MedMNIST archive such as pneumoniamnist.npz: train_images, train_labels and so on"


def _opened(file: Path) -> Any:
    try:
        # Objects in an archive are pickles, and a pickle runs code.
        archive = np.load(file, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise LayoutError(f"{str(file)!r} is not a NumPy archive ({error})", hint=_EXPECTED) from error
    if not hasattr(archive, "files"):
        raise LayoutError(f"{str(file)!r} is one array, not an archive", hint=_EXPECTED)
    return archive


def _array(file: Path, archive: Any, key: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(archive[key])
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise LayoutError(f"{str(file)!r}: {key} cannot be read ({error})", hint=_EXPECTED) from error


def _grey_images(file: Path, archive: Any, split: str) -> npt.NDArray[np.uint8]:
    images = _array(file, archive, f"{split}_images")
    if images.ndim != 3 or images.dtype != np.uint8:
        raise LayoutError(
            f"{str(file)!r}: {split}_images has shape {images.shape} and type {images.dtype}, not (images, height,"
            " width) of uint8",
            hint=_EXPECTED,
        )
    return images


# Every row of an archive is compressed with its neighbours, so an opened split is kept; three is one archive's worth.
@functools.lru_cache(maxsize=3)
def _grey_split(file: Path, split: str, _changed: int, _size: int) -> npt.NDArray[np.uint8]:
    with _opened(file) as archive:
        return _grey_images(file, archive, split)


def _images(file: Path, archive: Any, split: str) -> Iterator[LabelledImage]:
    images = _grey_images(file, archive, split)
    labels = _array(file, archive, f"{split}_labels").reshape(-1)
    if len(labels) != len(images) or not np.isin(labels, (0, 1)).all():
        raise LayoutError(
            f"{str(file)!r}: {split}_labels has {len(labels)} values from {sorted(set(labels.tolist()))[:5]} for"
            f" {len(images)} images, not one 0 (normal) or 1 (pneumonia) an image",
            hint=_EXPECTED,
        )
    for row, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        name = LABELS[int(label)]
        yield LabelledImage(
            f"{file.name}#{split}/{row}", name, _ETIOLOGY[name], "", _SPLITS[split], pixels_sha256(pixels)
        )

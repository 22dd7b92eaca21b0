"""One look at every image for the audit: its file, a fingerprint and a thumbnail. Images are decoded once."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.data.hashing import Progress, read_image
from pneumoscope.data.manifest import LabelledImage
from pneumoscope.data.medmnist import is_archived
from pneumoscope.imaging.decode import Radiograph, decode
from pneumoscope.imaging.preprocess import Preprocessing, preprocess

__all__ = ["FINGERPRINT_SIDE", "THUMBNAIL_SIDE", "InspectedImage", "inspect_images"]

FINGERPRINT_SIDE = 16
THUMBNAIL_SIDE = 32
_CHUNK = 32


@dataclasses.dataclass(frozen=True, slots=True)
class InspectedImage:
    """What the audit keeps of an image.

    Attributes:
        image: the row of the manifest.
        bytes: size of its file; 0 inside an archive.
        width, height: pixels.
        format, mode: as `Radiograph` has them.
        quantisation: sum over the JPEG quantisation tables, larger is coarser; 0 for other formats.
        fingerprint: perceptual hash, `FINGERPRINT_SIDE` squared bits.
        thumbnail: grey levels, shape (`THUMBNAIL_SIDE`, `THUMBNAIL_SIDE`).
    """

    image: LabelledImage
    bytes: int
    width: int
    height: int
    format: str
    mode: str
    quantisation: int
    fingerprint: npt.NDArray[np.bool_]
    thumbnail: npt.NDArray[np.uint8]


def inspect_images(
    root: Path, images: Sequence[LabelledImage], progress: Progress | None = None
) -> tuple[list[InspectedImage], list[tuple[str, str]]]:
    """Decode every image once.

    Returns:
        What was found of the images that can be decoded, in order, and (path, why) of the others.
    """
    examined: list[InspectedImage] = []
    unreadable: list[tuple[str, str]] = []

    def one(image: LabelledImage) -> InspectedImage | UnreadableImageError:
        try:
            return _examine(root, image)
        except UnreadableImageError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(images), _CHUNK):
            for found in pool.map(one, images[start : start + _CHUNK]):
                if isinstance(found, UnreadableImageError):
                    unreadable.append((found.path, found.why))
                else:
                    examined.append(found)
            if progress:
                progress(min(start + _CHUNK, len(images)), len(images))
    return examined, unreadable


def _examine(root: Path, image: LabelledImage) -> InspectedImage:
    if is_archived(image.path):
        return _examined(image, read_image(root, image), 0, 0)
    try:
        data = (root / image.path).read_bytes()
    except OSError as error:
        raise UnreadableImageError(image.path, error.strerror or type(error).__name__) from error
    radiograph = decode(data, name=image.path)
    return _examined(image, radiograph, len(data), _quantisation(data) if radiograph.format == "JPEG" else 0)


def _examined(image: LabelledImage, radiograph: Radiograph, size: int, quantisation: int) -> InspectedImage:
    return InspectedImage(
        image,
        size,
        radiograph.width,
        radiograph.height,
        radiograph.format,
        radiograph.mode,
        quantisation,
        np.asarray(imagehash.phash(Image.fromarray(radiograph.pixels), FINGERPRINT_SIDE).hash, dtype=np.bool_).ravel(),
        preprocess(radiograph, Preprocessing(size=THUMBNAIL_SIDE)),
    )


def _quantisation(data: bytes) -> int:
    """Of a file that was decoded before; only its header is read again."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        tables: dict[int, list[int]] = getattr(image, "quantization", {})
        return sum(sum(table) for table in tables.values())

"""Inspect the images of a data set: file properties, perceptual hash and thumbnail. Each image is decoded only once."""

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
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.data.medmnist import is_archive_path
from pneumoscope.imaging.decode import Radiograph, decode
from pneumoscope.imaging.preprocess import Preprocessing, preprocess

__all__ = ["HASH_BITS", "THUMBNAIL_SIDE", "InspectedImage", "inspect_images"]

_HASH_SIDE = 16
HASH_BITS = _HASH_SIDE**2
THUMBNAIL_SIDE = 32
_CHUNK_IMAGES = 32


@dataclasses.dataclass(frozen=True, slots=True)
class InspectedImage:
    """Properties of an image used to find duplicates and shortcuts.

    Attributes:
        image: Image in the manifest.
        bytes: File size; 0 in an archive.
        width, height: Size in pixels.
        format, mode: See `Radiograph`.
        quantization: Sum of the JPEG quantization tables, larger for lower quality; 0 for other formats.
        perceptual_hash: Perceptual hash (DCT), shape (`HASH_BITS`,).
        thumbnail: Gray levels, shape (`THUMBNAIL_SIDE`, `THUMBNAIL_SIDE`).
    """

    image: LabeledImage
    bytes: int
    width: int
    height: int
    format: str
    mode: str
    quantization: int
    perceptual_hash: npt.NDArray[np.bool_]
    thumbnail: npt.NDArray[np.uint8]


def inspect_images(
    root: Path, images: Sequence[LabeledImage], progress: Progress | None = None
) -> tuple[list[InspectedImage], list[tuple[str, str]]]:
    """Return the properties of decodable images, in order, and (path, reason) for the others."""
    inspected: list[InspectedImage] = []
    unreadable: list[tuple[str, str]] = []

    def inspect(image: LabeledImage) -> InspectedImage | UnreadableImageError:
        try:
            return _inspect(root, image)
        except UnreadableImageError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(images), _CHUNK_IMAGES):
            for result in pool.map(inspect, images[start : start + _CHUNK_IMAGES]):
                if isinstance(result, UnreadableImageError):
                    unreadable.append((result.path, result.detail))
                else:
                    inspected.append(result)
            if progress:
                progress(min(start + _CHUNK_IMAGES, len(images)), len(images))
    return inspected, unreadable


def _inspect(root: Path, image: LabeledImage) -> InspectedImage:
    if is_archive_path(image.path):
        return _properties(image, read_image(root, image), size=0, quantization=0)
    try:
        data = (root / image.path).read_bytes()
    except OSError as error:
        raise UnreadableImageError(image.path, error.strerror or type(error).__name__) from error
    radiograph = decode(data, name=image.path)
    quantization = _quantization(data) if radiograph.format == "JPEG" else 0
    return _properties(image, radiograph, size=len(data), quantization=quantization)


def _properties(image: LabeledImage, radiograph: Radiograph, *, size: int, quantization: int) -> InspectedImage:
    perceptual_hash = imagehash.phash(Image.fromarray(radiograph.pixels), _HASH_SIDE).hash
    return InspectedImage(
        image,
        size,
        radiograph.width,
        radiograph.height,
        radiograph.format,
        radiograph.mode,
        quantization,
        np.asarray(perceptual_hash, dtype=np.bool_).ravel(),
        preprocess(radiograph, Preprocessing(size=THUMBNAIL_SIDE)),
    )


def _quantization(data: bytes) -> int:
    """Return the sum of the quantization tables in the header of a valid JPEG file."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        tables: dict[int, list[int]] = getattr(image, "quantization", {})
        return sum(sum(table) for table in tables.values())

"""Decode and preprocess images from all types of sources that a model accepts.

A few images are decoded in this process; many images, and all images of a loader with a pool, are decoded in worker processes
(`imaging.sandbox`).
"""

from __future__ import annotations

import dataclasses
import io
import os
import threading
from collections.abc import Iterable, Sequence
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UnreadableImageError, UsageError
from pneumoscope.core.prediction import MAX_AGE, PatientAge
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.image import DicomPart, Radiograph
from pneumoscope.imaging.pixel_values import PixelValues
from pneumoscope.imaging.preprocess import PreprocessedImage, Preprocessing, preprocess_image

if TYPE_CHECKING:
    from PIL import Image
    from pydicom import Dataset

    from pneumoscope.imaging.sandbox.pool import DecodePool

    # A path, the bytes of a file, gray levels (uint8, shape (height, width), 0 is black), a PIL image or a pydicom Dataset.
    ImageSource = str | Path | bytes | npt.NDArray[np.uint8] | Image.Image | Dataset

__all__ = ["MIN_IMAGES_FOR_POOL", "ImageLoader", "check_age"]

MIN_IMAGES_FOR_POOL = 8  # up to this many, decoding in this process is faster than starting workers


class ImageLoader:
    """Thread-safe decoder and preprocessor of images for one network.

    Args:
        preprocessing: Preprocessing of the network.
        pool: Pool that decodes every image. If None, a few images are decoded in this process, and many in a pool created on
            first use.

    Attributes:
        pool: The given pool, or None.
    """

    def __init__(self, preprocessing: Preprocessing, pool: DecodePool | None = None) -> None:
        self.pool = pool
        self._preprocessing = preprocessing
        self._pool_for_many: DecodePool | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Stop the worker processes, if any."""
        for pool in (self.pool, self._pool_for_many):
            if pool is not None:
                pool.close()

    def choose_pool(self, images: Iterable[ImageSource]) -> DecodePool | None:
        """Return the pool for a number of images, or None to decode in this process.

        Args:
            images: Images to decode; an unknown length counts as many.
        """
        is_few = length_hint(images, MIN_IMAGES_FOR_POOL + 1) <= MIN_IMAGES_FOR_POOL
        if self.pool is not None or is_few or os.name != "posix":
            return self.pool
        with self._lock:
            if self._pool_for_many is None:
                from pneumoscope.imaging.sandbox.pool import DecodePool

                self._pool_for_many = DecodePool()
            return self._pool_for_many

    def decode(self, image: Path | bytes, *, name: str = "") -> Radiograph:
        """Return an image decoded at its original size, for display.

        Raises:
            UnreadableImageError: The image cannot be decoded.
        """
        return self.pool.decode(image, name=name) if self.pool else decode(image, name=name, allow_rejected=True)

    def decode_values(self, image: Path | bytes, *, name: str = "") -> PixelValues:
        """Return the pixel values of an image before windowing, for display.

        Raises:
            UnreadableImageError: The image cannot be decoded.
        """
        if self.pool:
            return self.pool.decode_values(image, name=name)
        values = decode(image, name=name, allow_rejected=True, keep_values=True).values
        assert values is not None
        return values

    def read_part(self, image: bytes, part: DicomPart) -> bytes:
        """Return a part of a DICOM file; see `imaging.dicom_parts.read_part`.

        Raises:
            UnreadableImageError: The part cannot be read.
        """
        if self.pool:
            return self.pool.read_part(image, part)
        from pneumoscope.imaging.dicom_parts import read_part  # imports pydicom

        return read_part(image, part)

    def preprocess(
        self, image: ImageSource, *, name: str = "", age: float | None = None, keep_radiograph: bool = False
    ) -> PreprocessedImage:
        """Return one image, decoded and preprocessed.

        Args:
            image: Image to load.
            name: Name in the result and in messages; if empty, the path, or "bytes", "array", "image" or "dataset".
            age: Age of the patient in years; ignored if the file states an age.
            keep_radiograph: Whether to return the decoded image as well.

        Raises:
            UnreadableImageError: The image cannot be decoded; see `imaging.decode`.
            UsageError: The type is not supported, or the age is not from 0 to 130 years.
        """
        return _with_age(self._preprocess(image, self.pool, name=name, keep_radiograph=keep_radiograph), age)

    def preprocess_many(
        self,
        images: Sequence[ImageSource],
        pool: DecodePool | None,
        *,
        names: Sequence[str] = (),
        ages: Sequence[float | None] = (),
        keep_radiograph: bool = False,
    ) -> list[PreprocessedImage | UnreadableImageError]:
        """Return several images, decoded and preprocessed, with an error in place of each unreadable image.

        Args:
            images: Images to load.
            pool: Pool that decodes them; see `choose_pool`.
            names: Names in the results, one per image; see `preprocess`. Errors omit empty names.
            ages: Ages of the patients, one per image; see `preprocess`.
            keep_radiograph: See `preprocess`.

        Raises:
            UsageError: The type of an image is not supported, or an age is not from 0 to 130 years.
        """
        results = self._preprocess_many(images, pool, keep_radiograph=keep_radiograph)
        if names:
            results = [_renamed(each, name) for each, name in zip(results, names, strict=True)]
        if ages:
            results = [
                _with_age(each, age) if isinstance(each, PreprocessedImage) else each
                for each, age in zip(results, ages, strict=True)
            ]
        return results

    def _preprocess_many(
        self, images: Sequence[ImageSource], pool: DecodePool | None, *, keep_radiograph: bool
    ) -> list[PreprocessedImage | UnreadableImageError]:
        if pool is None or any(isinstance(image, np.ndarray) for image in images):
            return [self._try_to_preprocess(image, pool, keep_radiograph=keep_radiograph) for image in images]
        encoded = [_encode(image) for image in images]
        return pool.preprocess_many(encoded, self._preprocessing, keep_radiograph=keep_radiograph)

    def _try_to_preprocess(
        self, image: ImageSource, pool: DecodePool | None, *, keep_radiograph: bool
    ) -> PreprocessedImage | UnreadableImageError:
        try:
            return self._preprocess(image, pool, keep_radiograph=keep_radiograph)
        except UnreadableImageError as error:
            return error

    def _preprocess(
        self, image: ImageSource, pool: DecodePool | None, *, name: str = "", keep_radiograph: bool = False
    ) -> PreprocessedImage:
        preprocessing = self._preprocessing
        if isinstance(image, np.ndarray):
            radiograph = Radiograph(image, name or "array", "array", str(image.dtype))
            return preprocess_image(radiograph, preprocessing, keep_radiograph=keep_radiograph)
        source, default_name = _encode(image)
        name = name or default_name
        if pool is not None:
            return pool.preprocess(source, preprocessing, name=name, keep_radiograph=keep_radiograph)
        radiograph = decode(source, name=name, min_side=preprocessing.min_side, allow_rejected=True)
        return preprocess_image(radiograph, preprocessing, keep_radiograph=keep_radiograph)


def check_age(age: float | None) -> None:
    """Raise UsageError if an age is not from 0 to 130 years."""
    if age is not None and not 0 <= age <= MAX_AGE:
        raise UsageError(f"the age is {age:g} years, not from 0 to {MAX_AGE}")


def _with_age(image: PreprocessedImage, age: float | None) -> PreprocessedImage:
    """Return the image with an age entered by the user, unless its file states one, whether understood or not."""
    check_age(age)
    if age is None:
        return image
    return dataclasses.replace(image, age=image.age or PatientAge(age, "entered"))


def _renamed(result: PreprocessedImage | UnreadableImageError, name: str) -> PreprocessedImage | UnreadableImageError:
    if isinstance(result, UnreadableImageError):
        return result.renamed(name)
    return dataclasses.replace(result, source=name)


def _encode(image: Any) -> tuple[Path | bytes, str]:
    """Return a path or file content, and a name; a path keeps the form that the caller wrote.

    PIL images are encoded as PNG and pydicom data sets as DICOM in memory, so that all images take the same decoding path.

    Raises:
        UsageError: The type is not supported.
        UnreadableImageError: The PIL image or data set cannot be encoded.
    """
    if isinstance(image, bytes):
        return image, "bytes"
    if isinstance(image, str):
        return Path(image), image
    if isinstance(image, Path):
        return image, str(image)
    buffer = io.BytesIO()
    if hasattr(image, "mode") and hasattr(image, "save"):  # a PIL image, detected without importing Pillow
        try:
            image.save(buffer, "PNG")
        except (OSError, ValueError) as error:
            raise UnreadableImageError(
                "image", UnreadableReason("image_not_encodable", {"error": str(error)})
            ) from error
        return buffer.getvalue(), "image"
    if hasattr(image, "PixelData") or hasattr(image, "SOPClassUID"):  # a pydicom Dataset
        from pydicom import dcmwrite

        try:
            dcmwrite(buffer, image, enforce_file_format=True)
        except Exception as error:  # pydicom raises many types
            raise UnreadableImageError(
                "dataset", UnreadableReason("dataset_not_encodable", {"error": str(error)})
            ) from error
        return buffer.getvalue(), "dataset"
    raise UsageError(
        f"an image of type {type(image).__name__} is not supported",
        hint="Pass a path, bytes, a uint8 array, a PIL image or a pydicom Dataset",
    )

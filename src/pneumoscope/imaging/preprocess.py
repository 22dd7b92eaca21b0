"""Preprocess radiographs for the network: crop, resize and check the image.

Training, export, evaluation and inference use the same functions. The network receives a square image of integer gray levels, 0
to 255. It normalizes them and repeats them to three channels itself (`models.base`), so an exported file includes these steps.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct
from PIL import Image

from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import PatientAge, Rejection
from pneumoscope.core.prediction_codes import WarningCode
from pneumoscope.imaging.image import Acquisition, Radiograph
from pneumoscope.imaging.input_checks import check_image

__all__ = [
    "PREPROCESSING_VERSION",
    "Crop",
    "PreprocessedImage",
    "Preprocessing",
    "hash_pixels",
    "preprocess",
    "preprocess_image",
]

# Incremented whenever the output changes: caches of other versions are rebuilt, bundles of other versions are rejected.
PREPROCESSING_VERSION = 2

Crop = Literal["squash", "center"]


class Preprocessing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Parameters of the preprocessing.

    Attributes:
        size: Side of the square, 16 to 1024 pixels.
        crop: "squash" stretches the whole image to the square; "center" crops the central square first. If the margins differ
            by one pixel, the right or lower one is larger.
        version: Version of the algorithm.
    """

    size: Annotated[int, Meta(ge=16, le=1024)] = 224
    crop: Crop = "squash"
    version: int = PREPROCESSING_VERSION

    @property
    def min_side(self) -> int:
        """Minimum side in pixels of a JPEG decoded at reduced size: twice `size`, so that resizing still averages."""
        return 2 * self.size


def preprocess(radiograph: Radiograph, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Return the network's input for a radiograph.

    Pillow's bilinear filter widens with the reduction, so downsampling does not alias.

    Args:
        radiograph: Decoded image of any size.
        preprocessing: Crop and size.

    Returns:
        Gray levels 0 to 255, uint8, shape (size, size); never a view of the radiograph's pixels.
    """
    pixels = radiograph.pixels
    if preprocessing.crop == "center":
        # Crop before resizing: with Pillow's `box`, pixels outside it would leak in at the border.
        side = min(pixels.shape)
        top, left = (radiograph.height - side) // 2, (radiograph.width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    target = (preprocessing.size, preprocessing.size)
    if pixels.shape == target:
        return pixels.copy()
    return np.array(Image.fromarray(pixels).resize(target, Image.Resampling.BILINEAR), dtype=np.uint8)


def hash_pixels(radiograph: Radiograph) -> str:
    """Return the SHA-256 of the gray levels and their shape, 64 hexadecimal digits.

    The hash identifies an image independently of its header and lossless compression. A JPEG decoded at a reduced size has a
    different hash than at full size.
    """
    digest = hashlib.sha256(f"{radiograph.height} {radiograph.width} ".encode())
    digest.update(np.ascontiguousarray(radiograph.pixels).data)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True, slots=True)
class PreprocessedImage:
    """Image ready for the network, with the properties that a prediction reports.

    Attributes:
        pixels: Gray levels 0 to 255, uint8, shape (size, size).
        source: Path or name.
        format: File format, such as "JPEG", "PNG" or "DICOM".
        width, height: Size of the image in its file, in pixels.
        age: Age of the patient; None if unknown.
        rejections: Reasons in the header or pixels that rule out a prediction; a user can override some.
        warnings: Codes of warnings about the header and the gray levels.
        identity: Patient, study, series and instance; None if unknown.
        pixel_sha256: See `hash_pixels`.
        radiograph: Decoded image, if requested.
        acquisition: View and manufacturer; None if unknown.
    """

    pixels: npt.NDArray[np.uint8]
    source: str
    format: str
    width: int
    height: int
    age: PatientAge | None
    rejections: tuple[Rejection, ...]
    warnings: tuple[WarningCode, ...]
    identity: Identity | None
    pixel_sha256: str
    radiograph: Radiograph | None = None
    acquisition: Acquisition | None = None


def preprocess_image(
    radiograph: Radiograph, preprocessing: Preprocessing, *, keep_radiograph: bool = False
) -> PreprocessedImage:
    """Return the network's input for a radiograph, with the properties of the image.

    Args:
        radiograph: Decoded image of any size.
        preprocessing: Crop and size.
        keep_radiograph: Whether to keep the decoded image, for drawing a heatmap.
    """
    width, height = radiograph.reduced_from or (radiograph.width, radiograph.height)
    by_pixels = check_image(radiograph, preprocessing.size // 2)
    return PreprocessedImage(
        pixels=preprocess(radiograph, preprocessing),
        source=radiograph.source,
        format=radiograph.format,
        width=width,
        height=height,
        age=radiograph.age,
        rejections=(*radiograph.rejections, by_pixels) if by_pixels else radiograph.rejections,
        warnings=radiograph.warnings,
        identity=radiograph.identity,
        pixel_sha256=hash_pixels(radiograph),
        radiograph=radiograph if keep_radiograph else None,
        acquisition=radiograph.acquisition,
    )

"""From a radiograph to what a network is given: the only definition, used by training, export, evaluation and scoring.

A network is given whole grey levels, 0 to 255, in a square. The scaling of grey levels to the numbers that a network
was built for and the repetition to three channels are inside the network (`networks.network`) and so inside the
exported file: they cannot be written twice. What is left, and stands here, is the crop and the resize.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct
from PIL import Image

from pneumoscope.imaging.decode import Radiograph

__all__ = ["PREPROCESSING_VERSION", "Crop", "Preprocessing", "preprocess"]

# Raised whenever a file gives other pixels than before: caches made by another version are made anew, and a bundle
# made by another version is refused.
PREPROCESSING_VERSION = 2

Crop = Literal["squash", "centre"]


class Preprocessing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a radiograph becomes a network's input.

    Attributes:
        size: side of the square, 16 to 1024 pixels.
        crop: "squash" stretches the whole image to the square; "centre" first cuts the central square of the short side,
            where a pixel more must go at the right or at the bottom.
        version: of `preprocess`.
    """

    size: Annotated[int, Meta(ge=16, le=1024)] = 224
    crop: Crop = "squash"
    version: int = PREPROCESSING_VERSION

    @property
    def least_side(self) -> int:
        """How small a JPEG may be decoded (see `decode`): twice the side leaves `preprocess` enough to average over."""
        return 2 * self.size


def preprocess(radiograph: Radiograph, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Crop and resize one radiograph.

    Resizing averages over the area that a pixel comes from (Pillow's bilinear filter, which widens with the reduction),
    so that shrinking does not alias.

    Args:
        radiograph: of any size.
        preprocessing: the crop and the side.
    Returns:
        Grey levels 0 to 255, shape (size, size): an array of its own, never a view of the radiograph's pixels.
    """
    pixels = radiograph.pixels
    if preprocessing.crop == "centre":
        # Cut first: a `box` given to Pillow's resize would let the pixels just outside it show through at the border.
        side = min(pixels.shape)
        top, left = (radiograph.height - side) // 2, (radiograph.width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    target = (preprocessing.size, preprocessing.size)
    if pixels.shape == target:
        return pixels.copy()
    return np.array(Image.fromarray(pixels).resize(target, Image.Resampling.BILINEAR), dtype=np.uint8)

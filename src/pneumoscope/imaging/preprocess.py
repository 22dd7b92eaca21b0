"""Preprocessing of radiographs: the single definition for training, export, evaluation and prediction.

The input of a network is a square of grey levels, 0 to 255. Normalization and the repetition to three channels are part
of the network, and so of the exported file. Only the crop and the resize are defined here.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct
from PIL import Image

from pneumoscope.imaging.decode import Radiograph

__all__ = ["PREPROCESSING_VERSION", "Crop", "Preprocessing", "preprocess"]

# Increase it if the same file gives different pixels. Caches of other versions are rebuilt; bundles of other versions
# are rejected.
PREPROCESSING_VERSION = 2

Crop = Literal["squash", "centre"]


class Preprocessing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of `preprocess`.

    Attributes:
        size: Width and height of the network's input, 16 to 1024 pixels.
        crop: "squash" resizes the whole image to the square, regardless of its aspect ratio; "centre" first crops the
            central square. If the margin is odd, one more pixel is cut at the right or at the bottom.
        version: Version of `preprocess`.
    """

    size: Annotated[int, Meta(ge=16, le=1024)] = 224
    crop: Crop = "squash"
    version: int = PREPROCESSING_VERSION

    @property
    def least_side(self) -> int:
        """Return the minimum side to which a JPEG may be reduced in decoding: twice the size leaves pixels to average."""
        return 2 * self.size


def preprocess(radiograph: Radiograph, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Return a radiograph cropped and resized: grey levels 0 to 255, shape (size, size).

    The resize is antialiased (Pillow's bilinear filter, whose support grows with the reduction). The result is a new
    array, never a view of the radiograph's pixels.

    Args:
        radiograph: Radiograph of any size.
        preprocessing: Crop and size.
    """
    pixels = radiograph.pixels
    if preprocessing.crop == "centre":
        # With Pillow's `box` argument instead of a crop, pixels just outside the box would contribute to the border.
        side = min(pixels.shape)
        top, left = (radiograph.height - side) // 2, (radiograph.width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    target = (preprocessing.size, preprocessing.size)
    if pixels.shape == target:
        return pixels.copy()
    return np.array(Image.fromarray(pixels).resize(target, Image.Resampling.BILINEAR), dtype=np.uint8)

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

from pneumoscope.radiograph.decode import Radiograph

__all__ = ["PREPARE_VERSION", "Crop", "Preparation", "prepare"]

# Raised whenever a file gives other pixels than before: caches made by another version are made anew, and a bundle
# made by another version is refused.
PREPARE_VERSION = 2

Crop = Literal["squash", "centre"]


class Preparation(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a radiograph becomes a network's input.

    Attributes:
        size: side of the square, 16 to 1024 pixels.
        crop: "squash" stretches the whole film to the square; "centre" first cuts the central square of the short side,
            where a pixel more must go at the right or at the bottom.
        version: of `prepare`.
    """

    size: Annotated[int, Meta(ge=16, le=1024)] = 224
    crop: Crop = "squash"
    version: int = PREPARE_VERSION

    @property
    def least_side(self) -> int:
        """How small a JPEG may be decoded (see `decode`): twice the side leaves `prepare` enough to average over."""
        return 2 * self.size


def prepare(radiograph: Radiograph, preparation: Preparation) -> npt.NDArray[np.uint8]:
    """Crop and resize one radiograph.

    Resizing averages over the area that a pixel comes from (Pillow's bilinear filter, which widens with the reduction),
    so that shrinking does not alias.

    Args:
        radiograph: of any size.
        preparation: the crop and the side.
    Returns:
        Grey levels 0 to 255, shape (size, size): an array of its own, never a view of the radiograph's pixels.
    """
    pixels = radiograph.pixels
    if preparation.crop == "centre":
        # Cut first: a `box` given to Pillow's resize would let the pixels just outside it show through at the border.
        side = min(pixels.shape)
        top, left = (radiograph.height - side) // 2, (radiograph.width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    target = (preparation.size, preparation.size)
    if pixels.shape == target:
        return pixels.copy()
    return np.array(Image.fromarray(pixels).resize(target, Image.Resampling.BILINEAR), dtype=np.uint8)

"""What can be told to be no image of a chest from its pixels alone, whatever a network was trained on."""

from __future__ import annotations

import numpy as np

from pneumoscope.imaging.image import Radiograph

__all__ = ["check_input"]

# Images that were stored in colour differ by a grey level or two from channel to channel, stained photographs of images by a few.
_MOST_CHROMA = 12.0
# Of grey levels between the 1st and the 99th percentile; a blank detector's noise is below. The palest of 5,856 images has 85.
_LEAST_CONTRAST = 12
# Of the longer side to the shorter; the widest of 120 images of children is 3.2 times as wide as it is high.
_MOST_ASPECT = 4.0


def check_input(image: Radiograph, least_side: int) -> str:
    """Why a picture cannot be read as an image of a chest; empty where nothing speaks against it.

    Args:
        image: as decoded.
        least_side: pixels that its shorter side must have, in its file.
    """
    width, height = image.reduced_from or (image.width, image.height)
    if min(width, height) < least_side:
        return f"too small: {width} x {height} pixels, and {least_side} are the least on each side"
    if max(width, height) > _MOST_ASPECT * min(width, height):
        return f"too narrow for a chest: {width} x {height} pixels"
    if image.chroma > _MOST_CHROMA:
        return "in colour: a radiograph is grey"
    step = max(1, min(image.pixels.shape) // 256)  # the percentiles of some thousand pixels are those of all
    # By counting: `np.percentile` sorts, and imports more of numpy than all the rest that scores an image.
    below = np.cumsum(np.bincount(image.pixels[::step, ::step].ravel(), minlength=256))
    low, high = np.searchsorted(below, (0.01 * below[-1], 0.99 * below[-1]))
    within = int(high - low)
    if within < _LEAST_CONTRAST:
        return f"blank: its grey levels lie within {within} of 256"
    return ""

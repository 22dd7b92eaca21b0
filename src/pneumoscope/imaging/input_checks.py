"""Reject images that cannot be chest radiographs because of their size, color or contrast."""

from __future__ import annotations

import numpy as np

from pneumoscope.core.prediction import Rejection
from pneumoscope.imaging.image import Radiograph

__all__ = ["check_image"]

# Gray levels. The channels of radiographs stored in color differ by one or two, of tinted photographs of radiographs by
# a few.
_MAX_CHROMA = 12.0
# Gray levels between the 1st and 99th percentiles. The noise of a blank detector spans fewer; the minimum over 5,856
# pediatric radiographs is 85.
_MIN_CONTRAST = 12
# Ratio of the longer to the shorter side; the maximum over 120 pediatric radiographs is 3.2.
_MAX_ASPECT = 4.0


def check_image(image: Radiograph, min_side: int) -> Rejection | None:
    """Return the reason why the image cannot be a chest radiograph, or None.

    Args:
        image: Decoded image.
        min_side: Minimum length of the shorter side in the file, in pixels.
    """
    width, height = image.reduced_from or (image.width, image.height)
    size: dict[str, str | int | float] = {"width": width, "height": height}
    if min(width, height) < min_side:
        return Rejection("too_small", size | {"minimum": min_side})
    if max(width, height) > _MAX_ASPECT * min(width, height):
        return Rejection("too_narrow", size | {"max_aspect": _MAX_ASPECT})
    if image.chroma > _MAX_CHROMA:
        return Rejection("color", {"chroma": image.chroma, "limit": _MAX_CHROMA})
    step = max(1, min(image.pixels.shape) // 256)  # a sample of the pixels is enough
    # A histogram is faster than `np.percentile`, which sorts and imports more of NumPy.
    cumulative = np.cumsum(np.bincount(image.pixels[::step, ::step].ravel(), minlength=256))
    low, high = np.searchsorted(cumulative, (0.01 * cumulative[-1], 0.99 * cumulative[-1]))
    levels = int(high - low)
    if levels < _MIN_CONTRAST:
        return Rejection("blank", {"levels": levels, "minimum": _MIN_CONTRAST})
    return None

"""An image that every bundle is tried on before it is used: what a processor or a library computes otherwise shows here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["SELF_TEST_TOLERANCE", "self_test_image"]

# Of the logit, relative to its size where that is above 1. Processors differ by 1e-5; what matters is far more.
SELF_TEST_TOLERANCE = 1e-3


def self_test_image(size: int) -> npt.NDArray[np.uint8]:
    """Rings in a chequered slope, in whole numbers, so that it is the same everywhere.

    Args:
        size: side, pixels.
    Returns:
        Grey levels, shape (1, size, size).
    """
    y, x = np.mgrid[:size, :size].astype(np.int64)
    slope = 128 * (x + y) // (2 * size)
    squares = 32 * ((8 * x // size + 8 * y // size) % 2)
    rings = 64 * (((2 * x - size) ** 2 + (2 * y - size) ** 2) * 6 // (2 * size * size) % 2)
    image: npt.NDArray[np.uint8] = (slope + squares + rings).astype(np.uint8)[None]
    return image

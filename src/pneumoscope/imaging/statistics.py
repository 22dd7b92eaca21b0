"""Statistics of preprocessed images that change with the scanner, its processing and the framing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["IMAGE_STATISTICS", "image_statistics"]

IMAGE_STATISTICS = ("brightness", "contrast", "sharpness", "border")
_BORDER = 0.05  # of each side


def image_statistics(pixels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Return statistics of one image by name, in gray levels.

    "brightness" is the mean, "contrast" the standard deviation, "sharpness" the mean absolute difference of neighboring pixels,
    and "border" the mean of the outer 5% of each side.

    Args:
        pixels: Gray levels, uint8, shape (size, size).
    """
    gray = pixels.astype(np.float64)
    width = max(1, round(_BORDER * len(gray)))
    inner = slice(width, -width)
    n_border = gray.size - gray[inner, inner].size
    differences = np.abs(np.diff(gray, axis=0)).mean(), np.abs(np.diff(gray, axis=1)).mean()
    return {
        "brightness": float(gray.mean()),
        "contrast": float(gray.std()),
        "sharpness": float(np.mean(differences)),
        "border": float((gray.sum() - gray[inner, inner].sum()) / n_border),
    }

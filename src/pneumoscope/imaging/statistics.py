"""Statistics of preprocessed images that depend on the scanner, its processing and the framing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pneumoscope.core.prediction import ImageStatistics

__all__ = ["image_statistics"]

_BORDER = 0.05  # fraction of each side


def image_statistics(pixels: npt.NDArray[np.uint8]) -> ImageStatistics:
    """Return statistics of one preprocessed image, rounded to seven digits, which a site profile stores exactly.

    Args:
        pixels: Gray levels, uint8, shape (size, size).
    """
    gray = pixels.astype(np.float64)
    width = max(1, round(_BORDER * len(gray)))
    inner = slice(width, -width)
    n_border = gray.size - gray[inner, inner].size
    differences = np.abs(np.diff(gray, axis=0)).mean(), np.abs(np.diff(gray, axis=1)).mean()
    border = (gray.sum() - gray[inner, inner].sum()) / n_border
    values = (gray.mean(), gray.std(), np.mean(differences), border)
    return ImageStatistics(*(float(f"{value:.7g}") for value in values))

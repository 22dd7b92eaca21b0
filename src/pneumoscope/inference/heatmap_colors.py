"""Heatmap colors: orange for a class and blue against it, blended over the gray image.

The colors remain distinguishable with color vision deficiency. From each gray, both directions are straight lines in OKLab, so
equal steps of contribution look equal. Both ends have the same lightness and chroma, so neither looks stronger than the other.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

__all__ = ["blend", "overlay"]

_OPACITY = 0.7  # of the strongest contribution; the image shows through
_STEPS = 255  # color steps in each direction
# OKLab lightness and chroma of both ends, and their hues in degrees; as saturated as sRGB blue allows.
_LIGHTNESS, _CHROMA, _HUE_TOWARDS, _HUE_AGAINST = 0.74, 0.13, 55, 250
_LAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def blend(
    gray: npt.NDArray[np.floating] | np.float64,
    strength: npt.NDArray[np.floating] | np.float64,
    opacity: float = _OPACITY,
) -> npt.NDArray[np.float64]:
    """Return the colors of contributions blended over grays: sRGB, 0 to 1, with a last axis of 3.

    Args:
        gray: Gray of the image, sRGB, 0 is black and 1 is white.
        strength: -1 (strongest against the class) to 1 (strongest for it); broadcasts with `gray`.
        opacity: Opacity of the strongest contribution.

    Source: Ottosson 2020, "A perceptual color space for image processing" (OKLab); IEC 61966-2-1 (sRGB).
    """
    hue = np.radians(np.where(strength > 0, _HUE_TOWARDS, _HUE_AGAINST))
    weight = opacity * np.abs(strength)
    lightness = np.cbrt(
        np.where(gray <= 0.04045, gray / 12.92, ((gray + 0.055) / 1.055) ** 2.4)
    )  # OKLab lightness of a gray
    lab = np.stack(
        np.broadcast_arrays(
            (1 - weight) * lightness + weight * _LIGHTNESS,
            weight * _CHROMA * np.cos(hue),
            weight * _CHROMA * np.sin(hue),
        ),
        axis=-1,
    )
    linear = np.clip((lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T, 0, 1)
    rgb: npt.NDArray[np.float64] = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb


@functools.cache
def _color_table() -> npt.NDArray[np.uint8]:
    """Return `blend` for all gray levels and steps, shape (256, 2 x steps + 1, 3)."""
    table = blend(np.arange(256)[:, None] / 255, np.arange(-_STEPS, _STEPS + 1)[None, :] / _STEPS)
    return np.rint(255 * table).astype(np.uint8)


def overlay(gray: npt.NDArray[np.uint8], strength: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return an RGB image that blends gray levels (uint8) with strengths from -1 to 1, both of shape (height, width)."""
    return _color_table()[gray, np.rint(strength * _STEPS).astype(np.int16) + _STEPS]

"""Find padding (pixels outside the image) in stored DICOM values, by header or, if undeclared, by the pixel values."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from pneumoscope.imaging.histogram import Integers
from pneumoscope.imaging.lookup_table import parse_element_numbers

__all__ = ["find_padding"]

_PADDING_DISTANCE = 2  # minimum distance of undeclared padding from the other values, as a multiple of their range
_MIN_ANATOMY = 0.2  # minimum fraction of pixels that are not undeclared padding


def find_padding(stored: Integers, dataset: Dataset) -> tuple[npt.NDArray[np.bool_], int | None]:
    """Return the mask of padding, shape (height, width), and the value of undeclared padding or None.

    Args:
        stored: Stored values, shape (height, width).
        dataset: Data set with PixelPaddingValue and PixelPaddingRangeLimit, if present.

    Raises:
        GrayLevelError: A padding element is not a number.

    Source: PS3.3 C.7.5.1.1.2.
    """
    padding = _declared_padding(stored, dataset)
    if padding is not None:
        return padding, None
    undeclared = _undeclared_padding(stored)
    return _uniform_sides(stored, undeclared), undeclared


def _declared_padding(stored: Integers, dataset: Dataset) -> npt.NDArray[np.bool_] | None:
    """Return the mask of pixels with the declared padding value or range, or None if undeclared.

    Padding must be connected to the image border along a row or column; elsewhere the same value can be anatomy.
    """
    value = _integer(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = _integer(dataset, "PixelPaddingRangeLimit")
    info, size = np.iinfo(stored.dtype), 2 ** (8 * stored.dtype.itemsize)

    def representable(number: int) -> int:
        """Return the number with the same bits in the pixel type; its VR often has the other sign."""
        return number if info.min <= number <= info.max else (number - info.min) % size + info.min

    low, high = sorted(representable(each) for each in (value, value if limit is None else limit))
    return _connected_to_border((stored >= low) & (stored <= high))


def _undeclared_padding(stored: Integers) -> int | None:
    """Return the value of undeclared padding, which fills a whole side of the image and is far from all other values, or None.

    The value is negative, or at least 2**15 if negative values such as -2000 were written as unsigned; this excludes black and
    the value of detectors saturated by direct exposure. If no other values are negative, the distance is not checked.
    """
    is_signed = stored.dtype.kind == "i"
    value = int(stored.min() if is_signed else stored.max())
    sides = stored[0], stored[-1], stored[:, 0], stored[:, -1]
    if not (value < 0 if is_signed else value >= 2**15) or not any((side == value).all() for side in sides):
        return None
    others = stored[stored != value]
    if others.size < _MIN_ANATOMY * stored.size:
        return None
    lowest, highest = int(others.min()), int(others.max())
    is_far = max(value - highest, lowest - value) >= _PADDING_DISTANCE * max(highest - lowest, 1)
    return value if is_far or (is_signed and lowest >= 0) else None


def _uniform_sides(stored: Integers, value: int | None) -> npt.NDArray[np.bool_]:
    """Return the mask of outer rows and columns that contain only this value; inside, a saturated object can have it."""
    if value is None:
        return np.zeros(stored.shape, dtype=np.bool_)
    has_value = stored == value
    rows, columns = (_connected_to_border(has_value.all(axis=axis)) for axis in (1, 0))
    mask: npt.NDArray[np.bool_] = rows[:, np.newaxis] | columns
    return mask


def _connected_to_border(candidates: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the candidates connected to the border along any axis."""
    padding = np.zeros_like(candidates)
    for axis in range(candidates.ndim):
        padding |= np.logical_and.accumulate(candidates, axis=axis)
        padding |= np.flip(np.logical_and.accumulate(np.flip(candidates, axis), axis=axis), axis)
    return padding


def _integer(dataset: Dataset, keyword: str) -> int | None:
    """Return the first number of an element, or None if it is missing or empty.

    Raises:
        GrayLevelError: The element is not a number.
    """
    numbers = parse_element_numbers(dataset.get(keyword), keyword)
    return int(numbers[0]) if numbers and math.isfinite(numbers[0]) else None

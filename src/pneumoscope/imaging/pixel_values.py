"""The values of an image before any window, and what a viewer needs to display and measure them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "SPACING_ELEMENTS",
    "PixelDescription",
    "PixelSpacing",
    "PixelValues",
    "Window",
    "WindowFunction",
    "describe",
    "pixel_spacing",
    "values_of_gray_levels",
    "window_between",
]

SPACING_ELEMENTS = ("PixelSpacing", "ImagerPixelSpacing", "PixelSpacingCalibrationType")
_N_NUMBERS = 2**16
_BLOCK_ROWS = 256  # that are converted at a time
_MAX_SPACING = 100.0  # mm; a larger number is not the spacing of a radiograph

WindowFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
SpacingKind = Literal["calibrated", "detector", "unstated"]
Integers = npt.NDArray[np.integer[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A window on the values of an image (PS3.3 C.11.2.1.2).

    Attributes:
        center, width: In the unit of the values.
        function: How values become brightness, `VOILUTFunction`.
        explanation: What the file calls it, `WindowCenterWidthExplanation`; may be empty.
    """

    center: float
    width: float
    function: WindowFunction
    explanation: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class PixelSpacing:
    """Distances between the centers of neighboring pixels (PS3.3 10.7.1).

    Attributes:
        row: Between rows, mm.
        column: Between columns, mm.
        kind: "calibrated" if the file states a correction for magnification, "detector" at the plane of the detector, where
            anatomy appears larger than it is, "unstated" if the file does not state which of them.
    """

    row: float
    column: float
    kind: SpacingKind


@dataclasses.dataclass(frozen=True, slots=True)
class PixelDescription:
    """The meaning of the numbers of `PixelValues`.

    Attributes:
        slope, intercept: The value of a number is slope x number + intercept: the stored value after the modality LUT, or the
            stored value itself if the window is for those.
        smallest, largest: Values of the image, without padding.
        bits: Bits of a stored value, as the file states them.
        white_is_zero: Whether small values are white (MONOCHROME1).
        padding: Number of the pixels beside the image, which are always black; None if there are none.
        default_window: Window whose result are the gray levels; None if they come from a lookup table.
        windows: Windows of the file.
        spacing: Distances of the pixels; None if the file states none.
    """

    slope: float
    intercept: float
    smallest: float
    largest: float
    bits: int
    white_is_zero: bool = False
    padding: int | None = None
    default_window: Window | None = None
    windows: tuple[Window, ...] = ()
    spacing: PixelSpacing | None = None

    @property
    def is_valid(self) -> bool:
        """Whether all numbers are finite, widths and distances positive, and the slope is not 0."""
        windows = [*self.windows, *([self.default_window] if self.default_window else [])]
        numbers = [self.slope, self.intercept, self.smallest, self.largest, *(each.center for each in windows)]
        positive = [
            *(each.width for each in windows),
            *((self.spacing.row, self.spacing.column) if self.spacing else ()),
        ]
        finite = all(math.isfinite(number) for number in (*numbers, *positive))
        return finite and self.slope != 0 and all(number > 0 for number in positive)


class PixelValues(NamedTuple):
    """Values of an image in 16 bits.

    Attributes:
        numbers: A number for each pixel, uint16, shape (height, width).
        gray_levels: The gray level of each number, from 0 to at least the largest one, in the 8-bit image; uint8.
        description: What the numbers mean.
    """

    numbers: npt.NDArray[np.uint16]
    gray_levels: npt.NDArray[np.uint8]
    description: PixelDescription


def window_between(black: float, white: float) -> Window:
    """Return the window that makes `black` black and `white` white."""
    return Window((black + white) / 2, white - black, "LINEAR_EXACT")


def values_of_gray_levels(
    numbers: npt.NDArray[Any], levels: npt.NDArray[np.uint8], bits: int, window: Window
) -> PixelValues:
    """Return the values of a file without header.

    Args:
        numbers: Stored values, uint8 or uint16, shape (height, width).
        levels: Gray level of each stored value from 0.
        bits: Bits of the file.
        window: The window whose result are the gray levels.
    """
    smallest, largest = float(numbers.min()), float(numbers.max())
    description = PixelDescription(1.0, 0.0, smallest, largest, bits, default_window=window)
    return PixelValues(numbers.astype(np.uint16), levels, description)


def describe(
    stored: Integers,
    levels: npt.NDArray[np.uint8],
    padding: npt.NDArray[np.bool_],
    description: PixelDescription,
    *,
    lowest: int,
    entries: npt.NDArray[np.floating[Any]] | None = None,
) -> PixelValues:
    """Return the values of a DICOM image.

    Args:
        stored: Stored values, shape (height, width).
        levels: Gray level of each stored value from the lowest.
        padding: Mask of the pixels beside the image.
        description: With slope and intercept of the stored values; those of the numbers are computed.
        lowest: The lowest stored value without padding.
        entries: Modality value of each stored value from the lowest, if a lookup table defines them; slope and intercept are
            then not used, unless the gray levels are not a function of these values.
    """
    shifted = _shifted(entries, levels)
    if shifted is None:
        slope = description.slope
        intercept = slope * lowest + description.intercept
        smallest, largest = sorted((intercept, intercept + slope * (len(levels) - 1)))
        offset = np.uint16(lowest % _N_NUMBERS)
        numbers = _converted(stored, lambda rows: rows.astype(np.uint16) - offset)  # modulo 2**16
    else:
        index, levels, intercept = shifted
        slope, smallest, largest = 1.0, intercept, intercept + float(index.max())
        last = len(index) - 1
        numbers = _converted(stored, lambda rows: index[np.clip(rows.astype(np.int32) - lowest, 0, last)])
    padding_number = None
    if padding.any():
        if len(levels) < _N_NUMBERS:
            padding_number, levels = len(levels), np.append(levels, np.uint8(0))
        # Without an unused number, padding gets one that is black at first.
        numbers[padding] = np.argmin(levels) if padding_number is None else padding_number
    return PixelValues(
        numbers,
        levels,
        dataclasses.replace(
            description, slope=slope, intercept=intercept, smallest=smallest, largest=largest, padding=padding_number
        ),
    )


def _converted(stored: Integers, convert: Callable[[Integers], npt.NDArray[np.uint16]]) -> npt.NDArray[np.uint16]:
    """Return converted pixels, a block of rows at a time: indices have 64 bits."""
    numbers = np.empty(stored.shape, dtype=np.uint16)
    for start in range(0, len(stored), _BLOCK_ROWS):
        numbers[start : start + _BLOCK_ROWS] = convert(stored[start : start + _BLOCK_ROWS])
    return numbers


def _shifted(
    entries: npt.NDArray[np.floating[Any]] | None, levels: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8], float] | None:
    """Return the numbers of the entries of a lookup table, the gray level of each number, and the value of number 0.

    None if there is no table, its range exceeds 16 bits, or one entry has several gray levels.
    """
    if entries is None or entries.max() - entries.min() >= _N_NUMBERS:
        return None
    index = (entries - entries.min()).astype(np.uint16)
    known, first = np.unique(index, return_index=True)
    if not np.array_equal(levels[first[np.searchsorted(known, index)]], levels):
        return None
    between = np.interp(np.arange(int(known[-1]) + 1), known, levels[first].astype(np.float64))
    return index, np.rint(between).astype(np.uint8), float(entries.min())


def pixel_spacing(dataset: Dataset) -> PixelSpacing | None:
    """Return the distances of the pixels; None if the file states none, or none that a radiograph can have.

    `PixelSpacing` that equals `ImagerPixelSpacing` is that of the detector; without that, and without a type of calibration, it
    may be either (PS3.3 10.7.1.3).
    """
    calibrated, detector = (_distances(dataset, each) for each in ("PixelSpacing", "ImagerPixelSpacing"))
    if calibrated is None:
        return PixelSpacing(*detector, "detector") if detector else None
    if detector and calibrated == detector:
        return PixelSpacing(*detector, "detector")
    is_stated = detector is not None or bool(str(dataset.get("PixelSpacingCalibrationType") or "").strip())
    return PixelSpacing(*calibrated, "calibrated" if is_stated else "unstated")


def _distances(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    """Return two positive distances, mm; None if the element is missing or not that."""
    try:
        row, column = (float(each) for each in dataset.get(keyword))
    except (TypeError, ValueError):  # pydicom converts the text of an element when it is read
        return None
    return (row, column) if 0 < row <= _MAX_SPACING and 0 < column <= _MAX_SPACING else None

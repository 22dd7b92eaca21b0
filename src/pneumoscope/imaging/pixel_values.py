"""Pixel values before windowing, with the information that a viewer needs to display and measure them."""

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
_BLOCK_ROWS = 256  # rows converted at a time
_MAX_SPACING = 100.0  # mm; larger values are not plausible for a radiograph

WindowFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
SpacingKind = Literal["calibrated", "detector", "unstated"]
Integers = npt.NDArray[np.integer[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Window on the values of an image (PS3.3 C.11.2.1.2).

    Attributes:
        center, width: Center and width in the unit of the values.
        function: Function from values to brightness, `VOILUTFunction`.
        explanation: Name of the window in the file, `WindowCenterWidthExplanation`; may be empty.
    """

    center: float
    width: float
    function: WindowFunction
    explanation: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class PixelSpacing:
    """Distances between the centers of neighboring pixels (PS3.3 10.7.1).

    Attributes:
        row: Distance between rows in mm.
        column: Distance between columns in mm.
        kind: "calibrated" if corrected for magnification, "detector" if measured at the detector plane, where anatomy appears
            enlarged, "unstated" if the file does not specify which.
    """

    row: float
    column: float
    kind: SpacingKind


@dataclasses.dataclass(frozen=True, slots=True)
class PixelDescription:
    """Meaning of the numbers in `PixelValues`.

    Attributes:
        slope, intercept: The value of a number is slope x number + intercept. Values are stored values after the modality LUT,
            or unconverted stored values if the window applies to those.
        smallest, largest: Range of the image's values without padding.
        bits: Bits stored according to the file.
        white_is_zero: Whether small values are white (MONOCHROME1).
        padding: Number that marks pixels outside the image, which are always black; None if there are none.
        default_window: Window that yields the gray levels; None if they come from a lookup table.
        windows: Windows in the file.
        spacing: Pixel spacing; None if missing.
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
        """Whether all numbers are finite, widths and distances are positive, and the slope is not 0."""
        windows = [*self.windows, *([self.default_window] if self.default_window else [])]
        numbers = [self.slope, self.intercept, self.smallest, self.largest, *(each.center for each in windows)]
        positive = [
            *(each.width for each in windows),
            *((self.spacing.row, self.spacing.column) if self.spacing else ()),
        ]
        finite = all(math.isfinite(number) for number in (*numbers, *positive))
        return finite and self.slope != 0 and all(number > 0 for number in positive)


class PixelValues(NamedTuple):
    """16-bit values of an image.

    Attributes:
        numbers: Number of each pixel, uint16, shape (height, width).
        gray_levels: Gray level of each number in the 8-bit image, from 0 to at least the largest number, uint8.
        description: Meaning of the numbers.
    """

    numbers: npt.NDArray[np.uint16]
    gray_levels: npt.NDArray[np.uint8]
    description: PixelDescription


def window_between(black: float, white: float) -> Window:
    """Return the window that displays `black` as black and `white` as white."""
    return Window((black + white) / 2, white - black, "LINEAR_EXACT")


def values_of_gray_levels(
    numbers: npt.NDArray[Any], levels: npt.NDArray[np.uint8], bits: int, window: Window
) -> PixelValues:
    """Return the values of a file without a header.

    Args:
        numbers: Stored values, uint8 or uint16, shape (height, width).
        levels: Gray level of each stored value, starting at 0.
        bits: Bit depth of the file.
        window: Window that yields the gray levels.
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
        levels: Gray level of each stored value, starting at `lowest`.
        padding: Mask of the pixels outside the image.
        description: Description with the slope and intercept of the stored values, which are converted to those of the numbers.
        lowest: Lowest stored value, excluding padding.
        entries: Modality value of each stored value, starting at `lowest`, if a lookup table defines them. Slope and intercept
            are then ignored, unless the gray levels are not a function of these values.
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
        # If all numbers are used, padding gets one that is initially black.
        numbers[padding] = np.argmin(levels) if padding_number is None else padding_number
    return PixelValues(
        numbers,
        levels,
        dataclasses.replace(
            description, slope=slope, intercept=intercept, smallest=smallest, largest=largest, padding=padding_number
        ),
    )


def _converted(stored: Integers, convert: Callable[[Integers], npt.NDArray[np.uint16]]) -> npt.NDArray[np.uint16]:
    """Return converted pixels, in blocks of rows to limit memory, because indices have 64 bits."""
    numbers = np.empty(stored.shape, dtype=np.uint16)
    for start in range(0, len(stored), _BLOCK_ROWS):
        numbers[start : start + _BLOCK_ROWS] = convert(stored[start : start + _BLOCK_ROWS])
    return numbers


def _shifted(
    entries: npt.NDArray[np.floating[Any]] | None, levels: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8], float] | None:
    """Return the numbers of lookup table entries, the gray level of each number, and the value of number 0.

    Return None if there is no table, its range exceeds 16 bits, or an entry has several gray levels.
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
    """Return the pixel spacing, or None if it is missing or implausible.

    A `PixelSpacing` equal to `ImagerPixelSpacing` is measured at the detector. Without `ImagerPixelSpacing` or a calibration
    type, it may be either (PS3.3 10.7.1.3).
    """
    calibrated, detector = (_distances(dataset, each) for each in ("PixelSpacing", "ImagerPixelSpacing"))
    if calibrated is None:
        return PixelSpacing(*detector, "detector") if detector else None
    if detector and calibrated == detector:
        return PixelSpacing(*detector, "detector")
    is_stated = detector is not None or bool(str(dataset.get("PixelSpacingCalibrationType") or "").strip())
    return PixelSpacing(*calibrated, "calibrated" if is_stated else "unstated")


def _distances(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    """Return two positive distances in mm, or None if the element is missing or invalid."""
    try:
        row, column = (float(each) for each in dataset.get(keyword))
    except (TypeError, ValueError):  # raised on access, when pydicom converts the text
        return None
    return (row, column) if 0 < row <= _MAX_SPACING and 0 < column <= _MAX_SPACING else None

"""The records of a decoded image: gray levels, and the properties of the file that the input checks use."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import PatientAge, Rejection
from pneumoscope.core.prediction_codes import WarningCode
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.imaging.pixel_values import PixelValues

__all__ = ["MAX_PART_BYTES", "MAX_PIXELS", "Acquisition", "DicomPart", "GrayLevels", "Radiograph"]

# The largest detectors have about 4,300 x 4,300 pixels; this is four times as many.
MAX_PIXELS = 75_000_000
DicomPart = Literal["header", "frame", "display"]  # see `dicom_parts`
MAX_PART_BYTES: dict[DicomPart, int] = {"header": 2**24, "frame": 4 * MAX_PIXELS, "display": 2**22}


@dataclasses.dataclass(frozen=True, slots=True)
class Acquisition:
    """How an image was acquired, as its header states it in capitals; "" where it states nothing.

    Attributes:
        view: View, such as "AP" or "PA".
        manufacturer: Manufacturer of the device.
    """

    view: str = ""
    manufacturer: str = ""


class GrayLevels(NamedTuple):
    """An image in 256 gray levels.

    Attributes:
        pixels: Gray levels, 0 (black) to 255 (white), shape (height, width).
        warnings: "window_ignored", "bit_depth_measured", "padding_measured", or nothing.
        values: The values that they come from, if requested; else None.
    """

    pixels: npt.NDArray[np.uint8]
    warnings: tuple[WarningCode, ...] = ()
    values: PixelValues | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Radiograph:
    """One decoded radiograph.

    Attributes:
        pixels: Gray levels, 0 (black) to 255 (white), shape (height, width).
        source: Path or name of the file.
        format: File format, such as "JPEG", "PNG" or "DICOM".
        mode: Pixel format of the file: Pillow's mode ("L", "RGB", "I;16"), or DICOM's photometric interpretation and
            bits ("MONOCHROME2, 12 bits").
        reduced_from: Width and height in the file, pixels, if the image was decoded at a reduced size; else None.
        age: Age of the patient, if the file states it; else None.
        chroma: Mean difference of the largest and smallest color channel, gray levels; 0 for gray images.
        rejections: Why the header of the file excludes a prediction, such as a lateral view; a person can override some.
        warnings: Codes of warnings about the header and the gray levels.
        identity: Patient, study, series and instance that the header states; None without a header or if it states none.
        values: The values before any window, if requested; else None.
        acquisition: View and manufacturer; None without a header or if it states neither.

    Raises:
        UnreadableImageError: The pixels are not 8-bit gray levels in two dimensions, or there are none.
    """

    pixels: npt.NDArray[np.uint8]
    source: str
    format: str
    mode: str
    reduced_from: tuple[int, int] | None = None
    chroma: float = 0.0
    age: PatientAge | None = None
    rejections: tuple[Rejection, ...] = ()
    warnings: tuple[WarningCode, ...] = ()
    identity: Identity | None = None
    values: PixelValues | None = None
    acquisition: Acquisition | None = None

    def __post_init__(self) -> None:
        """Validate the pixels, so that images with three channels cannot pass."""
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 2 or 0 in shape or dtype != np.uint8:
            raise UnreadableImageError(
                self.source, UnreadableReason("array_not_supported", {"dtype": str(dtype), "shape": str(shape)})
            )

    @property
    def width(self) -> int:
        """Return the number of columns."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Return the number of rows."""
        return int(self.pixels.shape[0])

"""Data classes of a decoded image: gray levels, and the properties of the file used by the input checks."""

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
    """How an image was acquired according to its header, in upper case; "" for missing values.

    Attributes:
        view: View, such as "AP" or "PA".
        manufacturer: Manufacturer of the device.
    """

    view: str = ""
    manufacturer: str = ""


class GrayLevels(NamedTuple):
    """Image in 256 gray levels.

    Attributes:
        pixels: Gray levels, 0 (black) to 255 (white), shape (height, width).
        warnings: Any of "window_ignored", "bit_depth_measured" and "padding_measured".
        values: Values from which the gray levels were computed, if requested; otherwise None.
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
        mode: Pixel format of the file: Pillow's mode ("L", "RGB", "I;16"), or DICOM's photometric interpretation and bits
            ("MONOCHROME2, 12 bits").
        reduced_from: Width and height in the file in pixels, if the image was decoded at a reduced size; otherwise None.
        age: Age of the patient according to the file; None if missing.
        chroma: Mean difference between the largest and smallest color channel, in gray levels; 0 for gray images.
        rejections: Reasons in the header that rule out a prediction, such as a lateral view; a user can override some.
        warnings: Codes of warnings about the header and the gray levels.
        identity: Patient, study, series and instance from the header; None if missing.
        values: Pixel values before windowing, if requested; otherwise None.
        acquisition: View and manufacturer; None if both are missing.

    Raises:
        UnreadableImageError: The pixels are empty or not two-dimensional 8-bit gray levels.
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
        """Validate the pixels, which excludes images with three channels."""
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

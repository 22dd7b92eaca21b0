"""What every decoder gives and `preprocess` takes: one image as grey levels."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UnreadableImageError

__all__ = ["MAX_PIXELS", "Radiograph"]

# The largest detector in use is about 4,300 x 4,300; four times that is no radiograph.
MAX_PIXELS = 75_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Radiograph:
    """One image.

    Attributes:
        pixels: grey levels, 0 black to 255 white, shape (height, width).
        source: the path or name it was read from.
        format: of the file: "JPEG", "PNG", "DICOM", ...
        mode: how its pixels were stored: in Pillow's words ("L", "RGB", "I;16", ...), or in DICOM's with the bits
            ("MONOCHROME2, 12 bits").
        reduced_from: width and height of the image in its file, pixels, where it was decoded smaller; None where it was not.
        age: of the patient, years, where the file states it; None where it does not.
        chroma: how far a pixel's largest and smallest colour are apart, grey levels, mean over the image; 0 where it is grey.
    Raises:
        UnreadableImageError: the pixels are not 8-bit grey in two dimensions, or there are none.
    """

    pixels: npt.NDArray[np.uint8]
    source: str
    format: str
    mode: str
    reduced_from: tuple[int, int] | None = None
    chroma: float = 0.0
    age: float | None = None

    def __post_init__(self) -> None:
        """Refuse what would be resized into something else than an image, three channels for one."""
        shape, kind = self.pixels.shape, self.pixels.dtype
        if len(shape) != 2 or 0 in shape or kind != np.uint8:
            raise UnreadableImageError(self.source, f"pixels are {kind} of shape {shape}, not uint8 (height, width)")

    @property
    def width(self) -> int:
        """Columns, pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Rows, pixels."""
        return int(self.pixels.shape[0])

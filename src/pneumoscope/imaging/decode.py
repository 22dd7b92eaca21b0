"""From a file or bytes to grey pixels, or an error that says why not. Nothing is guessed and nothing is repaired.

An untrusted file may be empty, cut short, enormous, animated, or not an image at all. Bytes, frames and pixels are checked in
the header before any pixel is decoded. What a decoder may do after that, `sandbox` keeps in a process of its own.
"""

from __future__ import annotations

import io
import stat
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.imaging.image import MAX_PIXELS, Radiograph

__all__ = ["EXTENSIONS", "MAX_BYTES", "MAX_PIXELS", "Radiograph", "begins_as_dicom", "decode", "refuse_too_many_bytes"]

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".dcm"})
# Room for `MAX_PIXELS` in 32 bits each, uncompressed: no radiograph is larger, and reading must end somewhere.
MAX_BYTES = 4 * MAX_PIXELS
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
_FEW = 128  # pixels a side that tell whether a picture is in colour
_MAGIC = b"DICM"  # of DICOM, after 128 bytes of anything
# What undoes each orientation of EXIF. Pillow's own `exif_transpose` also rewrites the EXIF data, and fails where that
# is damaged elsewhere.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset(_TURNS[orientation] for orientation in (5, 6, 7, 8))
_TOO_LARGE = f"it is more than {MAX_PIXELS:,} pixels"


def decode(source: Path | bytes, *, name: str = "", least_side: int = 0) -> Radiograph:
    """Read one radiograph as 8-bit grey.

    The content says what a file is, not its extension. Colour is converted by ITU-R 601 luma (Pillow's "L"), what is
    transparent is laid on black, and 12- or 16-bit grey is scaled so that the greatest storable value becomes 255. An
    orientation in the file's EXIF data is honoured, so that the image comes out as a viewer shows it.

    Args:
        source: a file, or its bytes.
        name: what to call it in messages; the path where empty.
        least_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, where both sides keep at least so many pixels: its
            blocks are averaged by their own cosine terms, which costs less than to decode them and to shrink the image
            afterwards. 0 decodes every image whole.
    Returns:
        The image; its pixels are read-only.
    Raises:
        UnreadableImageError: no such file, empty, not an image, cut short, larger than `MAX_PIXELS` or `MAX_BYTES`, more
            than one frame, or pixels whose black and white are not known (32 bits, floating point); for DICOM also what
            `decode_dicom` refuses.
    """
    name = name or (str(source) if isinstance(source, Path) else "bytes")
    data = source if isinstance(source, bytes) else _read(source, name)
    if not data:
        raise UnreadableImageError(name, "the file is empty (0 bytes)")
    refuse_too_many_bytes(name, len(data))
    if data[128:132] == _MAGIC:
        from pneumoscope.imaging.dicom import decode_dicom

        return decode_dicom(data, name)
    return _decode_image(data, name, least_side)


def refuse_too_many_bytes(name: str, size: int) -> None:
    """Raise where a file is larger than `MAX_BYTES`.

    Raises:
        UnreadableImageError: it is.
    """
    if size > MAX_BYTES:
        raise UnreadableImageError(name, f"{size:,} bytes is more than {MAX_BYTES:,}; no radiograph is that large")


def begins_as_dicom(path: Path) -> bool:
    """True for a file that says so in its first bytes: by its name, DICOM often cannot be told."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == _MAGIC
    except OSError:
        return False


def _read(path: Path, name: str) -> bytes:
    try:
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):  # a pipe or a device may never end
            raise UnreadableImageError(name, "not a file but a pipe or a device", hint="Give the image's bytes instead")
        refuse_too_many_bytes(name, found.st_size)
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(name, error.strerror or type(error).__name__) from error
    except ValueError as error:  # no file system has such a name
        raise UnreadableImageError(name, str(error)) from error


def _decode_image(data: bytes, name: str, least_side: int) -> Radiograph:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        frames = getattr(image, "n_frames", 1)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            name, f"not an image ({len(data)} bytes)", hint=f"Known: {', '.join(_FORMATS)}, DICOM"
        ) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(name, _TOO_LARGE, hint="Resize it first") from error
    except Exception as error:  # a stranger's bytes can make a parser fail in any way
        raise UnreadableImageError(name, f"the header cannot be read ({_words(error)})") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImageError(name, f"{_TOO_LARGE} ({image.width} x {image.height})", hint="Resize it first")
        if frames > 1:
            raise UnreadableImageError(name, f"it has {frames} frames; a radiograph is one", hint="Extract one frame")
        mode, kind = image.mode, image.format or ""
        if mode in {"I", "F"}:
            raise UnreadableImageError(
                name, f"black and white are not known in pixels of mode {mode!r}", hint="Save it as 8- or 16-bit grey"
            )
        whole = image.size
        try:
            if least_side:
                image.draft(None, (least_side, least_side))  # nothing but a JPEG minds it
            image.load()
            turn = _turn(image)
            pixels = _grey(image if turn is None else image.transpose(turn))
            chroma = _chroma(image)
        except Exception as error:  # as above
            raise UnreadableImageError(name, f"the pixels cannot be decoded ({_words(error)})") from error
    pixels.flags.writeable = False
    if turn in _SIDEWAYS:
        whole = whole[::-1]
    reduced_from = None if whole == pixels.shape[::-1] else whole
    return Radiograph(pixels, name, kind, mode, reduced_from=reduced_from, chroma=chroma)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What puts a loaded image upright; None where it is, or where its EXIF data cannot be read."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, struct.error):
        return None


def _chroma(image: Image.Image) -> float:
    """See `Radiograph.chroma`; of a few pixels, since a mean needs no more."""
    if image.mode in {"1", "L", "LA"} or image.mode.startswith("I"):
        return 0.0
    few = image.resize((min(image.width, _FEW), min(image.height, _FEW)), Image.Resampling.NEAREST).convert("RGB")
    # Band by band, which is ten times as quick as along the last axis.
    red, green, blue = (np.asarray(uncertainty_band) for uncertainty_band in few.split())
    most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return float((most - least).mean())


def _grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I;16"):  # Pillow's own conversion to "L" would clip at 255
        return _grey_16(image)
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return np.asarray(image.convert("L"), dtype=np.uint8)


def _grey_16(image: Image.Image) -> npt.NDArray[np.uint8]:
    """16-bit grey as 8-bit; what TIFF says of the depth and of which end is white, Pillow leaves to its caller."""
    from PIL import TiffImagePlugin  # here, since a JPEG is read sooner without it

    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1) == 0
    deep = np.asarray(image).astype(np.float32)
    grey: npt.NDArray[np.uint8] = np.clip(np.rint(deep / ((2**bits - 1) / 255)), 0, 255).astype(np.uint8)
    return 255 - grey if white_is_zero else grey

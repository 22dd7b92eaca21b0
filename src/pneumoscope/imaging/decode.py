"""Decode image files to 8-bit grey pixels, or raise an error with the reason. Damaged files are not repaired.

Untrusted files may be empty, truncated, huge, animated, or not images. The numbers of bytes, frames and pixels are
checked before any pixel is decoded. `sandbox` runs the decoders in a separate process, which may crash.
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
# `MAX_PIXELS` of 32 bits each, uncompressed.
MAX_BYTES = 4 * MAX_PIXELS
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
_CHROMA_SIDE = 128  # pixels per side of the sample in which the chroma is measured
_MAGIC = b"DICM"  # of DICOM, after a preamble of 128 bytes
# Transposition that undoes each EXIF orientation. Pillow's `exif_transpose` also rewrites the EXIF data, and fails if
# any other part of it is damaged.
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


def decode(source: Path | bytes, *, name: str = "", min_side: int = 0) -> Radiograph:
    """Return one radiograph as 8-bit grey.

    The format is detected from the content, not from the file extension. Colour is converted to ITU-R 601 luma
    (Pillow's "L"), transparent pixels are composited on black, and 12- or 16-bit grey is scaled so that the largest
    storable value becomes 255. The EXIF orientation is applied, so that the image appears as in a viewer.

    Args:
        source: File, or its bytes.
        name: Name of the file in messages; by default its path.
        min_side: Minimum side in pixels to which a JPEG may be reduced by 1/2, 1/4 or 1/8 in decoding, which is
            faster than to resize it afterwards. With 0, all images are decoded at full size.

    Returns:
        The image; its pixels are read-only.

    Raises:
        UnreadableImageError: The file is missing, empty, not an image, truncated, or larger than `MAX_PIXELS` or
            `MAX_BYTES`, has more than one frame, or has pixels of unknown range (32 bits, floating point). For DICOM
            see `decode_dicom`.
    """
    name = name or (str(source) if isinstance(source, Path) else "bytes")
    data = source if isinstance(source, bytes) else _read(source, name)
    if not data:
        raise UnreadableImageError(name, "the file is empty (0 bytes)")
    refuse_too_many_bytes(name, len(data))
    if data[128:132] == _MAGIC:
        from pneumoscope.imaging.dicom import decode_dicom

        return decode_dicom(data, name)
    return _decode_image(data, name, min_side)


def refuse_too_many_bytes(name: str, size: int) -> None:
    """Raise where a file is larger than `MAX_BYTES`.

    Raises:
        UnreadableImageError: it is.
    """
    if size > MAX_BYTES:
        raise UnreadableImageError(name, f"{size:,} bytes is more than {MAX_BYTES:,}; no radiograph is that large")


def begins_as_dicom(path: Path) -> bool:
    """Return whether a file has the DICOM prefix; the names of DICOM files often have no extension."""
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


def _decode_image(data: bytes, name: str, min_side: int) -> Radiograph:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        frames = getattr(image, "n_frames", 1)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            name, f"not an image ({len(data)} bytes)", hint=f"Known: {', '.join(_FORMATS)}, DICOM"
        ) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(name, _TOO_LARGE, hint="Resize it first") from error
    except Exception as error:  # untrusted bytes can make a parser fail in any way
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
            if min_side:
                image.draft(None, (min_side, min_side))  # nothing but a JPEG minds it
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
    """Return the transposition that makes a loaded image upright; None if it is, or if its EXIF data cannot be read."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, struct.error):
        return None


def _chroma(image: Image.Image) -> float:
    """Return the chroma (see `Radiograph.chroma`) of a sample of the pixels, which suffices for a mean."""
    if image.mode in {"1", "L", "LA"} or image.mode.startswith("I"):
        return 0.0
    sample = image.resize(
        (min(image.width, _CHROMA_SIDE), min(image.height, _CHROMA_SIDE)), Image.Resampling.NEAREST
    ).convert("RGB")
    # Separate bands are ten times as fast as a reduction along the last axis.
    red, green, blue = (np.asarray(band) for band in sample.split())
    highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return float((highest - lowest).mean())


def _grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I;16"):  # Pillow's own conversion to "L" would clip at 255
        return _grey_16(image)
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return np.asarray(image.convert("L"), dtype=np.uint8)


def _grey_16(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return 16-bit grey as 8-bit. Pillow does not apply the bit depth and the photometric interpretation of TIFF."""
    from PIL import TiffImagePlugin  # JPEGs are decoded without this import

    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1) == 0
    deep = np.asarray(image).astype(np.float32)
    grey: npt.NDArray[np.uint8] = np.clip(np.rint(deep / ((2**bits - 1) / 255)), 0, 255).astype(np.uint8)
    return 255 - grey if white_is_zero else grey

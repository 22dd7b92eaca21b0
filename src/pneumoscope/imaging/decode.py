"""Decode image files to 8-bit gray pixels, or raise an error with the reason. Damaged files are not repaired.

Untrusted files may be empty, truncated, huge, animated, or not images. The numbers of bytes, frames and pixels are checked
before any pixel is decoded. `sandbox` runs the decoders in worker processes and survives crashes.
"""

from __future__ import annotations

import dataclasses
import io
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.prediction_codes import OVERRIDES
from pneumoscope.core.unreadable import UnreadableCode, UnreadableReason
from pneumoscope.imaging.file_type import UNKNOWN, FileType, identify
from pneumoscope.imaging.image import MAX_PIXELS, GrayLevels, Radiograph
from pneumoscope.imaging.pixel_values import values_of_gray_levels, window_between

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "Radiograph",
    "decode",
    "read_file",
    "require_max_bytes",
    "type_reason",
]

# `MAX_PIXELS` pixels of 32 bits, uncompressed.
MAX_BYTES = 4 * MAX_PIXELS
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
_MULTI_PICTURE = "MPO"  # a camera's JPEG followed by previews or more pictures; the first one is used
_CHROMA_SIDE = 128  # side in pixels of the sample used to measure chroma
# Transposition that undoes each EXIF orientation. Pillow's `exif_transpose` also rewrites the EXIF data, and fails if
# any other part of it is damaged.
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING_SIDES = frozenset(_TRANSPOSITIONS[orientation] for orientation in (5, 6, 7, 8))
_ACCESS_ERRORS: dict[type[OSError], UnreadableCode] = {
    FileNotFoundError: "file_not_found",
    PermissionError: "permission_denied",
    IsADirectoryError: "is_a_directory",
}


def decode(
    source: Path | bytes, *, name: str = "", min_side: int = 0, allow_rejected: bool = False, keep_values: bool = False
) -> Radiograph:
    """Return one radiograph as 8-bit gray.

    The format is detected from the content, not the file extension. Color is converted to ITU-R 601 luma (Pillow's "L"),
    transparent pixels are composited on black, and gray of more than 8 bits is scaled by its depth (see
    `gray_levels.scale_to_depth`). The EXIF orientation is applied, so that the image appears as in a viewer.

    Args:
        source: Path of a file, or its content.
        name: Name of the file in messages; defaults to its path.
        min_side: Minimum side in pixels to which decoding may reduce a JPEG, by 1/2, 1/4 or 1/8, which is faster than resizing
            afterwards. 0 decodes all images at full size.
        allow_rejected: Return images rejected by their DICOM header, such as lateral views, with `Radiograph.rejections`
            instead of raising an error. Images whose rejection a user can override are always returned, because labeled data
            were selected by people.
        keep_values: Also return the pixel values before windowing, `Radiograph.values`.

    Returns:
        The image, with read-only pixels.

    Raises:
        UnreadableImageError: The file is missing, empty, not an image, truncated, or larger than `MAX_PIXELS` or `MAX_BYTES`,
            has more than one frame, has pixels of unknown range (32 bits, floating point), or is rejected by its header. For
            DICOM see `decode_dicom`.
    """
    name = name or (str(source) if isinstance(source, Path) else "bytes")
    data = source if isinstance(source, bytes) else read_file(source, name)
    if not data:
        raise UnreadableImageError(name, UnreadableReason("empty_file"))
    require_max_bytes(name, len(data))
    file_type = identify(data)
    if file_type.name == "DICOM":
        from pneumoscope.core.rejection_messages import rejection_message
        from pneumoscope.imaging.dicom import decode_dicom

        radiograph = decode_dicom(data, name, keep_values=keep_values)
        final = next((each for each in radiograph.rejections if each.code not in OVERRIDES), None)
        if final and not allow_rejected:
            reason = rejection_message(final)
            raise UnreadableImageError(name, reason[0].lower() + reason[1:])
        return radiograph
    if file_type.role != "image":
        raise UnreadableImageError(name, type_reason(file_type, len(data)))
    return _decode_image(data, name, min_side, keep_values=keep_values)


def type_reason(file_type: FileType, size: int) -> UnreadableReason:
    """Return why a file of this type and size in bytes cannot be read as an image."""
    if file_type == UNKNOWN:
        return UnreadableReason("not_an_image", {"bytes": size})
    return UnreadableReason("unsupported_file_type", {"type": file_type.code, "bytes": size})


def require_max_bytes(name: str, size: int) -> None:
    """Raise `UnreadableImageError` if the size of a file exceeds `MAX_BYTES`."""
    if size > MAX_BYTES:
        raise UnreadableImageError(name, UnreadableReason("file_too_large", {"bytes": size, "maximum": MAX_BYTES}))


def read_file(path: Path, name: str) -> bytes:
    """Return the content of a file.

    Raises:
        UnreadableImageError: The file is missing, cannot be read, is larger than `MAX_BYTES`, or is a pipe or a device.
    """
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # a pipe or a device may never end
            raise UnreadableImageError(name, UnreadableReason("not_a_regular_file"))
        require_max_bytes(name, status.st_size)
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(name, _access_reason(error)) from error
    except ValueError as error:  # a null byte in the name
        raise UnreadableImageError(name, UnreadableReason("file_not_accessible", {"error": str(error)})) from error


def _access_reason(error: OSError) -> UnreadableReason:
    code = next((code for kind, code in _ACCESS_ERRORS.items() if isinstance(error, kind)), None)
    if code:
        return UnreadableReason(code)
    return UnreadableReason("file_not_accessible", {"error": error.strerror or type(error).__name__})


def _decode_image(data: bytes, name: str, min_side: int, *, keep_values: bool) -> Radiograph:
    try:
        if data[:2] == b"MM":
            _support_white_is_zero()
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        frames = getattr(image, "n_frames", 1)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(name, UnreadableReason("damaged_header", {"bytes": len(data)})) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(name, UnreadableReason("decompression_bomb", {"maximum": MAX_PIXELS})) from error
    except Exception as error:  # untrusted bytes can make a parser fail in any way
        raise UnreadableImageError(name, UnreadableReason("header_not_readable", _quoted(error))) from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            size = {"width": image.width, "height": image.height, "maximum": MAX_PIXELS}
            raise UnreadableImageError(name, UnreadableReason("too_many_pixels", size))
        if frames > 1 and image.format != _MULTI_PICTURE:
            raise UnreadableImageError(name, UnreadableReason("multiple_frames", {"frames": frames}))
        mode, file_format = image.mode, "JPEG" if image.format == _MULTI_PICTURE else image.format or ""
        if mode in {"I", "F"}:
            raise UnreadableImageError(name, UnreadableReason("unknown_value_range", {"mode": mode}))
        full_size = image.size
        try:
            if min_side:
                image.draft(None, (min_side, min_side))  # affects JPEGs only
            image.load()
            transposition = _transposition(image)
            _require_known_depth(image, data, name)
            upright = image if transposition is None else image.transpose(transposition)
            gray = _gray(upright, image, keep_values=keep_values)
            chroma = _chroma(image)
        except UnreadableImageError:
            raise
        except Exception as error:  # as above
            raise UnreadableImageError(name, UnreadableReason("pixels_not_decodable", _quoted(error))) from error
    pixels = gray.pixels
    pixels.flags.writeable = False
    if transposition in _SWAPPING_SIDES:
        full_size = full_size[::-1]
    reduced_from = None if full_size == pixels.shape[::-1] else full_size
    return Radiograph(
        pixels, name, file_format, mode,
        reduced_from=reduced_from, chroma=chroma, warnings=gray.warnings, values=gray.values,
    )  # fmt: skip


def _support_white_is_zero() -> None:
    """Let Pillow open big-endian 16-bit TIFF files in which 0 is white."""
    from PIL import TiffImagePlugin

    key: Any = (TiffImagePlugin.MM, 0, (1,), 1, (16,), ())
    TiffImagePlugin.OPEN_INFO.setdefault(key, ("I;16B", "I;16B"))


def _require_known_depth(image: Image.Image, data: bytes, name: str) -> None:
    """Raise `UnreadableImageError` if a 16-bit PNG with color or transparency may contain fewer bits than its header specifies.

    Pillow reduces such channels to their upper 8 bits, in which smaller depths cannot be detected.
    """
    is_reduced = image.format == "PNG" and data[24] == 16 and image.mode in {"RGB", "RGBA", "LA"}
    if is_reduced and np.asarray(image.convert("RGB")).max() < 128:
        raise UnreadableImageError(name, UnreadableReason("bit_depth_not_measurable"))


def _quoted(error: Exception) -> dict[str, str]:
    return {"error": str(error) or type(error).__name__}


def _transposition(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that makes an image upright; None if it is upright or its EXIF data are damaged."""
    try:
        return _TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, struct.error):
        return None


def _chroma(image: Image.Image) -> float:
    """Return the chroma (see `Radiograph.chroma`) of a sample of the pixels."""
    if image.mode in {"1", "L", "LA"} or image.mode.startswith("I"):
        return 0.0
    sample = image.resize(
        (min(image.width, _CHROMA_SIDE), min(image.height, _CHROMA_SIDE)), Image.Resampling.NEAREST
    ).convert("RGB")
    # Separate bands are ten times faster than a reduction along the last axis.
    red, green, blue = (np.asarray(band) for band in sample.split())
    highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return float((highest - lowest).mean())


def _gray(image: Image.Image, file: Image.Image, *, keep_values: bool) -> GrayLevels:
    """Return the gray levels of an image, possibly transposed, that was read from `file`."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion to "L" would clip at 255
        return _gray_16(image, file, keep_values=keep_values)
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        background = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(background, image.convert("RGBA"))
    pixels = np.asarray(image.convert("L"), dtype=np.uint8)
    if not keep_values:
        return GrayLevels(pixels)
    values = values_of_gray_levels(pixels, np.arange(256, dtype=np.uint8), 8, window_between(0, 255))
    return GrayLevels(pixels, values=values)


def _gray_16(image: Image.Image, file: Image.Image, *, keep_values: bool) -> GrayLevels:
    """Return the gray levels of an image of 9 to 16 bits, applying the TIFF bit depth and photometric interpretation.

    Pillow ignores both.
    """
    from PIL import TiffImagePlugin  # imported here because JPEGs do not need it

    from pneumoscope.imaging.gray_levels import scale_to_depth

    tags = file.tag_v2 if isinstance(file, TiffImagePlugin.TiffImageFile) else {}
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1) == 0
    stored = np.asarray(image)
    gray = scale_to_depth(stored.astype(stored.dtype.newbyteorder("=")), bits, keep_values=keep_values)
    return _inverted(gray) if white_is_zero else gray


def _inverted(gray: GrayLevels) -> GrayLevels:
    values = gray.values
    if values is not None:
        description = dataclasses.replace(values.description, white_is_zero=True)
        values = values._replace(gray_levels=255 - values.gray_levels, description=description)
    return gray._replace(pixels=255 - gray.pixels, values=values)

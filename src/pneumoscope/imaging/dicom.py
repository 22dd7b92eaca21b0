"""Decode DICOM radiographs to 8-bit gray pixels with their window applied, or raise an error with the reason.

The header of an untrusted file is checked before its pixels are decoded. Messages quote only the values that caused the error,
because a DICOM header contains personal names.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, uid
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import Decoder, get_decoder

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.prediction_codes import WarningCode
from pneumoscope.core.unreadable import UnreadableCode, UnreadableReason
from pneumoscope.imaging.dicom_elements import PREFIX, read_elements
from pneumoscope.imaging.gray_levels import (
    GRAY_LEVEL_ELEMENTS,
    dicom_gray_levels,
    flatten_functional_groups,
)
from pneumoscope.imaging.header_checks import CHECKED_ELEMENTS, check_header
from pneumoscope.imaging.header_fields import ACQUISITION_ELEMENTS, read_acquisition
from pneumoscope.imaging.header_identity import IDENTITY_ELEMENTS, read_identity
from pneumoscope.imaging.image import MAX_PIXELS, Radiograph
from pneumoscope.imaging.lookup_table import GrayLevelError
from pneumoscope.imaging.patient_age import AGE_ELEMENTS, read_age
from pneumoscope.imaging.pixel_values import SPACING_ELEMENTS

__all__ = ["decode_dicom"]


# Decoders in order of preference. gdcm exposes the most code to untrusted bytes, so it is used only for transfer
# syntaxes that no other decoder supports.
_DECODERS = ("pydicom", "pyjpegls", "pylibjpeg", "pillow", "gdcm")

Integers = npt.NDArray[np.integer[Any]]

_REQUIRED = (
    "PhotometricInterpretation",
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
)
# Other elements are skipped to save memory.
_ELEMENTS: list[Any] = [
    *_REQUIRED,
    *(
        "NumberOfFrames",
        "HighBit",
        "PlanarConfiguration",
        "ExtendedOffsetTable",
        "ExtendedOffsetTableLengths",
        "PixelData",
    ),
    *CHECKED_ELEMENTS,
    *AGE_ELEMENTS,
    *IDENTITY_ELEMENTS,
    *ACQUISITION_ELEMENTS,
    *GRAY_LEVEL_ELEMENTS,
    *SPACING_ELEMENTS,
]
# Value representations of pixel data; pydicom converts others to numbers or text.
_PIXEL_VRS = (None, "OB", "OW", "UN")
_BLOCK_ROWS = 256  # rows whose differences are computed at a time
# Fraction of neighboring pixels that differ by at least half of the range. In ten pediatric radiographs it is above
# 0.012 with the wrong sign and below 0.0004 with the right one.
_MIN_JUMPS, _MAX_JUMPS_LEFT = 0.005, 0.1
_MIN_PIXELS = 4096  # minimum number of pixels for this count
_MAX_DIFFERENCE = 0.25  # between similar neighbors, as a fraction of the image's range
_PREAMBLE = 128  # bytes before the prefix
_SOF_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # start of frame in JPEG and JPEG-LS, second byte


def decode_dicom(data: bytes, name: str, *, keep_values: bool = False) -> Radiograph:
    """Return one radiograph from the bytes of a DICOM file, with or without preamble and file meta information.

    Args:
        data: Content of the file.
        name: Name of the file in messages.
        keep_values: Also return the pixel values before windowing, `Radiograph.values`.

    Returns:
        The full-size image with read-only pixels, see `gray_levels.dicom_gray_levels`, including the rejections and warnings of
        `header_checks.check_header`.

    Raises:
        UnreadableImageError: The file has several frames, color, a depth other than 8 to 16 bits, more than `MAX_PIXELS`,
            missing or truncated pixel data, compressed pixels whose size differs from the header, an unspecified or unsupported
            compression, or an invalid window or LUT.
    """
    syntax = _stated_syntax(data, name)
    decoder = _decoder(syntax, name) if syntax else None
    try:
        header = read_elements(data, _ELEMENTS)
        reason = _unsupported(header)
        findings, age, identity = check_header(header), read_age(header), read_identity(header)
        acquisition = read_acquisition(header)
    except Exception as error:  # untrusted bytes can make a parser fail in any way
        raise _header_error(name, error) from error
    if reason:
        raise UnreadableImageError(name, reason)
    if decoder is None:
        decoder = _decoder(_guessed_syntax(header), name)
    try:
        dataset = read_elements(data, _ELEMENTS, pixels=True)
        dataset.PhotometricInterpretation = _photometric(dataset)
        stored, is_deeper = _stored_values(dataset, decoder, name)
    except ImportError as error:
        raise _no_decoder(name, decoder.UID) from error
    except UnreadableImageError:
        raise
    except Exception as error:  # as above
        is_compressed = decoder.UID.is_compressed
        code: UnreadableCode = "compressed_pixels_not_decodable" if is_compressed else "pixel_data_not_decodable"
        raise UnreadableImageError(name, UnreadableReason(code, {"error": _last_line(error)})) from error
    try:
        flatten_functional_groups(dataset)
        gray = dicom_gray_levels(stored, dataset, keep_values=keep_values)
    except GrayLevelError as error:
        raise UnreadableImageError(name, error.reason) from error
    except Exception as error:  # as above: windows and LUTs are also untrusted
        reason = UnreadableReason("gray_levels_not_computable", {"error": type(error).__name__})
        raise UnreadableImageError(name, reason) from error
    gray.pixels.flags.writeable = False
    codes: set[WarningCode] = {*findings.warnings, *gray.warnings}
    if is_deeper:
        codes.add("bit_depth_measured")
    return Radiograph(
        gray.pixels,
        name,
        "DICOM",
        f"{header.PhotometricInterpretation}, {header.BitsStored} bits",
        age=age,
        rejections=findings.rejections,
        warnings=tuple(sorted(codes)),
        identity=identity,
        values=gray.values,
        acquisition=acquisition,
    )


def _last_line(error: Exception) -> str:
    """Return the last line of an error message, where pydicom gives the reason."""
    return str(error).strip().rpartition("\n")[2].strip(" :") or type(error).__name__


def _header_error(name: str, error: Exception) -> UnreadableImageError:
    return UnreadableImageError(name, UnreadableReason("dicom_header_not_readable", {"error": type(error).__name__}))


def _start(data: bytes) -> int:
    """Return the position of the first element."""
    if data[_PREAMBLE : _PREAMBLE + len(PREFIX)] == PREFIX:
        return _PREAMBLE + len(PREFIX)
    return len(PREFIX) if data.startswith(PREFIX) else 0


def _stated_syntax(data: bytes, name: str) -> uid.UID | None:
    """Return the transfer syntax in the file meta information, or None if there is none.

    Only the file meta information is read, because a deflated header may be a decompression bomb.
    """
    source = io.BytesIO(data)
    source.seek(_start(data))
    try:
        meta = read_dataset(source, False, True, stop_when=lambda tag, vr, size: tag.group != 2)
        syntax = str(meta.get("TransferSyntaxUID") or "")
        if not meta and source.tell() >= len(data):
            raise EOFError
        return uid.UID(syntax) if syntax else None
    except Exception as error:  # as above
        raise _header_error(name, error) from error


def _guessed_syntax(header: Dataset) -> uid.UID:
    """Return the transfer syntax that pydicom infers from the first element of a file without file meta information."""
    is_implicit, is_little_endian = header.original_encoding
    if is_implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if is_little_endian else uid.ExplicitVRBigEndian


def _decoder(syntax: uid.UID, name: str) -> Decoder:
    """Return the decoder of a transfer syntax."""
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        raise UnreadableImageError(name, UnreadableReason("deflated_not_supported"))
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        reason = UnreadableReason("transfer_syntax_not_supported", {"syntax": syntax.name})
        raise UnreadableImageError(name, reason) from error
    if not decoder.is_available:
        raise _no_decoder(name, syntax)
    return decoder


def _no_decoder(name: str, syntax: uid.UID) -> UnreadableImageError:
    return UnreadableImageError(name, UnreadableReason("no_decoder", {"syntax": syntax.name}))


def _unsupported(header: Dataset) -> UnreadableReason | None:
    """Return the reason why the file cannot be decoded, or None if it can."""
    if all(header.get(keyword) in (None, "") for keyword in _REQUIRED):
        return UnreadableReason("no_image")
    for keyword in _REQUIRED:
        if header.get(keyword) in (None, ""):
            return UnreadableReason("element_missing", {"element": keyword})
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        return UnreadableReason("multiple_frames", {"frames": frames})
    photometric, samples = _photometric(header), int(header.SamplesPerPixel)
    if photometric not in {"MONOCHROME1", "MONOCHROME2"} or samples != 1:
        return UnreadableReason("color_not_supported", {"photometric": photometric[:16], "samples": samples})
    rows, columns = int(header.Rows), int(header.Columns)
    size = {"width": columns, "height": rows}
    if rows * columns > MAX_PIXELS:
        return UnreadableReason("too_many_pixels", {**size, "maximum": MAX_PIXELS})
    if rows * columns == 0:
        return UnreadableReason("no_pixels", size)
    allocated, stored = int(header.BitsAllocated), int(header.BitsStored)
    high = int(header.get("HighBit", stored - 1))
    if allocated not in {8, 16} or not 8 <= stored <= allocated or high != stored - 1:
        bits = {"allocated": allocated, "stored": stored, "high_bit": high}
        return UnreadableReason("pixel_format_not_supported", bits)
    return None


def _photometric(header: Dataset) -> str:
    return str(header.PhotometricInterpretation).strip().upper()


def _stored_values(dataset: Dataset, decoder: Decoder, name: str) -> tuple[Integers, bool]:
    """Return the stored values, shape (rows, columns), and whether they contradict the header's bit depth or sign."""
    if "PixelData" not in dataset:
        raise UnreadableImageError(name, UnreadableReason("pixel_data_missing"))
    if dataset.get_item("PixelData").VR not in _PIXEL_VRS:
        raise UnreadableImageError(name, UnreadableReason("pixel_data_vr_invalid"))
    if decoder.UID.is_encapsulated:
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        _require_shape_of_header(frame, dataset, name)
    elif dataset["PixelData"].is_undefined_length:
        raise UnreadableImageError(name, UnreadableReason("transfer_syntax_missing"))
    pixels: Integers
    if uid.JPEGExtended12Bit == decoder.UID and dataset.BitsAllocated == 16:  # pydicom's decoders read 8 bits only
        pixels = _decode_12_bit_jpeg(frame, dataset, name)
    else:
        # Uncompressed pixels need no plugin.
        plugin = next((each for each in _DECODERS if each in decoder.available_plugins), "")
        # Any, because pydicom's annotation is wrong: it gives each option the type of the whole set.
        options: Any = {"raw": True, "correct_unused_bits": False}
        pixels = decoder.as_array(dataset, decoding_plugin=plugin, **options)[0]
    if pixels.ndim != 2:
        raise UnreadableImageError(name, UnreadableReason("multiple_frames", {"frames": len(pixels)}))
    return _without_unused_bits(pixels, int(dataset.BitsStored))


def _decode_12_bit_jpeg(frame: bytes, dataset: Dataset, name: str) -> Integers:
    """Return the pixels of a lossy JPEG of up to 12 bits; raise if it is truncated, because libjpeg would fill it with gray."""
    from imagecodecs import jpeg8_decode

    if b"\xff\xd9" not in frame[-4:]:  # the end of the image, which padding may follow
        raise UnreadableImageError(name, UnreadableReason("frame_truncated"))
    pixels: Integers = jpeg8_decode(frame)
    if pixels.shape != (dataset.Rows, dataset.Columns) or pixels.dtype != np.uint16 or dataset.PixelRepresentation != 0:
        found = {"dtype": str(pixels.dtype), "shape": str(pixels.shape)}
        raise UnreadableImageError(name, UnreadableReason("frame_type_differs", found))
    return pixels


def _without_unused_bits(pixels: Integers, bits: int) -> tuple[Integers, bool]:
    """Return the pixels, and whether they contradict BitsStored or PixelRepresentation.

    Unused bits may contain overlays and are removed. If the header specifies too few bits or the wrong sign, however, values
    wrap around, which is detected by large differences between neighbors. The pixels then keep all bits or change their sign.
    """
    is_signed, unused = np.issubdtype(pixels.dtype, np.signedinteger), 8 * pixels.dtype.itemsize - bits
    stated: Integers = (pixels << unused) >> unused
    half = 2 ** (bits - 1)
    if (
        not is_signed
        and not np.array_equal(stated, pixels)
        and _roughness(pixels, half)[0] < _roughness(stated, half)[0]
    ):
        return pixels, True  # more bits
    if pixels.size >= _MIN_PIXELS and (stated.min() < 0 or stated.max() >= half):  # the sign matters
        other_type = np.dtype(f"{'u' if is_signed else 'i'}{pixels.dtype.itemsize}")
        other: Integers = (pixels.view(other_type) << unused) >> unused
        jumps = _roughness(stated, half)[1]
        if (
            jumps >= _MIN_JUMPS
            and _roughness(other, half)[1] <= _MAX_JUMPS_LEFT * jumps
            and _are_smooth_at_jumps(stated, other, half)
        ):
            return other, True
    return stated, False


def _roughness(pixels: Integers, half: int) -> tuple[float, float]:
    """Return the sum of absolute differences between neighbors in a row, and the fraction that are at least `half`."""
    total, jumps = 0.0, 0
    for start in range(0, len(pixels), _BLOCK_ROWS):
        differences = np.abs(np.diff(pixels[start : start + _BLOCK_ROWS].astype(np.int32), axis=1))
        total, jumps = total + float(differences.sum()), jumps + int((differences >= half).sum())
    return total, jumps / max(1, pixels.size)


def _are_smooth_at_jumps(pixels: Integers, other: Integers, half: int) -> bool:
    """Return whether neighbors that differ by at least `half` are similar with the other sign; this excludes hot pixels."""
    low, high = np.percentile(other, (1, 99))
    similar, n = 0, 0
    for start in range(0, len(pixels), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        jumps = np.abs(np.diff(pixels[rows].astype(np.int32), axis=1)) >= half
        differences = np.abs(np.diff(other[rows].astype(np.int32), axis=1))[jumps]
        similar, n = similar + int((differences <= _MAX_DIFFERENCE * (high - low)).sum()), n + differences.size
    return 2 * similar > n


def _require_shape_of_header(frame: bytes, dataset: Dataset, name: str) -> None:
    """Raise `UnreadableImageError` if the shape of a compressed frame differs from the header.

    Decoders only check the number of pixels: a frame of 30 x 40 pixels would be returned, scrambled, as 40 x 30.
    """
    position, shape = 2, None
    if frame.startswith(b"\xff\xd8"):  # JPEG and JPEG-LS: segments up to the start of frame
        while position + 9 <= len(frame) and frame[position + 1] not in _SOF_MARKERS:
            if frame[position] != 0xFF:
                raise UnreadableImageError(name, UnreadableReason("frame_damaged"))
            # Fill bytes (0xFF) may precede a marker.
            is_fill = frame[position + 1] == 0xFF
            position += 1 if is_fill else 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
        if position + 9 > len(frame):
            raise UnreadableImageError(name, UnreadableReason("frame_truncated"))
        shape = struct.unpack_from(">HH", frame, position + 5)
    elif (position := frame.find(b"\xff\x4f\xff\x51", 0, 4096)) >= 0 and position + 24 <= len(frame):  # JPEG 2000
        width, height, left, top = struct.unpack_from(">4I", frame, position + 8)
        shape = height - top, width - left
    if shape and shape != (dataset.Rows, dataset.Columns):
        sizes = {"width": shape[1], "height": shape[0], "stated_width": dataset.Columns, "stated_height": dataset.Rows}
        raise UnreadableImageError(name, UnreadableReason("frame_size_differs", sizes))

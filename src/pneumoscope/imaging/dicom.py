"""Decode DICOM radiographs to 8-bit gray pixels with their window applied, or raise an error with the reason.

The header of an untrusted file is checked before its pixels are decoded. Messages quote only the codes that caused the
error, since a DICOM header contains personal names.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread, uid
from pydicom.dataelem import RawDataElement
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_windowing

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.prediction import Rejection
from pneumoscope.imaging.image import MAX_PIXELS, Radiograph
from pneumoscope.imaging.patient_age import AGE_ELEMENTS, read_age

__all__ = ["decode_dicom"]

# Projection radiography: computed, digital and other radiography, fluoroscopy, angiography (PS3.3 C.7.3.1.1.1).
_MODALITIES = ("CR", "DX", "RF", "RG", "XA")
_CHEST = ("CHEST", "THORAX", "LUNG")  # or part of a longer term, such as CHESTABDOMEN of newborns
# Decoders in order of preference. gdcm exposes the most code to untrusted bytes, so it is used only for compressions that
# no other decoder supports.
_DECODERS = ("pydicom", "pyjpegls", "pylibjpeg", "pillow", "gdcm")
_DECOMPRESS = "gdcmconv --raw IN OUT"

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]

_REQUIRED = (
    "PhotometricInterpretation",
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
)
# Other elements are skipped, so that they use no memory.
_ELEMENTS: list[Any] = [
    *_REQUIRED,
    *(
        "Modality",
        "BodyPartExamined",
        "ViewPosition",
        "PresentationIntentType",
        "SOPClassUID",
        "NumberOfFrames",
        "HighBit",
    ),
    *AGE_ELEMENTS,
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth"),
    *("PlanarConfiguration", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData"),
]
# Value representations of pixel data; pydicom converts others to numbers or text.
_PIXEL_VRS = (None, "OB", "OW", "UN")
_MAX_LUT_BYTES = 2**17  # 65,536 entries of 16 bits
# Lateral, decubitus and oblique views (PS3.3 C.8.1.2.1.1); other values are specific to a manufacturer.
_NON_FRONTAL_VIEWS = ("LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAT", "LATERAL", "OBLIQUE")
_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"  # Digital X-Ray Image Storage - For Processing
_PREAMBLE = 132
_SOF_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # start of frame in JPEG and JPEG-LS, second byte


def decode_dicom(data: bytes, name: str) -> Radiograph:
    """Return one radiograph from the bytes of a DICOM file.

    The modality LUT, or the rescale slope and intercept, are applied to stored values, then the first VOI LUT, or else the
    first window. Without either, the lowest value of the image becomes black and the highest white. MONOCHROME1 is then
    inverted. Padding pixels are black.

    Args:
        data: Content of the file, with the 128-byte preamble.
        name: Name of the file in messages.

    Returns:
        The image at full size; its pixels are read-only. `Radiograph.rejection` is set if the header states a view other
        than frontal (`lateral_view`) or unprocessed detector values (`for_processing`).

    Raises:
        UnreadableImageError: The file is not projection radiography, or states a body part other than the chest; it has
            several frames, color, a depth other than 8 to 16 bits, more than `MAX_PIXELS`, no or truncated pixel data,
            compressed pixels of another size than its header states, a compression that no installed decoder supports,
            or an invalid window or LUT.

    Source: PS3.3 C.11.1 (modality), C.11.2.1.2 and C.11.2.1.3 (window), C.7.6.3.1.2 (MONOCHROME1), C.7.5.1.1.2
        (padding).
    """
    decoder = _decoder(data, name)
    header = _header(data, name)
    try:
        dataset = dcmread(io.BytesIO(data), specific_tags=_ELEMENTS)
        stored = _stored_values(dataset, decoder)
    except Exception as error:  # untrusted bytes can make a parser fail in any way
        reason = f"the pixel data cannot be decoded ({_last_line(error)})"
        hint = f"Decompress the file first: {_DECOMPRESS}" if decoder.UID.is_compressed else ""
        raise UnreadableImageError(name, reason, hint=hint) from error
    try:
        pixels = _gray_levels(stored, dataset)
    except Exception as error:  # as above: windows and LUTs are untrusted, too
        reason = str(error) if isinstance(error, _GrayLevelError) else type(error).__name__
        raise UnreadableImageError(name, f"the gray levels cannot be computed ({reason})") from error
    pixels.flags.writeable = False
    mode = f"{header.PhotometricInterpretation}, {header.BitsStored} bits"
    return Radiograph(pixels, name, "DICOM", mode, age=read_age(header), rejection=_rejection(header))


class _GrayLevelError(Exception):
    """The window, LUT or padding is invalid. The message contains no patient data."""


def _last_line(error: Exception) -> str:
    """Return the last line of a message, in which pydicom states the reason."""
    return str(error).strip().rpartition("\n")[2].strip(" :") or type(error).__name__


def _header_error(name: str, error: Exception) -> UnreadableImageError:
    return UnreadableImageError(name, f"the DICOM header cannot be read ({type(error).__name__})")


def _decoder(data: bytes, name: str) -> Decoder:
    """Return the decoder of the transfer syntax, from the file meta information: a deflated header may be a bomb."""
    source = io.BytesIO(data)
    try:
        source.seek(_PREAMBLE)
        meta = read_dataset(source, False, True, stop_when=lambda tag, vr, size: tag.group != 2)
        syntax = uid.UID(meta.TransferSyntaxUID)
        is_deflated = syntax.is_deflated
    except Exception as error:  # as above
        raise _header_error(name, error) from error
    if is_deflated:
        raise UnreadableImageError(
            name, "deflated DICOM is not supported", hint="Decompress it first: dcmconv +te IN OUT"
        )
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise UnreadableImageError(name, f"the transfer syntax {syntax.name} is not supported") from error
    if not decoder.is_available:
        raise UnreadableImageError(
            name,
            f"no installed decoder supports its compression, {syntax.name}",
            hint=f"Install the extra [dicom]: pip install 'pneumoscope[dicom]'; or decompress the file first: {_DECOMPRESS}",
        )
    return decoder


def _header(data: bytes, name: str) -> Dataset:
    """Return the header, or raise an error if the pixels cannot be used."""
    try:
        header = dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=_ELEMENTS)
        reason = _unsupported(header)
    except Exception as error:  # as above; its message is left out, since it may contain patient data
        raise _header_error(name, error) from error
    if reason:
        raise UnreadableImageError(name, reason, hint="Supported are single chest radiographs in gray levels")
    return header


def _unsupported(header: Dataset) -> str:
    """Return the reason why the file cannot be decoded as a chest radiograph; "" if it can."""
    modality = str(header.get("Modality") or "")
    if modality not in _MODALITIES:
        return f"its modality is {modality[:16]!r}, not one of {', '.join(_MODALITIES)}"
    part = str(header.get("BodyPartExamined") or "").upper()
    if part and not any(word in part for word in _CHEST):
        return f"its body part is {part[:16]!r}, not the chest"
    for keyword in _REQUIRED:
        if header.get(keyword) in (None, ""):
            return f"its header has no {keyword}"
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        return f"it has {frames} frames, not 1"
    photometric, samples = str(header.PhotometricInterpretation), int(header.SamplesPerPixel)
    if photometric not in {"MONOCHROME1", "MONOCHROME2"} or samples != 1:
        return f"it is in color ({photometric[:16]}, {samples} samples per pixel)"
    rows, columns = int(header.Rows), int(header.Columns)
    if rows * columns > MAX_PIXELS:
        return f"it has more than {MAX_PIXELS:,} pixels ({columns} x {rows})"
    if rows * columns == 0:
        return f"it has no pixels ({columns} x {rows})"
    allocated, stored = int(header.BitsAllocated), int(header.BitsStored)
    high = int(header.get("HighBit", stored - 1))
    if allocated not in {8, 16} or not 8 <= stored <= allocated or high != stored - 1:
        return f"its pixel format is not supported ({allocated} bits allocated, {stored} stored, high bit {high})"
    return ""


def _rejection(header: Dataset) -> Rejection | None:
    """Return the rejection of an image that can be decoded but not predicted, or None."""
    view = str(header.get("ViewPosition") or "").upper().strip()
    if view in _NON_FRONTAL_VIEWS:
        return Rejection("lateral_view", {"view": view})
    if header.get("PresentationIntentType") == "FOR PROCESSING" or header.get("SOPClassUID") == _FOR_PROCESSING:
        return Rejection("for_processing")
    return None


def _stored_values(dataset: Dataset, decoder: Decoder) -> Integers:
    """Return the stored values, shape (rows, columns), without overlays in unused bits."""
    if "PixelData" not in dataset:
        raise ValueError("the element is missing")
    if dataset.get_item("PixelData").VR not in _PIXEL_VRS:
        raise ValueError("its value representation is invalid")
    if decoder.UID.is_encapsulated:
        _require_shape_of_header(get_frame(dataset.PixelData, 0, number_of_frames=1), dataset)
    plugin = next((name for name in _DECODERS if name in decoder.available_plugins), "")  # "" for uncompressed pixels
    # Any: pydicom's annotation gives each option the type of the whole set of options
    options: Any = {"raw": True, "correct_unused_bits": True}
    pixels: Integers = decoder.as_array(dataset, decoding_plugin=plugin, **options)[0]
    if pixels.ndim != 2:
        raise ValueError(f"it has {len(pixels)} frames")
    return pixels


def _require_shape_of_header(frame: bytes, dataset: Dataset) -> None:
    """Raise `ValueError` if a compressed frame has another shape than the header states.

    Decoders detect a wrong number of pixels only. A frame of 30 x 40 pixels would be returned, scrambled, as 40 x 30.
    """
    position, shape = 2, None
    if frame.startswith(b"\xff\xd8"):  # JPEG and JPEG-LS: segments up to the start of frame
        while position + 9 <= len(frame) and frame[position + 1] not in _SOF_MARKERS:
            position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
        shape = struct.unpack_from(">HH", frame, position + 5) if position + 9 <= len(frame) else None
    elif (position := frame.find(b"\xff\x4f\xff\x51", 0, 4096)) >= 0 and position + 24 <= len(frame):  # JPEG 2000
        width, height, left, top = struct.unpack_from(">4I", frame, position + 8)
        shape = height - top, width - left
    if shape and shape != (dataset.Rows, dataset.Columns):
        raise ValueError(
            f"the compressed frame is {shape[1]} x {shape[0]}, the header states {dataset.Columns} x {dataset.Rows}"
        )


def _gray_levels(stored: Integers, dataset: Dataset) -> npt.NDArray[np.uint8]:
    """Return the gray levels, 0 to 255, of stored values; computed once for each value in their range."""
    padding = _padding(stored, dataset)
    image = stored[~padding] if padding.any() else stored
    if image.size == 0:
        raise _GrayLevelError("every pixel is padding")
    lowest, highest = int(image.min()), int(image.max())
    brightness = _apply_voi(_apply_modality(np.arange(lowest, highest + 1), dataset), dataset)
    levels: npt.NDArray[np.uint8] = np.rint(255 * brightness).astype(np.uint8)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        levels = 255 - levels
    gray: npt.NDArray[np.uint8] = levels[np.clip(stored.astype(np.int32), lowest, highest) - lowest]
    gray[padding] = 0
    return gray


def _padding(stored: Integers, dataset: Dataset) -> npt.NDArray[np.bool_]:
    """Return the mask of padding: pixels with the padding value, or in the range from it to the range limit."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=np.bool_)
    low, high = sorted((int(value), int(dataset.get("PixelPaddingRangeLimit", value))))
    return (stored >= low) & (stored <= high)


def _apply_modality(values: Integers, dataset: Dataset) -> Floats:
    """Return the modality values of stored values: by LUT, or by slope and intercept (PS3.3 C.11.1)."""
    if luts := dataset.get("ModalityLUTSequence"):
        return _look_up(values, luts[0], dataset)[0]
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return values.astype(np.float64)
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise _GrayLevelError("the rescale slope or intercept is not finite")
    return apply_modality_lut(values, _dataset_of(RescaleSlope=float(slope), RescaleIntercept=float(intercept)))


def _apply_voi(values: Floats, dataset: Dataset) -> Floats:
    """Return the brightness of modality values, 0 to 1, rising with the value (PS3.3 C.11.2)."""
    if luts := dataset.get("VOILUTSequence"):
        entries, bits = _look_up(values, luts[0], dataset)
        return np.asarray(np.minimum(entries / (2**bits - 1), 1))
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if center is None or width is None:
        low, high = values.min(), values.max()
        return np.asarray((values - low) / (high - low) if high > low else np.zeros_like(values))
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if function not in {"LINEAR", "LINEAR_EXACT", "SIGMOID"}:
        raise _GrayLevelError("the VOI LUT function is unknown")
    if not (math.isfinite(center) and math.isfinite(width)) or width <= 0 or (width < 1 and function == "LINEAR"):
        raise _GrayLevelError(f"invalid {function} window: center {center:g}, width {width:g}")
    window = _dataset_of(WindowCenter=center, WindowWidth=width)
    window.VOILUTFunction, window.PhotometricInterpretation = function, "MONOCHROME2"
    # pydicom scales the result to the range of stored values; with 1 bit, to 0 to 1.
    window.BitsStored, window.PixelRepresentation = 1, 0
    return apply_windowing(values, window)


def _dataset_of(**numbers: float) -> Dataset:
    """Return a data set with these numbers only, so that other elements of the file have no effect."""
    dataset = Dataset()
    for keyword, number in numbers.items():
        dataset.add_new(keyword, "FD", number)
    return dataset


def _look_up(values: Integers | Floats, lut: Dataset, dataset: Dataset) -> tuple[Floats, int]:
    """Return the LUT entries of `values`, clipped to the ends of the LUT, and the bits per entry (PS3.3 C.11.1.1.1).

    pydicom 3.0 cannot read packed 8-bit entries, and its `apply_voi` returns wrong entries for values above 65,535 and for
    8-bit LUTs with more than 256 entries.
    """
    for keyword in ("LUTDescriptor", "LUTData"):
        raw: Any = lut.get_item(keyword)
        if isinstance(raw, RawDataElement) and len(raw.value or b"") > _MAX_LUT_BYTES:
            raise _GrayLevelError("a LUT is too long")
    count, first, bits = (int(number) for number in lut.LUTDescriptor)
    count = count % 2**16 or 2**16
    entries = _entries(lut.LUTData, count, dataset)
    if len(entries) < count or not 8 <= bits <= 16:
        raise _GrayLevelError(f"a LUT has {len(entries)} of {count} entries of {bits} bits")
    index = np.clip(np.floor(values).astype(np.int64) - first, 0, count - 1)
    return entries[index].astype(np.float64), bits


def _entries(raw: bytes | Iterable[int] | int, count: int, dataset: Dataset) -> Integers:
    """Return the entries of LUT data: numbers (US) or bytes (OW), where 8-bit entries may be packed two to a word."""
    if not isinstance(raw, bytes):
        return np.atleast_1d(np.asarray(raw, dtype=np.int64))
    if len(raw) < 2 * count:
        return np.frombuffer(raw, dtype=np.uint8)
    return np.frombuffer(raw, dtype="<u2" if dataset.original_encoding[1] else ">u2", count=count)


def _first(value: Any) -> float | None:
    """Return the first value; None if the element is missing or empty."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float, str)) else next(iter(value)))

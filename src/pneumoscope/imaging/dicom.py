"""Decode DICOM radiographs to 8-bit grey pixels with their window applied, or raise an error with the reason.

The header of an untrusted file is checked before its pixels are decoded. Messages repeat only the codes that led to the
rejection, since a DICOM header contains personal names.
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Iterable
from datetime import datetime
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
from pneumoscope.imaging.image import MAX_PIXELS, Radiograph

__all__ = ["decode_dicom"]

# Projection radiography: computed, digital and other radiography, fluoroscopy, angiography (PS3.3 C.7.3.1.1.1).
_MODALITIES = ("CR", "DX", "RF", "RG", "XA")
_CHEST = ("CHEST", "THORAX", "LUNG")  # also within a longer term, such as CHESTABDOMEN of newborns
# Decoders in order of preference. gdcm has the most code that is exposed to untrusted bytes, so it is used only for
# compressions that no other decoder supports.
_DECODERS = ("pydicom", "pyjpegls", "pylibjpeg", "pillow", "gdcm")
_DECOMPRESS = "gdcmconv --raw IN OUT"
Whole = npt.NDArray[np.integer[Any]]
Real = npt.NDArray[np.floating[Any]]

_REQUIRED = (
    "PhotometricInterpretation",
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
)
# Only these elements are kept, so that others do not use memory.
_USED: list[Any] = [
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
    *("PatientAge", "PatientBirthDate", "AcquisitionDate", "StudyDate", "ContentDate"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth"),
    *("PlanarConfiguration", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData"),
]
_BYTES = (None, "OB", "OW", "UN")  # value representations of pixels; by others they would be taken for numbers or words
_LONGEST_TABLE = 2**17  # bytes: 65,536 entries of 16 bits
# Views from another side, or of a patient who lies on one (PS3.3 C.8.1.2.1.1); other words are makers' own.
_OTHER_VIEWS = ("LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAT", "LATERAL", "OBLIQUE")
_RAW = "1.2.840.10008.5.1.4.1.1.1.1.1"  # digital X-ray image storage, for processing
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
_PREAMBLE = 132
_STARTS_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # second bytes of JPEG's and JPEG-LS's markers


def decode_dicom(data: bytes, name: str) -> Radiograph:
    """Return one radiograph from the bytes of a DICOM file.

    The modality LUT, or the rescale slope and intercept, are applied to stored values, then the first VOI LUT or else the
    first window. Without either, the lowest value of the image becomes black and the highest white. MONOCHROME1 is then
    inverted. Padding pixels are black.

    Args:
        data: Bytes of the file, with the 128-byte preamble.
        name: Name of the file in messages.
    Returns:
        The image at full size; its pixels are read-only.
    Raises:
        UnreadableImageError: not projection radiography, a body part that is stated and is not the chest, a view that is
            stated and is not from the front or the back, values of a detector that are yet to be processed, several frames,
            colour, a depth other than 8 to 16 bits, larger than `MAX_PIXELS`, no or truncated pixel data, compressed
            pixels of another size than the header's, a compression that nothing installed can decode, or a window or table
            without meaning.
    Source: PS3.3 C.11.1 (modality), C.11.2.1.2 and C.11.2.1.3 (window), C.7.6.3.1.2 (MONOCHROME1), C.7.5.1.1.2
        (padding).
    """
    decoder = _decoder(data, name)
    header = _header(data, name)
    try:
        dataset = dcmread(io.BytesIO(data), specific_tags=_USED)
        stored = _stored(dataset, decoder)
    except Exception as error:  # untrusted bytes can make a parser fail in any way
        why = f"the pixel data cannot be decoded ({_last_line(error)})"
        hint = f"Decompress the file first: {_DECOMPRESS}" if decoder.UID.is_compressed else ""
        raise UnreadableImageError(name, why, hint=hint) from error
    try:
        pixels = _grey(stored, dataset)
    except Exception as error:  # as above: windows and tables are untrusted, too
        why = str(error) if isinstance(error, _SenselessError) else type(error).__name__
        raise UnreadableImageError(name, f"the grey levels make no sense ({why})") from error
    pixels.flags.writeable = False
    mode = f"{header.PhotometricInterpretation}, {header.BitsStored} bits"
    return Radiograph(pixels, name, "DICOM", mode, age=_age(header))


class _SenselessError(Exception):
    """Grey levels without meaning; the message contains no patient data."""


def _last_line(error: Exception) -> str:
    """Return the last line of a message, in which pydicom states the reason."""
    return str(error).strip().rpartition("\n")[2].strip(" :") or type(error).__name__


def _unreadable(name: str, error: Exception) -> UnreadableImageError:
    return UnreadableImageError(name, f"the DICOM header cannot be read ({type(error).__name__})")


def _decoder(data: bytes, name: str) -> Decoder:
    """Return the decoder of the transfer syntax. The rest is read later, since a deflated header inflates without bound."""
    source = io.BytesIO(data)
    try:
        source.seek(_PREAMBLE)
        meta = read_dataset(source, False, True, stop_when=lambda tag, vr, size: tag.group != 2)
        syntax = uid.UID(meta.TransferSyntaxUID)
        is_deflated = syntax.is_deflated
    except Exception as error:  # as above
        raise _unreadable(name, error) from error
    if is_deflated:
        raise UnreadableImageError(name, "deflated DICOM is refused", hint="Decompress it first: dcmconv +te IN OUT")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise UnreadableImageError(name, f"no image is known in the transfer syntax {syntax.name}") from error
    if not decoder.is_available:
        raise UnreadableImageError(
            name,
            f"nothing installed decodes its compression, {syntax.name}",
            hint=f"Install the extra [dicom]: pip install 'pneumoscope[dicom]'; or decompress the file first: {_DECOMPRESS}",
        )
    return decoder


def _header(data: bytes, name: str) -> Dataset:
    """Return the header, or raise an error if the pixels cannot be used."""
    try:
        header = dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=_USED)
        reason = _rejection(header)
    except Exception as error:  # as above; its words are left out, since they may hold a patient's name
        raise _unreadable(name, error) from error
    if reason:
        raise UnreadableImageError(name, reason, hint="Only single chest radiographs can be read")
    return header


def _rejection(header: Dataset) -> str:
    """Return the reason why the pixels cannot be used; "" if they can."""
    modality = str(header.get("Modality") or "")
    if modality not in _MODALITIES:
        return f"its modality is {modality[:16]!r}, not one of {', '.join(_MODALITIES)}"
    part = str(header.get("BodyPartExamined") or "").upper()
    if part and not any(word in part for word in _CHEST):
        return f"its body part is {part[:16]!r}, not the chest"
    view = str(header.get("ViewPosition") or "").upper().strip()
    if view in _OTHER_VIEWS:
        return f"its view is {view!r}, not from the front or the back"
    if header.get("PresentationIntentType") == "FOR PROCESSING" or header.get("SOPClassUID") == _RAW:
        return "its pixels are a detector's values, yet to be processed for people to look at"
    for keyword in _REQUIRED:
        if header.get(keyword) in (None, ""):
            return f"its header has no {keyword}"
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        return f"it has {frames} frames; a radiograph is one"
    photometric, samples = str(header.PhotometricInterpretation), int(header.SamplesPerPixel)
    if photometric not in {"MONOCHROME1", "MONOCHROME2"} or samples != 1:
        return f"it is in colour ({photometric[:16]}, {samples} samples a pixel); a radiograph is grey"
    rows, columns = int(header.Rows), int(header.Columns)
    if rows * columns > MAX_PIXELS:
        return f"it is more than {MAX_PIXELS:,} pixels ({columns} x {rows})"
    if rows * columns == 0:
        return f"it has no pixels ({columns} x {rows})"
    allocated, stored = int(header.BitsAllocated), int(header.BitsStored)
    high = int(header.get("HighBit", stored - 1))
    if allocated not in {8, 16} or not 8 <= stored <= allocated or high != stored - 1:
        return f"its pixels are {stored} bits in {allocated} up to bit {high}; known are the lowest 8 to 16 in 8 or 16"
    return ""


def _age(header: Dataset) -> float | None:
    """Return the age in years: as stated, or else from birth to examination; None if neither can be read."""
    found = re.fullmatch(r"(\d{3})([DWMY])", str(header.get("PatientAge") or "").strip())
    if found:
        return int(found[1]) * _YEARS[found[2]]
    try:
        born = datetime.strptime(str(header.get("PatientBirthDate") or ""), "%Y%m%d")
        seen = str(header.get("AcquisitionDate") or header.get("StudyDate") or header.get("ContentDate") or "")
        days = (datetime.strptime(seen, "%Y%m%d") - born).days
    except ValueError:
        return None
    return days / 365.25 if days >= 0 else None


def _stored(dataset: Dataset, decoder: Decoder) -> Whole:
    """Return the stored values, shape (rows, columns), without overlays in unused bits."""
    if "PixelData" not in dataset:
        raise ValueError("there is none")
    if dataset.get_item("PixelData").VR not in _BYTES:
        raise ValueError("they are not bytes")
    if decoder.UID.is_encapsulated:
        _refuse_another_shape(get_frame(dataset.PixelData, 0, number_of_frames=1), dataset)
    plugin = next(
        (name for name in _DECODERS if name in decoder.available_plugins), ""
    )  # none where nothing is compressed
    # pydicom's annotation takes each option for the whole set of options
    options: Any = {"raw": True, "correct_unused_bits": True}
    pixels: Whole = decoder.as_array(dataset, decoding_plugin=plugin, **options)[0]
    if pixels.ndim != 2:
        raise ValueError(f"it holds {len(pixels)} frames")
    return pixels


def _refuse_another_shape(frame: bytes, dataset: Dataset) -> None:
    """Raise an error if a compressed frame has another shape than the header states.

    Decoders detect another number of pixels, but return the same number in another shape (30 x 40 for 40 x 30) scrambled.
    """
    position, shape = 2, None
    if frame.startswith(b"\xff\xd8"):  # JPEG and JPEG-LS: segments up to the start of frame
        while position + 9 <= len(frame) and frame[position + 1] not in _STARTS_OF_FRAME:
            position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
        shape = struct.unpack_from(">HH", frame, position + 5) if position + 9 <= len(frame) else None
    elif (position := frame.find(b"\xff\x4f\xff\x51", 0, 4096)) >= 0 and position + 24 <= len(frame):  # JPEG 2000
        width, height, left, top = struct.unpack_from(">4I", frame, position + 8)
        shape = height - top, width - left
    if shape and shape != (dataset.Rows, dataset.Columns):
        raise ValueError(
            f"compressed it is {shape[1]} x {shape[0]}, and by its header {dataset.Columns} x {dataset.Rows}"
        )


def _grey(stored: Whole, dataset: Dataset) -> npt.NDArray[np.uint8]:
    """Return the grey levels of stored values, computed once for each value in their range."""
    padding = _padding(stored, dataset)
    image = stored[~padding] if padding.any() else stored
    if image.size == 0:
        raise _SenselessError("every pixel is padding")
    lowest, highest = int(image.min()), int(image.max())
    brightness = _voi(_modality(np.arange(lowest, highest + 1), dataset), dataset)
    levels: npt.NDArray[np.uint8] = np.rint(255 * brightness).astype(np.uint8)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        levels = 255 - levels
    grey: npt.NDArray[np.uint8] = levels[np.clip(stored.astype(np.int32), lowest, highest) - lowest]
    grey[padding] = 0
    return grey


def _padding(stored: Whole, dataset: Dataset) -> npt.NDArray[np.bool_]:
    """Return the mask of padding: pixels with the padding value, or in the range from it to the range limit."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=np.bool_)
    low, high = sorted((int(value), int(dataset.get("PixelPaddingRangeLimit", value))))
    return (stored >= low) & (stored <= high)


def _modality(values: Whole, dataset: Dataset) -> Real:
    """Return the modality values of stored values: by table, or by slope and intercept (PS3.3 C.11.1)."""
    if tables := dataset.get("ModalityLUTSequence"):
        return _look_up(values, tables[0], dataset)[0]
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return values.astype(np.float64)
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise _SenselessError("the rescale slope or intercept is not a number")
    return apply_modality_lut(values, _module(RescaleSlope=float(slope), RescaleIntercept=float(intercept)))


def _voi(values: Real, dataset: Dataset) -> Real:
    """Return the brightness of modality values, 0 to 1, rising with the value (PS3.3 C.11.2)."""
    if tables := dataset.get("VOILUTSequence"):
        entries, bits = _look_up(values, tables[0], dataset)
        return np.asarray(np.minimum(entries / (2**bits - 1), 1))
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if centre is None or width is None:
        low, high = values.min(), values.max()
        return np.asarray((values - low) / (high - low) if high > low else np.zeros_like(values))
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if function not in {"LINEAR", "LINEAR_EXACT", "SIGMOID"}:
        raise _SenselessError("the window function is unknown")
    if not (math.isfinite(centre) and math.isfinite(width)) or width <= 0 or (width < 1 and function == "LINEAR"):
        raise _SenselessError(f"a {function} window cannot be {width:g} wide around {centre:g}")
    window = _module(WindowCenter=centre, WindowWidth=width)
    window.VOILUTFunction, window.PhotometricInterpretation = function, "MONOCHROME2"
    # pydicom scales the result to the range of the stored values: with 1 bit, 0 to 1.
    window.BitsStored, window.PixelRepresentation = 1, 0
    return apply_windowing(values, window)


def _module(**numbers: float) -> Dataset:
    """Return a data set of nothing but these numbers, so that no other element of the file takes part."""
    module = Dataset()
    for keyword, number in numbers.items():
        module.add_new(keyword, "FD", number)
    return module


def _look_up(values: Whole | Real, table: Dataset, dataset: Dataset) -> tuple[Real, int]:
    """Return the LUT entries of `values`, and the bits of an entry; beyond the table, its ends (PS3.3 C.11.1.1.1).

    pydicom 3.0 cannot read packed 8-bit entries, and its `apply_voi` returns wrong entries of an 8-bit table with more than
    256 of them and for values above 65,535.
    """
    for keyword in ("LUTDescriptor", "LUTData"):
        raw: Any = table.get_item(keyword)
        if isinstance(raw, RawDataElement) and len(raw.value or b"") > _LONGEST_TABLE:
            raise _SenselessError("a look-up table is too long")
    count, first, bits = (int(number) for number in table.LUTDescriptor)
    count = count % 2**16 or 2**16
    entries = _entries(table.LUTData, count, dataset)
    if len(entries) < count or not 8 <= bits <= 16:
        raise _SenselessError(f"a look-up table has {len(entries)} of {count} entries of {bits} bits")
    index = np.clip(np.floor(values).astype(np.int64) - first, 0, count - 1)
    return entries[index].astype(np.float64), bits


def _entries(raw: bytes | Iterable[int] | int, count: int, dataset: Dataset) -> Whole:
    """Return the entries of LUT data: numbers (US) or bytes (OW), where 8-bit entries may be packed two to a word."""
    if not isinstance(raw, bytes):
        return np.atleast_1d(np.asarray(raw, dtype=np.int64))
    if len(raw) < 2 * count:
        return np.frombuffer(raw, dtype=np.uint8)
    return np.frombuffer(raw, dtype="<u2" if dataset.original_encoding[1] else ">u2", count=count)


def _first(value: Any) -> float | None:
    """Return the first of several values; None if the element is missing or empty."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float, str)) else next(iter(value)))

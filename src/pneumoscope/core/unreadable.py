"""Reasons why an image cannot be read: stable codes with parameters, and their messages in every language.

`UnreadableImageError` and `prediction.Failure` have a reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from pneumoscope.core.i18n import N_, translations

__all__ = [
    "FILE_TYPES",
    "REASONS",
    "UnreadableCode",
    "UnreadableReason",
    "reason_hint",
    "reason_message",
]

UnreadableCode = Literal[
    # The file
    "empty_file",
    "file_too_large",
    "file_not_found",
    "permission_denied",
    "is_a_directory",
    "not_a_regular_file",
    "file_not_accessible",
    "not_an_image",
    "unsupported_file_type",
    # The image
    "damaged_header",
    "header_not_readable",
    "decompression_bomb",
    "too_many_pixels",
    "no_pixels",
    "multiple_frames",
    "unknown_value_range",
    "bit_depth_not_measurable",
    "pixels_not_decodable",
    "array_not_supported",
    "image_not_encodable",
    "dataset_not_encodable",
    # The header of a DICOM file
    "dicom_header_not_readable",
    "dicom_file_not_readable",
    "no_image",
    "element_missing",
    "element_not_valid",
    "rows_not_found",
    "color_not_supported",
    "pixel_format_not_supported",
    "deflated_not_supported",
    "transfer_syntax_not_supported",
    "transfer_syntax_missing",
    "no_decoder",
    "age_by_dates_impossible",
    # The pixels of a DICOM file
    "pixel_data_missing",
    "pixel_data_vr_invalid",
    "pixel_data_not_decodable",
    "compressed_pixels_not_decodable",
    "frame_damaged",
    "frame_truncated",
    "frame_size_differs",
    "frame_type_differs",
    # The gray levels of a DICOM file
    "all_padding",
    "rescale_not_finite",
    "rescale_slope_zero",
    "rescaled_values_not_finite",
    "lut_too_long",
    "lut_descriptor_invalid",
    "lut_empty",
    "lut_incomplete",
    "element_not_a_number",
    "voi_lut_function_unknown",
    "window_invalid",
    "gray_levels_not_computable",
    # The decoder in its worker process
    "decoder_crashed",
    "decoder_exited",
    "decoder_reply_invalid",
    "decoder_disconnected",
    "time_limit_exceeded",
    "processor_time_limit_exceeded",
    "memory_limit_exceeded",
    "readable_before",
]

_CONVERT = N_("Convert it to PNG or JPEG")
_SUPPORTED_FORMATS = N_("Supported formats: JPEG, PNG, TIFF, BMP, WEBP, DICOM")
_UNPACK = N_("Unpack it first")
_SEND_IMAGES = N_("Send the images of the study")
_DOWNLOAD = N_("Download the image itself")
_RESIZE = N_("Resize it first")
_EXPORT_PNG = N_("The file is damaged or malicious; if another program can open it, export it as PNG")
_GRAY_RADIOGRAPHS = N_("Only single grayscale chest radiographs are supported")
_DECOMPRESS = N_("Decompress the file first: gdcmconv --raw IN OUT")

# Message and hint by reason; the hint may be empty.
REASONS: dict[UnreadableCode, tuple[str, str]] = {
    "empty_file": (N_("the file is empty (0 bytes)"), ""),
    "file_too_large": (N_("the file has {bytes:,} bytes; the maximum is {maximum:,}"), ""),
    "file_not_found": (N_("No such file or directory"), ""),
    "permission_denied": (N_("Permission denied"), ""),
    "is_a_directory": (N_("Is a directory"), ""),
    "not_a_regular_file": (N_("it is a pipe or a device, not a file"), N_("Pass the content as bytes")),
    "file_not_accessible": (N_("the file cannot be opened"), ""),
    "not_an_image": (N_("not an image ({bytes} bytes)"), _SUPPORTED_FORMATS),
    # The file type's hint replaces this one if it has one.
    "unsupported_file_type": (N_("it is {type} ({bytes} bytes)"), _SUPPORTED_FORMATS),
    "damaged_header": (N_("the header of the image is damaged ({bytes} bytes)"), ""),
    "header_not_readable": (N_("the header cannot be read"), ""),
    "decompression_bomb": (N_("the image has more than {maximum:,} pixels"), _RESIZE),
    "too_many_pixels": (N_("the image has more than {maximum:,} pixels ({width} x {height})"), _RESIZE),
    "no_pixels": (N_("it has no pixels ({width} x {height})"), _GRAY_RADIOGRAPHS),
    "multiple_frames": (N_("the file has {frames} frames, not 1"), N_("Extract one frame")),
    "unknown_value_range": (
        N_("the value range of pixels of mode '{mode}' is unknown"),
        N_("Save it as 8- or 16-bit grayscale"),
    ),
    "bit_depth_not_measurable": (
        N_("the pixels cannot be decoded (the bit depth of 16-bit channels in color cannot be measured)"),
        N_("Save it as 16-bit grayscale"),
    ),
    "pixels_not_decodable": (N_("the pixels cannot be decoded"), ""),
    "array_not_supported": (N_("pixels are {dtype} of shape {shape}, not uint8 (height, width)"), ""),
    "image_not_encodable": (N_("the PIL image cannot be encoded"), ""),
    "dataset_not_encodable": (N_("the data set cannot be encoded"), ""),
    "dicom_header_not_readable": (N_("the DICOM header cannot be read"), ""),
    "dicom_file_not_readable": (N_("the DICOM file cannot be read"), ""),
    "no_image": (N_("it contains no image"), _GRAY_RADIOGRAPHS),
    "element_missing": (N_("its header has no {element}"), _GRAY_RADIOGRAPHS),
    "element_not_valid": (N_("the DICOM header has no valid {element}"), ""),
    "rows_not_found": (N_("the DICOM header has no Rows, or they are beyond its first 4 MiB"), ""),
    "color_not_supported": (N_("it is in color ({photometric}, {samples} samples per pixel)"), _GRAY_RADIOGRAPHS),
    "pixel_format_not_supported": (
        N_("its pixel format is not supported ({allocated} bits allocated, {stored} stored, high bit {high_bit})"),
        _GRAY_RADIOGRAPHS,
    ),
    "deflated_not_supported": (N_("deflated DICOM is not supported"), N_("Decompress it first: dcmconv +te IN OUT")),
    "transfer_syntax_not_supported": (N_("the transfer syntax {syntax} is not supported"), ""),
    "transfer_syntax_missing": (
        N_("the pixel data cannot be decoded (the pixels are compressed, and the header has no TransferSyntaxUID)"),
        "",
    ),
    "no_decoder": (
        N_("no installed decoder supports its compression, {syntax}"),
        N_(
            "Install the extra [dicom]: pip install 'pneumoscope[dicom]'; or decompress the file first: gdcmconv --raw IN OUT"
        ),
    ),
    "age_by_dates_impossible": (
        N_("the age by the birth date and the study date is {age:.1f} years, not from 0 to {maximum}"),
        N_("Check patient_birth_date and study_date"),
    ),
    "pixel_data_missing": (N_("the pixel data cannot be decoded (the element is missing)"), ""),
    "pixel_data_vr_invalid": (N_("the pixel data cannot be decoded (its value representation is invalid)"), ""),
    "pixel_data_not_decodable": (N_("the pixel data cannot be decoded"), ""),
    "compressed_pixels_not_decodable": (N_("the pixel data cannot be decoded"), _DECOMPRESS),
    "frame_damaged": (N_("the pixel data cannot be decoded (the compressed frame is damaged)"), _DECOMPRESS),
    "frame_truncated": (N_("the pixel data cannot be decoded (the compressed frame is truncated)"), _DECOMPRESS),
    "frame_size_differs": (
        N_(
            "the pixel data cannot be decoded (the compressed frame is {width} x {height}, the header states"
            " {stated_width} x {stated_height})"
        ),
        _DECOMPRESS,
    ),
    "frame_type_differs": (
        N_("the pixel data cannot be decoded (the compressed frame is {dtype} of shape {shape})"),
        _DECOMPRESS,
    ),
    "all_padding": (N_("the gray levels cannot be computed (every pixel is padding)"), ""),
    "rescale_not_finite": (
        N_("the gray levels cannot be computed (the rescale slope or intercept is not finite)"),
        "",
    ),
    "rescale_slope_zero": (N_("the gray levels cannot be computed (the rescale slope is 0)"), ""),
    "rescaled_values_not_finite": (N_("the gray levels cannot be computed (the rescaled values are not finite)"), ""),
    "lut_too_long": (N_("the gray levels cannot be computed (a LUT is too long)"), ""),
    "lut_descriptor_invalid": (N_("the gray levels cannot be computed (a LUT has no valid descriptor)"), ""),
    "lut_empty": (N_("the gray levels cannot be computed (a LUT has no entries)"), ""),
    "lut_incomplete": (
        N_("the gray levels cannot be computed (a LUT has {entries} of {stated} entries of {bits} bits)"),
        "",
    ),
    "element_not_a_number": (N_("the gray levels cannot be computed ({element} is not a number)"), ""),
    "voi_lut_function_unknown": (N_("the gray levels cannot be computed (the VOI LUT function is unknown)"), ""),
    "window_invalid": (
        N_("the gray levels cannot be computed (invalid {function} window: center {center}, width {width})"),
        "",
    ),
    "gray_levels_not_computable": (N_("the gray levels cannot be computed"), ""),
    "decoder_crashed": (N_("the decoder crashed ({signal})"), _EXPORT_PNG),
    "decoder_exited": (N_("the decoder exited with status {status}"), _EXPORT_PNG),
    "decoder_reply_invalid": (N_("the decoder sent an invalid reply"), _EXPORT_PNG),
    "decoder_disconnected": (N_("the decoder closed its connection"), _EXPORT_PNG),
    "time_limit_exceeded": (N_("decoding took more than {seconds:g} s"), _EXPORT_PNG),
    "processor_time_limit_exceeded": (N_("decoding took more than {seconds:g} s of processor time"), _EXPORT_PNG),
    "memory_limit_exceeded": (N_("decoding takes more than {gibibytes:.3g} GiB of memory"), _EXPORT_PNG),
    "readable_before": (N_("the image can no longer be read ({code})"), N_("Try again")),
}

# Name and hint of file types that cannot be decoded, by code of `imaging.file_type`.
FILE_TYPES: dict[str, tuple[str, str]] = {
    "unknown": (N_("not an image"), ""),
    "special_file": (N_("not a regular file"), ""),
    "jpeg_ls": (N_("a JPEG-LS image"), _CONVERT),
    "gif": (N_("a GIF image"), _CONVERT),
    "jp2": (N_("a JPEG 2000 image (JP2)"), _CONVERT),
    "jpeg_2000_codestream": (N_("a JPEG 2000 codestream"), _CONVERT),
    "jpeg_xl": (N_("a JPEG XL image"), _CONVERT),
    "heic": (N_("a HEIC image"), _CONVERT),
    "heif": (N_("a HEIF image"), _CONVERT),
    "avif": (N_("an AVIF image"), _CONVERT),
    "pgm": (N_("a PGM image"), _CONVERT),
    "photoshop": (N_("a Photoshop image"), _CONVERT),
    "video": (N_("a video"), ""),
    "nifti": (N_("a NIfTI volume"), ""),
    "numpy_array": (N_("a NumPy array"), ""),
    "html_page": (N_("an HTML page"), _DOWNLOAD),
    "pdf": (N_("a PDF document"), N_("Export the image from the source system instead")),
    "git_annex_pointer": (N_("a git-annex pointer, not the image itself"), N_("Fetch the image: git annex get")),
    "git_lfs_pointer": (N_("a Git LFS pointer, not the image itself"), N_("Fetch the image: git lfs pull")),
    "zip": (N_("a zip archive"), _UNPACK),
    "empty_zip": (N_("an empty zip archive"), ""),
    "gzip": (N_("a gzip archive"), _UNPACK),
    "bzip2": (N_("a bzip2 archive"), _UNPACK),
    "xz": (N_("an xz archive"), _UNPACK),
    "7z": (N_("a 7z archive"), _UNPACK),
    "rar": (N_("a RAR archive"), _UNPACK),
    "tar": (N_("a tar archive"), _UNPACK),
    "zstandard": (N_("a Zstandard archive"), _UNPACK),
    "dicomdir": (N_("a DICOMDIR, the index of a DICOM folder"), N_("Send the images that it lists")),
    "dicom_waveform": (N_("a DICOM waveform"), _SEND_IMAGES),
    "dicom_presentation_state": (N_("a DICOM presentation state"), _SEND_IMAGES),
    "dicom_raw_data": (N_("a DICOM registration, segmentation or raw data object"), _SEND_IMAGES),
    "dicom_structured_report": (N_("a DICOM structured report"), _SEND_IMAGES),
    "dicom_document": (N_("a DICOM document, such as PDF"), _SEND_IMAGES),
}


@dataclasses.dataclass(frozen=True, slots=True)
class UnreadableReason:
    """Why an image cannot be read.

    Attributes:
        code: Stable code, such as "empty_file".
        parameters: Values and limits, such as {"frames": 12}. `type` is a code, such as "zip"; `error` is a library's
            error message, in English.
    """

    code: UnreadableCode
    parameters: Mapping[str, str | int | float] = dataclasses.field(default_factory=dict)


def reason_message(reason: UnreadableReason, language: str = "en") -> str:
    """Return a reason as a phrase. Only in English does it quote a library's error message, which is English."""
    gettext, values = translations(language).gettext, dict(reason.parameters)
    if "type" in values:
        values["type"] = gettext(FILE_TYPES[str(values["type"])][0])
    phrase = gettext(REASONS[reason.code][0]).format(**values)
    return f"{phrase} ({values['error']})" if "error" in values and language == "en" else phrase


def reason_hint(reason: UnreadableReason, language: str = "en") -> str:
    """Return what to do next, as a sentence without a full stop; may be empty."""
    hint = REASONS[reason.code][1]
    if "type" in reason.parameters:
        hint = FILE_TYPES[str(reason.parameters["type"])][1] or hint
    return translations(language).gettext(hint) if hint else ""

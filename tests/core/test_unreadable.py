"""Reasons for which an image cannot be read, as codes and as messages in every language."""

import pickle
import re
from typing import get_args

import pytest

from pneumoscope.core.errors import DecodeTimeoutError, UnreadableImageError
from pneumoscope.core.i18n import LANGUAGES
from pneumoscope.core.messages import failure_message
from pneumoscope.core.prediction import Failure, ModelInfo, Prediction
from pneumoscope.core.prediction_messages import prediction_message
from pneumoscope.core.unreadable import FILE_TYPES, UnreadableCode, UnreadableReason, reason_hint, reason_message

PARAMETERS = {
    "file_too_large": {"bytes": 999_000_000, "maximum": 300_000_000},
    "file_not_accessible": {"error": "Input/output error"},
    "not_an_image": {"bytes": 8},
    "unsupported_file_type": {"type": "zip", "bytes": 421},
    "damaged_header": {"bytes": 17},
    "header_not_readable": {"error": "not a TIFF header at all"},
    "decompression_bomb": {"maximum": 75_000_000},
    "too_many_pixels": {"width": 20_000, "height": 30_001, "maximum": 75_000_000},
    "no_pixels": {"width": 35, "height": 0},
    "multiple_frames": {"frames": 12},
    "unknown_value_range": {"mode": "F"},
    "pixels_not_decodable": {"error": "image file is truncated (3 bytes not processed)"},
    "array_not_supported": {"dtype": "float32", "shape": "(3, 4)"},
    "image_not_encodable": {"error": "cannot write mode HSV as PNG"},
    "dataset_not_encodable": {"error": "no transfer syntax is known"},
    "dicom_header_not_readable": {"error": "EOFError"},
    "dicom_file_not_readable": {"error": "ValueError"},
    "element_missing": {"element": "Rows"},
    "element_not_valid": {"element": "SOPInstanceUID"},
    "color_not_supported": {"photometric": "RGB", "samples": 3},
    "pixel_format_not_supported": {"allocated": 32, "stored": 31, "high_bit": 30},
    "transfer_syntax_not_supported": {"syntax": "MPEG2 Main Profile"},
    "no_decoder": {"syntax": "JPEG-LS Lossless"},
    "age_by_dates_impossible": {"age": 146.5, "maximum": 130},
    "pixel_data_not_decodable": {"error": "the pixel data has 590 of 630 bytes"},
    "compressed_pixels_not_decodable": {"error": "the codestream ends too early"},
    "frame_size_differs": {"width": 30, "height": 41, "stated_width": 52, "stated_height": 63},
    "frame_type_differs": {"dtype": "uint8", "shape": "(3, 4)"},
    "lut_incomplete": {"entries": 4, "stated": 9, "bits": 12},
    "element_not_a_number": {"element": "WindowWidth"},
    "window_invalid": {"function": "SIGMOID", "center": "5", "width": "-1"},
    "gray_levels_not_computable": {"error": "OverflowError"},
    "decoder_crashed": {"signal": "SIGSEGV"},
    "decoder_exited": {"status": 71},
    "time_limit_exceeded": {"seconds": 1.5},
    "processor_time_limit_exceeded": {"seconds": 30},
    "memory_limit_exceeded": {"gibibytes": 2.0},
    "readable_before": {"code": "decode_timeout"},
}
# Commands and terms of the field stay in English; at most two words of a term follow each other.
ENGLISH_SENTENCE = re.compile(r"(?<!git )(?<![A-Za-z])(?!git )[A-Za-z]{2,}(?: [a-z]{2,}){2,}")


def reason(code: str) -> UnreadableReason:
    return UnreadableReason(code, PARAMETERS.get(code, {}))


def spelled(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and value >= 1_000_000 else f"{value}"


@pytest.mark.parametrize("code", get_args(UnreadableCode))
def test_every_reason_has_a_message_with_its_parameters_in_both_languages(code):
    english, chinese = (reason_message(reason(code), language) for language in LANGUAGES)
    assert re.search("[\u4e00-\u9fff]", chinese)
    assert not ENGLISH_SENTENCE.search(chinese)
    for name, value in PARAMETERS.get(code, {}).items():
        if name == "error":  # of a library, in English
            assert english.endswith(f" ({value})")
            assert value not in chinese
        elif name == "type":
            assert "a zip archive" in english
            assert "zip 壓縮檔" in chinese
        else:
            assert spelled(value) in english
            assert spelled(value) in chinese
    assert "{" not in english + chinese


@pytest.mark.parametrize("code", get_args(UnreadableCode))
def test_every_hint_is_translated(code):
    english, chinese = (reason_hint(reason(code), language) for language in LANGUAGES)
    assert bool(english) == bool(chinese) == (english != chinese)
    assert not ENGLISH_SENTENCE.search(chinese)


@pytest.mark.parametrize("code", FILE_TYPES)
def test_every_type_of_file_has_a_name_and_its_own_hint_in_both_languages(code):
    found = UnreadableReason("unsupported_file_type", {"type": code, "bytes": 9})
    name, hint = FILE_TYPES[code]
    assert reason_message(found) == f"it is {name} (9 bytes)"
    assert reason_hint(found) == (hint or "Supported formats: JPEG, PNG, TIFF, BMP, WEBP, DICOM")
    chinese = reason_message(found, "zh-Hant"), reason_hint(found, "zh-Hant")
    assert name not in chinese[0]
    assert all(re.search("[\u4e00-\u9fff]", text) and not ENGLISH_SENTENCE.search(text) for text in chinese)


def test_supported_formats_of_the_hint_are_those_that_are_decoded():
    from pneumoscope.imaging import decode

    hint = reason_hint(UnreadableReason("not_an_image", {"bytes": 9}))
    assert hint.partition(": ")[2].split(", ") == [*decode.FORMATS, "DICOM"]


def test_error_and_its_failure_have_the_reason_and_its_text():
    found = reason("multiple_frames")
    error = UnreadableImageError("a.tif", found)
    assert (error.reason, error.detail, error.hint) == (found, "the file has 12 frames, not 1", "Extract one frame")
    assert pickle.loads(pickle.dumps(error)).reason == found
    message = "cannot read 'a.tif': the file has 12 frames, not 1"
    assert Failure.from_error(error) == Failure("unreadable_image", message, "Extract one frame", found)


def test_renamed_error_keeps_its_class_and_reason():
    error = DecodeTimeoutError("a.png", reason("time_limit_exceeded")).renamed("")
    assert (type(error), error.reason) == (DecodeTimeoutError, reason("time_limit_exceeded"))
    assert str(error).startswith("the file cannot be read: decoding took more than 1.5 s. The file is damaged")
    plain = UnreadableImageError("a.png", "the row is missing", hint="Add it").renamed("b.png")
    assert (str(plain), plain.reason) == ("cannot read 'b.png': the row is missing. Add it", None)


def test_failure_is_explained_in_the_language_and_an_old_one_by_its_stored_message():
    failure = Failure.from_error(UnreadableImageError("a.zip", reason("unsupported_file_type")))
    assert failure_message(failure) == "cannot read 'a.zip': it is a zip archive (421 bytes). Unpack it first"
    assert failure_message(failure, "zh-Hant") == "檔案類型：zip 壓縮檔（421 位元組）。請先解壓縮"
    old = Failure("unreadable_image", "cannot read 'a.zip': it is empty", "Export it again")
    assert failure_message(old, "zh-Hant") == "cannot read 'a.zip': it is empty. Export it again"


def test_reason_of_a_prediction_survives_its_row():
    failure = Failure.from_error(UnreadableImageError("a.tif", reason("multiple_frames")))
    model = ModelInfo("gray", "0.1.0", "ab" * 32)
    failed = Prediction(path="a.tif", decision=None, operating_point="balanced", failure=failure, model=model)
    row = failed.to_row()
    assert (row["failure_reason"], row["failure_parameters"]) == ("multiple_frames", '{"frames": 12}')
    assert Prediction.from_row(row) == failed
    assert prediction_message(failed, "zh-Hant") == "檔案有 12 個影格，而非 1 個。請擷取其中一個影格"
    del row["failure_reason"], row["failure_parameters"]  # as earlier versions wrote it
    assert Prediction.from_row(row).failure == Failure(failure.code, failure.message, failure.hint)

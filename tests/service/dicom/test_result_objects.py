"""Objects of every decision, header and character set: their content, and no errors of validators."""

from __future__ import annotations

import dataclasses
import functools
import io
from datetime import datetime
from pathlib import Path
from typing import get_args

import numpy as np
import pydicom
import pytest
from PIL import ImageDraw

from pneumoscope.core.errors import UsageError
from pneumoscope.core.identity import Identity
from pneumoscope.core.messages import warning_message
from pneumoscope.core.prediction import Failure, PatientAge, Rejection
from pneumoscope.core.prediction_messages import notice
from pneumoscope.core.unreadable import UnreadableCode, UnreadableReason
from pneumoscope.imaging.image import Radiograph
from pneumoscope.inference.saliency import Heatmap
from pneumoscope.service.dicom.configuration import ResultSettings
from pneumoscope.service.dicom.configuration_file import read_configuration
from pneumoscope.service.dicom.header import decode_header, encode_header, read_header

pytest.importorskip("highdicom", reason="[pacs] is not installed")
from tests.service.dicom import result_objects as matrix
from tests.service.dicom.result_objects import CHARACTER_SETS, HEADERS, PREDICTIONS, image_file, objects, read
from tests.service.dicom.validators import VALIDATORS

from pneumoscope.service.dicom.caption import draw_result
from pneumoscope.service.dicom.heatmap_region import Zone, contours, zones
from pneumoscope.service.dicom.overlays import presentation_state
from pneumoscope.service.dicom.report import structured_report, unreadable_code
from pneumoscope.service.dicom.results import SOP_CLASSES, Result, secondary_capture

pytestmark = pytest.mark.slow  # each object is drawn, and examined by several validators
CHINESE_FONTS = (
    "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
)
COMPLETE = HEADERS["complete"]


@pytest.fixture(scope="module")
def chinese_font():
    font = next((path for path in map(Path, CHINESE_FONTS) if path.exists()), None)
    if font is None:
        pytest.skip("no Chinese font is installed")
    return font


@functools.cache
def shared_objects(decision, header="complete"):
    """Return objects that several tests read: making them takes longer than most checks."""
    return objects(decision, image_file(**HEADERS[header]))


def check(name, checked):
    """Return the errors of a validator."""
    validator = next(each for each in VALIDATORS if each.name == name)
    if not validator.version():
        pytest.skip(f"{name} is not installed")
    findings, count = validator.check(checked)
    assert count
    return [finding for finding in findings if finding.is_error]


def item(report, code):
    """Return the first content item whose concept has a code, at any depth."""
    for element in report.iterall():
        if element.keyword == "ContentSequence":
            for content in element.value:
                if "ConceptNameCodeSequence" in content and content.ConceptNameCodeSequence[0].CodeValue == code:
                    return content
    return None


def texts(report, code):
    """Return the texts of all content items whose concept has a code."""
    return [
        content.TextValue
        for element in report.iterall() if element.keyword == "ContentSequence"
        for content in element.value
        if content.ValueType == "TEXT" and content.ConceptNameCodeSequence[0].CodeValue == code
    ]  # fmt: skip


def regions(report):
    """Return the zones that a report states, as (side, level)."""
    found = []
    for element in report.iterall():
        if element.keyword == "ContentSequence":
            for content in element.value:
                if (
                    "ConceptNameCodeSequence" in content
                    and content.ConceptNameCodeSequence[0].CodeValue == "heatmap-region"
                ):
                    side = content.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning
                    found.append((side, content.ConceptCodeSequence[0].CodeMeaning))
    return found


@pytest.mark.parametrize("decision", PREDICTIONS)
@pytest.mark.parametrize("name", ["dciodvfy", "dcentvfy", "dsrdump"])
def test_validators_find_no_error(decision, name):
    checked = [shared_objects(decision, header) for header in HEADERS]
    assert check(name, checked) == []


@pytest.mark.parametrize("character_set", CHARACTER_SETS)
def test_dciodvfy_finds_no_error_in_any_character_set(character_set):
    encoding, name, _ = CHARACTER_SETS[character_set]
    assert (
        check("dciodvfy", [objects("pneumonia", image_file(name=(encoding, name), **COMPLETE | {"PatientName": ""}))])
        == []
    )


def test_dicom_validator_finds_no_error():
    assert check("dicom-validator", [shared_objects(decision) for decision in PREDICTIONS]) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_pixelmed_finds_no_error():
    checked = [shared_objects("uncertain"), shared_objects("rejected", "mirrored")]
    assert check("DicomSRValidator (PixelMed)", checked) == []


@pytest.mark.parametrize("name", ["dciodvfy", "dsrdump", "dicom-validator"])
def test_validators_find_errors_in_damaged_objects(name):
    """The second opinion has one, too."""
    made = shared_objects("pneumonia")
    report = read(made.files["structured_report"])
    del report.SOPInstanceUID, report.CompletionFlag
    file = io.BytesIO()
    report.save_as(file)
    assert check(name, [made._replace(files={"structured_report": file.getvalue()})])


@pytest.mark.parametrize("character_set", CHARACTER_SETS)
def test_names_survive_in_every_character_set(character_set):
    encoding, name, expected = CHARACTER_SETS[character_set]
    file = image_file(name=(encoding, name), **COMPLETE)
    assert name in file
    header = read_header(file)
    assert str(decode_header(encode_header(header)).PatientName) == expected  # as the inbox stores it
    for kind, content in objects("pneumonia", file).files.items():
        found = read(content)
        assert (str(found.PatientName), found.SpecificCharacterSet) == (expected, "ISO_IR 192"), kind
        assert expected.encode() in content, kind


@pytest.mark.parametrize("keyword", ["PatientID", "AccessionNumber", "StudyDescription", "IssuerOfPatientID"])
def test_other_texts_survive_without_a_character_set(keyword):
    """As UTF-8, which some software writes without stating it."""
    placeholder, text = "T" * 6, "胸部"
    file = image_file(**COMPLETE | {keyword: placeholder}).replace(placeholder.encode(), text.encode())
    for kind, content in objects("pneumonia", file).files.items():
        assert read(content)[keyword].value == text, kind


def test_names_of_patients_are_in_no_warning(recwarn):
    objects("pneumonia", image_file(**COMPLETE | {"PatientName": "SECRET", "ReferringPhysicianName": "SECRET"}))
    assert not [each for each in recwarn if "SECRET" in str(each.message)]


def test_patient_and_study_are_the_same_in_every_kind_of_object():
    for kind, content in objects(
        "pneumonia", image_file(**COMPLETE | {"PatientComments": "c", "PatientWeight": "12"})
    ).files.items():
        found = read(content)
        assert found.SOPClassUID == SOP_CLASSES[kind]
        assert found.Manufacturer == "pneumoscope", "our own results would not be recognized"
        for keyword, value in COMPLETE.items():
            assert found[keyword].value == value, (kind, keyword)


@pytest.mark.parametrize(("zone", "time"), [("+0800", "150809"), ("-0330", "033809"), ("", None), ("+9900", None)])
def test_times_are_in_the_time_zone_of_the_study(zone, time):
    found = read(
        objects("pneumonia", image_file(**COMPLETE | {"TimezoneOffsetFromUTC": zone})).files["structured_report"]
    )
    assert found.StudyTime == "101500"
    if time:
        assert (found.ContentTime[:6], found.TimezoneOffsetFromUTC) == (time, zone)
    else:  # the times of the study are local ones
        local = datetime.fromisoformat(matrix.CREATED).astimezone()
        assert found.ContentTime[:6] == f"{local:%H%M%S}"
        assert "TimezoneOffsetFromUTC" not in found


@pytest.mark.parametrize("decision", PREDICTIONS)
def test_object_that_is_written_again_is_the_same(decision):
    image = image_file(**COMPLETE)
    assert objects(decision, image).files == objects(decision, image).files


def test_series_have_consecutive_numbers():
    made = objects("pneumonia", image_file(**COMPLETE), settings=ResultSettings(series_number=77))
    numbers = {kind: read(content).SeriesNumber for kind, content in made.files.items()}
    assert numbers == {
        "secondary_capture": 77, "structured_report": 78, "rejection_note": 79, "parametric_map": 80, "presentation_state": 81
    }  # fmt: skip


def test_report_identifies_the_algorithm_and_states_the_notice():
    report = read(shared_objects("uncertain").files["structured_report"])
    prediction = PREDICTIONS["uncertain"]
    for code, value in (
        ("111001", "pneumoscope default"), ("111003", "0.1.0"), ("122405", "pneumoscope"), ("operating-point", "balanced"),
        ("model-sha256", prediction.model.sha256), ("notice", notice(matrix.POPULATION)),
    ):  # fmt: skip
        assert item(report, code).TextValue == value
    assert item(report, "111000").ConceptCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    measured = item(report, "threshold").MeasuredValueSequence[0]
    assert (float(measured.NumericValue), measured.MeasurementUnitsCodeSequence[0].CodeValue) == (36, "%")
    assert "5%" in "".join(
        content.TextValue
        for element in report.iterall() if element.keyword == "ContentSequence"
        for content in element.value if content.ValueType == "TEXT"
        and content.ConceptNameCodeSequence[0].CodeValue == "111002" and "Prevalence" in content.TextValue
    )  # fmt: skip


def test_rejection_is_stated_in_every_object():
    made = shared_objects("rejected")
    report = read(made.files["structured_report"])
    assert item(report, "reason").ConceptCodeSequence[0].CodeValue == "lateral_view"
    assert item(report, "explanation").TextValue.startswith("Not assessed: The DICOM header specifies the view LL")
    assert item(report, "heatmap-region") is None
    assert item(report, "threshold") is None
    state = read(made.files["presentation_state"])
    (annotation,) = state.GraphicAnnotationSequence
    assert "Not assessed" in annotation.TextObjectSequence[0].UnformattedTextValue
    assert "GraphicObjectSequence" not in annotation
    assert "parametric_map" not in made.files


def test_rejection_by_the_network_states_the_value_and_the_limit_in_every_object(monkeypatch):
    drawn = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *of: (drawn.append(of[2]), text(*of)))
    rejection = Rejection("inverted", {"probability": 0.125, "limit": 0.5})
    prediction = dataclasses.replace(PREDICTIONS["rejected"], rejection=rejection)
    file = image_file(**COMPLETE)
    result = Result("1.2.3", prediction, matrix.CREATED, read_header(file), ResultSettings(), matrix.POPULATION)
    reason = "Probability of an upright chest radiograph: 0.125; rejected below 0.500"
    assert item(read(structured_report(result)), "explanation").TextValue.endswith(reason)
    (annotation,) = read(presentation_state(result, matrix.read_display(file))).GraphicAnnotationSequence
    assert reason in annotation.TextObjectSequence[0].UnformattedTextValue
    secondary_capture(result, matrix.heatmap().image)
    assert reason in " ".join(each.strip() for each in drawn)


def test_warnings_are_stated_in_every_object(chinese_font, monkeypatch):
    drawn = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *of: (drawn.append(of[2]), text(*of)))
    warnings = ("age_not_stated", "view_not_stated")
    prediction = dataclasses.replace(PREDICTIONS["no_pneumonia"], warnings=warnings)
    file, settings = image_file(**COMPLETE), ResultSettings(languages=("en", "zh-Hant"), font=chinese_font)
    result = Result("1.2.3", prediction, matrix.CREATED, read_header(file), settings, matrix.POPULATION)
    sentences = [warning_message(each) for each in warnings]
    assert texts(read(structured_report(result)), "warning") == sentences
    (annotation,) = read(presentation_state(result, matrix.read_display(file))).GraphicAnnotationSequence
    english, chinese = annotation.TextObjectSequence[0].UnformattedTextValue.split("\r\n")
    assert "Warning: Age not stated, View not stated. Research" in english
    assert "警告：未記載年齡、未記載攝影方向。" in chinese
    secondary_capture(result, matrix.heatmap().image)
    assert all(each in " ".join(map(str.strip, drawn)) for each in sentences)


def test_report_and_presentation_state_warn_of_an_age_that_contradicts_the_dates():
    identity = Identity(patient_birth_date="1990-02-03", study_date="2026-02-03")
    prediction = dataclasses.replace(PREDICTIONS["pneumonia"], age=PatientAge(4.0, "header"), identity=identity)
    file = image_file(**COMPLETE)
    result = Result("1.2.3", prediction, matrix.CREATED, read_header(file), ResultSettings(), matrix.POPULATION)
    (warning,) = texts(read(structured_report(result)), "warning")
    assert warning.startswith("Contradictory age: 4 years stated, 36 years by birth date and study date")
    (annotation,) = read(presentation_state(result, matrix.read_display(file))).GraphicAnnotationSequence
    assert "Contradictory age: 4 years stated" in annotation.TextObjectSequence[0].UnformattedTextValue


def test_report_without_warnings_has_none():
    assert texts(read(shared_objects("pneumonia").files["structured_report"]), "warning") == []


@pytest.mark.parametrize("decision", PREDICTIONS)
def test_note_withdraws_every_object(decision):
    made = shared_objects(decision)
    note = read(made.files["rejection_note"])
    referenced = {}
    for series in note.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence:
        for each in series.ReferencedSOPSequence:
            referenced[each.ReferencedSOPInstanceUID] = (each.ReferencedSOPClassUID, series.SeriesInstanceUID)
    expected = {
        read(content).SOPInstanceUID: read(content) for kind, content in made.files.items() if kind != "rejection_note"
    }
    assert referenced == {uid: (each.SOPClassUID, each.SeriesInstanceUID) for uid, each in expected.items()}
    types = {
        content.ReferencedSOPSequence[0].ReferencedSOPInstanceUID: content.ValueType
        for content in note.ContentSequence[1:]
    }
    assert types == {uid: "IMAGE" if "Rows" in each else "COMPOSITE" for uid, each in expected.items()}


# --- region of the heatmap -------------------------------------------------------------------------------------------------


def drawn(values, width=90, height=120, crop="squash"):
    image = Radiograph(np.zeros((height, width), np.uint8), "a.dcm", "DICOM", "")
    return Heatmap(image, np.asarray(values, np.float32), crop)


def spot(row, column, size=6):
    values = np.full((size, size), -0.1)
    values[row, column] = 1
    return values


@pytest.mark.parametrize(
    ("row", "column", "orientation", "expected"),
    [
        (1, 1, "LF", ("right", "upper")),
        (1, 4, "LF", ("left", "upper")),
        (5, 1, "LF", ("right", "lower")),
        (1, 1, "RF", ("left", "upper")),  # mirrored
        (1, 1, "LH", ("right", "lower")),  # upside down
        (1, 1, "RH", ("left", "lower")),
        (1, 5, "FL", ("right", "lower")),  # rotated: rows run to the feet
        (1, 5, "HR", ("left", "upper")),
    ],
)
def test_region_is_on_the_side_of_the_patient(row, column, orientation, expected):
    assert zones(drawn(spot(row, column)), tuple(orientation)) == (Zone(*expected),)


def test_region_is_not_stated_where_it_would_say_nothing():
    assert zones(drawn(np.ones((6, 6))), ("L", "F")) == ()  # everywhere
    assert zones(drawn(-np.ones((6, 6))), ("L", "F")) == ()  # against pneumonia
    assert zones(drawn(np.zeros((6, 6))), ("L", "F")) == ()
    assert zones(drawn(spot(1, 1, 3)), ("L", "F")) == ()  # too coarse
    assert zones(drawn(spot(1, 1)), ("A", "F")) == ()  # lateral
    assert zones(drawn(spot(1, 1)), ("L", "R")) == ()


def test_region_counts_the_crop():
    """The corners of a cropped heatmap are not those of the image."""
    wide = drawn(spot(1, 0), width=400, height=100, crop="center")
    (zone,) = zones(wide, ("L", "F"))
    assert zone == Zone("right", "upper")
    assert zones(drawn([[1, 0, 0, 0]] * 4, width=400, height=100, crop="center"), ("L", "F"))[0].side == "right"


def test_strongest_zone_is_first():
    values = spot(1, 1)
    values[5, 4] = 2
    assert zones(drawn(values), ("L", "F")) == (Zone("left", "lower"), Zone("right", "upper"))


@pytest.mark.parametrize(("decision", "is_stated"), [("pneumonia", True), ("uncertain", True), ("no_pneumonia", False)])
def test_report_states_the_region_of_positive_decisions(decision, is_stated):
    report = read(shared_objects(decision).files["structured_report"])
    expected = {("Right", "Lower zone of lung"), ("Right", "Middle zone of lung")} if is_stated else set()
    assert set(regions(report)) == expected


def test_report_of_a_mirrored_image_states_the_other_side():
    report = read(shared_objects("pneumonia", "mirrored").files["structured_report"])
    assert {side for side, _ in regions(report)} == {"Left"}
    assert regions(read(shared_objects("pneumonia", "lateral").files["structured_report"])) == []


@pytest.mark.parametrize("seed", range(5))
def test_contours_enclose_the_same_areas_as_those_of_another_program(seed):
    contourpy = pytest.importorskip("contourpy", reason="[evaluate] is not installed")
    generator = np.random.default_rng(seed)
    found = drawn(generator.normal(size=(8, 8)), width=96, height=96)
    values = found.resized(96, 96).astype(float)
    padded = np.pad(values, 1, constant_values=min(0, values.min()))
    theirs = contourpy.contour_generator(z=padded).lines(0.5 * found.maximum)
    areas = [sorted(abs(area(np.asarray(line))) for line in lines) for lines in (contours(found), theirs)]
    assert areas[0] == pytest.approx(areas[1], abs=60)  # contours at the border are cut there
    for line in contours(found):
        assert (line[0] == line[-1]).all()
        assert line.min() >= 0
        assert line.max() <= 96


def area(line):
    x, y = line[:, 0], line[:, 1]
    return 0.5 * float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


def test_contour_surrounds_the_strongest_contribution_in_pixels_of_the_image():
    (line,) = contours(drawn(spot(4, 1), width=60, height=120))
    center = line.mean(0)
    assert center == pytest.approx((15, 90), abs=2)  # of the position (4, 1) of 6 x 6
    assert contours(drawn(-np.ones((6, 6)))) == []


# --- overlays --------------------------------------------------------------------------------------------------------------


def test_parametric_map_has_the_contributions_at_the_size_of_the_image():
    image = image_file(**COMPLETE)
    found = read(objects("pneumonia", image).files["parametric_map"])
    heatmap = matrix.heatmap()
    assert (found.Rows, found.Columns) == (read(image).Rows, read(image).Columns)
    stored = np.frombuffer(found.FloatPixelData, "<f4").reshape(found.Rows, found.Columns)
    assert stored == pytest.approx(heatmap.resized(found.Columns, found.Rows))
    mapping = found.SharedFunctionalGroupsSequence[0].get("RealWorldValueMappingSequence") or (
        found.PerFrameFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    )
    assert (mapping[0].RealWorldValueSlope, mapping[0].MeasurementUnitsCodeSequence[0].CodeValue) == (1, "1")
    assert (found.ContentQualification, found.ImageComments) == ("RESEARCH", notice(matrix.POPULATION))
    assert read(image).SOPInstanceUID in {
        each.value for each in found.iterall() if each.keyword == "ReferencedSOPInstanceUID"
    }


def test_presentation_state_draws_the_contour_and_keeps_the_window():
    state = read(shared_objects("pneumonia").files["presentation_state"])
    (annotation,) = state.GraphicAnnotationSequence
    text = annotation.TextObjectSequence[0].UnformattedTextValue
    assert text.startswith("Pneumonia: probability of pneumonia 87% (80% to 92%)")
    assert "Not a medical device" in text
    (graphic,) = annotation.GraphicObjectSequence
    points = np.reshape(graphic.GraphicData, (-1, 2))
    assert points == pytest.approx(contours(matrix.heatmap())[0])
    assert (points[0] == points[-1]).all()
    voi = state.SoftcopyVOILUTSequence[0]
    assert (float(voi.WindowCenter), float(voi.WindowWidth), state.PresentationLUTShape) == (127.5, 256, "IDENTITY")
    area = state.DisplayedAreaSelectionSequence[0]
    assert (area.DisplayedAreaTopLeftHandCorner, area.DisplayedAreaBottomRightHandCorner) == ([1, 1], [96, 96])


@pytest.mark.parametrize(
    ("elements", "windows"),
    [
        ({"WindowWidth": "0"}, 0), ({"WindowWidth": None}, 0), ({"WindowCenter": None, "WindowWidth": None}, 0),
        ({"WindowCenter": ["1", "2"], "WindowWidth": ["5", "6"]}, 2),
        ({"WindowCenter": ["1", "2"], "WindowWidth": ["5", "0"]}, 0),
    ],
)  # fmt: skip
def test_presentation_state_ignores_windows_without_a_width(elements, windows):
    state = read(objects("pneumonia", image_file(**COMPLETE | elements)).files["presentation_state"])
    assert np.size(state.SoftcopyVOILUTSequence[0].WindowCenter if "SoftcopyVOILUTSequence" in state else []) == windows


def test_presentation_state_inverts_an_inverted_image():
    state = read(shared_objects("pneumonia", "black and white inverted").files["presentation_state"])
    assert state.PresentationLUTShape == "INVERSE"
    assert float(state.RescaleSlope) == 1


# --- languages -------------------------------------------------------------------------------------------------------------


def text_of(pixels, shown):
    """Return whether some rows of pixels equal those of another picture."""
    return any(
        np.array_equal(pixels[start : start + len(shown)], shown) for start in range(len(pixels) - len(shown) + 1)
    )


@pytest.mark.parametrize("decision", ["pneumonia", "rejected"])
def test_capture_has_the_text_of_each_language_in_its_order(chinese_font, decision):
    prediction = PREDICTIONS[decision]
    heatmap = matrix.heatmap() if prediction.probability else None

    def captions(*languages):
        image = draw_result(
            prediction, matrix.heatmap().image, heatmap, matrix.POPULATION, languages=languages, font=chinese_font
        )
        return image[640:]

    english, chinese = captions("en"), captions("zh-Hant")
    assert np.array_equal(captions("en", "zh-Hant"), np.vstack([english, chinese]))
    assert np.array_equal(captions("zh-Hant", "en"), np.vstack([chinese, english]))
    assert not np.array_equal(english[: len(chinese)], chinese[: len(english)])


@pytest.mark.parametrize(("decision", "lines"), [("pneumonia", 1), ("rejected", 0)])
def test_capture_states_the_prevalence_of_the_probability(monkeypatch, decision, lines):
    drawn = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *of: (drawn.append(of[2]), text(*of)))
    draw_result(PREDICTIONS[decision], matrix.heatmap().image, None, None, prevalence=0.5)
    assert sum("for a prevalence of 50%" in each for each in drawn) == lines


@pytest.mark.parametrize(("language", "reason"), [("en", "has 12 frames"), ("zh-Hant", "檔案有 12 個影格")])
def test_capture_states_once_why_an_image_could_not_be_read(chinese_font, monkeypatch, language, reason):
    drawn = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *of: (drawn.append(of[2]), text(*of)))
    draw_result(PREDICTIONS["unreadable"], None, None, None, languages=(language,), font=chinese_font)
    assert "".join(each.rstrip() + " " for each in drawn).count(reason) == 1


def test_capture_draws_no_missing_glyph(chinese_font):
    """A missing glyph would be drawn as the same box everywhere: the text would not depend on its characters."""
    prediction = PREDICTIONS["rejected"]
    pictures = []
    for code in ("upside_down", "color"):
        rejected = dataclasses.replace(prediction, rejection=Rejection(code))
        image = matrix.heatmap().image
        pictures.append(draw_result(rejected, image, None, None, languages=("zh-Hant",), font=chinese_font))
    assert not np.array_equal(*(picture[640:700] for picture in pictures))


def test_long_texts_are_wrapped_within_the_picture():
    long = dataclasses.replace(
        PREDICTIONS["uncertain"], model=dataclasses.replace(PREDICTIONS["uncertain"].model, name="model-" * 40)
    )
    picture = draw_result(long, matrix.heatmap().image, matrix.heatmap(), matrix.POPULATION)
    assert picture.shape[1] == 640
    assert (picture[640:, -14:] == 17).all(), "text in the margin"


def configured(tmp_path, text):
    file = tmp_path / "dicom.toml"
    file.write_text(f"[results]\n{text}\n", encoding="utf-8")
    return read_configuration(file).results


def test_font_and_languages_are_read_from_the_configuration(chinese_font, tmp_path):
    (tmp_path / "font.ttc").symlink_to(chinese_font)
    settings = configured(tmp_path, 'languages = ["zh-Hant", "en"]\nfont = "font.ttc"')
    assert (settings.languages, settings.font) == (("zh-Hant", "en"), tmp_path / "font.ttc")
    made = objects("pneumonia", image_file(**COMPLETE), settings=settings)
    assert (
        read(made.files["secondary_capture"]).Rows > read(shared_objects("pneumonia").files["secondary_capture"]).Rows
    )
    state = read(made.files["presentation_state"])
    text = state.GraphicAnnotationSequence[0].TextObjectSequence[0].UnformattedTextValue
    assert text.startswith("肺炎，肺炎機率：87%（80% 至 92%）")
    assert "\r\nPneumonia: probability of pneumonia 87%" in text


def test_chinese_needs_a_font(tmp_path):
    with pytest.raises(UsageError, match="zh-Hant needs a font") as caught:
        configured(tmp_path, 'languages = ["en", "zh-Hant"]')
    assert "fonts-noto-cjk or fonts-wqy-zenhei" in caught.value.hint


def test_font_without_chinese_characters_is_an_error(tmp_path):
    font = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")
    if not font.exists():
        pytest.skip("DejaVu is not installed")
    with pytest.raises(UsageError, match="has no '肺'"):
        configured(tmp_path, f'languages = ["zh-Hant"]\nfont = "{font}"')
    assert configured(tmp_path, f'font = "{font}"').font == font


def test_report_states_why_an_image_could_not_be_read():
    found = read(shared_objects("unreadable").files["structured_report"])
    values = {}
    for element in found.iterall():
        for item in element.value if element.keyword == "ContentSequence" else ():
            if "ConceptCodeSequence" in item:
                (code,) = item.ConceptCodeSequence
                values[item.ConceptNameCodeSequence[0].CodeMeaning] = (
                    code.get("CodeValue") or code.LongCodeValue, code.CodeMeaning,
                )  # fmt: skip
    assert values["Reason of the decision"] == ("unreadable_image", "The image could not be read")
    assert values["Why the image could not be read"] == ("multiple_frames", "Multiple frames")
    texts = [element.value for element in found.iterall() if element.keyword == "TextValue"]
    assert "Not assessed: the image cannot be read: the file has 12 frames, not 1" in texts


@pytest.mark.parametrize("code", get_args(UnreadableCode))
def test_reason_of_an_unreadable_image_fits_in_a_code(code):
    """PS3.5 6.2: a meaning has 64 characters at most."""
    assert 0 < len(unreadable_code(code).meaning) <= 64


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ("voi_lut_function_unknown", "VOI LUT function unknown"),
        ("dicom_header_not_readable", "DICOM header not readable"),
        ("pixel_data_vr_invalid", "Pixel data VR invalid"),
        ("multiple_frames", "Multiple frames"),
    ],
)
def test_meaning_of_a_code_has_acronyms_in_capitals(code, meaning):
    assert unreadable_code(code).meaning == meaning


def test_report_quotes_no_control_characters_of_the_header():
    reason = UnreadableReason("color_not_supported", {"photometric": "A\x1b\x07B\n", "samples": 3})
    prediction = dataclasses.replace(PREDICTIONS["unreadable"], failure=Failure("unreadable_image", "", reason=reason))
    header = read_header(image_file(**COMPLETE))
    written = structured_report(Result("1.2.3", prediction, matrix.CREATED, header, ResultSettings()))
    texts = [element.value for element in read(written).iterall() if element.keyword == "TextValue"]
    assert "Not assessed: the image cannot be read: it is in color (A  B , 3 samples per pixel)" in texts


@pytest.mark.parametrize("font", ["missing.ttf", "dicom.toml"])
def test_unreadable_font_is_an_error(tmp_path, font):
    with pytest.raises(UsageError, match=font):
        configured(tmp_path, f'font = "{font}"')


@pytest.mark.parametrize(
    "text", ["languages = []", 'languages = ["fr"]', 'objects = ["rejection_note"]', "series_number = 2147483644"]
)
def test_invalid_settings_are_errors(tmp_path, text):
    with pytest.raises(UsageError, match=text.partition(" ")[0]):
        configured(tmp_path, text)


def test_other_kinds_are_off_by_default(tmp_path):
    assert configured(tmp_path, "").objects == ("secondary_capture", "structured_report")
    kinds = ("parametric_map", "presentation_state")
    assert configured(tmp_path, f"objects = {list(kinds)}".replace("'", '"')).objects == kinds


def test_pydicom_reads_every_object():
    for kind, content in shared_objects("pneumonia").files.items():
        assert pydicom.dcmread(io.BytesIO(content)).file_meta.MediaStorageSOPClassUID == SOP_CLASSES[kind]


def test_image_that_cannot_be_read_has_no_overlays():
    settings = ResultSettings(
        objects=("secondary_capture", "structured_report", "parametric_map", "presentation_state")
    )
    assert settings.kinds(has_heatmap=False) == ("secondary_capture", "structured_report", "presentation_state")
    assert settings.kinds(has_heatmap=False, is_readable=False) == ("secondary_capture", "structured_report")
    only = ResultSettings(objects=("presentation_state",))
    assert only.kinds(has_heatmap=False, is_readable=False) == ("structured_report",)

"""Messages rendered from codes, in English and Traditional Chinese."""

import dataclasses
import re
from typing import get_args

import pytest

from pneumoscope.core import errors
from pneumoscope.core.error_messages import error_detail, error_text, error_texts
from pneumoscope.core.i18n import LANGUAGES, NOTICE
from pneumoscope.core.identity import Identity, age_at_study
from pneumoscope.core.identity_check import SEXES, FieldProblem
from pneumoscope.core.interval import Interval
from pneumoscope.core.messages import (
    age_text,
    counted,
    decision_label,
    field_problem_message,
    of_patients_text,
    operating_point_label,
    operating_point_rule,
    patients_text,
    punctuation,
    sex_label,
)
from pneumoscope.core.population import Population
from pneumoscope.core.prediction import Failure, ModelInfo, PatientAge, Prediction, Rejection, Uncertainty
from pneumoscope.core.prediction_codes import DECISIONS, REJECTION_CODES
from pneumoscope.core.prediction_messages import (
    age_conflict_message,
    notice,
    notice_of_unknown_model,
    prediction_message,
    probability_message,
    probability_text,
    result_message,
    result_title,
    site_note,
)
from pneumoscope.core.rejection_messages import rejection_label, rejection_message
from pneumoscope.core.unreadable import UnreadableReason

PARAMETERS = {
    "outside_age_range": {"age": 61, "minimum": 1, "maximum": 5},
    "outside_age_range_estimated": {"score": 0.912, "limit": 0.125, "minimum": 3, "maximum": 5},
    "age_required": {"minimum": 1, "maximum": 5},
    "age_not_understood": {"stated": "PatientAge: 4Q"},
    "out_of_distribution": {"distance": 1.522, "limit": 1.422},
    "modality_not_supported": {"modality": "CT"},
    "modality_not_understood": {"modality": "OT"},
    "body_part_not_chest": {"part": "HAND"},
    "lateral_view": {"view": "LL"},
    "view_not_understood": {"view": "ZZ", "element": "ViewPosition"},
    "laterality_not_understood": {"laterality": "ODD"},
    "presentation_intent_not_understood": {"intent": "OTHER"},
    "excluded_by_site_rule": {"rule": "adults"},
    "too_small": {"width": 40, "height": 30, "minimum": 56},
    "too_narrow": {"width": 900, "height": 100, "max_aspect": 4},
    "color": {"chroma": 30.125, "limit": 12.125},
    "blank": {"levels": 7, "minimum": 12},
    **{
        code: {"probability": 0.123, "limit": 0.625}
        for code in ("not_a_chest_radiograph", "inverted", "upside_down", "rotated_90", "mirrored", "cropped")
    },
}


def numbers(text: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:\.\d+)?", text))


def prediction(**fields: object) -> Prediction:
    model = ModelInfo("gray", "0.1.0", "ab" * 32)
    return Prediction(**{"path": "a.png", "decision": None, "operating_point": "balanced", "model": model} | fields)


@pytest.mark.parametrize("code", REJECTION_CODES)
def test_every_rejection_has_a_message_with_its_numbers_in_both_languages(code):
    rejection = Rejection(code, PARAMETERS.get(code, {}))
    english, chinese = (rejection_message(rejection, language) for language in LANGUAGES)
    assert english != chinese
    assert numbers(english) == numbers(chinese)
    for value in rejection.parameters.values():
        assert f"{value}" in english


@pytest.mark.parametrize(
    ("code", "parameters", "english", "chinese"),
    [
        (
            "inverted", {"probability": 0.0123, "limit": 0.5},
            "Black and white appear to be inverted. Probability of an upright chest radiograph: 0.012; rejected below 0.500",
            "影像黑白可能反轉。為方向正確之胸部 X 光影像的機率：0.012；低於 0.500 則不予判定",
        ),
        (
            "out_of_distribution", {"distance": 1.9, "limit": 1.4},
            "the view or the body part may differ. Distance from the training images: 1.900; rejected above 1.400",
            "與訓練影像的距離：1.900；超過 1.400 則不予判定",
        ),
        (
            "outside_age_range_estimated", {"score": 0.93, "limit": 0.5, "minimum": 1, "maximum": 5},
            "range of 1 to 5 years. Score of the age check (0 to 1): 0.930; rejected above 0.500",
            "年齡檢查分數（0 至 1）：0.930；超過 0.500 則不予判定",
        ),
    ],
)  # fmt: skip
def test_message_of_a_rejection_ends_with_the_value_and_the_limit(code, parameters, english, chinese):
    rejection = Rejection(code, parameters)
    assert rejection_message(rejection).endswith(english)
    assert rejection_message(rejection, "zh-Hant").endswith(chinese)
    rejected = prediction(decision="rejected", rejection=rejection)
    assert prediction_message(rejected).endswith(english)
    assert result_title(rejected).endswith(english)


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [
        (0.503, 0.5, "0.503; rejected above 0.500"),
        (1.42004, 1.42, "1.420040; rejected above 1.420000"),
        (1.42000001, 1.42, "1.420000010; rejected above 1.420000000"),
        (0.1 + 0.2, 0.3, "0.30000000000000004; rejected above 0.3"),
    ],
)
def test_value_of_a_rejection_has_the_digits_that_differ_from_the_limit(value, limit, text):
    assert text in rejection_message(Rejection("out_of_distribution", {"distance": value, "limit": limit}))


def test_stated_age_that_contradicts_the_image_comes_after_the_value():
    rejection = Rejection("outside_age_range_estimated", {"score": 0.93, "limit": 0.5, "minimum": 1, "maximum": 5})
    message = prediction_message(prediction(decision="rejected", rejection=rejection, age=PatientAge(4.0, "header")))
    assert message.endswith(
        "rejected above 0.500. The stated age of 4 years is in the model's range: check that the image is of this patient"
    )


@pytest.mark.parametrize("code", REJECTION_CODES)
def test_every_rejection_has_a_short_label_in_both_languages(code):
    english, chinese = (rejection_label(code, language) for language in LANGUAGES)
    assert english != chinese
    assert "{" not in english + chinese


def test_contradictory_age_comes_first_in_the_message_with_both_ages():
    dates = Identity(patient_birth_date="1990-02-03", study_date="2026-02-03")
    found = prediction(
        decision="no_pneumonia",
        probability=0.1,
        age=PatientAge(4.0, "header"),
        identity=dates,
        warnings=("view_not_stated",),
    )
    words = "Contradictory age: 4 years stated, 36 years by birth date and study date. The result may not apply"
    assert age_conflict_message(found) == f"{words}; check the patient"
    assert prediction_message(found).startswith(
        f"{words}; check the patient. Other findings are not assessed. View not stated"
    )
    assert age_conflict_message(found, "zh-Hant").startswith(
        "年齡互相矛盾：記載為 4 歲，依出生日期與檢查日期則為 36 歲"
    )
    for age in (34.5, 37.5, None):
        agreeing = dataclasses.replace(found, age=age and PatientAge(age, "entered"))
        assert age_conflict_message(agreeing) == ""


@pytest.mark.parametrize("problem", get_args(FieldProblem))
def test_every_problem_of_a_field_has_a_sentence_in_both_languages(problem):
    english, chinese = (field_problem_message(problem, language) for language in LANGUAGES)
    assert english.endswith(".")
    assert chinese.endswith("。")


def test_sex_is_a_word_and_as_stated_if_it_is_unknown():
    assert [sex_label(sex) for sex in (*SEXES, "W", "")] == ["Female", "Male", "Other", "W", ""]
    assert [sex_label(sex, "zh-Hant") for sex in SEXES] == ["女性", "男性", "其他"]


def test_chinese_has_full_width_signs_without_spaces():
    assert punctuation() == {"colon": ": ", "comma": ", ", "opening": " (", "closing": ")"}
    assert punctuation("zh-Hant") == {"colon": "：", "comma": "、", "opening": "（", "closing": "）"}


@pytest.mark.parametrize(
    ("born", "studied", "english", "chinese"),
    [
        ("2026-11-01", "2026-11-29", "0 mo", "0 個月"),
        ("2025-11-30", "2026-11-29", "11 mo", "11 個月"),
        ("2025-11-29", "2026-11-29", "12 mo", "12 個月"),
        ("2024-11-30", "2026-11-29", "23 mo", "23 個月"),
        ("2024-11-29", "2026-11-29", "2 y", "2 歲"),
        ("2023-11-29", "2026-11-29", "3 y", "3 歲"),
        ("2022-03-10", "2026-11-29", "4 y 8 mo", "4 歲 8 個月"),
        ("2022-03-10", "2026-11-05", "4 y 7 mo", "4 歲 7 個月"),
        ("1981-05-05", "2026-11-29", "45 y", "45 歲"),
        ("2025-11-30", "2026-02-27", "2 mo", "2 個月"),
        ("2025-11-30", "2026-02-28", "2 mo", "2 個月"),
        ("2025-11-30", "2026-03-01", "3 mo", "3 個月"),
        ("2022-03-10", "2026-09-09", "4 y 5 mo", "4 歲 5 個月"),
        ("2022-03-10", "2026-09-10", "4 y 6 mo", "4 歲 6 個月"),
        ("2024-02-29", "2026-02-28", "23 mo", "23 個月"),
        ("2024-02-29", "2026-03-01", "2 y", "2 歲"),
    ],
)
def test_age_is_in_years_and_months(born, studied, english, chinese):
    age = age_at_study(Identity(patient_birth_date=born, study_date=studied))
    assert (age_text(age), age_text(age, "zh-Hant")) == (english, chinese)


def test_detail_of_an_error_is_in_the_language_if_it_is_translated():
    unreadable = errors.UnreadableImageError("", UnreadableReason("empty_file"))
    assert error_detail(unreadable) == ("the file cannot be read: the file is empty (0 bytes)", "en")
    assert error_detail(unreadable, "zh-Hant") == ("檔案是空的（0 位元組）。", "zh-Hant")
    expired = errors.UsageError("the search has expired", hint="Search again")
    assert error_detail(expired) == ("the search has expired. Search again", "en")
    assert error_detail(expired, "zh-Hant") == ("搜尋已過期。請重新搜尋。", "zh-Hant")
    assert error_detail(errors.UsageError("x = 3"), "zh-Hant") == ("x = 3", "en")


def test_decision_labels_are_unique_and_never_normal():
    for language in LANGUAGES:
        labels = [decision_label(decision, language) for decision in DECISIONS]
        assert len(set(labels)) == len(DECISIONS)
        assert not [label for label in labels if "normal" in label.lower() or "正常" in label]
    assert decision_label("no_pneumonia", "zh-Hant") == "未偵測到肺炎"


def test_explanation_comes_from_rejection_uncertainty_or_failure():
    inverted = prediction(decision="rejected", rejection=Rejection("inverted"))
    assert prediction_message(inverted) == "Black and white appear to be inverted"
    uncertain = prediction(decision="uncertain", uncertainty=Uncertainty(0.3, 0.6, 0.95))
    assert "30% 至 60%" in prediction_message(uncertain, "zh-Hant")
    negative = prediction(decision="no_pneumonia", probability=0.1)
    assert prediction_message(negative) == "Other findings are not assessed"
    unreadable = prediction(failure=Failure("unreadable_image", "cannot read 'a.png': it is empty", "Export it again"))
    assert prediction_message(unreadable, "zh-Hant") == "cannot read 'a.png': it is empty. Export it again"
    assert prediction_message(prediction(decision="pneumonia", probability=0.9)) == ""


def interval(low, high):
    return Interval(0.87, low, high, method="venn-abers", n=100, level=None)


@pytest.mark.parametrize(
    ("probability", "ends", "english", "chinese"),
    [
        (
            0.87, (0.8, 0.92),
            "The probability of pneumonia is 87%. Calibration interval (Venn-Abers): 80% to 92%, the range consistent with"
            " the calibration on 100 images. It is not a confidence interval, and the probability can lie at its end",
            "肺炎機率：87%。校準區間（Venn-Abers）：80% 至 92%，為 100 張校準影像所無法排除的機率範圍。"
            "此區間並非信賴區間，機率可能位於區間的一端",
        ),
        (0.87, (0.868, 0.873), "The probability of pneumonia is 87%", "肺炎機率：87%"),
        (0.999, (0.995, 1.0), "The probability of pneumonia is above 99%", "肺炎機率：高於 99%"),
        (0.87, None, "The probability of pneumonia is 87%", "肺炎機率：87%"),
        (
            0.02, (0.0, 0.02),
            "The probability of pneumonia is 2%. Calibration interval (Venn-Abers): below 1% to 2%, the range consistent with the"
            " calibration on 100 images. It is not a confidence interval, and the probability can lie at its end",
            "肺炎機率：2%。校準區間（Venn-Abers）：低於 1% 至 2%，為 100 張校準影像所無法排除的機率範圍。"
            "此區間並非信賴區間，機率可能位於區間的一端",
        ),
        (
            0.97, (0.96, 1.0),
            "The probability of pneumonia is 97%. Calibration interval (Venn-Abers): 96% to above 99%, the range consistent with"
            " the calibration on 100 images. It is not a confidence interval, and the probability can lie at its end",
            "肺炎機率：97%。校準區間（Venn-Abers）：96% 至高於 99%，為 100 張校準影像所無法排除的機率範圍。"
            "此區間並非信賴區間，機率可能位於區間的一端",
        ),
        (None, None, "", ""),
    ],
)  # fmt: skip
def test_probability_comes_with_what_its_interval_means(probability, ends, english, chinese):
    found = prediction(decision="pneumonia", probability=probability, interval=ends and interval(*ends))
    assert probability_message(found) == english
    assert probability_message(found, "zh-Hant") == chinese


def test_uncertain_range_that_rounds_to_one_value_is_one_value():
    uncertain = prediction(decision="uncertain", uncertainty=Uncertainty(0.441, 0.443, 0.95))
    assert "in the uncertain range (44%)" in prediction_message(uncertain)


def test_result_is_explained_in_full_sentences():
    found = prediction(decision="no_pneumonia", probability=0.1, interval=interval(0.05, 0.2))
    probability = (
        "The probability of pneumonia is 10%. Calibration interval (Venn-Abers): 5% to 20%, the range consistent with the"
        " calibration on 100 images. It is not a confidence interval, and the probability can lie at its end. Probabilities are"
        " for a prevalence of 50%; if pneumonia is less common among your patients, they are too high."
    )
    assert result_message(found, prevalence=0.5) == ("Other findings are not assessed.", probability)
    assert result_message(found, "zh-Hant", prevalence=0.005, stated=True) == (
        "其他發現不在評估範圍內。",
        "肺炎機率：10%。校準區間（Venn-Abers）：5% 至 20%，為 100 張校準影像所無法排除的機率範圍。"
        "此區間並非信賴區間，機率可能位於區間的一端。機率以肺炎盛行率 0.5% 為準。",
    )
    assert result_message(found)[1].endswith("can lie at its end.")  # the prevalence of another model is unknown
    inverted = prediction(decision="rejected", rejection=Rejection("inverted"))
    assert result_message(inverted, prevalence=0.5) == ("Black and white appear to be inverted.",)
    assert result_message(prediction(decision="pneumonia", probability=0.9)) == (
        "The probability of pneumonia is 90%.",
    )


def test_site_is_named_by_its_kind():
    assert site_note(ModelInfo("m", "1", "ab")) == ""
    assert site_note(ModelInfo("m", "1", "ab", "North (0123abcd)"), "zh-Hant") == "院所設定檔：North (0123abcd)"
    assert site_note(ModelInfo("m", "1", "ab", prevalence=0.125)) == "Prevalence: 12.5%"


def test_warnings_follow_the_explanation_as_sentences_of_the_language():
    found = prediction(decision="uncertain", uncertainty=Uncertainty(0.3, 0.6, 0.95), warnings=("age_not_stated",))
    english, chinese = prediction_message(found), prediction_message(found, "zh-Hant")
    assert english.startswith("The probability is in the uncertain range (30% to 60%), where the model")
    assert ". Read the image without the prediction. Age not stated" in english
    assert chinese.count("。") == 2
    assert "." not in chinese


@pytest.mark.parametrize(
    ("rule", "english", "chinese"),
    [
        (("fixed", None, None, False), "fixed score of 0.5", "固定分數 0.5"),
        (
            ("youden", None, 80, True),
            "highest Youden index on 80 validation images, augmented",
            "在 80 張驗證影像上 Youden 指數最高的門檻值（影像經擴增）",
        ),
        (
            ("sensitivity", 0.99, 80, False),
            "highest threshold with sensitivity 0.99 on 80 validation images with pneumonia",
            "在 80 張肺炎驗證影像上敏感度達 0.99 的最高門檻值",
        ),
        (
            ("specificity", 0.99, 80, True),
            "lowest threshold with specificity 0.99 on 80 validation images without pneumonia, both unmodified and augmented",
            "在 80 張非肺炎驗證影像上特異度達 0.99 的最低門檻值（未修改與擴增的影像皆符合）",
        ),
    ],
)
def test_operating_point_rule_states_target_and_images(rule, english, chinese):
    assert operating_point_rule(*rule) == english
    assert operating_point_rule(*rule, language="zh-Hant") == chinese


def test_operating_point_label_contains_the_name_of_the_command_line():
    for name in ("half", "balanced", "rule_out", "rule_in"):
        assert operating_point_label(name) == name
        assert re.fullmatch(rf".+（{name}）", operating_point_label(name, "zh-Hant"))
    assert operating_point_label("mine", "zh-Hant") == "mine"


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.0, "below 1%"), (0.0099, "below 1%"), (0.01, "1%"), (0.5, "50%"), (0.99, "99%"), (0.991, "above 99%")],
)
def test_probability_is_never_shown_as_zero_or_certain(probability, text):
    assert probability_text(probability) == text


def test_error_text_is_that_of_the_nearest_base_class():
    assert error_text(errors.BusyError("256 images wait"))[0] == "Service busy"
    assert error_text(errors.RecipeError("unknown field")) == error_text(errors.InputError("x"))
    assert error_text(errors.DivergedError("x"))[0] == "Internal error"
    assert error_text(errors.StorageError("x"), "zh-Hant") == (
        "儲存空間無法使用",
        "資料未儲存，請聯絡系統管理員。",
    )
    assert error_texts()["unreadable_image"] == ("Unreadable image", "Export the image again, or choose another file")


def test_advice_for_every_error_is_in_the_language_of_the_page():
    texts = error_texts("zh-Hant")
    assert texts["busy"] == ("系統忙碌中", "請稍候幾秒再試")
    assert texts.keys() == {getattr(errors, name).code for name in errors.__all__}
    assert all(re.search("[\u4e00-\u9fff]", text) for pair in texts.values() for text in pair)


@pytest.mark.parametrize(("language", "words"), [("en", "The stated age of 3 years"), ("zh-Hant", "記載的年齡 3 歲")])
def test_estimated_age_that_contradicts_the_stated_one_is_explained(language, words):
    rejection = Rejection("outside_age_range_estimated", {"score": 0.7, "limit": 0.5, "minimum": 1, "maximum": 5})
    stated = prediction(decision="rejected", rejection=rejection, age=PatientAge(3))
    assert words in prediction_message(stated, language)
    assert words not in prediction_message(dataclasses.replace(stated, age=None), language)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 test images"), (1, "1 test image"), (2, "2 test images"), (1200, "1,200 test images")]
)
def test_counted_noun_is_singular_for_one(number, text):
    assert counted(number, "test image") == text


def test_notice_is_translated():
    assert notice() == NOTICE
    assert notice(language="zh-Hant") == "研究與教學用軟體，非醫療器材。"


@pytest.mark.parametrize(
    ("population", "english", "chinese"),
    [
        ({}, "Its training population is unknown.", "模型訓練所用的病人族群不明。"),
        (
            {"ages": (1, 5), "sites": 1, "view": "AP"},
            "Trained on AP radiographs of children of 1 to 5 years from one hospital.",
            "模型以單一醫院 1 至 5 歲兒童的前後位（AP）影像訓練。",
        ),
        (
            {"ages": (18, 94.5), "sites": 3, "view": "frontal"},
            "Trained on frontal radiographs of adults of 18 to 94.5 years from 3 hospitals.",
            "模型以 3 家醫院 18 至 94.5 歲成人的正面影像訓練。",
        ),
        (
            {"ages": (0, 94)},
            "Trained on radiographs of unknown view of patients of 0 to 94 years from unknown hospitals.",
            "模型以不明醫院 0 至 94 歲病人的攝影方向不明的影像訓練。",
        ),
        (
            {"view": "PA"},
            "Trained on PA radiographs of patients of unknown age from unknown hospitals.",
            "模型以不明醫院年齡不明病人的後前位（PA）影像訓練。",
        ),
        ({"ages": (1, 5), "sentence": "Trained on {phantoms} 100%"}, *["Trained on {phantoms} 100%"] * 2),
    ],
)
def test_notice_states_the_population_of_the_model(population, english, chinese):
    stated = Population(**population)
    assert notice(stated) == f"{NOTICE} {english}"
    assert notice(stated, "zh-Hant") == f"{notice(language='zh-Hant')}{chinese}"


def test_notice_of_another_model_states_no_population_of_the_current_one():
    assert notice_of_unknown_model().startswith(f"{NOTICE} This result comes from an earlier model;")
    assert "Trained on" not in notice_of_unknown_model()
    assert notice_of_unknown_model("zh-Hant").startswith("研究與教學用軟體，非醫療器材。此結果由先前的模型產生；")


@pytest.mark.parametrize(
    ("patients", "unknown", "text", "of_text"),
    [
        (12, 0, "12 patients", "of 12 patients"),
        (12, None, "12 patients", "of 12 patients"),
        (1, 0, "1 patient", "of 1 patient"),
        (
            28,
            28,
            "patients unknown, each image counts as one",
            "of unknown patients (each image counts as one)",
        ),
        (
            14,
            4,
            "10 known patients; 4 images have no known patient",
            "of 10 known patients (4 images have no known patient)",
        ),
        (2, 1, "1 known patient; 1 image has no known patient", "of 1 known patient (1 image has no known patient)"),
    ],
)
def test_unknown_patients_are_not_called_patients(patients, unknown, text, of_text):
    assert patients_text(patients, unknown, 28) == text
    assert of_patients_text(patients, unknown, 28) == of_text

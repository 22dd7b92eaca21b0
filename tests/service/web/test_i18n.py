"""The page's languages: every sentence of every template is in the table, with the same things to put in."""

import re
from pathlib import Path

import pytest
from pneumoscope.inference.rejection import _WORDS

from pneumoscope.bundle.card import read_bundle
from pneumoscope.core.i18n import NOTICE
from pneumoscope.runs.run_folder import find_bundle
from pneumoscope.service import page, problems
from pneumoscope.service.web.i18n import LANGUAGES, Words, choose
from pneumoscope.service.web.routes import _ORDERS


def find_card():
    return read_bundle(find_bundle(None))[0]


TEMPLATES = sorted(Path(page.__file__).parent.glob("templates/*.html"))
CALL = re.compile(r"""\bt\(\s*(?:"([^"]*)"|'([^']*)')""")
# Said by Python, not by a template.
OTHERS = {"below 1%", "above 99%", *_ORDERS.values()}
TITLES = {title for status, title in problems._TITLES.items() if status in (404, 422, 500, 503)}
PLACES = re.compile(r"\{\w+\}")


def sentences():
    found = {double or single for file in TEMPLATES for double, single in CALL.findall(file.read_text("utf-8"))}
    assert len(found) > 100
    return found | OTHERS | TITLES


@pytest.mark.parametrize("language", [name for name in LANGUAGES if name != "en"])
def test_every_sentence_is_in_the_table_and_none_is_for_nothing(language):
    known = Words(language).known
    assert set(known) == sentences()
    for english, said in known.items():
        assert sorted(PLACES.findall(said)) == sorted(PLACES.findall(english)), english
        assert said.strip()


def test_english_is_what_stands_in_the_template():
    assert Words("en")("{n} images", n=3) == "3 images"
    assert Words("zh-Hant")("{n} images", n=3) == "3 張影像"
    assert Words("zh-Hant")("{done} of {all} done, {failed} failed").count("{") == 3  # for the browser to put in


@pytest.mark.parametrize(
    "reason",
    [
        NOTICE,
        *_WORDS.values(),
        "unlike the images that the model was trained on: perhaps of another age, another view or another part of the"
        " body (distance 1.52, at most 1.42 is known)",
        "of another age than the patients that the model learned from: 61.0 years, and they were 1 to 5",
        "either label is too likely for 95% of the images of each to be called rightly",
        "too small: 40 x 30 pixels, and 56 are the least on each side",
        "too narrow for a chest: 900 x 100 pixels",
        "in colour: a radiograph is grey",
        "blank: its grey levels lie within 7 of 256",
        *(point.rule for point in find_card().operating_points.values()),
        *(point.rule.removesuffix(", augmented") for point in find_card().operating_points.values()),
    ],
)
def test_what_the_software_says_of_images_is_said_with_the_same_numbers(reason):
    said, language = Words("zh-Hant").of_image(reason)
    assert language == "zh-Hant"
    assert set(re.findall(r"\d+(?:\.\d+)?", reason)) == set(re.findall(r"\d+(?:\.\d+)?", said))
    assert Words("en").of_image(reason) == (reason, "en")


@pytest.mark.parametrize("name", find_card().operating_points)
def test_an_operating_point_keeps_the_name_that_programs_use(name):
    said, language = Words("zh-Hant").of_image(name)
    assert name in said
    assert language == "zh-Hant"


def test_what_is_not_in_the_table_stays_english_and_says_so():
    assert Words("zh-Hant").of_image("something new") == ("something new", "en")


@pytest.mark.parametrize(
    ("asked", "accepted", "language"),
    [
        ("", "", "en"),
        ("zh-Hant", "en", "zh-Hant"),
        ("../../etc/passwd", "zh-TW,zh;q=0.9,en;q=0.8", "zh-Hant"),
        ("", "en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("", "fr, de;q=0.5", "en"),
        ("", "fr, zh-TW;q=0.5", "zh-Hant"),
    ],
)
def test_the_language_is_the_persons_choice_or_else_their_browsers(asked, accepted, language):
    assert choose(asked, accepted) == language

"""Ages in DICOM headers: the standard's form, the forms of other software, and values that must not be ignored."""

from datetime import date

import pytest
from pydicom import Dataset, config

from pneumoscope.core.prediction import PatientAge
from pneumoscope.imaging.patient_age import parse_age, parse_date, read_age


@pytest.fixture(autouse=True)
def any_values(monkeypatch):
    """Let the tests write values that the standard does not allow, as other software does."""
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.IGNORE)
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)


def header(**elements):
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("004Y", 4), ("062Y", 62), ("018M", 1.5), ("030W", 30 * 7 / 365.25), ("365D", 365 / 365.25), ("000D", 0),
        ("62", 62), ("62Y", 62), ("0062Y", 62), ("062y", 62), ("62 years", 62), ("62 yrs", 62), ("18 months", 1.5), ("18mo", 1.5),
        ("18M", 1.5), ("18m", 1.5), ("0018M", 1.5), ("24M", 2),
        ("3.5", 3.5), ("4Y2M", 4 + 2 / 12), ("3 yrs 6 mths", 3.5), ("62 years old", 62), ("3,5", 3.5),
        ("62 Jahre", 62), ("62 anos", 62), ("4歲", 4), ("18 個月", 1.5), ("4 года", 4),
        ("18 meses", 1.5),
        ("4 y.", 4), (" 4Y ", 4), ("4YO", 4), ("6 Weeks", 6 * 7 / 365.25),
    ],
)  # fmt: skip
def test_ages_are_understood(text, years):
    assert parse_age(text) == pytest.approx(years)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Y",
        "abc",
        "-4Y",
        "4Z",
        "131Y",
        "4-5",
        "45M",
        "45 M",
        "45F",
        "25M",
        "999999",
        "1960",
        "\uff14\uff39",
    ],
)
def test_other_texts_are_not_ages(text):
    assert parse_age(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "19600307",
        "1960.03.07",
        "1960-03-07",
        "1960/03/07",
        "07.03.1960",
        "7.3.1960",
        " 19600307 ",
        "19600307101500",
        "19600307101500.123+0100",
        "1960-03-07T10:15:00Z",
        "1960-03-07 10:15",
        "7 March 1960",
        "07-MAR-1960",
        "07Mar1960",
        "March 7, 1960",
        "Mar 7 1960",
        "1960030710",
        "19600307+0800",
    ],
)
def test_dates_are_understood(text):
    assert parse_date(text) == date(1960, 3, 7)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "196003",
        "19601301",
        "19600230",
        "03/07/1960",
        "07-03-1960",
        "1960-03/07",
        "7 Foo 1960",
        "31/31/1960",
        "1960-03-07X",
        "19600307 about",
        "60",
        "19600307-19600401",
    ],
)
def test_dates_that_are_wrong_incomplete_or_ambiguous_are_not_understood(text):
    assert parse_date(text) is None


@pytest.mark.parametrize("text", ["25/12/1960", "12/25/1960", "25-12-1960"])
def test_dates_with_a_day_above_12_have_one_meaning(text):
    assert parse_date(text) == date(1960, 12, 25)
    assert parse_date("5/5/1960") == date(1960, 5, 5)


def test_single_m_is_months_unless_the_birth_date_contradicts():
    assert read_age(header(PatientAge="18M")) == PatientAge(1.5)
    assert read_age(header(PatientAge="18M", PatientBirthDate="20180701", StudyDate="20200101")) == PatientAge(1.5)
    for age in ("18M", "22m"):
        man = read_age(header(PatientAge=age, PatientBirthDate="20000101", StudyDate="20200101"))
        assert man.years is None
    assert read_age(header(PatientAge="018M", PatientBirthDate="20180101", StudyDate="20200101")) == PatientAge(1.5)


def test_next_examination_date_is_used_if_one_is_not_understood():
    age = read_age(header(PatientBirthDate="20160101", AcquisitionDate="00000000", StudyDate="20200101"))
    assert age == PatientAge(pytest.approx(4, abs=0.01))


def test_header_without_age_and_birth_date_states_no_age():
    assert read_age(header(StudyDate="20200101")) is None
    assert read_age(header(PatientAge="", PatientBirthDate="  ")) is None


def test_stated_age_comes_before_dates():
    assert read_age(header(PatientAge="004Y", PatientBirthDate="20150101", StudyDate="20200101")) == PatientAge(4)


def test_contradictory_statements_are_not_understood():
    age = read_age(header(PatientAge="003Y", PatientBirthDate="19600101", StudyDate="20200101"))
    assert age == PatientAge(None, stated="PatientAge: 3 y; PatientBirthDate: 60 y")
    reset = read_age(header(PatientBirthDate="19780301", AcquisitionDate="19800101", StudyDate="20200101"))
    assert reset == PatientAge(None, stated="PatientBirthDate: 2\N{EN DASH}42 y")


@pytest.mark.parametrize("element", ["AcquisitionDate", "ContentDate", "SeriesDate", "StudyDate"])
def test_age_from_birth_to_any_examination_date(element):
    age = read_age(header(PatientBirthDate="19600101", **{element: "2020.01.01"}))
    assert age == PatientAge(pytest.approx(60, abs=0.01))


def test_age_from_birth_to_the_time_of_acquisition():
    age = read_age(header(PatientBirthDate="20160101", AcquisitionDateTime="20200101123000.5+0100"))
    assert age == PatientAge(pytest.approx(4, abs=0.01))


@pytest.mark.parametrize(
    ("elements", "stated"),
    [
        # Values could identify a patient: only their form is kept.
        ({"PatientAge": "45M"}, "PatientAge: 99x"),
        ({"PatientAge": "999Y", "PatientBirthDate": "20160101", "StudyDate": "20200101"}, "PatientAge: 999x"),
        ({"PatientAge": "J" * 100 + "\x07"}, "PatientAge: " + "x" * 24),
        ({"PatientBirthDate": "03/07/1960", "StudyDate": "20200101"}, "PatientBirthDate: 99/99/9999"),
        ({"PatientBirthDate": "7 Foo 1960", "StudyDate": "20200101"}, "PatientBirthDate: 9 xxx 9999"),
        ({"PatientBirthDate": "19600307", "StudyDate": "yesterday"}, "StudyDate: xxxxxxxxx"),
        ({"PatientBirthDate": "19600307"}, "StudyDate: \N{EN DASH}"),
        # The creation of a file is not an examination: it may be exported years later.
        ({"PatientBirthDate": "20180307", "InstanceCreationDate": "20200101"}, "StudyDate: \N{EN DASH}"),
        ({"PatientBirthDate": "20210101", "StudyDate": "20200101"}, "PatientBirthDate, StudyDate: -1 y"),
        ({"PatientBirthDate": "18500101", "StudyDate": "20200101"}, "PatientBirthDate, StudyDate: 170 y"),
    ],
)
def test_stated_values_that_are_not_understood_are_kept(elements, stated):
    assert read_age(header(**elements)) == PatientAge(None, stated=stated)

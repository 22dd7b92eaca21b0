"""Read the patient's age from a DICOM header, in the standard's format and those of other software.

A value that is present but not understood rejects the image; if it were ignored, an adult could get a prediction.
"""

from __future__ import annotations

import math
import re
from datetime import date

from pydicom import Dataset

from pneumoscope.core.identity import years_between
from pneumoscope.core.prediction import MAX_AGE, PatientAge
from pneumoscope.imaging.header_checks import element_text

__all__ = ["AGE_ELEMENTS", "parse_age", "parse_date", "read_age"]

_NOTHING = "\N{EN DASH}"  # quoted instead of an empty value
_MAX_QUOTED = 24  # characters of a value quoted in a message

# PS3.5 section 6.2 (AS): three digits and D, W, M or Y. Some software writes a fourth digit.
_STANDARD = re.compile(r"(?P<number>0?\d{3})(?P<unit>[DWMY])")
# Headers also contain other numbers of digits, no unit (years, as in the RSNA challenge data) and words. A single M
# means months up to `_MAX_MONTHS`, unless the birth date contradicts; above, "45M" could also be a 45-year-old man.
_OTHER = re.compile(r"(?P<number>\d{1,5}(?:[.,]\d{1,3})?)\s*(?P<unit>[^\W\d_]*)\.?(?:\s*OLD)?", re.IGNORECASE)
_YEARS_AND_MONTHS = re.compile(
    r"(?P<years>\d{1,3})\s*(Y|YRS?|YEARS?)[\s,]*(?P<months>\d{1,2})\s*(M|MO|MOS|MTHS?|MONTHS?)", re.IGNORECASE
)
_MAX_MONTHS = 24
_MAX_CONTRADICTION = 2  # years between two statements
_UNITS = {
    unit: years
    for years, units in (
        (1 / 365.25, "d day days tag tage dia dias jour jours giorni 天 日"),
        (7 / 365.25, "w wk wks week weeks woche wochen semana semanas semaine semaines 週 周"),
        (1 / 12, "mo mos mon mth mths month months monat monate mes meses mois mesi 月 個月 个月 ヶ月 か月 мес"),
        (1, "y yr yrs year years yo j jahr jahre jaar ar let lat a an ans ano anos anni 歲 岁 歳 才 세 год года лет"),
    )
    for unit in units.split()
} | {"": 1}
# PS3.5: YYYYMMDD, before 1993 YYYY.MM.DD. ISO 8601, YYYY/MM/DD and month names are common, with or without a time.
# DD.MM.YYYY is unambiguous. With slashes or dashes, day and month may be swapped, so the date is understood only if
# both readings agree or one is invalid.
_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_TIME = r"(?:[T ]?\d{2}(?::?\d{2}(?::?\d{2})?)?(?:\.\d*)?)?(?:Z|[+-]\d{2}:?\d{2})?"
_DATES = (
    re.compile(r"(?P<year>\d{4})(?P<separator>[-./ ]?)(?P<month>\d{2})(?P=separator)(?P<day>\d{2})" + _TIME),
    re.compile(r"(?P<year>\d{4})(?P<separator>[-./:])(?P<month>\d{1,2})(?P=separator)(?P<day>\d{1,2})"),
    re.compile(r"(?P<year>\d{4})-(?P<name>[a-z]{3,})-(?P<day>\d{1,2})", re.IGNORECASE),
    re.compile(r"(?P<day>\d{1,2})\.(?P<month>\d{1,2})\.(?P<year>\d{4})"),
    re.compile(r"(?P<day>\d{1,2})[-. ]*(?P<name>[a-z]{3,})[-., ]*(?P<year>\d{4})", re.IGNORECASE),
    re.compile(r"(?P<name>[a-z]{3,})[-. ]*(?P<day>\d{1,2})[-., ]+(?P<year>\d{4})", re.IGNORECASE),
)
_DAY_OR_MONTH_FIRST = re.compile(r"(?P<first>\d{1,2})([-/])(?P<second>\d{1,2})\2(?P<year>\d{4})")
_EXAMINATION_DATES = (
    "AcquisitionDate", "AcquisitionDateTime", "ContentDate", "SeriesDate", "StudyDate",
)  # fmt: skip
AGE_ELEMENTS = ("PatientAge", "PatientBirthDate", *_EXAMINATION_DATES)


def read_age(header: Dataset) -> PatientAge | None:
    """Return the age in a header, or None if it contains neither an age nor a birth date.

    The age is PatientAge, or else the time from PatientBirthDate to the first examination date that is understood. For a value
    that is not understood, `PatientAge.stated` contains the element and the form of the value, such as "99/99/9999" for a date,
    because the value itself could identify the patient.
    """
    by_date = _age_by_date(header)
    stated = element_text(header, "PatientAge")
    if not stated:
        return by_date
    years = parse_age(stated)
    if years is None:
        return _not_understood("PatientAge", stated)
    if by_date and by_date.years is not None:
        difference = abs(by_date.years - years)
        if difference > _MAX_CONTRADICTION or (_is_ambiguous(stated) and difference > 1):
            return PatientAge(None, stated=f"PatientAge: {years:.0f} y; PatientBirthDate: {by_date.years:.0f} y")
    return PatientAge(years)


def _age_by_date(header: Dataset) -> PatientAge | None:
    """Return the time from PatientBirthDate to the first understood examination date, or None without a birth date.

    If the dates contradict each other, for example after a clock reset, the age is not understood.
    """
    born = element_text(header, "PatientBirthDate")
    if not born:
        return None
    birth = parse_date(born)
    if birth is None:
        return _not_understood("PatientBirthDate", born)
    stated = {name: text for name in _EXAMINATION_DATES if (text := element_text(header, name))}
    ages = {name: years_between(birth, date) for name, text in stated.items() if (date := parse_date(text))}
    if not ages:
        return _not_understood(*next(iter(stated.items()), ("StudyDate", "")))
    name, years = next(iter(ages.items()))
    if not 0 <= years <= MAX_AGE:
        return PatientAge(None, stated=f"PatientBirthDate, {name}: {years:.0f} y")
    if max(ages.values()) - min(ages.values()) > _MAX_CONTRADICTION:
        return PatientAge(
            None, stated=f"PatientBirthDate: {min(ages.values()):.0f}\N{EN DASH}{max(ages.values()):.0f} y"
        )
    return PatientAge(years)


def _is_ambiguous(age: str) -> bool:
    """Return whether "M" could mean male instead of months: a number and a single M that is not in the standard's form."""
    return age.endswith("M") and not _STANDARD.fullmatch(age)


def parse_age(text: str) -> float | None:
    """Return an age in years, such as 1.5 for "018M", or None if the text is not an age."""
    text = text.strip()
    if match := _STANDARD.fullmatch(text):
        unit = 1 / 12 if match["unit"] == "M" else _UNITS[match["unit"].lower()]
    elif match := _YEARS_AND_MONTHS.fullmatch(text):
        return _limited(int(match["years"]) + int(match["months"]) / 12)
    elif match := _OTHER.fullmatch(text):
        unit = _UNITS.get(match["unit"].lower(), math.nan)
        if match["unit"].upper() == "M" and float(match["number"].replace(",", ".")) <= _MAX_MONTHS:
            unit = 1 / 12
    else:
        return None
    return _limited(float(match["number"].replace(",", ".")) * unit)


def _limited(age: float) -> float | None:
    return age if age <= MAX_AGE else None


def parse_date(text: str) -> date | None:
    """Return the date in a text, or None if it is not a date or is ambiguous."""
    text = text.strip()
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            parts = match.groupdict()
            month = int(parts["month"]) if "month" in parts else _month(parts["name"].lower())
            return _date(int(parts["year"]), month, int(parts["day"]))
    if match := _DAY_OR_MONTH_FIRST.fullmatch(text):
        year, first, second = int(match["year"]), int(match["first"]), int(match["second"])
        both = {_date(year, first, second), _date(year, second, first)} - {None}
        return both.pop() if len(both) == 1 else None
    return None


def _month(name: str) -> int:
    """Return the number of a month by its name or first letters, or 0 if unknown."""
    return next((number for number, month in enumerate(_MONTHS, start=1) if month.startswith(name)), 0)


def _date(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None


def _not_understood(name: str, text: str) -> PatientAge:
    """Return an age that is not understood, quoting only its form: 9 for digits, x for letters, ? for unprintable characters."""
    form = "".join(
        "9" if mark.isdigit() else "x" if mark.isalpha() else mark if mark.isprintable() else "?" for mark in text
    )
    return PatientAge(None, stated=f"{name}: {form[:_MAX_QUOTED] or _NOTHING}")

"""Read the patient's age from a DICOM header, as the standard writes it and as other software does.

A value that is stated but cannot be understood rejects the image: treated as absent, an adult would be predicted.
"""

from __future__ import annotations

import math
import re
from datetime import date

from pydicom import Dataset

from pneumoscope.core.prediction import MAX_AGE, PatientAge

__all__ = ["AGE_ELEMENTS", "parse_age", "parse_date", "read_age"]

_MAX_QUOTED = 24  # characters of a value in a message

# PS3.5 section 6.2 (AS): a number of three digits and D, W, M or Y.
_STANDARD = re.compile(r"(?P<number>\d{3})(?P<unit>[DWMY])")
# Headers also have other numbers of digits, no unit (years, as in the RSNA challenge data) and words. A single M would be
# ambiguous: "45M" is a man of 45 years as often as an age of 45 months.
_OTHER = re.compile(r"(?P<number>\d{1,5}(?:\.\d{1,3})?)\s*(?P<unit>[a-z]*)\.?", re.IGNORECASE)
_UNITS = {
    "d": 1 / 365.25, "day": 1 / 365.25, "days": 1 / 365.25,
    "w": 7 / 365.25, "wk": 7 / 365.25, "wks": 7 / 365.25, "week": 7 / 365.25, "weeks": 7 / 365.25,
    "mo": 1 / 12, "mos": 1 / 12, "mon": 1 / 12, "month": 1 / 12, "months": 1 / 12,
    "y": 1, "yr": 1, "yrs": 1, "year": 1, "years": 1, "yo": 1, "": 1,
}  # fmt: skip
# PS3.5: YYYYMMDD, before 1993 YYYY.MM.DD. ISO 8601 and YYYY/MM/DD are common. DD.MM.YYYY has one meaning; with slashes or
# dashes, day and month could be exchanged, so those dates are not understood.
_DATES = (
    re.compile(r"(?P<year>\d{4})(?P<separator>[-./]?)(?P<month>\d{2})(?P=separator)(?P<day>\d{2})"),
    re.compile(r"(?P<day>\d{1,2})\.(?P<month>\d{1,2})\.(?P<year>\d{4})"),
)
_EXAMINATION_DATES = (
    "AcquisitionDate", "AcquisitionDateTime", "ContentDate", "SeriesDate", "StudyDate",
)  # fmt: skip
AGE_ELEMENTS = ("PatientAge", "PatientBirthDate", *_EXAMINATION_DATES)


def read_age(header: Dataset) -> PatientAge | None:
    """Return the age that a header states, or None if it states neither an age nor a birth date.

    The age is PatientAge, or else the time from PatientBirthDate to the first examination date that is stated. If it is not
    understood, `PatientAge.stated` has the element and the form of its value, such as "99/99/9999" for a date: the value itself
    could identify the patient.
    """
    if stated := _text(header, "PatientAge"):
        years = parse_age(stated)
        return PatientAge(years) if years is not None else _not_understood("PatientAge", stated)
    born = _text(header, "PatientBirthDate")
    if not born:
        return None
    birth = parse_date(born)
    if birth is None:
        return _not_understood("PatientBirthDate", born)
    name, examined = next(
        ((name, text) for name in _EXAMINATION_DATES if (text := _text(header, name))), ("StudyDate", "")
    )
    examination = parse_date(examined[:8] if name == "AcquisitionDateTime" else examined)
    if examination is None:
        return _not_understood(name, examined)
    years = (examination - birth).days / 365.25
    if not 0 <= years <= MAX_AGE:
        return PatientAge(None, stated=f"{years:.0f} years from PatientBirthDate to {name}")
    return PatientAge(years)


def parse_age(text: str) -> float | None:
    """Return an age in years, such as 1.5 for "018M", or None if the text is not an age."""
    text = text.strip()
    if match := _STANDARD.fullmatch(text):
        unit = 1 / 12 if match["unit"] == "M" else _UNITS[match["unit"].lower()]
    elif match := _OTHER.fullmatch(text):
        unit = _UNITS.get(match["unit"].lower(), math.nan)
    else:
        return None
    age = float(match["number"]) * unit
    return age if age <= MAX_AGE else None


def parse_date(text: str) -> date | None:
    """Return the date of a text, or None if it is not a date or could mean several."""
    for pattern in _DATES:
        if match := pattern.fullmatch(text.strip()):
            try:
                return date(int(match["year"]), int(match["month"]), int(match["day"]))
            except ValueError:
                return None
    return None


def _text(header: Dataset, name: str) -> str:
    value = header.get(name)
    return "" if value is None else str(value).strip().strip("\0").strip()


def _not_understood(name: str, text: str) -> PatientAge:
    """Return an age that is not understood; of the value, digits become 9, letters x and unprintable characters ?."""
    form = "".join(
        "9" if mark.isdigit() else "x" if mark.isalpha() else mark if mark.isprintable() else "?" for mark in text
    )
    return PatientAge(None, stated=f"{name}: {form[:_MAX_QUOTED] or 'empty'}")

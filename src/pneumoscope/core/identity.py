"""Identity of an image: patient, study, series and instance, from the DICOM header or entered by a person.

The fields are named after their DICOM keywords. They identify a patient, so they must not appear in logs, metrics,
errors or URLs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import unicodedata
from calendar import monthrange
from collections.abc import Sequence
from datetime import date
from typing import Literal

__all__ = [
    "IDENTITY_FIELDS",
    "MAX_IDENTITY_LENGTH",
    "PATIENT_FIELDS",
    "STUDY_FIELDS",
    "ConflictCode",
    "Identity",
    "age_at_study",
    "combine",
    "contradicts",
    "display_name",
    "is_changed",
    "is_other_patient",
    "is_same_person",
    "name_search_words",
    "normalize_field",
    "normalize_text",
    "search_words",
    "years_between",
]

MAX_IDENTITY_LENGTH = 256  # characters; DICOM allows 64, and for names 64 in each of three representations


_IDEOGRAPHS = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]+")
_MAX_AGE_DIFFERENCE = 2  # years
_BIDI_CONTROLS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
# Unambiguous dates as people enter them; see `imaging.patient_age.parse_date` for dates in headers.
_DATES = (
    re.compile(r"(?P<year>\d{4})[-./]?(?P<month>\d{2})[-./]?(?P<day>\d{2})"),
    re.compile(r"(?P<day>\d{1,2})\.(?P<month>\d{1,2})\.(?P<year>\d{4})"),
)

# Reasons: one image under two patients; an identifier shared with another image, study or patient; an age that
# disagrees with the dates.
ConflictCode = Literal[
    "image_of_two_patients", "sop_instance_uid_reused", "study_instance_uid_reused", "patient_id_reused",
    "age_contradicts_dates",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Identity:
    r"""Identity of an image; fields are "" if neither the header nor a person provides a value.

    Attributes:
        patient_id: Patient identifier, unique with its issuer.
        issuer_of_patient_id: Organization that assigned the identifier, such as a hospital.
        patient_name: DICOM person name: "Family^Given^Middle^Prefix^Suffix", with other scripts after "=".
        patient_birth_date: ISO 8601, such as "2021-01-31"; kept unchanged if it cannot be parsed.
        patient_sex: "F", "M" or "O"; any other value is kept unchanged.
        accession_number: Order number in the information system.
        study_instance_uid: Unique identifier of the study.
        study_date: Like `patient_birth_date`.
        study_description: Free text.
        series_instance_uid: Unique identifier of the series.
        sop_instance_uid: Unique identifier of the image.
        station_name: Device name.
    """

    patient_id: str = ""
    issuer_of_patient_id: str = ""
    patient_name: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    accession_number: str = ""
    study_instance_uid: str = ""
    study_date: str = ""
    study_description: str = ""
    series_instance_uid: str = ""
    sop_instance_uid: str = ""
    station_name: str = ""

    def __repr__(self) -> str:
        """Return the names of the non-empty fields, without their values, which could reach a log."""
        return f"Identity({', '.join(self.stated())})"

    def stated(self) -> dict[str, str]:
        """Return the non-empty fields."""
        return {name: value for name in IDENTITY_FIELDS if (value := getattr(self, name))}


PATIENT_FIELDS = ("patient_id", "issuer_of_patient_id", "patient_name", "patient_birth_date", "patient_sex")
STUDY_FIELDS = ("study_instance_uid", "accession_number", "study_date", "study_description")
IDENTITY_FIELDS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Identity))


def combine(stated: Identity | None, entered: Identity | None) -> Identity | None:
    """Return the identity from a header, completed by the values that a person entered; None without either.

    Patient fields are never mixed: if the header has an identifier or a name, all of them come from the header. The
    same applies to the fields of study and image if the header has a study UID or an accession number.
    """
    if stated is None or entered is None:
        return stated or entered
    kept: dict[str, str] = {}
    if stated.patient_id or stated.patient_name:
        kept |= dict.fromkeys(PATIENT_FIELDS, "")
    if stated.study_instance_uid or stated.accession_number:
        kept |= {name: "" for name in IDENTITY_FIELDS if name not in PATIENT_FIELDS}
    return dataclasses.replace(entered, **kept | stated.stated())


def age_at_study(identity: Identity | None) -> float | None:
    """Return the age at the study, years; None if either date is missing or not in ISO 8601."""
    if identity is None:
        return None
    with contextlib.suppress(ValueError):
        born, studied = (date.fromisoformat(each) for each in (identity.patient_birth_date, identity.study_date))
        return years_between(born, studied)
    return None


def years_between(first: date, last: date) -> float:
    """Return the calendar years between two dates: whole on birthdays, and twelfths on the same day of a month."""
    if last < first:
        return -years_between(last, first)
    months = 12 * (last.year - first.year) + last.month - first.month - (last.day < first.day)
    year, month = divmod(first.year * 12 + first.month - 1 + months, 12)
    start = date(year, month + 1, min(first.day, monthrange(year, month + 1)[1]))
    return (months + (last - start).days / 31) / 12


def contradicts(age: float | None, identity: Identity | None) -> bool:
    """Return whether an age, years, differs by more than two years from the age computed from the dates."""
    by_dates = age_at_study(identity)
    return age is not None and by_dates is not None and abs(age - by_dates) > _MAX_AGE_DIFFERENCE


def is_same_person(a: Identity, b: Identity) -> bool:
    """Return whether two identities with the same patient ID can belong to one person.

    Their birth dates must be equal, and all words of one name must occur in the other; missing values are ignored.
    """
    names = set(search_words(a.patient_name)), set(search_words(b.patient_name))
    dates = {a.patient_birth_date, b.patient_birth_date} - {""}
    return len(dates) < 2 and (names[0] <= names[1] or names[1] <= names[0])


def is_other_patient(current: Identity, stated: Identity) -> bool:
    """Return whether two identities differ in ID or issuer, or have conflicting names or birth dates."""
    names = "patient_id", "issuer_of_patient_id"
    return not is_same_person(stated, current) or is_changed(current, stated, names)


def is_changed(current: Identity, stated: Identity, names: Sequence[str]) -> bool:
    """Return whether any of the named fields has a value in both identities and the values differ."""
    return any(getattr(current, name) and getattr(stated, name) not in ("", getattr(current, name)) for name in names)


def normalize_text(text: str) -> str:
    """Return a text for an identity field: NFC, single spaces, no control characters, limited length."""
    composed = unicodedata.normalize("NFC", text)
    printable = "".join(" " if _is_control(mark) else mark for mark in composed)
    return " ".join(printable.split())[:MAX_IDENTITY_LENGTH]


def _is_control(mark: str) -> bool:
    """Return whether a character controls the output; private-use characters may be part of names."""
    return unicodedata.category(mark) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(mark) in _BIDI_CONTROLS


def normalize_field(name: str, text: str) -> str:
    """Return a normalized field: parsed dates in ISO 8601, sex in upper case; see `normalize_text`."""
    text = normalize_text(text)
    if name.endswith("_date"):
        for pattern in _DATES:
            if match := pattern.fullmatch(text):
                with contextlib.suppress(ValueError):
                    return date(*(int(match[part]) for part in ("year", "month", "day"))).isoformat()
    return text.upper() if name == "patient_sex" else text


def display_name(name: str) -> str:
    """Return a display name: "Doe Jane" for "Doe^Jane"; other scripts in parentheses, ideographs without spaces."""
    forms = [_joined(form.replace("^", " ").split()) for form in name.split("=")]
    first, *others = [form for form in forms if form] or [""]
    return f"{first} ({', '.join(others)})" if others else first


def name_search_words(name: str) -> list[str]:
    """Return the words of a name for comparison (see `search_words`), plus each ideographic name as one word."""
    joined = [_joined(search_words(form)) for form in name.split("=")]
    return [*search_words(name), *(word for word in joined if " " not in word and _IDEOGRAPHS.fullmatch(word))]


def _joined(words: list[str]) -> str:
    """Return the words of a name joined by spaces, or without spaces if they are ideographs."""
    return ("" if all(_IDEOGRAPHS.fullmatch(word) for word in words) else " ").join(words)


def search_words(text: str) -> list[str]:
    """Return the words of a name or number for comparison, without case, accents and separators."""
    decomposed = unicodedata.normalize("NFKD", text)
    plain = "".join(mark for mark in decomposed if not unicodedata.combining(mark)).casefold()
    return "".join(" " if mark in "^=,;" else mark for mark in unicodedata.normalize("NFC", plain)).split()

"""Validate the dates and the sex that a person or a client enters for a patient and a study.

Header values are kept unchanged and not validated. Neither are values that were already stored, so that one field can
be corrected while another keeps an invalid value from the header.
"""

from __future__ import annotations

import contextlib
from datetime import date
from typing import Literal

from pneumoscope.core.errors import InvalidIdentityError
from pneumoscope.core.identity import Identity, age_at_study
from pneumoscope.core.prediction import MAX_AGE

__all__ = ["DATE_FIELDS", "SEXES", "FieldProblem", "check_entered"]

FieldProblem = Literal["not_a_date", "in_the_future", "before_the_birth_date", "too_long_before_the_study", "not_a_sex"]
SEXES = ("F", "M", "O")
_PHRASES: dict[FieldProblem, str] = {
    "not_a_date": "is not a date",
    "in_the_future": "is in the future",
    "before_the_birth_date": "is before patient_birth_date",
    "too_long_before_the_study": f"is more than {MAX_AGE} years before study_date",
    "not_a_sex": f"is not one of: {', '.join(SEXES)}",
}
DATE_FIELDS = ("patient_birth_date", "study_date")


def check_entered(entered: Identity, stored: Identity | None = None, *, today: date) -> None:
    """Raise if a date or the sex in an entered identity is impossible.

    Args:
        entered: Normalized; see `identity.normalize_field`.
        stored: The previous identity; its values are not checked.
        today: Date at the site.

    Raises:
        InvalidIdentityError: A new value is not a date, is a date in the future or is not a sex; or the study is before
            the birth or more than 130 years after it.
    """
    before = stored or Identity()
    changed = {name for name, value in entered.stated().items() if value != getattr(before, name)}
    problems: dict[str, FieldProblem] = {}
    for name in changed.intersection(DATE_FIELDS):
        if problem := _find_date_problem(getattr(entered, name), today):
            problems[name] = problem
    if "patient_sex" in changed and entered.patient_sex not in SEXES:
        problems["patient_sex"] = "not_a_sex"
    age = age_at_study(entered)
    if age is not None and not problems.keys() & DATE_FIELDS and changed.intersection(DATE_FIELDS):
        if age < 0:
            problems["study_date"] = "before_the_birth_date"
        elif age > MAX_AGE:
            problems["patient_birth_date"] = "too_long_before_the_study"
    if problems:
        fields = {name: problems[name] for name in (*DATE_FIELDS, "patient_sex") if name in problems}
        message = "; ".join(f"{name} {_PHRASES[problem]}" for name, problem in fields.items())
        raise InvalidIdentityError(message, fields=fields, hint="Correct it; write dates as 2021-01-31")


def _find_date_problem(text: str, today: date) -> FieldProblem | None:
    with contextlib.suppress(ValueError):
        return "in_the_future" if date.fromisoformat(text) > today else None
    return "not_a_date"

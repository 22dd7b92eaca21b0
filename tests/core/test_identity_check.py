"""Dates and sexes that a person enters."""

from datetime import date

import pytest

from pneumoscope.core.errors import InvalidIdentityError
from pneumoscope.core.identity import Identity
from pneumoscope.core.identity_check import check_entered

TODAY = date(2026, 3, 1)


def problems(entered, stored=None, today=TODAY):
    with pytest.raises(InvalidIdentityError) as raised:
        check_entered(entered, stored, today=today)
    return raised.value.fields


def test_tomorrow_is_in_the_future_and_today_is_not():
    check_entered(Identity(patient_birth_date="2026-03-01", study_date="2026-03-01"), today=TODAY)
    tomorrow = Identity(patient_birth_date="2026-03-02", study_date="2026-03-02")
    assert problems(tomorrow) == {"patient_birth_date": "in_the_future", "study_date": "in_the_future"}
    check_entered(tomorrow, today=date(2026, 3, 2))


def test_each_field_has_its_own_problem_and_no_value_is_in_the_message():
    entered = Identity(patient_birth_date="31 Feb", study_date="2026-13-01", patient_sex="FEMALE", patient_id="7")
    with pytest.raises(InvalidIdentityError) as raised:
        check_entered(entered, today=TODAY)
    assert raised.value.fields == {
        "patient_birth_date": "not_a_date", "study_date": "not_a_date", "patient_sex": "not_a_sex",
    }  # fmt: skip
    assert raised.value.code == "invalid_identity"
    assert raised.value.message.endswith("study_date is not a date; patient_sex is not one of: F, M, O")
    assert not [value for value in entered.stated().values() if value in raised.value.message]


@pytest.mark.parametrize(
    ("born", "studied", "expected"),
    [
        ("2021-01-02", "2021-01-01", {"study_date": "before_the_birth_date"}),
        (
            "1895-12-31",
            "2026-01-01",
            {"patient_birth_date": "too_long_before_the_study"},
        ),
    ],
)
def test_dates_must_fit_together(born, studied, expected):
    assert problems(Identity(patient_birth_date=born, study_date=studied)) == expected


def test_oldest_patient_is_130_years_old():
    check_entered(Identity(patient_birth_date="1896-01-02", study_date="2026-01-01"), today=TODAY)


def test_stored_values_may_stay_and_changed_ones_are_checked():
    stored = Identity(patient_birth_date="1.1.21?", patient_sex="W", study_date="2030-01-01", patient_name="Doe")
    check_entered(Identity(patient_birth_date="1.1.21?", patient_sex="W", study_date="2030-01-01"), stored, today=TODAY)
    check_entered(Identity(patient_name="Roe"), stored, today=TODAY)
    assert problems(Identity(patient_sex="X"), stored) == {"patient_sex": "not_a_sex"}
    contradictory = Identity(patient_birth_date="2021-01-02", study_date="2020-01-01", patient_name="A")
    check_entered(contradictory, Identity(patient_birth_date="2021-01-02", study_date="2020-01-01"), today=TODAY)

"""The prediction record and its flat form."""

from __future__ import annotations

import csv
import dataclasses
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.interval import Interval
from pneumoscope.core.prediction import Failure, ImageInfo, ModelInfo, Prediction, Rejection, Uncertainty
from pneumoscope.core.prediction_codes import REJECTION_CODES

MODEL = ModelInfo("gray", "0.1.0", "ab" * 32)
IMAGE = ImageInfo(30, 20, "PNG")
numbers = st.floats(allow_nan=False, allow_infinity=False)
fractions = st.floats(0, 1)
intervals = st.builds(
    lambda value, low, high: Interval(value, low, high, method="venn-abers", n=7, level=None),
    fractions,
    fractions,
    fractions,
)
rejections = st.builds(
    Rejection,
    st.sampled_from(REJECTION_CODES),
    st.dictionaries(st.text(max_size=9), st.one_of(numbers, st.text(max_size=9))),
)


def predicted(interval: Interval | None, uncertainty: Uncertainty | None) -> Prediction:
    return Prediction(
        path="a.png",
        decision="uncertain" if uncertainty else "no_pneumonia",
        probability=interval.value if interval else 0.25,
        interval=interval,
        threshold=0.5,
        operating_point="balanced",
        uncertainty=uncertainty,
        image=IMAGE,
        model=MODEL,
    )


def rejected(rejection: Rejection) -> Prediction:
    return Prediction(
        path="a.png",
        decision="rejected",
        threshold=0.5,
        operating_point="half",
        rejection=rejection,
        image=IMAGE,
        model=MODEL,
    )


@given(interval=st.none() | intervals, uncertainty=st.none() | st.builds(Uncertainty, fractions, fractions, fractions))
def test_a_prediction_survives_the_round_trip_through_a_row(interval, uncertainty):
    prediction = predicted(interval, uncertainty)
    assert Prediction.from_row(prediction.to_row()) == prediction


@given(rejection=rejections)
def test_a_rejection_survives_the_round_trip_through_a_row(rejection):
    assert Prediction.from_row(rejected(rejection).to_row()) == rejected(rejection)


def test_a_failure_survives_the_round_trip_through_a_row():
    failure = Failure("unreadable_image", "cannot read 'a.png': the file is empty", "Send another file")
    prediction = Prediction(path="a.png", decision=None, operating_point="half", failure=failure, model=MODEL)
    assert Prediction.from_row(prediction.to_row()) == prediction


def test_every_prediction_has_the_same_columns():
    rows = [predicted(None, None).to_row(), rejected(Rejection("inverted")).to_row()]
    assert rows[0].keys() == rows[1].keys()


def test_row_values_are_flat():
    row = predicted(Interval(0.25, 0.2, 0.3, method="venn-abers", n=7, level=None), None).to_row()
    assert all(value is None or isinstance(value, str | int | float) for value in row.values())
    line = io.StringIO()
    csv.DictWriter(line, row.keys()).writerow(row)
    assert line.getvalue().startswith("a.png,no_pneumonia,0.25,0.2,0.3,venn-abers,7,0.5,balanced,")


@pytest.mark.parametrize(("hint", "text"), [("", "no such file"), ("Check the path", "no such file. Check the path")])
def test_failure_text_ends_with_the_hint(hint, text):
    assert str(Failure("unreadable_image", "no such file", hint)) == text


def test_repr_shows_decision_and_interval():
    prediction = predicted(Interval(0.25, 0.2, 0.3, method="venn-abers", n=7, level=None), None)
    assert repr(prediction) == (
        "Prediction('a.png', no_pneumonia, probability=0.250 [0.200, 0.300], operating_point='balanced')"
    )
    assert repr(rejected(Rejection("inverted"))) == (
        "Prediction('a.png', rejected, rejection=inverted, operating_point='half')"
    )


def test_html_shows_the_decision_and_escapes_the_path():
    prediction = dataclasses.replace(predicted(None, None), path="<b>.png")
    page = prediction._repr_html_()
    assert "No pneumonia detected" in page
    assert "0.250" in page
    assert "&lt;b&gt;.png" in page
    assert "<b>" not in page
    assert NOTICE in page

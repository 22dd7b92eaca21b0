"""The decision and its numbers, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests.conftest import operating_point

from pneumoscope.bundle.card import Calibration, Intervals, UncertaintyBand, read_bundle
from pneumoscope.core.errors import UnknownNameError
from pneumoscope.inference import BundleSession
from pneumoscope.inference.decision import decide, find_operating_point
from pneumoscope.inference.session import sigmoid


@pytest.fixture(scope="module")
def card(shared_maker):
    """Slope 0.8, intercept 0.1."""
    return read_bundle(shared_maker.bundle(shared_maker.root / "decide"))[0]


def at(threshold):
    return operating_point(threshold, "fixed", "fixed")


def test_a_image_by_hand(card):
    """1 / (1 + exp(-(0.8 x 2 + 0.1))) = 0.8455347; the threshold 0.4 has the logit ln(0.4 / 0.6) = -0.4054651, so that it lies
    at 1 / (1 + exp(0.8 x 0.4054651 - 0.1)) = 1 / (1 + exp(0.2243721)) = 0.4441411 on the scale of the probability."""
    verdict = decide(card, card.operating_points["balanced"], 2.0)

    assert (verdict.decision, verdict.reason) == ("pneumonia", "")
    assert verdict.probability == pytest.approx(0.8455347, abs=1e-7)
    assert verdict.threshold == pytest.approx(0.4441411, abs=1e-7)
    assert (verdict.interval, verdict.interval_reason) == (None, "this bundle states none")


def test_a_image_at_the_threshold_is_called_pneumonia_as_in_evaluation(card):
    """Thresholds that images chose are scores of images, to the last bit."""
    for logit in np.float32([-3.3, -0.1, 0, 0.7, 12]).tolist():
        score = float(sigmoid(np.float64([logit]))[0])
        assert decide(card, at(score), logit).decision == "pneumonia"
        assert decide(card, at(math.nextafter(score, 1)), logit).decision == "normal"


@given(logit=st.floats(-30, 30), threshold=st.floats(0, 1), slope=st.floats(0.01, 20), intercept=st.floats(-5, 5))
def test_the_decision_can_be_read_off_the_probability_and_the_threshold(card, logit, threshold, slope, intercept):
    calibration = Calibration(slope=slope, intercept=intercept, method="platt", n=9, prevalence=0.5)
    verdict = decide(structs.replace(card, calibration=calibration), at(threshold), logit)

    if abs(verdict.probability - verdict.threshold) > 1e-12:  # rounding may turn over what is as good as equal
        assert (verdict.decision == "pneumonia") == (verdict.probability >= verdict.threshold)


@pytest.mark.parametrize(("threshold", "decision"), [(0.0, "pneumonia"), (1.0, "normal")])
def test_the_ends_are_thresholds_too(card, threshold, decision):
    verdict = decide(card, at(threshold), -3.0 if decision == "pneumonia" else 3.0)

    assert (verdict.decision, verdict.threshold) == (decision, threshold)


def test_the_probability_is_the_predictors(maker):
    session = BundleSession.load(maker.bundle(maker.root / "bundle"))
    logits = np.linspace(-9, 9, 37, dtype=np.float32)

    mine = [decide(session.card, at(0.5), logit).probability for logit in logits.tolist()]
    assert mine == pytest.approx(session.probability(logits).tolist(), abs=1e-15)


def test_a_point_by_its_name_and_the_one_that_is_meant_without(card):
    assert find_operating_point(card, "rule_in") is card.operating_points["rule_in"]
    assert find_operating_point(card) is card.operating_points["balanced"]
    with pytest.raises(UnknownNameError, match=r"there is no operating point 'ruleout'\. Did you mean 'rule_out'\?"):
        find_operating_point(card, "ruleout")


@pytest.mark.parametrize(
    ("score", "decision"),
    [(0.2, "normal"), (0.3, "uncertain"), (0.5, "uncertain"), (0.7, "uncertain"), (0.75, "pneumonia")],
)
def test_a_score_in_the_band_is_uncertain_with_a_reason_its_ends_included(card, score, decision):
    low, high = (float(sigmoid(np.float64([logit_of(end)]))[0]) for end in (0.3, 0.7))
    uncertainty_band = UncertaintyBand(low=low, high=high, coverage=0.95, n_normal=30, n_pneumonia=40)
    verdict = decide(card, structs.replace(at(0.5), uncertainty_band=uncertainty_band), logit_of(score))

    assert verdict.decision == decision
    assert ("95%" in verdict.reason) == (decision == "uncertain")
    assert decide(card, at(0.5), logit_of(score)).decision != "uncertain"


def test_an_interval_by_hand_holds_the_probability(card):
    """Between the edges -1 and 1 the steps are 0.2 and 0.6; of the logit 2 the probability is 0.8455347, of 0 it is 0.5249792."""
    steps = Intervals(edges=(-1.0, 1.0), low=(0.0, 0.2, 0.5), high=(0.1, 0.6, 0.8), method="venn-abers", n=7)
    card = structs.replace(card, intervals=steps)
    assert decide(card, at(0.5), 0.0).interval == (0.2, 0.6)
    assert decide(card, at(0.5), 0.0).interval_reason == ""
    assert decide(card, at(0.5), 2.0).interval == (0.5, pytest.approx(0.8455347))
    assert decide(card, at(0.5), 1.0).interval == (0.2, 0.8)  # on an edge the wider of both sides


def logit_of(score):
    return math.log(score / (1 - score))

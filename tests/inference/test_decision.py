"""Decisions and rejections, with numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests.conftest import LIMITS, operating_point

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import INPUT_CLASSES, Calibration, Intervals, UncertaintyBand
from pneumoscope.core.errors import UnknownNameError
from pneumoscope.core.prediction import PatientAge, Rejection
from pneumoscope.inference import BundleSession
from pneumoscope.inference.decision import decide, find_operating_point, reject_by_age, reject_by_network, sigmoid


@pytest.fixture(scope="module")
def card(shared_maker):
    """Slope 0.8, intercept 0.1."""
    return read_bundle(shared_maker.bundle(shared_maker.root / "decide"))[0]


@pytest.fixture(scope="module")
def limited(shared_maker):
    """A card with limits: P(upright) at least 0.3, distance at most 1.9."""
    return read_bundle(shared_maker.bundle(shared_maker.root / "limited", rejection_limits=LIMITS))[0]


def at(threshold):
    return operating_point(threshold, "fixed")


def logit_of(score):
    return math.log(score / (1 - score))


# ---- decisions


def test_decision_by_hand(card):
    """1 / (1 + exp(-(0.8 x 2 + 0.1))) = 0.8455347. The threshold 0.4 has the logit ln(0.4 / 0.6) = -0.4054651, so it is
    1 / (1 + exp(0.8 x 0.4054651 - 0.1)) = 1 / (1 + exp(0.2243721)) = 0.4441411 on the scale of the probability."""
    result = decide(card, card.operating_points["balanced"], 2.0)

    assert (result.decision, result.rejection, result.uncertainty) == ("pneumonia", None, None)
    assert result.probability == pytest.approx(0.8455347, abs=1e-7)
    assert result.threshold == pytest.approx(0.4441411, abs=1e-7)
    assert result.interval is None


def test_score_at_the_threshold_is_pneumonia(card):
    """Thresholds chosen on images are scores of images, to the last bit."""
    for logit in np.float32([-3.3, -0.1, 0, 0.7, 12]).tolist():
        score = float(sigmoid(np.float64([logit]))[0])
        assert decide(card, at(score), logit).decision == "pneumonia"
        assert decide(card, at(math.nextafter(score, 1)), logit).decision == "no_pneumonia"


@given(logit=st.floats(-30, 30), threshold=st.floats(0, 1), slope=st.floats(0.01, 20), intercept=st.floats(-5, 5))
def test_decision_agrees_with_probability_and_threshold(card, logit, threshold, slope, intercept):
    calibration = Calibration(slope=slope, intercept=intercept, method="platt", n=9, prevalence=0.5)
    result = decide(structs.replace(card, calibration=calibration), at(threshold), logit)

    if abs(result.probability - result.threshold) > 1e-12:  # rounding may swap nearly equal numbers
        assert (result.decision == "pneumonia") == (result.probability >= result.threshold)


@pytest.mark.parametrize(("threshold", "decision"), [(0.0, "pneumonia"), (1.0, "no_pneumonia")])
def test_thresholds_of_0_and_1_are_valid(card, threshold, decision):
    result = decide(card, at(threshold), -3.0 if decision == "pneumonia" else 3.0)

    assert (result.decision, result.threshold) == (decision, threshold)


def test_probability_equals_that_of_the_session(maker):
    session = BundleSession.load(maker.bundle(maker.root / "bundle"))
    logits = np.linspace(-9, 9, 37, dtype=np.float32)

    found = [decide(session.card, at(0.5), logit).probability for logit in logits.tolist()]
    assert found == pytest.approx(session.probability(logits).tolist(), abs=1e-15)


def test_operating_points_are_found_by_name(card):
    assert find_operating_point(card, "rule_in") is card.operating_points["rule_in"]
    assert find_operating_point(card) is card.operating_points["balanced"]
    with pytest.raises(UnknownNameError, match=r"'ruleout'\. Did you mean 'rule_out'\?"):
        find_operating_point(card, "ruleout")


@pytest.mark.parametrize(
    ("score", "decision"),
    [(0.2, "no_pneumonia"), (0.3, "uncertain"), (0.5, "uncertain"), (0.7, "uncertain"), (0.75, "pneumonia")],
)
def test_scores_in_the_uncertainty_band_are_uncertain(card, score, decision):
    low, high = (float(sigmoid(np.float64([logit_of(end)]))[0]) for end in (0.3, 0.7))
    band = UncertaintyBand(low=low, high=high, coverage=0.95, n_normal=30, n_pneumonia=40)
    result = decide(card, structs.replace(at(0.5), uncertainty_band=band), logit_of(score))

    assert result.decision == decision
    assert decide(card, at(0.5), logit_of(score)).decision != "uncertain"
    if decision == "uncertain":
        assert result.uncertainty.coverage == 0.95
        assert result.uncertainty.low <= result.probability <= result.uncertainty.high
    else:
        assert result.uncertainty is None


def test_interval_by_hand(card):
    """Between the edges -1 and 1 the steps are 0.2 and 0.6; the logit 2 has the probability 0.8455347, 0 has 0.5249792."""
    steps = Intervals(edges=(-1.0, 1.0), low=(0.0, 0.2, 0.5), high=(0.1, 0.6, 0.8), method="venn-abers", n=7)
    card = structs.replace(card, intervals=steps)

    def ends(logit):
        interval = decide(card, at(0.5), logit).interval
        assert (interval.method, interval.n, interval.level) == ("venn-abers", 7, None)
        assert interval.low <= interval.value <= interval.high
        return interval.low, interval.high

    assert ends(0.0) == (0.2, 0.6)
    assert ends(2.0) == (0.5, pytest.approx(0.8455347))
    assert ends(1.0) == (0.2, 0.8)  # the wider step at an edge


def test_rejected_image_has_no_probability(card):
    rejection = Rejection("inverted")
    result = decide(card, at(0.5), 2.0, rejection)

    assert (result.decision, result.rejection) == ("rejected", rejection)
    assert (result.probability, result.interval) == (None, None)
    assert result.threshold == pytest.approx(decide(card, at(0.5), 2.0).threshold)


# ---- rejections


def classes(upright, **others):
    return [({"upright": upright} | others).get(name, 0.0) for name in INPUT_CLASSES]


@pytest.mark.parametrize(
    ("probabilities", "code"),
    [
        (classes(0.2, inverted=0.5, cropped=0.3), "inverted"),
        (classes(0.2, upside_down=0.8), "upside_down"),
        (classes(0.2, rotated_90=0.8), "rotated_90"),
        (classes(0.2, mirrored=0.8), "mirrored"),
        (classes(0.29, cropped=0.25, not_a_chest_radiograph=0.24), "cropped"),
        (classes(0, not_a_chest_radiograph=1), "not_a_chest_radiograph"),
    ],
)
def test_most_likely_fault_is_the_rejection_code(limited, probabilities, code):
    rejection = reject_by_network(limited, probabilities, 1.0)
    assert rejection == Rejection(code, {"probability": probabilities[0], "limit": 0.3})


def test_limits_themselves_pass(limited):
    assert reject_by_network(limited, classes(0.3, mirrored=0.7), 1.9) is None
    assert reject_by_network(limited, classes(0.3, mirrored=0.7), 1.9001).code == "out_of_distribution"
    assert reject_by_network(limited, classes(0.2999, mirrored=0.7), 1.9).code == "mirrored"


def test_rejection_states_the_distance_and_the_limit(limited):
    assert reject_by_network(limited, classes(1), 3.25).parameters == {"distance": 3.25, "limit": 1.9}


def test_missing_outputs_reject_nothing(limited):
    assert reject_by_network(limited, None, None) is None
    assert reject_by_network(structs.replace(limited, rejection_limits=None), classes(0), 99.0) is None


def test_nan_outputs_are_rejected(limited):
    assert reject_by_network(limited, classes(float("nan")), 1.0)
    assert reject_by_network(limited, classes(0.9), float("nan"))


AGE_RANGE = {"minimum": 1, "maximum": 5}


@pytest.mark.parametrize(("years", "rejected"), [(0.9, True), (1, False), (5.99, False), (6, True), (67, True)])
@pytest.mark.parametrize("source", ["header", "entered"])
def test_age_outside_the_range_is_rejected(card, years, rejected, source):
    age = PatientAge(years, source)
    rejection = reject_by_age(structs.replace(card, age_range=(1, 5)), age, required=True)

    assert reject_by_age(card, age) is None
    assert rejection == (Rejection("outside_age_range", {"age": years} | AGE_RANGE) if rejected else None)


def test_unknown_age_is_rejected_only_if_it_is_required(card):
    limited = structs.replace(card, age_range=(1, 5))
    assert reject_by_age(limited, None) is None
    assert reject_by_age(limited, None, required=True) == Rejection("age_required", AGE_RANGE)
    assert reject_by_age(card, None, required=True) is None


def test_age_that_is_not_understood_is_never_treated_as_absent(card):
    age = PatientAge(None, stated="PatientAge: adult")
    limited = structs.replace(card, age_range=(1, 5))
    assert reject_by_age(limited, age) == Rejection("age_not_understood", {"stated": "PatientAge: adult"})
    assert reject_by_age(card, age, required=True) is None

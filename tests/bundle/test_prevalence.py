"""Probabilities for the prevalence of a site: decisions stay the same, and each prediction states it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests.conftest import LIMITS, POINTS, halves, operating_point

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import Calibration, Intervals, ReferenceDistribution, UncertaintyBand
from pneumoscope.bundle.prevalence import apply_prevalence
from pneumoscope.core.errors import UsageError
from pneumoscope.core.prediction import ModelInfo, Prediction
from pneumoscope.inference.decision import decide, sigmoid
from pneumoscope.inference.model import load_model
from pneumoscope.statistics.drift import measure_drift
from pneumoscope.statistics.probabilities import adjust_prevalence

BAND = UncertaintyBand(low=0.3, high=0.7, coverage=0.95, n_normal=30, n_pneumonia=40)


@pytest.fixture(scope="module")
def bundle(shared_maker):
    return shared_maker.bundle(shared_maker.root / "prevalence", rejection_limits=LIMITS, operating_points=POINTS)


@pytest.fixture(scope="module")
def card(bundle):
    """Slope 0.8, intercept 0.1, prevalence 0.5, with intervals and a reference distribution."""
    return structs.replace(
        read_bundle(bundle)[0],
        intervals=Intervals(edges=(-1.0, 1.0), low=(0.0, 0.4, 0.6), high=(0.3, 0.7, 1.0), method="venn-abers", n=9),
        reference_distribution=ReferenceDistribution(
            deciles=tuple(k / 10 for k in range(1, 10)), n=100, n_pneumonia=60
        ),
    )


inner = st.floats(0.001, 0.999)


@given(logit=st.floats(-20, 20), prevalence=inner, source=inner, threshold=st.floats(0.01, 0.99))
def test_prevalence_never_changes_a_decision(card, logit, prevalence, source, threshold):
    calibration = Calibration(slope=0.8, intercept=0.1, method="platt", n=9, prevalence=source)
    card = structs.replace(card, calibration=calibration)
    point = structs.replace(operating_point(threshold, "fixed"), uncertainty_band=BAND)
    before, after = decide(card, point, logit), decide(apply_prevalence(card, prevalence), point, logit)

    assert (after.decision, after.rejection) == (before.decision, None)
    for name in ("probability", "threshold"):
        expected = adjust_prevalence(getattr(before, name), source, prevalence)
        assert getattr(after, name) == pytest.approx(float(expected), abs=1e-9)
    for old, new in ((before.interval, after.interval), (before.uncertainty, after.uncertainty)):
        assert (old is None) == (new is None)
        if old and new:
            expected = adjust_prevalence([old.low, old.high], source, prevalence)
            assert [new.low, new.high] == pytest.approx(expected.tolist(), abs=1e-9)


def test_probability_for_another_prevalence_by_hand(card):
    """At prevalence 0.5 the odds are 4 to 1; at 0.2 they are a quarter of that, 1 to 1."""
    logit = (math.log(4) - 0.1) / 0.8
    assert decide(card, POINTS["half"], logit).probability == pytest.approx(0.8)
    assert decide(apply_prevalence(card, 0.2), POINTS["half"], logit).probability == pytest.approx(0.5)


def test_drift_is_the_same_at_every_prevalence(card):
    probabilities = sigmoid(np.random.default_rng(0).normal(0, 2, 200))
    reference, shifted = card.reference_distribution, apply_prevalence(card, 0.05).reference_distribution
    before = measure_drift(probabilities.tolist(), reference.deciles, reference.n)
    after = measure_drift(adjust_prevalence(probabilities, 0.5, 0.05).tolist(), shifted.deciles, shifted.n)
    assert after.counts == before.counts


@pytest.mark.parametrize("prevalence", [0.0, 1.0, -0.2, 20.0, math.nan])
def test_prevalence_outside_0_and_1_is_an_error(bundle, prevalence):
    with pytest.raises(UsageError, match=r"not between 0 and 1.*such as 0\.2"):
        load_model(bundle, prevalence=prevalence)


def test_prevalence_and_site_profile_cannot_be_combined(bundle, tmp_path):
    with pytest.raises(UsageError, match=r"cannot be combined.*pneumoscope accept --prevalence"):
        load_model(bundle, site=tmp_path / "site.json", prevalence=0.2)


def test_predictions_state_the_prevalence(bundle):
    image = halves(140)
    plain, stated = load_model(bundle).predict(image), load_model(bundle, prevalence=0.2).predict(image)

    assert (plain.model.site, plain.model.prevalence) == ("", None)
    assert (stated.model.site, stated.model.prevalence) == ("", 0.2)
    assert stated.decision == plain.decision
    assert stated.probability == pytest.approx(float(adjust_prevalence(plain.probability, 0.5, 0.2)))
    assert not stated.model.matches(plain.model)
    assert "prevalence: 20%" in stated._repr_html_()
    assert "20%" in load_model(bundle, prevalence=0.2)._repr_html_()
    explained = load_model(bundle, prevalence=0.2).explain(image)
    assert (explained.prediction, explained.picture is not None) == (stated, True)


def test_prevalence_of_the_card_changes_nothing(bundle):
    assert load_model(bundle, prevalence=0.5).predict(halves(140)) == load_model(bundle).predict(halves(140))


@given(prevalence=inner)
def test_prevalence_is_read_back_exactly_from_a_row(prevalence):
    model = ModelInfo("m", "1", "ab", prevalence=prevalence)
    stated = Prediction(path="a.png", decision="pneumonia", operating_point="half", model=model)
    assert Prediction.from_row(stated.to_row()) == stated

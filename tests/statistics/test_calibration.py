"""Second opinions: scikit-learn's Brier score and Platt scaling, errors worked by hand, simulated coverage."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.calibration import _SigmoidCalibration
from sklearn.metrics import brier_score_loss

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.calibration import (
    at_prevalence,
    calibration_error_interval,
    fit_platt,
    reliability,
    weighted_brier,
    weighted_calibration_error,
)


def brier(p, y):
    return weighted_brier(np.asarray(p), np.asarray(y), np.ones((1, len(p))))[0]


def calibration_error(p, y):
    return weighted_calibration_error(np.asarray(p), np.asarray(y), np.ones((1, len(p))))[0]


cases = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80)


@given(cases)
def test_brier_is_scikit_learns(images):
    p, y = (np.array(column) for column in zip(*images, strict=True))
    assert brier(p, y) == pytest.approx(brier_score_loss(y, p, labels=[False, True]), abs=1e-12)


def test_brier_by_hand():
    assert brier([1.0, 0.5, 0.2], [True, False, False]) == pytest.approx((0 + 0.25 + 0.04) / 3)


def test_calibration_error_by_hand():
    """Fewer images than bins: a bin an image, except that equal probabilities stay together."""
    p, y = [0.9, 0.9, 0.2, 0.6], [True, False, False, True]
    assert calibration_error(p, y) == pytest.approx((2 * abs(0.9 - 0.5) + 0.2 + 0.4) / 4)


@given(cases)
def test_calibration_error_is_the_sum_over_its_bins(images):
    p, y = (np.array(column) for column in zip(*images, strict=True))
    bins = reliability(p, y)
    n = sum(part.observed.n for part in bins)
    assert n == len(p)
    assert len(bins) <= 15
    assert all(one.high < other.low for one, other in pairwise(bins))
    gaps = sum(part.observed.n * abs(part.probability - part.observed.value) for part in bins)
    assert calibration_error(p, y) == pytest.approx(gaps / n, abs=1e-9)


def test_bins_hold_equally_many_images():
    p = np.random.default_rng(0).beta(0.3, 0.1, size=624)
    sizes = [part.observed.n for part in reliability(p, p > 0.5)]
    assert len(sizes) == 15
    assert set(sizes) <= {41, 42}


@given(cases, st.integers(0, 2**32 - 1))
def test_weights_are_copies(images, seed):
    """The weighted score of the images is the plain score of the images copied as often."""
    p, y = (np.array(column) for column in zip(*images, strict=True))
    weights = np.random.default_rng(seed).integers(0, 3, len(p))
    if weights.sum():
        again = np.repeat(np.arange(len(p)), weights)
        assert weighted_brier(p, y, weights[None, :].astype(float))[0] == pytest.approx(brier(p[again], y[again]))
    ones = np.ones((2, len(p)))
    assert weighted_calibration_error(p, y, ones) == pytest.approx([calibration_error(p, y)] * 2)


def test_probabilities_outside_0_to_1_are_rejected():
    for function in (reliability, lambda p, y: calibration_error_interval(p, y, None)):
        with pytest.raises(UndefinedMetricError, match=r"run from -0\.5 to 1\.25"):
            function([-0.5, 1.25], [True, False])


def simulated(random, slope):
    """624 images whose logits are `slope` times what they should be."""
    true = 3 * random.normal(size=624) + 1
    return expit(slope * true), random.random(624) < expit(true)


@pytest.mark.parametrize(("slope", "least"), [(1.0, 0.88), (1.6, 0.80)])
def test_calibration_interval_covers(slope, least):
    """At a perfect calibration the truth is 0, where a percentile interval would hold it never."""
    random = np.random.default_rng(14)
    many = 3 * random.normal(size=50_000) + 1
    inside = 0
    for trial in range(60):
        p, y = simulated(random, slope)
        edges = [part.high for part in reliability(p, y)][:-1]
        gaps = np.bincount(np.searchsorted(edges, expit(slope * many)), expit(slope * many) - expit(many))
        truth = 0.0 if slope == 1 else np.abs(gaps).sum() / len(many)
        found = calibration_error_interval(p, y, None, resamples=100, seed=trial)
        assert found.low <= found.value <= found.high
        inside += found.low <= truth <= found.high
    assert inside / 60 > least


def test_a_clear_miscalibration_excludes_zero():
    p, y = simulated(np.random.default_rng(1), 4.0)
    found = calibration_error_interval(p, y, None)
    assert found.low > 0.03
    assert (found.method, found.seed, found.n) == ("patient bootstrap, basic", 0, 624)


@pytest.mark.parametrize(("scale", "n"), [(1.0, 500), (300.0, 500), (0.01, 500), (2.0, 12)])
def test_platt_is_scikit_learns(scale, n):
    random = np.random.default_rng(3)
    labels = random.random(n) < 0.7
    logits = scale * (random.normal(size=n) + 1.5 * labels - 0.4)
    slope, intercept = fit_platt(logits, labels)
    theirs = _SigmoidCalibration().fit(logits, labels)
    assert slope * scale == pytest.approx(-theirs.a_ * scale, rel=2e-3)
    assert intercept == pytest.approx(-theirs.b_, abs=5e-3)


@pytest.mark.parametrize("scale", [1.0, 1000.0, 1e-4])
def test_platt_is_at_the_maximum(scale):
    """The slope of the likelihood is zero in both directions, against Platt's targets."""
    random = np.random.default_rng(5)
    labels = random.random(400) < 0.3
    logits = scale * (random.normal(size=400) + labels)
    slope, intercept = fit_platt(logits, labels)
    k, m = labels.sum(), (~labels).sum()
    residual = expit(slope * logits + intercept) - np.where(labels, (k + 1) / (k + 2), 1 / (m + 2))
    assert abs(residual.mean()) < 1e-7
    assert abs((residual * logits).mean()) / scale < 1e-7


def test_platt_of_separated_images_is_finite():
    logits, labels = np.array([-3.0, -2.0, 4.0, 5.0, 6.0]), np.array([False, False, True, True, True])
    slope, intercept = fit_platt(logits, labels)
    assert 0 < slope < 100
    p = expit(slope * logits + intercept)
    assert p[:2] == pytest.approx([1 / 4] * 2, abs=0.08)
    assert p[2:] == pytest.approx([4 / 5] * 3, abs=0.08)


def test_platt_never_turns_the_ranking():
    random = np.random.default_rng(2)
    labels = random.random(200) < 0.6
    slope, intercept = fit_platt(random.normal(size=200) - 2 * labels, labels)
    assert 0 < slope < 1e-3
    assert expit(intercept) == pytest.approx(labels.mean(), abs=0.01)


def test_platt_of_equal_logits_is_the_share():
    slope, intercept = fit_platt([2.0] * 10, [True] * 6 + [False] * 4)
    assert slope > 0
    target = (6 * 7 / 8 + 4 * 1 / 6) / 10
    assert expit(slope * 2.0 + intercept) == pytest.approx(target, abs=1e-6)


@pytest.mark.parametrize(("labels", "counts"), [([True] * 3, "0 NORMAL and 3"), ([False] * 3, "3 NORMAL and 0")])
def test_platt_needs_both_classes(labels, counts):
    with pytest.raises(UndefinedMetricError, match=counts):
        fit_platt([0.1, 0.2, 0.3], labels)


def test_platt_refuses_a_diverged_network():
    with pytest.raises(UndefinedMetricError, match="1 of 2 scores are not finite"):
        fit_platt([math.nan, 1.0], [True, False])


def test_a_probability_at_another_prevalence_is_that_of_images_drawn_otherwise():
    """Of 80 pneumonias and 20 normal images, 60 and 5 look alike: 60/65. With as many of each label, 60/80 against 5/20."""
    assert at_prevalence(60 / 65, 0.8, 0.5) == pytest.approx(0.75 / (0.75 + 0.25))
    assert at_prevalence([0.0, 0.8, 1.0], 0.8, 0.3) == pytest.approx([0.0, 0.3, 1.0])


inner = st.floats(0.01, 0.99)


@given(st.floats(0, 1), inner, inner, inner)
def test_prevalences_can_be_changed_in_any_steps(p, first, second, third):
    assert at_prevalence(at_prevalence(p, first, second), second, third) == pytest.approx(
        at_prevalence(p, first, third), abs=1e-9
    )
    assert at_prevalence(p, first, first) == pytest.approx(p, abs=1e-12)

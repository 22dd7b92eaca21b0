"""Calibration, checked against scikit-learn, errors computed by hand, and simulated coverage."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import expit
from sklearn.calibration import _SigmoidCalibration
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.calibration import (
    calibration_error_interval,
    calibration_intervals,
    fit_platt,
    reliability_bins,
    weighted_brier,
    weighted_calibration_error,
    weighted_calibration_intercept,
    weighted_calibration_slope,
)


def brier(p, y):
    return weighted_brier(np.asarray(p), np.asarray(y), np.ones((1, len(p))))[0]


def calibration_error(p, y):
    return weighted_calibration_error(np.asarray(p), np.asarray(y), np.ones((1, len(p))))[0]


cases = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80)


@given(cases)
def test_brier_score_agrees_with_scikit_learn(images):
    p, y = (np.array(column) for column in zip(*images, strict=True))
    assert brier(p, y) == pytest.approx(brier_score_loss(y, p, labels=[False, True]), abs=1e-12)


def test_brier_score_by_hand():
    assert brier([1.0, 0.5, 0.2], [True, False, False]) == pytest.approx((0 + 0.25 + 0.04) / 3)


def test_calibration_error_by_hand():
    """With fewer images than bins each image has its own bin, except that equal probabilities share one."""
    p, y = [0.9, 0.9, 0.2, 0.6], [True, False, False, True]
    assert calibration_error(p, y) == pytest.approx((2 * abs(0.9 - 0.5) + 0.2 + 0.4) / 4)


@given(cases)
def test_calibration_error_is_the_weighted_mean_over_the_reliability_bins(images):
    p, y = (np.array(column) for column in zip(*images, strict=True))
    bins = reliability_bins(p, y)
    n = sum(part.observed_rate.n for part in bins)
    assert n == len(p)
    assert len(bins) <= 15
    assert all(one.high < other.low for one, other in pairwise(bins))
    gaps = sum(part.observed_rate.n * abs(part.mean_probability - part.observed_rate.value) for part in bins)
    assert calibration_error(p, y) == pytest.approx(gaps / n, abs=1e-9)


def test_bins_hold_equally_many_images():
    p = np.random.default_rng(0).beta(0.3, 0.1, size=624)
    sizes = [part.observed_rate.n for part in reliability_bins(p, p > 0.5)]
    assert len(sizes) == 15
    assert set(sizes) <= {41, 42}


@given(cases, st.integers(0, 2**32 - 1))
def test_integer_weights_equal_repeated_images(images, seed):
    p, y = (np.array(column) for column in zip(*images, strict=True))
    weights = np.random.default_rng(seed).integers(0, 3, len(p))
    if weights.sum():
        repeated = np.repeat(np.arange(len(p)), weights)
        assert weighted_brier(p, y, weights[None, :].astype(float))[0] == pytest.approx(brier(p[repeated], y[repeated]))
    ones = np.ones((2, len(p)))
    assert weighted_calibration_error(p, y, ones) == pytest.approx([calibration_error(p, y)] * 2)


def test_probabilities_outside_0_to_1_are_rejected():
    for function in (reliability_bins, lambda p, y: calibration_error_interval(p, y, None)):
        with pytest.raises(UndefinedMetricError, match=r"range from -0\.5 to 1\.25"):
            function([-0.5, 1.25], [True, False])


def simulate(random, slope):
    """Return 624 images whose logits are `slope` times the calibrated ones."""
    true = 3 * random.normal(size=624) + 1
    return expit(slope * true), random.random(624) < expit(true)


@pytest.mark.parametrize(("slope", "min_coverage"), [(1.0, 0.88), (1.6, 0.80)])
def test_calibration_interval_has_coverage(slope, min_coverage):
    """With perfect calibration the true error is 0, which a percentile interval never contains."""
    random = np.random.default_rng(14)
    population = 3 * random.normal(size=50_000) + 1
    inside = 0
    for trial in range(60):
        p, y = simulate(random, slope)
        edges = [part.high for part in reliability_bins(p, y)][:-1]
        gaps = np.bincount(
            np.searchsorted(edges, expit(slope * population)), expit(slope * population) - expit(population)
        )
        truth = 0.0 if slope == 1 else np.abs(gaps).sum() / len(population)
        interval = calibration_error_interval(p, y, None, resamples=100, seed=trial)
        assert interval.low <= interval.value <= interval.high
        inside += interval.low <= truth <= interval.high
    assert inside / 60 > min_coverage


def test_the_interval_of_a_clear_miscalibration_excludes_zero():
    p, y = simulate(np.random.default_rng(1), 4.0)
    interval = calibration_error_interval(p, y, None)
    assert interval.low > 0.03
    assert (interval.method, interval.seed, interval.n) == ("patient bootstrap, basic", 0, 624)


@pytest.mark.parametrize(("scale", "n"), [(1.0, 500), (300.0, 500), (0.01, 500), (2.0, 12)])
def test_platt_scaling_agrees_with_scikit_learn(scale, n):
    random = np.random.default_rng(3)
    labels = random.random(n) < 0.7
    logits = scale * (random.normal(size=n) + 1.5 * labels - 0.4)
    slope, intercept = fit_platt(logits, labels)
    reference = _SigmoidCalibration().fit(logits, labels)
    assert slope * scale == pytest.approx(-reference.a_ * scale, rel=2e-3)
    assert intercept == pytest.approx(-reference.b_, abs=5e-3)


@pytest.mark.parametrize("scale", [1.0, 1000.0, 1e-4])
def test_platt_scaling_is_at_the_maximum_likelihood(scale):
    """The gradient of the likelihood of Platt's targets is zero."""
    random = np.random.default_rng(5)
    labels = random.random(400) < 0.3
    logits = scale * (random.normal(size=400) + labels)
    slope, intercept = fit_platt(logits, labels)
    k, m = labels.sum(), (~labels).sum()
    residual = expit(slope * logits + intercept) - np.where(labels, (k + 1) / (k + 2), 1 / (m + 2))
    assert abs(residual.mean()) < 1e-7
    assert abs((residual * logits).mean()) / scale < 1e-7


def test_platt_scaling_of_separated_classes_is_finite():
    logits, labels = np.array([-3.0, -2.0, 4.0, 5.0, 6.0]), np.array([False, False, True, True, True])
    slope, intercept = fit_platt(logits, labels)
    assert 0 < slope < 100
    p = expit(slope * logits + intercept)
    assert p[:2] == pytest.approx([1 / 4] * 2, abs=0.08)
    assert p[2:] == pytest.approx([4 / 5] * 3, abs=0.08)


def test_platt_scaling_never_reverses_the_ranking():
    random = np.random.default_rng(2)
    labels = random.random(200) < 0.6
    slope, intercept = fit_platt(random.normal(size=200) - 2 * labels, labels)
    assert 0 < slope < 1e-3
    assert expit(intercept) == pytest.approx(labels.mean(), abs=0.01)


def test_platt_scaling_of_equal_logits_gives_the_smoothed_prevalence():
    slope, intercept = fit_platt([2.0] * 10, [True] * 6 + [False] * 4)
    assert slope > 0
    target = (6 * 7 / 8 + 4 * 1 / 6) / 10
    assert expit(slope * 2.0 + intercept) == pytest.approx(target, abs=1e-6)


@pytest.mark.parametrize(("labels", "counts"), [([True] * 3, "0 NORMAL and 3"), ([False] * 3, "3 NORMAL and 0")])
def test_platt_scaling_needs_both_classes(labels, counts):
    with pytest.raises(UndefinedMetricError, match=counts):
        fit_platt([0.1, 0.2, 0.3], labels)


def test_platt_scaling_rejects_logits_that_are_not_finite():
    with pytest.raises(UndefinedMetricError, match="1 of 2 scores are not finite"):
        fit_platt([math.nan, 1.0], [True, False])


# --- calibration slope and intercept ---------------------------------------------------------------------------------


def regression(logits, labels, weights, *, slope=None):
    """Return slope and intercept by a general optimizer."""

    def loss(parameters):
        z = (parameters[0] if slope is None else slope) * logits + parameters[1]
        return weights @ (np.logaddexp(0, z) - labels * z)

    result = optimize.minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-10})
    return result.x


def test_calibration_slope_and_intercept_match_a_general_optimizer():
    rng = np.random.default_rng(3)
    logits = rng.normal(0.5, 2.5, 300)
    labels = rng.random(300) < expit(0.6 * logits - 0.7)
    weights = rng.integers(0, 4, (5, 300)).astype(float)

    slopes = weighted_calibration_slope(logits, labels, weights)
    intercepts = weighted_calibration_intercept(logits, labels, weights)

    for row in range(5):
        assert slopes[row] == pytest.approx(regression(logits, labels, weights[row])[0], abs=1e-5)
        expected = regression(logits, labels, weights[row], slope=1.0)[1]
        assert intercepts[row] == pytest.approx(expected, abs=1e-5)


def test_slope_of_logits_far_from_zero_is_found():
    rng = np.random.default_rng(1)
    logits = rng.normal(-6, 1.5, 4000)
    labels = rng.random(4000) < expit(1.3 * (logits + 6))
    ones = np.ones((1, 4000))

    slope, intercept = regression(logits + 6, labels, ones[0])
    assert weighted_calibration_slope(logits, labels, ones)[0] == pytest.approx(slope, abs=1e-4)
    expected = regression(logits, labels, ones[0], slope=1.0)[1]
    assert weighted_calibration_intercept(logits, labels, ones)[0] == pytest.approx(expected, abs=1e-4)
    assert intercept == pytest.approx(0, abs=0.2)


def test_calibrated_probabilities_have_slope_1_and_intercept_0():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 40_000)
    labels = rng.random(40_000) < expit(logits)
    ones = np.ones((1, 40_000))

    assert weighted_calibration_slope(logits, labels, ones)[0] == pytest.approx(1, abs=0.05)
    assert weighted_calibration_intercept(logits, labels, ones)[0] == pytest.approx(0, abs=0.05)
    assert weighted_calibration_slope(2 * logits, labels, ones)[0] == pytest.approx(0.5, abs=0.03)  # too extreme


def test_calibration_slope_of_separated_labels_is_undefined():
    logits, ones = np.array([-2.0, -1.0, 1.0, 2.0]), np.ones((1, 4))
    assert np.isnan(weighted_calibration_slope(logits, np.array([False, False, True, True]), ones)).all()
    assert np.isnan(weighted_calibration_intercept(logits, np.ones(4, bool), ones)).all()
    assert np.isfinite(weighted_calibration_slope(logits, np.array([False, True, False, True]), ones)).all()


# --- slope, intercept and O/E with intervals --------------------------------------------------------------------------


def clustered(n=400, seed=3):
    """Return probabilities that are too extreme, labels, and patients with two images that are often alike."""
    random = np.random.default_rng(seed)
    truth = np.repeat(random.normal(0.3, 1.2, n // 2), 2)
    labels = random.random(n) < expit(truth)
    labels[1::2] = np.where(random.random(n // 2) < 0.6, labels[::2], labels[1::2])
    return expit(1.6 * truth + 0.4), labels, [f"p{i // 2}" for i in range(n)]


def sandwich(logits, labels, patients, columns, parameters):
    """Return standard errors of a logistic regression that allow for clusters (Liang & Zeger 1986)."""
    x = np.stack(columns, axis=1)
    p = expit(parameters)
    bread = np.linalg.inv(x.T @ (x * (p * (1 - p))[:, None]))
    scores = x * (labels - p)[:, None]
    groups = np.unique(patients, return_inverse=True)[1]
    sums = np.stack([np.bincount(groups, column) for column in scores.T], axis=1)
    return np.sqrt(np.diag(bread @ (sums.T @ sums) @ bread))


def test_slope_and_intercept_agree_with_scikit_learn_and_a_root_finder():
    p, y, patients = clustered()
    logits = np.log(p / (1 - p))
    result = calibration_intervals(p, y, patients, resamples=20)
    model = LogisticRegression(C=1e12, tol=1e-10).fit(logits[:, None], y)
    assert result["calibration_slope"].value == pytest.approx(model.coef_[0, 0], rel=1e-4)
    intercept = optimize.brentq(lambda a: (y - expit(logits + a)).sum(), -10, 10)
    assert result["calibration_intercept"].value == pytest.approx(intercept, abs=1e-6)
    assert result["observed_expected_ratio"].value == pytest.approx(y.sum() / p.sum())


def test_calibration_intervals_agree_with_clustered_standard_errors():
    """A bootstrap of patients and the sandwich estimator are different methods for the same intervals."""
    p, y, patients = clustered()
    logits = np.log(p / (1 - p))
    result = calibration_intervals(p, y, patients)
    model = LogisticRegression(C=1e12, tol=1e-10).fit(logits[:, None], y)
    fitted = model.decision_function(logits[:, None])
    slope_error = sandwich(logits, y, patients, [logits, np.ones(len(y))], fitted)[0]
    intercept = result["calibration_intercept"].value
    intercept_error = sandwich(logits, y, patients, [np.ones(len(y))], logits + intercept)[0]
    for name, error in (("calibration_slope", slope_error), ("calibration_intercept", intercept_error)):
        interval = result[name]
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.12)
        # Clustering widens the interval: it is not that of independent images.
        alone = calibration_intervals(p, y, None)[name]
        assert interval.high - interval.low > 1.1 * (alone.high - alone.low)


def test_interval_of_o_e_agrees_with_the_linearized_ratio():
    p, y, patients = clustered()
    interval = calibration_intervals(p, y, patients)["observed_expected_ratio"]
    residuals = np.bincount(np.unique(patients, return_inverse=True)[1], y - interval.value * p)
    error = math.sqrt((residuals**2).sum()) / p.sum()
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_perfect_calibration_is_inside_the_intervals():
    random = np.random.default_rng(8)
    p = random.beta(1.5, 1.0, 800)
    result = calibration_intervals(p, random.random(800) < p, None)
    targets = {"calibration_slope": 1, "calibration_intercept": 0, "observed_expected_ratio": 1}
    assert all(result[name].low < target < result[name].high for name, target in targets.items())


def test_probabilities_of_0_and_1_count_as_the_closest_number():
    p, y, _ = clustered(100)
    p[0], y[0] = 1.0, True
    near = p.copy()
    near[0] = 1 - 2.0**-53
    assert calibration_intervals(p, y, None, resamples=20) == calibration_intervals(near, y, None, resamples=20) | {
        "observed_expected_ratio": calibration_intervals(p, y, None, resamples=20)["observed_expected_ratio"]
    }


def test_calibration_of_one_label_is_undefined_with_the_reason():
    result = calibration_intervals([0.2, 0.7], [True, True], None)
    assert {interval.value for interval in result.values()} == {None}
    assert {interval.reason for interval in result.values()} == {"there is no NORMAL image"}


@pytest.mark.parametrize(
    ("scale", "reason"),
    [
        (1.0, "it cannot be estimated: the probabilities separate the labels perfectly"),
        (1e-3, "it cannot be estimated: the probabilities separate the labels perfectly"),
        (1e-4, "it cannot be estimated: all probabilities are practically equal, 0.5 to 0.5"),
    ],
)
def test_a_collapsed_calibration_has_no_slope_but_a_reason(scale, reason):
    """Far from each other, the labels let Newton's method stop early, at a slope of 4 divided by the scale."""
    logits = scale * np.concatenate([np.linspace(-10.0, -9.9, 12), np.linspace(9.9, 10.0, 45)])
    labels = logits > 0
    interval = calibration_intervals(expit(logits), labels, None, resamples=20)["calibration_slope"]
    assert (interval.value, interval.low, interval.reason) == (None, None, reason)


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        ([0.5] * 10 + [0.9], [False, True] * 5 + [True]),
        ([0.0, 0.0, 1.0, 1.0, 1.0], [False, False, False, True, True]),
    ],
)
def test_the_reason_of_a_missing_slope_names_equal_probabilities_at_the_threshold(probabilities, labels):
    """Quasi-complete separation, Albert & Anderson 1984; the first ranks the images hardly better than chance."""
    slope = calibration_intervals(probabilities, labels, None, resamples=20)["calibration_slope"]
    assert slope.reason == (
        "it cannot be estimated: the probabilities separate the labels, except for equal ones at one threshold"
    )


def test_probabilities_that_hardly_differ_have_no_slope():
    """They rank the images a little, so that the regression has a solution: a slope in the thousands."""
    random = np.random.default_rng(4)
    logits = random.normal(0, 1e-4, 200)
    labels = random.random(200) < expit(4000 * logits)
    assert LogisticRegression(C=1e14, tol=1e-12).fit(logits[:, None] * 1e4, labels).coef_[0, 0] * 1e4 > 1000
    result = calibration_intervals(expit(logits), labels, None, resamples=20)
    assert "practically equal" in result["calibration_slope"].reason
    assert result["calibration_intercept"].value is not None


def test_labels_that_only_a_tie_separates_have_no_slope():
    ones = np.ones((1, 4))
    tie = np.array([-1.0, 0.0, 0.0, 1.0])
    assert np.isnan(weighted_calibration_slope(tie, np.array([False, False, True, True]), ones)).all()


def test_slope_of_separated_labels_is_undefined_and_o_e_is_not():
    result = calibration_intervals([0.1, 0.2, 0.8, 0.9], [False, False, True, True], None)
    assert result["calibration_slope"].value is None
    assert "separate the labels" in result["calibration_slope"].reason
    assert result["observed_expected_ratio"].value == pytest.approx(1)


def test_o_e_of_probabilities_that_are_all_0_is_undefined_with_its_own_reason():
    result = calibration_intervals([0.0, 0.0, 0.0], [False, True, True], None)
    assert result["observed_expected_ratio"].reason == "all probabilities are 0"

"""Means over trainings with different seeds, checked against the jackknife, SciPy, DeLong's test and simulations."""

import numpy as np
import pytest
from scipy import stats

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.inputs import patient_groups
from pneumoscope.statistics.paired import delong_test
from pneumoscope.statistics.replicates import (
    proportion_covariance,
    replicates_difference,
    replicates_mean,
    replicates_method,
)
from pneumoscope.statistics.roc import delong_covariance

METHOD = "obuchowski-rockette, random seeds and images"


def test_covariance_of_proportions_is_that_of_the_jackknife_over_patients():
    """Both are the same where all patients have equally many images."""
    generator = np.random.default_rng(0)
    patients = generator.permutation(np.repeat(np.arange(40), 3))
    correct = generator.random((2, 120)) < np.where(patients % 3 == 0, 0.5, 0.9)
    mean, covariance = proportion_covariance(correct, patient_groups([f"p{patient}" for patient in patients], 120))
    without = np.array([correct[:, patients != patient].mean(axis=1) for patient in range(40)])
    assert mean == pytest.approx(correct.mean(axis=1))
    assert covariance == pytest.approx(39 / 40 * 39 * np.cov(without.T))


def test_difference_without_variance_of_patients_is_welchs_test():
    a, b = [0.91, 0.93, 0.90, 0.95], [0.88, 0.90, 0.86]
    difference, p = replicates_difference(a, b, np.zeros((7, 7)), n=100, method=METHOD)
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert p == pytest.approx(welch.pvalue)
    assert (difference.low, difference.high) == pytest.approx(tuple(welch.confidence_interval(0.95)))


def test_mean_without_variance_of_patients_is_the_interval_of_t():
    values = [0.91, 0.93, 0.90, 0.95]
    found = replicates_mean(values, np.zeros((4, 4)), n=100, method=METHOD)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((0.9225, *expected))


@pytest.mark.parametrize("repeated", [False, True])
def test_difference_of_two_single_trainings_is_delongs_test(repeated):
    generator = np.random.default_rng(1)
    labels = generator.random(80) < 0.5
    scores = generator.normal(size=(2, 80)) + labels * np.array([[1.5], [1.0]])
    patients = [f"p{number // 2 if repeated else number}" for number in range(80)]
    area, covariance = delong_covariance(scores, labels, patient_groups(patients, 80))
    difference, p = replicates_difference(area[:1], area[1:], covariance, n=80, method=METHOD)
    expected, expected_p = delong_test(scores[0], scores[1], labels, patients)
    assert p == pytest.approx(expected_p)
    assert (difference.value, difference.low, difference.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )


@pytest.mark.parametrize("seed_effect", [0.0, 0.8])
def test_false_alarms_of_the_difference_are_at_most_as_frequent_as_stated(seed_effect):
    """Two recipes that are equally good, each trained 4 times: both the images and the trainings differ by chance."""
    generator, alarms, misses, trials, n = np.random.default_rng(2), 0, 0, 400, 120
    groups, labels = np.arange(n), np.arange(n) < n // 2
    for _ in range(trials):
        difficulty = generator.normal(size=n)  # of the images, the same for all trainings
        skill = 1.5 + seed_effect * generator.normal(size=(8, 1))
        scores = skill * labels + difficulty + generator.normal(size=(8, n))
        area, covariance = delong_covariance(scores, labels, groups)
        difference, p = replicates_difference(area[:4], area[4:], covariance, n=n, method=METHOD)
        alarms += p < 0.05
        misses += not difference.low <= 0 <= difference.high
    assert alarms == misses
    assert stats.binomtest(alarms, trials, 0.05, alternative="greater").pvalue > 0.001
    if seed_effect:
        assert stats.binomtest(alarms, trials, 0.05).pvalue > 0.001


def test_interval_of_the_mean_covers_the_mean_of_other_seeds_and_images():
    generator, covered, trials, n = np.random.default_rng(3), 0, 400, 150
    skill_of_seeds = stats.norm(1.0, 0.4)
    # A decision is correct if skill + difficulty + noise > 0, with variances 0.16, 1 and 1.
    truth = stats.norm.cdf(1.0 / np.sqrt(0.16 + 1 + 1))
    for _ in range(trials):
        skill = skill_of_seeds.rvs((5, 1), random_state=generator)
        correct = skill + generator.normal(size=n) + generator.normal(size=(5, n)) > 0
        mean, covariance = proportion_covariance(correct, np.arange(n))
        found = replicates_mean(mean, covariance, n=n, method=METHOD)
        covered += found.low <= truth <= found.high
    assert stats.binomtest(covered, trials, 0.95).pvalue > 0.001


def test_degrees_of_freedom_of_a_mean_are_those_of_hillis_2007():
    """With mean squares: (MS(R) + r cov)^2 / (MS(R)^2 / (r - 1)), for r readers of one modality."""
    values, common = np.array([0.80, 0.82, 0.87]), 0.0004
    covariance = np.full((3, 3), common) + np.diag([0.0002] * 3)
    mean_square = np.sum((values - values.mean()) ** 2) / 2
    degrees = (mean_square + 3 * common) ** 2 / (mean_square**2 / 2)
    half = stats.t.ppf(0.975, degrees) * np.sqrt((mean_square + 3 * common) / 3)
    interval = replicates_mean(values, covariance, n=100, method="")
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_degrees_of_freedom_of_a_difference_are_those_of_readers_nested_in_modalities():
    """Hillis 2014: (MS(R(T)) + r (cov2 - cov3))^2 / (MS(R(T))^2 / (2 (r - 1))), for recipes of equal spread."""
    a, b, r = np.array([0.80, 0.82, 0.87]), np.array([0.70, 0.72, 0.77]), 3
    within, across = 0.0004, 0.0003
    covariance = np.kron([[within, across], [across, within]], np.ones((r, r))) + np.diag([0.0002] * 2 * r)
    mean_square = np.var(a, ddof=1)
    total = mean_square + r * (within - across)
    degrees = total**2 / (mean_square**2 / (2 * (r - 1)))
    error = np.sqrt(2 / r * total)
    interval, p = replicates_difference(a, b, covariance, n=100, method="")
    assert interval.high - interval.low == pytest.approx(2 * stats.t.ppf(0.975, degrees) * error)
    assert p == pytest.approx(2 * stats.t.sf(0.1 / error, degrees))


def test_interval_stays_within_0_and_1():
    found = replicates_mean([0.999, 0.9, 1.0], np.full((3, 3), 0.001), n=50, method=METHOD)
    assert (found.low >= 0, found.high) == (True, 1.0)


def test_trainings_without_any_variation_have_no_interval_and_no_p():
    mean = replicates_mean([1.0, 1.0], np.zeros((2, 2)), n=50, method=METHOD)
    assert (mean.value, mean.low, mean.high) == (1.0, None, None)
    assert mean.reason == "neither seeds nor images show a variance"
    difference, p = replicates_difference([1.0, 1.0], [0.9, 0.9], np.zeros((4, 4)), n=50, method=METHOD)
    assert (difference.value, difference.low, p) == (pytest.approx(0.1), None, None)


def test_proportion_of_one_patient_has_no_variance():
    with pytest.raises(UndefinedMetricError, match=r"needs 2 patients; there is 1$"):
        proportion_covariance([[True, False]], np.zeros(2, dtype=np.int64))


def test_method_states_whether_patients_repeat():
    assert replicates_method(np.arange(3)) == METHOD
    assert replicates_method(np.array([0, 0, 1])) == "obuchowski-rockette, random seeds and patients"


def test_interval_of_trainings_that_agree_by_chance_is_not_narrower_than_that_of_other_patients():
    covariance = np.array([[0.008, 0.002], [0.002, 0.008]])
    found = replicates_mean([0.6, 0.6], covariance, n=20, method=METHOD)
    sd_of_these_trainings = np.sqrt(covariance.sum() / 4)  # of their mean, over patients
    assert found.high - found.low == pytest.approx(2 * stats.norm.ppf(0.975) * sd_of_these_trainings)
    difference, _ = replicates_difference([0.6, 0.6], [0.5, 0.5], np.kron(np.eye(2), covariance), n=20, method=METHOD)
    assert difference.high - difference.low == pytest.approx(
        2 * stats.norm.ppf(0.975) * np.sqrt(2) * sd_of_these_trainings
    )

"""Means and differences over the folds of a cross-validation: checked against SciPy's t tests and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from tests.benchmarks.loading import load_benchmark

from pneumoscope.statistics.resampled import folds_difference, folds_mean

A, B = [0.91, 0.87, 0.93, 0.90, 0.88], [0.86, 0.88, 0.90, 0.87, 0.83]


def test_without_shared_training_images_the_test_is_the_paired_t_test():
    difference, p = folds_difference(A, B, 0.0, n=500)
    expected = stats.ttest_rel(A, B)
    assert p == pytest.approx(expected.pvalue)
    assert (difference.low, difference.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert difference.value == pytest.approx(np.mean(A) - np.mean(B))
    mean = folds_mean(A, 0.0, n=500)
    assert (mean.low, mean.high) == pytest.approx(tuple(stats.ttest_1samp(A, 0).confidence_interval(0.95)))


def test_statistic_is_that_of_t_reduced_by_the_share_of_validation_images():
    """By hand for 5 folds: t is divided by sqrt(1 + k n_validation / n_training), here by 1.5."""
    t = stats.ttest_rel(A, B).statistic / math.sqrt(1 + 5 * 0.25)
    difference, p = folds_difference(A, B, 0.25, n=500)
    assert p == pytest.approx(2 * stats.t.sf(t, 4))
    usual = stats.ttest_rel(A, B).confidence_interval(0.95)
    assert difference.high - difference.low == pytest.approx(1.5 * (usual.high - usual.low))
    assert difference.method == "nadeau-bengio, corrected resampled t"
    assert difference.n == 500


def test_interval_stays_within_0_and_1():
    found = folds_mean([0.7, 0.99, 1.0], 0.5, n=60)
    assert (found.low > 0, found.high) == (True, 1.0)


def test_folds_without_any_variation_have_no_interval_and_no_p():
    mean = folds_mean([0.9, 0.9, 0.9], 0.5, n=60)
    assert (mean.value, mean.low, mean.high) == (pytest.approx(0.9), None, None)
    assert mean.reason == "it is the same in all folds"
    difference, p = folds_difference([0.9, 0.8], [0.7, 0.6], 1.0, n=60)
    assert (difference.value, difference.low, p) == (pytest.approx(0.2), None, None)


@pytest.mark.slow
@pytest.mark.parametrize("folds", [3, 5])
def test_false_alarms_are_at_most_as_frequent_as_stated_where_the_usual_tests_have_more(folds):
    """A part of the simulation of benchmarks/fold_tests.py, whose numbers the documentation states."""
    repeats = 400
    rates = load_benchmark("fold_tests").simulate(100, folds, repeats, seed=4)
    alarms, *others, covered = (round(rate * repeats) for rate in rates)
    assert stats.binomtest(alarms, repeats, 0.05, alternative="greater").pvalue > 0.001
    assert alarms > 0
    for other in others:  # the t test of the folds, and McNemar's test of the pooled predictions
        assert stats.binomtest(other, repeats, 0.05, alternative="greater").pvalue < 0.05
        assert other > alarms
    assert stats.binomtest(covered, repeats, 0.95, alternative="less").pvalue > 0.001


def test_expected_accuracy_of_the_simulation_is_that_on_new_images():
    simulation, generator = load_benchmark("fold_tests"), np.random.default_rng(5)
    y = np.arange(200_000) % 2 == 0
    x = generator.normal(size=(len(y), simulation.FEATURES))
    x[y] += simulation.SHIFT
    weights, constant = simulation.fit_classifier(x[:100], y[:100])
    measured = np.mean((x[100:] @ weights + constant > 0) == y[100:])
    assert 0.55 < simulation.expected_accuracy(weights, constant) == pytest.approx(measured, abs=0.005)

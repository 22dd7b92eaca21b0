"""Means and differences over the folds of a cross-validation: checked against SciPy's t tests and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.model_selection import StratifiedKFold

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
    difference, p = folds_difference([0.9, 0.8], [0.7, 0.6], 1.0, n=60)
    assert (difference.value, difference.low, p) == (pytest.approx(0.2), None, None)


def linear_classifier(x, y):
    """Return the weights and the constant of Fisher's discriminant with a ridge."""
    means = [x[y == label].mean(axis=0) for label in (True, False)]
    within = x - np.where(y[:, None], *means)
    weights = np.linalg.solve(within.T @ within / len(x) + np.eye(x.shape[1]), means[0] - means[1])
    return weights, -weights @ (means[0] + means[1]) / 2


@pytest.mark.parametrize("folds", [3, 5])
def test_false_alarms_are_at_most_as_frequent_as_stated_where_the_usual_tests_have_more(folds):
    """Two recipes of equal expected accuracy: the same classifier on two different, equally informative sets of features."""
    generator, trials, n, shift = np.random.default_rng(4), 400, 100, 0.25
    y, alarms, usual, pooled, covered = np.arange(n) < n // 2, 0, 0, 0, 0
    truths, intervals = [], []
    for trial in range(trials):
        x = generator.normal(size=(n, 40))
        x[y] += shift
        accuracies, correct = np.zeros((2, folds)), np.zeros((2, n), dtype=bool)
        for fold, (train, test) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=trial).split(x, y)):
            for recipe, columns in enumerate((slice(20), slice(20, 40))):
                weights, constant = linear_classifier(x[train, columns], y[train])
                correct[recipe, test] = (x[test, columns] @ weights + constant > 0) == y[test]
                accuracies[recipe, fold] = correct[recipe, test].mean()
                length = np.linalg.norm(weights)
                normal = stats.norm.cdf(-constant / length)
                truths.append((normal + stats.norm.cdf((shift * weights.sum() + constant) / length)) / 2)
        _, p = folds_difference(*accuracies, 1 / (folds - 1), n=n)
        alarms += p is not None and p < 0.05
        usual += bool(np.ptp(accuracies[0] - accuracies[1])) and stats.ttest_rel(*accuracies).pvalue < 0.05
        only = [int((correct[i] & ~correct[1 - i]).sum()) for i in (0, 1)]
        pooled += stats.binomtest(only[0], sum(only)).pvalue < 0.05
        intervals.append(folds_mean(accuracies[0], 1 / (folds - 1), n=n))
    assert stats.binomtest(alarms, trials, 0.05, alternative="greater").pvalue > 0.001
    assert alarms > 0
    for others in (usual, pooled):  # the t test of the folds, and McNemar's test of the pooled predictions
        assert stats.binomtest(others, trials, 0.05, alternative="greater").pvalue < 0.05
        assert others > alarms
    truth = np.mean(truths)  # expected accuracy of a network trained on so many images
    covered = sum(each.low is None or each.low <= truth <= each.high for each in intervals)
    assert stats.binomtest(covered, trials, 0.95, alternative="less").pvalue > 0.001

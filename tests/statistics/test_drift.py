"""Drift: the difference by hand, and the difference by chance from simulating both samples."""

import numpy as np
import pytest
from scipy import stats

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.drift import MIN_IMAGES, detect_drift, measure_drift
from pneumoscope.statistics.multiple_testing import holm

TENTHS = tuple(k / 10 for k in range(1, 10))


def test_images_distributed_like_the_reference_have_no_difference():
    drift = measure_drift(np.arange(0.05, 1, 0.1).repeat(10), TENTHS, 1000)
    assert (drift.counts, drift.n, drift.difference) == ((10,) * 10, 100, 0)
    assert drift.chance > 0


def test_the_difference_is_the_fraction_of_images_that_would_have_to_move():
    # 60 in the lowest tenth and 40 in the highest instead of 10 in each: 50 and 30 of 100 must move.
    drift = measure_drift([0.01] * 60 + [0.99] * 40, TENTHS, 1000)
    assert drift.counts == (60, 0, 0, 0, 0, 0, 0, 0, 0, 40)
    assert drift.difference == pytest.approx(0.8)
    assert drift.difference > drift.chance


def test_an_image_on_a_decile_belongs_to_the_tenth_above():
    assert measure_drift([0.1] * MIN_IMAGES, TENTHS, 100).counts[1] == MIN_IMAGES


@pytest.mark.parametrize(("n", "reference"), [(60, 60), (60, 800), (500, 800)])
def test_chance_is_the_95th_percentile_for_two_samples_of_one_population(n, reference):
    # Both samples are drawn from a population that is not uniform.
    random = np.random.default_rng(1)
    differences = []
    for _ in range(1500):
        deciles = np.quantile(random.beta(0.3, 0.2, reference), TENTHS)
        counts = np.bincount(np.searchsorted(deciles, random.beta(0.3, 0.2, n)), minlength=10)
        differences.append(np.abs(counts / n - 0.1).sum() / 2)
    chance = measure_drift(np.full(n, 0.5), TENTHS, reference).chance
    assert np.mean(np.array(differences) <= chance) == pytest.approx(0.95, abs=0.025)


def test_the_same_seed_gives_the_same_result():
    assert measure_drift([0.5] * 80, TENTHS, 100, seed=3) == measure_drift([0.5] * 80, TENTHS, 100, seed=3)


@pytest.mark.parametrize(
    ("probabilities", "deciles", "message"),
    [
        ([0.5] * (MIN_IMAGES - 1), TENTHS, f"needs at least {MIN_IMAGES} images; there are {MIN_IMAGES - 1}"),
        ([0.5] * MIN_IMAGES, TENTHS[:8], "nine ascending"),
        ([0.5] * MIN_IMAGES, TENTHS[::-1], "nine ascending"),
    ],
)
def test_too_few_images_and_malformed_deciles_are_rejected(probabilities, deciles, message):
    with pytest.raises(UndefinedMetricError, match=message):
        measure_drift(probabilities, deciles, 100)


def test_each_quantity_is_tested_and_only_the_changed_one_gives_an_alarm():
    rng = np.random.default_rng(0)
    reference = {"brightness": rng.normal(120, 10, 200).tolist(), "contrast": rng.normal(40, 5, 200).tolist()}
    recent = {"brightness": rng.normal(140, 10, 80).tolist(), "contrast": rng.normal(40, 5, 80).tolist()}
    tests = detect_drift(reference, recent, rejected=(4, 3), images=(200, 90), false_alarms=0.05)

    assert [(test.name, test.alarm) for test in tests] == [
        ("brightness", True),
        ("contrast", False),
        ("rejected", False),
    ]
    expected = [
        stats.ks_2samp(reference["brightness"], recent["brightness"], method="asymp").pvalue,
        stats.ks_2samp(reference["contrast"], recent["contrast"], method="asymp").pvalue,
        stats.fisher_exact([[4, 196], [3, 87]]).pvalue,
    ]
    assert [test.p_value for test in tests] == pytest.approx(expected)
    assert [test.adjusted for test in tests] == pytest.approx(holm(expected))
    assert (tests[2].reference, tests[2].recent, tests[2].n_reference, tests[2].n_recent) == (0.02, 3 / 90, 200, 90)
    assert tests[0].recent == pytest.approx(np.median(recent["brightness"]))


def test_a_quantity_without_recent_values_is_not_tested():
    tests = detect_drift({"logit": [0.0] * 60}, {"logit": []}, rejected=(1, 60), images=(60, 60), false_alarms=0.05)
    assert [(test.name, test.alarm) for test in tests] == [("rejected", True)]

"""Non-inferiority, compared with the definition applied to every possible count, and with simulated tests."""

import numpy as np
import pytest
from scipy import stats

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.statistics.intervals import difference, effective_size, newcombe, proportion, undefined, wilson
from pneumoscope.statistics.noninferiority import compare_with_reference, power, sample_size

REFERENCE = wilson(560, 596)


def test_difference_from_intervals_is_that_of_newcombe():
    assert difference(wilson(45, 50), wilson(70, 80)) == newcombe(45, 50, 70, 80)
    assert difference(wilson(0, 0), wilson(1, 2)).value is None


@pytest.mark.parametrize(
    ("successes", "n", "verdict"),
    [(295, 300, "non_inferior"), (47, 50, "inconclusive"), (240, 300, "inferior"), (265, 300, "inferior"),
     (275, 300, "inconclusive")],
)  # fmt: skip
def test_verdict_follows_from_the_interval_of_the_difference(successes, n, verdict):
    result = compare_with_reference(wilson(successes, n), REFERENCE, 0.01 if successes == 265 else 0.05)

    assert result.difference == newcombe(successes, n, 560, 596)
    assert result.verdict == verdict


def test_power_is_the_probability_of_the_counts_that_show_non_inferiority():
    for n in (30, 211, 400):
        shown = [compare_with_reference(wilson(k, n), REFERENCE, 0.05).verdict == "non_inferior" for k in range(n + 1)]
        expected = stats.binom(n, 560 / 596).pmf(np.flatnonzero(shown)).sum()
        assert power(n, REFERENCE, 0.05) == pytest.approx(expected, abs=1e-12)


def test_error_of_the_test_is_about_the_nominal_one():
    # The reference is estimated, too: it is drawn again in each simulation. The true decrease equals the margin.
    rng = np.random.default_rng(0)
    wrong = [
        compare_with_reference(
            wilson(int(rng.binomial(300, 0.90)), 300), wilson(int(rng.binomial(600, 0.95)), 600), 0.05
        ).verdict
        == "non_inferior"
        for _ in range(2000)
    ]
    assert 0.015 <= np.mean(wrong) <= 0.037


@pytest.mark.parametrize(("margin", "target"), [(0.05, 0.8), (0.05, 0.9), (0.1, 0.8)])
def test_power_stays_at_the_target_from_the_sample_size_on(margin, target):
    size = sample_size(REFERENCE, margin, target)

    assert power(size - 1, REFERENCE, margin) < target
    assert all(power(n, REFERENCE, margin) >= target for n in range(size, size + 200))


def test_no_sample_is_large_enough_if_the_reference_is_less_certain_than_the_margin():
    uncertain = wilson(18, 20)
    assert uncertain.high - uncertain.value > 0.05
    assert sample_size(uncertain, 0.05) is None
    assert power(20_000, uncertain, 0.05) < 0.01
    assert sample_size(wilson(99_000, 110_000), 0.005) is None  # more than 20,000 images


@pytest.mark.parametrize("margin", [0.0068, 0.007])
def test_sample_sizes_up_to_the_maximum_are_found(margin):
    reference = wilson(99_000, 110_000)
    size = sample_size(reference, margin)
    assert 16_384 < size <= 20_000
    assert power(size - 1, reference, margin) < 0.8 <= power(size, reference, margin)


def test_power_stays_at_the_target_for_a_reference_near_1():
    reference = wilson(792, 800)
    size = sample_size(reference, 0.02)
    assert power(size - 1, reference, 0.02) < 0.8
    assert all(power(n, reference, 0.02) >= 0.8 for n in range(size, size + 600))


def test_repeated_patients_lower_the_power():
    correct = np.arange(400) % 20 != 0
    single = proportion(correct, None)
    repeated, patients = np.repeat(correct[:100], 4), [str(i // 4) for i in range(400)]
    clustered = proportion(repeated, patients)

    n = effective_size(repeated, patients)
    assert effective_size(correct, None) == 400
    assert n == pytest.approx(100, abs=2)
    assert compare_with_reference(single, REFERENCE, 0.05).power == pytest.approx(power(400, REFERENCE, 0.05))
    assert compare_with_reference(clustered, REFERENCE, 0.05, n).power == power(n, REFERENCE, 0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare_with_reference(wilson(1, 2), REFERENCE, 0), "margin is 0, not between 0 and 1"),
        (lambda: compare_with_reference(wilson(0, 0), REFERENCE, 0.05), "one side has no images"),
        (lambda: compare_with_reference(wilson(1, 2), undefined("nothing", n=0, method="wilson"), 0.05), "nothing"),
        (lambda: power(0, REFERENCE, 0.05), "at least one image, not 0"),
        (lambda: sample_size(REFERENCE, 0.05, 1.0), r"power is 1\.0, not between 0 and 1"),
        (lambda: sample_size(Interval(None, None, None, "wilson", 0, reason="gone"), 0.05), "gone"),
    ],
)
def test_undefined_inputs_are_named(call, message):
    with pytest.raises(UndefinedMetricError, match=message):
        call()

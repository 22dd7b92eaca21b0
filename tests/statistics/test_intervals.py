"""Intervals, checked against SciPy, the examples of Newcombe's papers, and simulated coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.intervals import (
    design_effect,
    newcombe,
    paired_difference,
    patient_bootstrap,
    proportion,
    wilson,
)
from pneumoscope.statistics.roc import weighted_auprc, weighted_auroc


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (1, 3), (576, 624), (386, 390), (112, 234)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_agrees_with_scipy(successes, n, level):
    interval = wilson(successes, n, level)
    reference = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert (interval.value, interval.n, interval.level, interval.method) == (successes / n, n, level, "wilson")


def test_wilson_of_the_published_accuracies():
    best, last = wilson(576, 624), wilson(562, 624)
    assert (best.low, best.high, last.low, last.high) == pytest.approx((0.900, 0.942, 0.875, 0.922), abs=1e-3)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_proportion_and_is_symmetric(case):
    successes, n = case
    interval, mirror = wilson(successes, n), wilson(n - successes, n)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low < interval.high
    assert interval.low == pytest.approx(1 - mirror.high, abs=1e-12)


def test_wilson_without_images_is_undefined_with_a_reason():
    interval = wilson(0, 0)
    assert (interval.value, interval.low, interval.high) == (None, None, None)
    assert "no images" in interval.reason


@pytest.mark.parametrize("successes", [-1, 11])
def test_wilson_rejects_successes_outside_0_to_n(successes):
    with pytest.raises(UndefinedMetricError, match=rf"^{successes} of 10 is not a proportion"):
        wilson(successes, 10)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_outside_0_to_1_is_rejected(level):
    with pytest.raises(UndefinedMetricError, match=f"is {level}, not between 0 and 1"):
        wilson(1, 2, level)


@pytest.mark.parametrize("p", [0.5, 0.92, 0.99])
def test_wilson_has_coverage(p):
    """The exact coverage, summed over the binomial distribution, is near the level."""
    n = 234
    inside = [interval.low <= p <= interval.high for interval in (wilson(k, n) for k in range(n + 1))]
    coverage = stats.binom.pmf(np.arange(n + 1), n, p)[inside].sum()
    assert 0.93 < coverage < 0.98


# Newcombe 1998, Stat Med 17:873, table II, row 10 of contrasts (a), (f) and (h).
@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((56, 70, 48, 80), 0.0524, 0.3339), ((10, 10, 0, 20), 0.6791, 1.0000), ((10, 10, 0, 10), 0.6075, 1.0000)],
)
def test_newcombe_agrees_with_the_examples_of_the_paper(counts, low, high):
    interval = newcombe(*counts)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    assert interval.method == "newcombe, unpaired"


@given(st.integers(1, 400), st.integers(1, 400), st.data())
def test_newcombe_contains_the_difference_and_is_antisymmetric(n_a, n_b, data):
    a, b = data.draw(st.integers(0, n_a)), data.draw(st.integers(0, n_b))
    interval, swapped = newcombe(a, n_a, b, n_b), newcombe(b, n_b, a, n_a)
    assert -1 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low == pytest.approx(-swapped.high, abs=1e-12)


def test_newcombe_without_images_is_undefined():
    assert newcombe(0, 0, 1, 2).value is None
    assert newcombe(0, 0, 1, 2).reason == "one side has no images"


def table(both, only_a, only_b, neither):
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return np.array(a), np.array(b)


def test_paired_difference_agrees_with_the_textbook_example():
    """Altman et al. 2000, Statistics with Confidence, table 6.2: 14, 5, 0, 22 give 0.122 (0.011 to 0.226)."""
    interval = paired_difference(*table(14, 5, 0, 22))
    assert (interval.value, interval.low, interval.high) == pytest.approx((5 / 41, 0.011, 0.226), abs=6e-4)
    assert (interval.method, interval.n) == ("newcombe, paired", 41)


def test_paired_difference_by_hand_with_positive_phi():
    l1, u1 = wilson(75, 100).low, wilson(75, 100).high
    l2, u2 = wilson(65, 100).low, wilson(65, 100).high
    phi = (60 * 20 - 15 * 5 - 50) / math.sqrt(75 * 25 * 65 * 35)
    low = 0.1 - math.sqrt((0.75 - l1) ** 2 - 2 * phi * (0.75 - l1) * (u2 - 0.65) + (u2 - 0.65) ** 2)
    high = 0.1 + math.sqrt((u1 - 0.75) ** 2 - 2 * phi * (u1 - 0.75) * (0.65 - l2) + (0.65 - l2) ** 2)
    interval = paired_difference(*table(60, 15, 5, 20))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)


def test_the_paired_interval_is_narrower_than_the_unpaired():
    a, b = table(540, 36, 10, 38)
    paired, unpaired = paired_difference(a, b), newcombe(576, 624, 550, 624)
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < 0.8 * (unpaired.high - unpaired.low)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9)), min_size=1, max_size=60))
def test_paired_difference_is_antisymmetric_and_contains_the_value(images):
    a, b, keys = (list(column) for column in zip(*images, strict=True))
    patients = [f"p{key}" for key in keys]
    interval, swapped = paired_difference(a, b, patients), paired_difference(b, a, patients)
    assert -1 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.value == pytest.approx(np.mean(a) - np.mean(b), abs=1e-12)
    assert (interval.low, interval.high) == pytest.approx((-swapped.high, -swapped.low), abs=1e-9)


def test_paired_difference_has_coverage():
    random = np.random.default_rng(7)
    cells = np.array([0.80, 0.09, 0.05, 0.06])
    draws = random.multinomial(200, cells, size=1000)
    inside = 0
    for draw in draws:
        interval = paired_difference(*table(*draw))
        inside += interval.low <= 0.04 <= interval.high
    assert abs(inside / 1000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)


def simulate_patients(random, patients, p, rho):
    """Return outcomes and patients of 1 to 4 images per patient with intraclass correlation rho."""
    sizes = random.integers(1, 5, patients)
    groups = np.repeat(np.arange(patients), sizes)
    shared, own = random.random(patients) < p, random.random(len(groups)) < p
    is_shared = random.random(len(groups)) < math.sqrt(rho)
    return np.where(is_shared, shared[groups], own), [f"p{group}" for group in groups]


def test_the_design_effect_restores_coverage_where_patients_repeat():
    random = np.random.default_rng(3)
    n_by_image = n_by_patient = 0
    for _ in range(600):
        correct, patients = simulate_patients(random, 150, 0.85, 0.6)
        by_image, by_patient = wilson(int(correct.sum()), len(correct)), proportion(correct, patients)
        n_by_image += by_image.low <= 0.85 <= by_image.high
        n_by_patient += by_patient.low <= 0.85 <= by_patient.high
    assert n_by_image / 600 < 0.90
    assert abs(n_by_patient / 600 - 0.95) < 0.03


def test_design_effect_by_hand():
    """Two patients of two images that agree (1, 1 and 0, 0) and two of one image (1 and 0): n = 6, mean 1/2."""
    values = np.array([1, 1, 0, 0, 1, 0])
    groups = np.array([0, 0, 1, 1, 2, 3])
    between = 4 / 3 * (1 + 1 + 0.25 + 0.25)
    within = 6 / 5 * 6 * 0.25
    assert design_effect(values, groups) == pytest.approx(between / within)


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_proportion_with_one_image_per_patient_is_wilson(correct):
    interval, plain = proportion(correct, None), wilson(sum(correct), len(correct))
    assert interval == plain
    assert proportion(correct, [f"p{index}" for index in range(len(correct))]) == plain


def test_equal_images_of_a_patient_count_as_one():
    interval = proportion([True] * 9, ["a"] * 4 + ["b"] * 4 + [""])
    of_patients = wilson(3, 3)
    assert (interval.value, interval.n, interval.method) == (1.0, 9, "wilson, design effect 3.00")
    assert (interval.low, interval.high) == pytest.approx((of_patients.low, of_patients.high))


def test_the_design_effect_of_one_patient_is_the_number_of_images():
    assert design_effect([1, 0, 1, 1], np.zeros(4, dtype=np.int64)) == 4.0


def test_a_proportion_without_images_states_the_reason():
    interval = proportion([], [], reason="no image is predicted as pneumonia")
    assert (interval.value, interval.n, interval.reason) == (None, 0, "no image is predicted as pneumonia")


def mean(scores, labels, weights):
    return weights @ scores / weights.sum(axis=1)


def test_bootstrap_with_one_image_per_patient_agrees_with_scipy():
    scores = np.random.default_rng(0).gamma(2.0, size=300)
    interval = patient_bootstrap(mean, scores, scores > 1, None, resamples=4000, seed=1)
    reference = stats.bootstrap((scores,), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
    standard_error = scores.std() / math.sqrt(300)
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), abs=0.12 * standard_error)
    assert (interval.value, interval.n, interval.seed, interval.method) == (
        pytest.approx(scores.mean()),
        300,
        1,
        "patient bootstrap",
    )


def test_bootstrap_resamples_patients_and_not_images():
    """With four copies of each image of a patient, the interval is as wide as with one."""
    random = np.random.default_rng(5)
    logits, labels = random.normal(size=120), random.random(120) < 0.5
    logits = logits + labels
    once = patient_bootstrap(weighted_auroc, logits, labels, None, seed=3)
    keys = [f"p{index}" for index in range(120)] * 4
    four = patient_bootstrap(weighted_auroc, np.tile(logits, 4), np.tile(labels, 4), keys, seed=3)
    assert four.high - four.low == pytest.approx(once.high - once.low, rel=1e-9)
    images = patient_bootstrap(weighted_auroc, np.tile(logits, 4), np.tile(labels, 4), None, seed=3)
    assert images.high - images.low < 0.6 * (once.high - once.low)


def test_bootstrap_depends_on_the_seed_and_not_on_the_block_size(monkeypatch):
    scores = np.random.default_rng(0).normal(size=50)
    whole = patient_bootstrap(mean, scores, scores > 0, None, resamples=200, seed=9)
    monkeypatch.setattr("pneumoscope.statistics.intervals._BLOCK", 50 * 7)
    again = patient_bootstrap(mean, scores, scores > 0, None, resamples=200, seed=9)
    # The order of summation differs between processors: equal except for the last bit.
    assert (again.low, again.high) == pytest.approx((whole.low, whole.high), rel=1e-12)
    assert patient_bootstrap(mean, scores, scores > 0, None, resamples=200, seed=8) != whole


def test_bootstrap_has_coverage():
    random = np.random.default_rng(11)
    inside = 0
    for trial in range(300):
        groups = np.repeat(np.arange(80), 2)
        scores = random.normal(size=80)[groups] + 0.3 * random.normal(size=160)
        interval = patient_bootstrap(mean, scores, scores > 0, [f"p{g}" for g in groups], resamples=300, seed=trial)
        inside += interval.low <= 0 <= interval.high
    assert abs(inside / 300 - 0.94) < 4 * math.sqrt(0.95 * 0.05 / 300)


def test_bootstrap_of_an_undefined_statistic_states_the_reason():
    interval = patient_bootstrap(weighted_auroc, [0.1, 0.2], [True, True], None, reason="there is no NORMAL image")
    assert (interval.value, interval.low, interval.reason, interval.seed) == (None, None, "there is no NORMAL image", 0)


def test_resamples_with_an_undefined_statistic_are_dropped():
    """A resample misses the only NORMAL image of six with probability (5/6)^6; the others give an interval."""
    labels = [False, True, True, True, True, True]
    interval = patient_bootstrap(weighted_auroc, [0.5, 0.3, 0.4, 0.6, 0.6, 0.7], labels, None)
    assert (interval.value, interval.reason) == (0.6, "")
    assert 0 <= interval.low < 0.6 < interval.high <= 1


def test_a_statistic_that_is_undefined_in_most_resamples_has_no_interval():
    """It is defined only if the first two images are drawn once each, with probability 6 x 5 x 4^4 / 6^6 = 5/30.4."""

    def rarely_defined(scores, labels, weights):
        return np.where((weights[:, 0] == 1) & (weights[:, 1] == 1), 1.0, np.nan)

    interval = patient_bootstrap(rarely_defined, [1, 2, 3, 4, 5, 6], [False, True] * 3, None)
    assert (interval.value, interval.low, interval.high) == (1.0, None, None)
    n_defined = int(
        interval.reason.removeprefix("the statistic is defined in only ").removesuffix(" of 2000 resamples")
    )
    p = 6 * 5 * 4**4 / 6**6
    assert abs(n_defined - 2000 * p) < 4 * math.sqrt(2000 * p * (1 - p))


def test_bootstrap_needs_six_patients():
    """The range of five values misses their median with probability 2^-4, that of six with 2^-5."""
    scores, labels = np.arange(10.0), np.arange(10) % 2 == 0
    five = patient_bootstrap(mean, scores, labels, [f"p{index % 5}" for index in range(10)])
    assert (five.value, five.low, five.high) == (4.5, None, None)
    assert five.reason == "5 patients are too few for a bootstrap, which needs 6"
    six = patient_bootstrap(mean, scores, labels, [f"p{index % 6}" for index in range(10)])
    assert six.low < 4.5 < six.high


def test_bootstrap_of_a_statistic_that_compares_labels_needs_six_patients_of_each():
    scores = np.random.default_rng(3).normal(size=40)
    for positives, reason in (
        (1, "1 patient of one label is too few for a bootstrap, which needs 6 of each"),
        (5, "5 patients of one label are too few for a bootstrap, which needs 6 of each"),
        (6, ""),
    ):
        labels = np.arange(40) < positives
        interval = patient_bootstrap(weighted_auprc, scores, labels, None, resamples=200, by_label=True)
        assert (interval.low is None, interval.reason) == (reason != "", reason)
        assert patient_bootstrap(mean, scores, labels, None, resamples=200).low is not None


def test_an_auprc_of_perfectly_separated_labels_has_no_interval_of_one_point():
    interval = patient_bootstrap(weighted_auprc, [1, 2, 3, 4, 5, 6], [False] * 3 + [True] * 3, None)
    assert (interval.value, interval.low, interval.high) == (1.0, None, None)
    assert interval.reason == "it is the same in all resamples"


def test_bootstrap_of_one_patient_has_no_interval():
    found = patient_bootstrap(weighted_auroc, [0.1, 0.9, 0.4], [False, True, True], ["a"] * 3)
    assert (found.value, found.low, found.high) == (1.0, None, None)
    assert found.reason == "all images are of one patient"

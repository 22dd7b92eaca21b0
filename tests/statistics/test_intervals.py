"""Second opinions: scipy's Wilson and bootstrap, examples printed in Newcombe's papers, simulated coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.inputs import patient_numbers
from pneumoscope.statistics.intervals import (
    design_effect,
    newcombe,
    paired_difference,
    patient_bootstrap,
    proportion,
    wilson,
)
from pneumoscope.statistics.roc import weighted_auroc


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (1, 3), (576, 624), (386, 390), (112, 234)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_is_scipys(successes, n, level):
    ours = wilson(successes, n, level)
    theirs = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert (ours.value, ours.n, ours.level, ours.method) == (successes / n, n, level, "wilson")


def test_wilson_of_the_published_accuracies():
    """The report's two best accuracies overlap at about two points to either side."""
    best, last = wilson(576, 624), wilson(562, 624)
    assert (best.low, best.high, last.low, last.high) == pytest.approx((0.900, 0.942, 0.875, 0.922), abs=1e-3)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_proportion_and_mirrors(case):
    successes, n = case
    found, mirror = wilson(successes, n), wilson(n - successes, n)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert found.low == pytest.approx(1 - mirror.high, abs=1e-12)


def test_wilson_without_images_is_undefined_with_a_reason():
    found = wilson(0, 0)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert "no image" in found.reason


@pytest.mark.parametrize("successes", [-1, 11])
def test_wilson_refuses_what_is_no_proportion(successes):
    with pytest.raises(UndefinedMetricError, match=rf"^{successes} of 10 is no proportion"):
        wilson(successes, 10)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_is_a_share(level):
    with pytest.raises(UndefinedMetricError, match=f"is {level}, not between 0 and 1"):
        wilson(1, 2, level)


@pytest.mark.parametrize("p", [0.5, 0.92, 0.99])
def test_wilson_covers(p):
    """Exact coverage, summed over the binomial distribution: near the level, never far below it."""
    n = 234
    inside = [found.low <= p <= found.high for found in (wilson(k, n) for k in range(n + 1))]
    coverage = stats.binom.pmf(np.arange(n + 1), n, p)[inside].sum()
    assert 0.93 < coverage < 0.98


# Newcombe 1998, Stat Med 17:873, table II, row 10 of contrasts (a), (f) and (h).
@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((56, 70, 48, 80), 0.0524, 0.3339), ((10, 10, 0, 20), 0.6791, 1.0000), ((10, 10, 0, 10), 0.6075, 1.0000)],
)
def test_newcombe_is_the_papers_example(counts, low, high):
    found = newcombe(*counts)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert found.method == "newcombe, unpaired"


@given(st.integers(1, 400), st.integers(1, 400), st.data())
def test_newcombe_contains_the_difference_and_is_antisymmetric(n_a, n_b, data):
    a, b = data.draw(st.integers(0, n_a)), data.draw(st.integers(0, n_b))
    found, turned = newcombe(a, n_a, b, n_b), newcombe(b, n_b, a, n_a)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low == pytest.approx(-turned.high, abs=1e-12)


def test_newcombe_without_images_is_undefined():
    assert newcombe(0, 0, 1, 2).value is None
    assert newcombe(0, 0, 1, 2).reason == "one side has no image"


def table(both, only_a, only_b, neither):
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return np.array(a), np.array(b)


def test_paired_difference_is_the_textbook_example():
    """Altman et al. 2000, Statistics with Confidence, table 6.2: 14, 5, 0, 22 give 0.122 (0.011 to 0.226)."""
    found = paired_difference(*table(14, 5, 0, 22))
    assert (found.value, found.low, found.high) == pytest.approx((5 / 41, 0.011, 0.226), abs=6e-4)
    assert (found.method, found.n) == ("newcombe, paired", 41)


def test_paired_difference_by_hand_with_positive_phi():
    """60, 15, 5, 20: every step of the formula written out."""
    l1, u1 = wilson(75, 100).low, wilson(75, 100).high
    l2, u2 = wilson(65, 100).low, wilson(65, 100).high
    phi = (60 * 20 - 15 * 5 - 50) / math.sqrt(75 * 25 * 65 * 35)
    low = 0.1 - math.sqrt((0.75 - l1) ** 2 - 2 * phi * (0.75 - l1) * (u2 - 0.65) + (u2 - 0.65) ** 2)
    high = 0.1 + math.sqrt((u1 - 0.75) ** 2 - 2 * phi * (u1 - 0.75) * (0.65 - l2) + (0.65 - l2) ** 2)
    found = paired_difference(*table(60, 15, 5, 20))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def test_pairing_narrows_the_interval():
    a, b = table(540, 36, 10, 38)
    paired, unpaired = paired_difference(a, b), newcombe(576, 624, 550, 624)
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < 0.8 * (unpaired.high - unpaired.low)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9)), min_size=1, max_size=60))
def test_paired_difference_is_antisymmetric_and_contains_the_value(images):
    a, b, keys = (list(column) for column in zip(*images, strict=True))
    patients = [f"p{key}" for key in keys]
    found, turned = paired_difference(a, b, patients), paired_difference(b, a, patients)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(np.mean(a) - np.mean(b), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((-turned.high, -turned.low), abs=1e-9)


def test_paired_difference_covers():
    random = np.random.default_rng(7)
    cells = np.array([0.80, 0.09, 0.05, 0.06])
    draws = random.multinomial(200, cells, size=1000)
    inside = 0
    for draw in draws:
        found = paired_difference(*table(*draw))
        inside += found.low <= 0.04 <= found.high
    assert abs(inside / 1000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)


def clustered(random, patients, p, rho):
    """Images of 1 to 4 a patient that share the patient's luck with chance rho."""
    sizes = random.integers(1, 5, patients)
    groups = np.repeat(np.arange(patients), sizes)
    luck, own = random.random(patients) < p, random.random(len(groups)) < p
    shares = random.random(len(groups)) < math.sqrt(rho)
    return np.where(shares, luck[groups], own), [f"p{group}" for group in groups]


def test_repeated_patients_cost_coverage_and_the_design_effect_returns_it():
    random = np.random.default_rng(3)
    naive = ours = 0
    for _ in range(600):
        correct, patients = clustered(random, 150, 0.85, 0.6)
        by_image, by_patient = wilson(int(correct.sum()), len(correct)), proportion(correct, patients)
        naive += by_image.low <= 0.85 <= by_image.high
        ours += by_patient.low <= 0.85 <= by_patient.high
    assert naive / 600 < 0.90
    assert abs(ours / 600 - 0.95) < 0.03


def test_design_effect_by_hand():
    """Two patients of two images that agree (1, 1 and 0, 0) and two of one image (1 and 0): n = 6, mean 1/2."""
    values = np.array([1, 1, 0, 0, 1, 0])
    groups = np.array([0, 0, 1, 1, 2, 3])
    between = 4 / 3 * (1 + 1 + 0.25 + 0.25)
    within = 6 / 5 * 6 * 0.25
    assert design_effect(values, groups) == pytest.approx(between / within)


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_a_image_a_patient_gives_wilson_itself(correct):
    found, plain = proportion(correct, None), wilson(sum(correct), len(correct))
    assert found == plain
    assert proportion(correct, [f"p{place}" for place in range(len(correct))]) == plain


def test_all_images_alike_count_as_patients():
    found = proportion([True] * 9, ["a"] * 4 + ["b"] * 4 + [""])
    alone = wilson(3, 3)
    assert (found.value, found.n, found.method) == (1.0, 9, "wilson, design effect 3.00")
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))


def test_images_of_one_patient_are_one_image():
    assert design_effect([1, 0, 1, 1], np.zeros(4, dtype=np.int64)) == 4.0


def test_a_proportion_without_images_says_why():
    found = proportion([], [], why="no image is called pneumonia")
    assert (found.value, found.n, found.reason) == (None, 0, "no image is called pneumonia")


def mean(scores, labels, weights):
    return weights @ scores / weights.sum(axis=1)


def test_bootstrap_is_scipys_where_each_image_is_a_patient():
    scores = np.random.default_rng(0).gamma(2.0, size=300)
    ours = patient_bootstrap(mean, scores, scores > 1, None, resamples=4000, seed=1)
    theirs = stats.bootstrap((scores,), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
    spread = scores.std() / math.sqrt(300)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.12 * spread)
    assert (ours.value, ours.n, ours.seed, ours.method) == (pytest.approx(scores.mean()), 300, 1, "patient bootstrap")


def test_bootstrap_draws_patients_and_not_images():
    """Each image four times over: the interval must be that of the images, not half as wide."""
    random = np.random.default_rng(5)
    logits, labels = random.normal(size=120), random.random(120) < 0.5
    logits = logits + labels
    once = patient_bootstrap(weighted_auroc, logits, labels, None, seed=3)
    keys = [f"p{place}" for place in range(120)] * 4
    four = patient_bootstrap(weighted_auroc, np.tile(logits, 4), np.tile(labels, 4), keys, seed=3)
    assert four.high - four.low == pytest.approx(once.high - once.low, rel=1e-9)
    images = patient_bootstrap(weighted_auroc, np.tile(logits, 4), np.tile(labels, 4), None, seed=3)
    assert images.high - images.low < 0.6 * (once.high - once.low)


def test_bootstrap_repeats_with_the_seed_whatever_the_blocks(monkeypatch):
    scores = np.random.default_rng(0).normal(size=50)
    whole = patient_bootstrap(mean, scores, scores > 0, None, resamples=200, seed=9)
    monkeypatch.setattr("pneumoscope.statistics.intervals._BLOCK", 50 * 7)
    again = patient_bootstrap(mean, scores, scores > 0, None, resamples=200, seed=9)
    # Processors add numbers in an order of their own: equal but for the last bit.
    assert (again.low, again.high) == pytest.approx((whole.low, whole.high), rel=1e-12)
    assert patient_bootstrap(mean, scores, scores > 0, None, resamples=200, seed=8) != whole


def test_bootstrap_covers():
    random = np.random.default_rng(11)
    inside = 0
    for trial in range(300):
        groups = np.repeat(np.arange(80), 2)
        scores = random.normal(size=80)[groups] + 0.3 * random.normal(size=160)
        found = patient_bootstrap(mean, scores, scores > 0, [f"p{g}" for g in groups], resamples=300, seed=trial)
        inside += found.low <= 0 <= found.high
    assert abs(inside / 300 - 0.94) < 4 * math.sqrt(0.95 * 0.05 / 300)


def test_bootstrap_of_what_does_not_exist():
    found = patient_bootstrap(weighted_auroc, [0.1, 0.2], [True, True], None, why="there is no NORMAL image")
    assert (found.value, found.low, found.reason, found.seed) == (None, None, "there is no NORMAL image", 0)


def test_a_draw_without_the_statistic_is_dropped():
    """One normal image among three: a draw misses it with chance (2/3)^3, and the others still give an interval."""
    found = patient_bootstrap(weighted_auroc, [0.4, 0.3, 0.6], [False, True, True], None)
    assert (found.value, found.low, found.high, found.reason) == (0.5, 0.0, 1.0, "")


def test_a_statistic_that_exists_too_rarely_has_no_interval():
    """It exists only where all three images are drawn, which happens in 3!/27 of the draws: 444 of 2000."""

    def fragile(scores, labels, weights):
        return np.where(weights.min(axis=1) > 0, 1.0, np.nan)

    found = patient_bootstrap(fragile, [1, 2, 3], [False, True, True], None)
    assert (found.value, found.low, found.high) == (1.0, None, None)
    kept = int(found.reason.removeprefix("the statistic exists in only ").removesuffix(" of 2000 draws"))
    assert abs(kept - 2000 * 6 / 27) < 4 * math.sqrt(2000 * 6 / 27 * 21 / 27)


def test_unknown_patients_are_alone():
    assert patient_numbers(["", "a", "", "a"], 4).tolist() == [0, 1, 2, 1]

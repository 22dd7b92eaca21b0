"""Differences between groups, compared with SciPy, exact enumeration and simulated data."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.heterogeneity import (
    ScoredGroup,
    area_heterogeneity,
    auroc_heterogeneity,
    proportion_heterogeneity,
    unpaired_auroc_difference,
)
from pneumoscope.statistics.roc import auroc_interval, delong_covariance


def group(n, shift, seed, per_patient=1):
    """Return scores, labels and patients of a group."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 2 == 0
    scores = random.normal(shift * labels, 1)
    return scores, labels, [f"{seed}-{i // per_patient}" for i in range(n)]


def exact_p(table):
    """Return p of all 2 x 2 tables with these margins whose chi-squared is at least as large."""
    (a, b), (c, d) = table
    n, rows, columns = a + b + c + d, a + b, a + c
    statistic = lambda x: abs(x - rows * columns / n)  # noqa: E731  chi-squared grows with it
    values = np.arange(max(0, rows + columns - n), min(rows, columns) + 1)
    p = stats.hypergeom.pmf(values, n, rows, columns)
    return p[[statistic(x) >= statistic(a) - 1e-9 for x in values]].sum()


@pytest.mark.parametrize("table", [((8, 2), (3, 9)), ((5, 5), (6, 6)), ((1, 19), (7, 13))])
def test_permutation_of_two_groups_is_the_exact_test(table):
    correct = np.concatenate([np.r_[np.ones(a), np.zeros(b)] for a, b in table]).astype(bool)
    groups = np.repeat([0, 1], [sum(row) for row in table])
    p = proportion_heterogeneity(correct, groups, [""] * len(correct))
    assert p == pytest.approx(exact_p(table), abs=0.012)


def test_permutation_of_many_images_agrees_with_chi_squared():
    counts = np.array([[150, 50], [120, 60], [130, 90]])
    correct = np.concatenate([np.r_[np.ones(a), np.zeros(b)] for a, b in counts]).astype(bool)
    p = proportion_heterogeneity(correct, np.repeat([0, 1, 2], counts.sum(axis=1)), [""] * len(correct))
    assert p == pytest.approx(stats.chi2_contingency(counts, correction=False).pvalue, abs=0.003)


def test_images_of_a_patient_stay_together():
    """Eight patients with ten equal images each are not evidence, though eighty images would be."""
    correct = np.repeat([True, True, True, False, True, False, False, False], 10)
    groups, patients = np.repeat([0, 1], 40), [str(i // 10) for i in range(80)]
    assert proportion_heterogeneity(correct, groups, patients) > 0.4
    assert proportion_heterogeneity(correct, groups, [""] * 80) < 0.001


def test_permutation_depends_on_the_seed_only():
    correct, groups = np.arange(30) % 3 == 0, np.arange(30) % 2
    first, again, other = (proportion_heterogeneity(correct, groups, [""] * 30, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first == pytest.approx(other, abs=0.02)


def test_null_hypothesis_is_rejected_as_often_as_stated():
    random, rejected = np.random.default_rng(1), 0
    for _ in range(200):
        outcome = random.random(40) < 0.8
        patients = [str(i // 2) for i in range(80)]
        correct, groups = np.repeat(outcome, 2), np.repeat(random.integers(0, 3, 40), 2)
        groups[:6] = [0, 0, 1, 1, 2, 2]
        rejected += proportion_heterogeneity(correct, groups, patients, permutations=199) <= 0.05
    assert 2 <= rejected <= 20


@pytest.mark.parametrize(
    ("correct", "groups", "message"),
    [([True, False], [0, 0], "there is one group"), ([True, True], [0, 1], "the same outcome")],
)
def test_proportions_without_a_contrast_are_undefined(correct, groups, message):
    with pytest.raises(UndefinedMetricError, match=message):
        proportion_heterogeneity(correct, groups, ["", ""])


@pytest.mark.slow
def test_difference_of_two_aurocs_has_the_deviation_of_a_bootstrap():
    a, b = group(120, 1.5, 0), group(160, 0.8, 1)
    interval = unpaired_auroc_difference(a, b)
    areas = [metrics.roc_auc_score(labels, scores) for scores, labels, _ in (a, b)]
    assert interval.value == pytest.approx(areas[0] - areas[1])
    assert (interval.n, interval.method) == (280, "delong, mover, unpaired")
    random, draws = np.random.default_rng(0), []
    for _ in range(1000):
        sample = []
        for scores, labels, _ in (a, b):
            rows = np.r_[
                random.choice(np.flatnonzero(labels), labels.sum()),
                random.choice(np.flatnonzero(~labels), (~labels).sum()),
            ]
            sample.append(metrics.roc_auc_score(labels[rows], scores[rows]))
        draws.append(sample[0] - sample[1])
    assert (interval.high - interval.low) / (2 * stats.norm.ppf(0.975)) == pytest.approx(np.std(draws), rel=0.1)


def test_repeated_patients_widen_the_difference():
    scores, labels, _ = group(60, 1.0, 0)
    twice = np.repeat(scores, 2), np.repeat(labels, 2), [str(i // 2) for i in range(120)]
    single, double = (
        unpaired_auroc_difference(each, group(100, 1.0, 1)) for each in ((scores, labels, [""] * 60), twice)
    )
    assert (double.low, double.high) == pytest.approx((single.low, single.high), abs=0.01)
    assert double.method == "delong by patient and delong, mover, unpaired"


def test_heterogeneity_of_two_aurocs_is_the_test_of_their_difference():
    a, b = group(120, 1.5, 0), group(160, 0.6, 1)
    (area_a, area_b), (variance_a, variance_b) = zip(
        *(delong_covariance(scores, labels, np.arange(len(labels))) for scores, labels, _ in (a, b)), strict=True
    )
    z = abs(area_a - area_b) / np.sqrt(variance_a + variance_b)
    assert auroc_heterogeneity([a, b]) == pytest.approx(2 * stats.norm.sf(z).item())


def test_interval_of_a_difference_is_recovered_from_those_of_both_aurocs():
    """Each AUROC has DeLong's interval on the logit scale; the variances are those of pROC's formula by hand."""
    a, b = group(60, 1.5, 0), group(90, 0.8, 1)
    limits = []
    for scores, labels, _ in (a, b):
        x, y = scores[labels], scores[~labels]
        wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
        area = wins.mean()
        error = np.sqrt(wins.mean(axis=1).var(ddof=1) / len(x) + wins.mean(axis=0).var(ddof=1) / len(y))
        step = stats.norm.ppf(0.975) * error / (area * (1 - area))
        odds = np.log(area / (1 - area))
        limits.append((area, *(1 / (1 + np.exp(-(odds + sign * step))) for sign in (-1, 1))))
    (p, low_p, high_p), (q, low_q, high_q) = limits
    found = unpaired_auroc_difference(a, b)
    assert found.low == pytest.approx(p - q - np.hypot(p - low_p, high_q - q))
    assert found.high == pytest.approx(p - q + np.hypot(high_p - p, q - low_q))


def test_a_set_that_is_separated_perfectly_does_not_count_as_known_exactly():
    separated = np.arange(12.0), np.repeat([False, True], 6), [""] * 12
    other = group(500, 1.7, 2)
    own = auroc_interval(*separated)
    assert (own.value, own.method) == (1.0, "wilson of 6 pairs")
    found = unpaired_auroc_difference(separated, other)
    assert found.value - found.low > 1 - own.low > 0.3
    assert found.method == "wilson of 6 pairs and delong, mover, unpaired"
    both = unpaired_auroc_difference(separated, separated)
    assert (both.value, both.high) == (0.0, pytest.approx(1 - own.low))


@pytest.mark.parametrize("few", [2, 5])
def test_difference_needs_six_patients_of_each_label_in_both_sets(few):
    scores, labels, _ = group(80, 1.0, 0)
    rows = np.r_[np.flatnonzero(labels)[:few], np.flatnonzero(~labels)]
    small = scores[rows], labels[rows], [""] * len(rows)
    reason = f"{few} patients of the class PNEUMONIA are too few for a difference in AUROC, which needs 6 of each"
    for pair in ((small, group(80, 1.0, 1)), (group(80, 1.0, 1), small)):
        with pytest.raises(UndefinedMetricError) as error:
            unpaired_auroc_difference(*pair)
        assert error.value.message == reason
    # Repeated images of five patients are not six patients.
    rows = np.r_[np.flatnonzero(labels)[:6], np.flatnonzero(~labels)]
    keys = ["first", "first", *map(str, range(len(rows) - 2))]
    with pytest.raises(UndefinedMetricError, match="5 patients of the class PNEUMONIA"):
        unpaired_auroc_difference((scores[rows], labels[rows], keys), group(80, 1.0, 1))


def test_interval_of_a_difference_covers_if_a_label_is_rare():
    """Sets of 60 and 60, and of 6 and 60 images, 600 times without a difference; a normal interval covers 85%."""
    random, covered = np.random.default_rng(18), 0
    distance = np.sqrt(2) * stats.norm.ppf(0.95)
    for _ in range(600):
        sets = []
        for n in (6, 60):
            labels = np.repeat([True, False], [n, 60])
            sets.append((random.normal(size=n + 60) + distance * labels, labels, [""] * (n + 60)))
        interval = unpaired_auroc_difference(*sets)
        covered += interval.low <= 0 <= interval.high
    assert 0.92 < covered / 600 < 0.975


def test_equal_aurocs_are_rejected_as_often_as_stated():
    p = [auroc_heterogeneity([group(80, 1.0, 3 * i + j) for j in range(3)]) for i in range(300)]
    assert 4 <= sum(each < 0.05 for each in p) <= 30
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_aurocs_without_variance_are_undefined():
    separated = np.arange(12.0), np.arange(12) >= 6, [""] * 12
    with pytest.raises(UndefinedMetricError, match="separated perfectly"):
        auroc_heterogeneity([separated, group(40, 1.0, 0)])


@pytest.mark.parametrize(
    ("positive", "named"), [(5, "5 patients of the class PNEUMONIA"), (1, "1 patient of the class PNEUMONIA")]
)
def test_aurocs_of_too_few_patients_are_not_tested(positive: int, named: str) -> None:
    few = np.random.default_rng(0).normal(size=40), np.arange(40) < positive, [""] * 40
    with pytest.raises(UndefinedMetricError, match=f"{named} .* too few for a test of AUROCs, which needs 6 of each"):
        auroc_heterogeneity([few, group(40, 1.0, 0)])


def test_reason_of_too_few_patients_names_the_smallest_class_and_its_group() -> None:
    def of(positive: int) -> ScoredGroup:
        return np.arange(40.0), np.arange(40) < positive, [""] * 40

    with pytest.raises(UndefinedMetricError, match=r"^3 patients of the class NORMAL in the group F are too few"):
        auroc_heterogeneity([of(20), of(5), of(37), of(4)], ["M", "O", "F", "U"])
    with pytest.raises(UndefinedMetricError, match=r"^2 patients of the class PNEUMONIA in clinic are too few"):
        unpaired_auroc_difference(of(4), of(2), names=("these images", "clinic"))


def test_equal_aurocs_of_few_patients_are_rejected_too_often_as_documented() -> None:
    random, p = np.random.default_rng(1), []
    for _ in range(400):
        labels = [np.repeat([True, False], [n, 60]) for n in (6, 60)]
        p.append(auroc_heterogeneity([(random.normal(size=len(y)) + 0.74 * y, y, [""] * len(y)) for y in labels]))
    assert 0.05 < np.mean(np.array(p) < 0.05) < 0.14


def test_areas_of_two_groups_are_compared_as_by_the_normal_test():
    p = area_heterogeneity([0.8, 0.7], [0.001, 0.002])
    assert p == pytest.approx(2 * stats.norm.sf(0.1 / np.sqrt(0.003)))


def test_areas_of_three_groups_are_compared_by_the_sum_over_pairs():
    areas, variances = np.array([0.8, 0.7, 0.75]), np.array([0.001, 0.002, 0.0015])
    weights = 1 / variances
    q = sum(
        weights[i] * weights[j] * (areas[i] - areas[j]) ** 2 for i, j in itertools.combinations(range(3), 2)
    ) / weights.sum()  # fmt: skip
    assert area_heterogeneity(areas, variances) == pytest.approx(math.exp(-q / 2))  # chi-squared, 2 degrees of freedom


def test_areas_without_a_variance_cannot_be_compared():
    with pytest.raises(UndefinedMetricError, match="separated perfectly"):
        area_heterogeneity([1.0, 0.7, 0.8], [0.0, 0.002, 0.001])

"""Paired tests, checked against SciPy's binomial test, DeLong's definition, enumeration, and simulated error rates."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.paired import delong_test, mcnemar_exact
from pneumoscope.statistics.roc import auroc


def discordant(only_a, only_b, agreed=30):
    a = [True] * only_a + [False] * only_b + [True] * agreed
    b = [False] * only_a + [True] * only_b + [True] * agreed
    return a, b


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 0), (5, 0), (9, 2), (10, 10), (11, 9), (95, 20), (300, 280)])
def test_mcnemar_is_the_binomial_test_with_one_image_per_patient(only_a, only_b):
    p = mcnemar_exact(*discordant(only_a, only_b))
    assert p == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue, rel=1e-9)


def test_mcnemar_by_hand():
    """Five images favor a and none b: 2 of 32 sign patterns are as extreme."""
    assert mcnemar_exact(*discordant(5, 0)) == pytest.approx(2 / 32)


def test_mcnemar_without_a_lead_has_no_p():
    assert mcnemar_exact([True, False], [True, False]) is None
    assert mcnemar_exact([True, False], [False, True], ["a", "a"]) is None


pairs = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 6)), min_size=1, max_size=14)


@given(pairs)
def test_mcnemar_by_patient_agrees_with_enumeration_of_all_signs(images):
    a, b, keys = (list(column) for column in zip(*images, strict=True))
    leads = [sum(x - y for x, y, key in images if key == patient) for patient in set(keys)]
    leads = [lead for lead in leads if lead]
    p = mcnemar_exact(a, b, [f"p{key}" for key in keys])
    if not leads:
        assert p is None
        return
    totals = [
        abs(sum(s * lead for s, lead in zip(signs, leads, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(leads))
    ]
    assert p == pytest.approx(np.mean([total >= abs(sum(leads)) for total in totals]))


@given(pairs)
def test_mcnemar_is_symmetric(images):
    a, b, keys = (list(column) for column in zip(*images, strict=True))
    patients = [f"p{key}" for key in keys]
    assert mcnemar_exact(a, b, patients) == mcnemar_exact(b, a, patients)


def test_images_of_one_patient_do_not_count_as_independent():
    """Only a classifies nine images correctly: of nine patients they are evidence, of one patient they are not."""
    a, b = discordant(9, 0)
    separate = [f"p{index}" for index in range(len(a))]
    assert mcnemar_exact(a, b, separate) == pytest.approx(2 / 2**9)
    assert mcnemar_exact(a, b, ["one"] * 9 + separate[9:]) == 1.0


def test_mcnemar_by_patient_keeps_its_level_where_patients_repeat():
    """With equally good networks and four identical images per patient, the test by image rejects far too often."""
    random = np.random.default_rng(8)
    by_image = by_patient = 0
    for _ in range(400):
        groups = np.repeat(np.arange(60), 4)
        a, b = random.random(60)[groups] < 0.7, random.random(60)[groups] < 0.7
        patients = [f"p{group}" for group in groups]
        by_image += (mcnemar_exact(a, b) or 1) < 0.05
        by_patient += (mcnemar_exact(a, b, patients) or 1) < 0.05
    assert by_image / 400 > 0.2
    assert by_patient / 400 < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 400)


def delong_by_definition(a, b, labels):
    """Return the difference and its variance from all pairs."""
    fractions = []
    for scores in (a, b):
        positive, negative = scores[labels][:, None], scores[~labels][None, :]
        won = (positive > negative) + 0.5 * (positive == negative)
        fractions.append((won.mean(), won.mean(axis=1), won.mean(axis=0)))
    s10 = np.cov(fractions[0][1], fractions[1][1]) / labels.sum()
    s01 = np.cov(fractions[0][2], fractions[1][2]) / (~labels).sum()
    contrast = np.array([1, -1])
    return fractions[0][0] - fractions[1][0], contrast @ (s10 + s01) @ contrast


@pytest.fixture
def two_networks():
    random = np.random.default_rng(10)
    labels = random.random(150) < 0.6
    common = random.normal(size=150)
    a = common + random.normal(size=150) + 1.5 * labels
    b = np.round(common + random.normal(size=150) + 1.0 * labels, 1)
    return a, b, labels


def test_delong_test_agrees_with_its_definition(two_networks):
    a, b, labels = two_networks
    difference, p = delong_test(a, b, labels)
    expected, variance = delong_by_definition(a, b, labels)
    z = expected / math.sqrt(variance)
    assert difference.value == pytest.approx(expected) == pytest.approx(auroc(a, labels) - auroc(b, labels))
    assert p == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert difference.low == pytest.approx(expected - 1.959963984540054 * math.sqrt(variance))
    assert (difference.method, difference.n) == ("delong", 150)


def test_delong_test_is_antisymmetric(two_networks):
    a, b, labels = two_networks
    (forward, p), (backward, q) = delong_test(a, b, labels), delong_test(b, a, labels)
    assert p == pytest.approx(q)
    assert (forward.value, forward.low, forward.high) == pytest.approx((-backward.value, -backward.high, -backward.low))


def test_equal_rankings_have_no_p(two_networks):
    a, _, labels = two_networks
    difference, p = delong_test(a, np.exp(a / 4), labels)
    assert p is None
    assert (difference.value, difference.low) == (0.0, None)
    assert difference.reason == "both networks rank the images alike"


def test_delong_test_needs_two_patients_in_each_class(two_networks):
    with pytest.raises(UndefinedMetricError, match=r"each class \(PNEUMONIA: 1, NORMAL: 2\)$"):
        delong_test([3, 1, 2], [1, 2, 3], [True, False, False])


def test_delong_test_keeps_its_level_and_coverage():
    random = np.random.default_rng(12)
    rejections = inside = 0
    for _ in range(600):
        groups = np.repeat(np.arange(80), 2)
        labels = (np.arange(80) < 50)[groups]
        common = random.normal(size=80)[groups]
        a, b = (common + random.normal(size=80)[groups] + labels for _ in "ab")
        difference, p = delong_test(a, b, labels, [f"p{group}" for group in groups])
        rejections += p < 0.05
        inside += difference.low <= 0 <= difference.high
    assert abs(rejections / 600 - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 600)
    assert inside == 600 - rejections

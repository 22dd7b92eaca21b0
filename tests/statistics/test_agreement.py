"""Cohen's kappa, compared with scikit-learn; its variance, with the delta method by numerical derivatives."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from pneumoscope.statistics.agreement import cohen_kappa


def kappa_of(p):
    """Return kappa of the proportions of the four pairs of ratings."""
    table = p.reshape(2, 2)
    expected = table.sum(axis=1) @ table.sum(axis=0)
    return (np.trace(table) - expected) / (1 - expected)


@pytest.mark.parametrize("seed", range(20))
def test_kappa_and_its_interval(seed):
    random = np.random.default_rng(seed)
    n = int(random.integers(30, 300))
    a = random.random(n) < random.uniform(0.2, 0.8)
    b = np.where(random.random(n) < 0.7, a, random.random(n) < 0.5)
    found = cohen_kappa(a.tolist(), b.tolist())
    assert found.value == pytest.approx(cohen_kappa_score(a, b))
    p = np.array([np.mean((a == i) & (b == j)) for i in (True, False) for j in (True, False)])
    gradient = np.array([(kappa_of(p + step) - kappa_of(p - step)) / 2e-6 for step in 1e-6 * np.eye(4)])
    variance = gradient @ (np.diag(p) - np.outer(p, p)) @ gradient / n
    half_width = 1.959964 * np.sqrt(variance)
    expected = (max(-1, found.value - half_width), min(1, found.value + half_width))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-6)
    assert (found.n, found.method) == (n, "cohen-kappa")


def test_perfect_agreement_and_disagreement():
    for b, kappa in (([True, False], 1), ([False, True], -1)):
        found = cohen_kappa([True, False], b)
        assert (found.value, found.low, found.high) == (kappa, None, None)  # not an interval of length 0


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ([], [], "there are no images"),
        ([True, True], [True, True], "a rater gives all images the same label"),
        ([True, True], [False, True], "a rater gives all images the same label"),
    ],
)
def test_kappa_is_undefined_without_variation(a, b, reason):
    found = cohen_kappa(a, b)
    assert (found.value, found.reason) == (None, reason)


def test_ratings_of_different_number_are_an_error():
    with pytest.raises(ValueError, match="1 and 0 ratings"):
        cohen_kappa([True], [])

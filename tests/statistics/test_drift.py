"""Images against tenths of a reference: the difference by hand, and chance by drawing both samples."""

import numpy as np
import pytest

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.drift import LEAST, drift

TENTHS = tuple(k / 10 for k in range(1, 10))


def test_images_spread_as_the_reference_differ_by_nothing():
    found = drift(np.arange(0.05, 1, 0.1).repeat(10), TENTHS, 1000)
    assert (found.counts, found.n, found.difference) == ((10,) * 10, 100, 0)
    assert found.chance > 0


def test_the_difference_is_the_share_that_lies_elsewhere():
    # 60 in the lowest tenth, 40 in the highest, where 10 each would be: 50 and 30 of 100 must move.
    found = drift([0.01] * 60 + [0.99] * 40, TENTHS, 1000)
    assert found.counts == (60, 0, 0, 0, 0, 0, 0, 0, 0, 40)
    assert found.difference == pytest.approx(0.8)
    assert found.difference > found.chance


def test_a_image_on_a_cut_belongs_above_it():
    assert drift([0.1] * LEAST, TENTHS, 100).counts[1] == LEAST


@pytest.mark.parametrize(("n", "reference"), [(60, 60), (60, 800), (500, 800)])
def test_chance_is_what_two_samples_of_one_population_make(n, reference):
    # The second opinion draws both samples themselves, from a population that is no uniform one.
    random = np.random.default_rng(1)
    made = []
    for _ in range(1500):
        cuts = np.quantile(random.beta(0.3, 0.2, reference), TENTHS)
        counts = np.bincount(np.searchsorted(cuts, random.beta(0.3, 0.2, n)), minlength=10)
        made.append(np.abs(counts / n - 0.1).sum() / 2)
    chance = drift(np.full(n, 0.5), TENTHS, reference).chance
    assert np.mean(np.array(made) <= chance) == pytest.approx(0.95, abs=0.025)


def test_the_same_images_have_the_same_chance():
    assert drift([0.5] * 80, TENTHS, 100, seed=3) == drift([0.5] * 80, TENTHS, 100, seed=3)


@pytest.mark.parametrize(
    ("probabilities", "deciles", "words"),
    [
        ([0.5] * (LEAST - 1), TENTHS, f"{LEAST - 1} images"),
        ([0.5] * LEAST, TENTHS[:8], "nine rising"),
        ([0.5] * LEAST, TENTHS[::-1], "nine rising"),
    ],
)
def test_what_says_nothing_is_refused(probabilities, deciles, words):
    with pytest.raises(UndefinedMetricError, match=words):
        drift(probabilities, deciles, 100)

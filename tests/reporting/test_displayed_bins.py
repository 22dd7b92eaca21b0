"""Bins of reliability diagrams and tables have enough images."""

import numpy as np
import pytest

from pneumoscope.core.results import ReliabilityBin
from pneumoscope.reporting.displayed_bins import displayed_bins
from pneumoscope.statistics.calibration import reliability_bins
from pneumoscope.statistics.intervals import wilson


def recorded(n: int, *, ties: bool = False) -> tuple[tuple[ReliabilityBin, ...], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    probabilities = rng.random(n)
    if ties:  # most images have the same probability
        probabilities[: 2 * n // 3] = 0.5
    labels = rng.random(n) < probabilities
    return reliability_bins(probabilities, labels), probabilities, labels


@pytest.mark.parametrize(("n", "number"), [(30, 3), (59, 3), (80, 3), (150, 7), (300, 15), (624, 15)])
def test_each_bin_has_20_images_or_there_are_three(n: int, number: int) -> None:
    bins, probabilities, labels = recorded(n)
    shown = displayed_bins(bins)
    sizes = [each.observed_rate.n for each in shown]
    assert sum(sizes) == n
    assert len(shown) == number
    assert n <= 60 or min(sizes) >= 20
    assert max(sizes) <= 3 * min(sizes)
    for each in shown:
        inside = (probabilities >= each.low) & (probabilities <= each.high)
        assert each.observed_rate == wilson(int(labels[inside].sum()), int(inside.sum()))
        assert each.mean_probability == pytest.approx(probabilities[inside].mean())


def test_enough_images_keep_the_recorded_bins() -> None:
    bins, *_ = recorded(300)
    assert displayed_bins(bins) == bins
    assert displayed_bins(()) == ()


def test_bins_of_equal_probabilities_are_merged_with_their_neighbors() -> None:
    bins, *_ = recorded(120, ties=True)
    assert min(each.observed_rate.n for each in bins) < 20
    shown = displayed_bins(bins)
    assert len(shown) > 1
    assert min(each.observed_rate.n for each in shown) >= 20
    two, *_ = recorded(2)
    assert displayed_bins(two) == two


def test_small_bins_beside_large_ones_are_merged() -> None:
    probabilities = np.concatenate([np.zeros(500), np.linspace(0.5, 1, 40)])
    bins = reliability_bins(probabilities, probabilities > 0.7)
    assert min(each.observed_rate.n for each in bins) < 20
    assert [each.observed_rate.n for each in displayed_bins(bins)] == [500, 40]

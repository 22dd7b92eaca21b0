"""Search for a learning rate: a range test that saves no run, with a table and a picture."""

import csv
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from tests.training.conftest import small

from pneumoscope.core.errors import UsageError
from pneumoscope.training.learning_rate import RateSearch, find_learning_rate, steepest_rate

pytestmark = pytest.mark.training


def test_rates_rise_exponentially_and_the_steepest_decrease_is_suggested(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    messages = []

    def log(message):
        messages.append(message)
        print(message, file=sys.stderr)

    search = find_learning_rate(small(), phantoms, lowest=1e-5, highest=0.1, steps=24, log=log)

    assert messages[0] == "24 steps, each with 8 images; the learning rate rises from 1e-05 to 0.1"
    assert messages[1:4] == ["3 of 24 steps (12%)", "5 of 24 steps (20%)", "8 of 24 steps (33%)"]
    assert messages[-1].startswith(f"{len(search.rates)} of 24 steps") or len(search.rates) < 24
    assert capsys.readouterr().err.splitlines() == messages  # they pass where Lightning's output is suppressed
    ratios = np.diff(np.log(search.rates))[1:]  # Lightning's first step is twice as long
    assert search.rates[0] == pytest.approx(1e-5)
    assert ratios == pytest.approx(ratios[0])
    assert len(search.losses) == len(search.rates) <= 24
    # The first loss of untrained weights is that of a coin, and the rates are evenly spaced on a logarithmic axis.
    assert search.losses[0] == pytest.approx(np.log(2), rel=0.25)
    slopes = np.gradient(search.losses[10:-1])
    assert search.suggestion == (search.rates[10 + int(np.argmin(slopes))] if slopes.min() < 0 else None)
    assert list(tmp_path.iterdir()) == []  # no run, no checkpoint


def test_steepest_decrease_is_that_of_the_logarithmic_axis():
    rates = list(np.logspace(-6, 0, 31))
    losses = [0.7 - 0.01 * (step == 12) for step in range(20)] + [0.6, 0.5, 0.4, *[0.35] * 8]
    assert steepest_rate(rates, losses) in rates[20:22]  # by the linear axis, a dip of a hundredth at a small rate
    assert rates[10:-1][int(np.argmin(np.gradient(losses[10:-1], rates[10:-1])))] == rates[11]


def test_loss_that_falls_nowhere_gives_no_suggestion():
    rates = list(np.logspace(-6, 0, 31))
    assert steepest_rate(rates, list(np.linspace(0.3, 0.7, 31))) is None
    assert steepest_rate(rates[:12], [0.7] * 12) is None


def test_table_and_picture_are_written(tmp_path):
    search = RateSearch((1e-4, 1e-3, 1e-2), (0.7, 0.6, 0.9), 1e-3)
    table, curve = search.write(tmp_path, "small")
    assert list(csv.reader(table.read_text().splitlines()))[1] == ["0.0001", "0.7"]
    assert "small" in ElementTree.parse(curve).getroot().get("aria-label", "") + curve.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5}, "number of steps is 5; the minimum is 20"),
        ({"lowest": 1.0}, "lowest learning rate is 1 and the highest 1"),
    ],
)
def test_impossible_searches_are_errors(phantoms, options, message):
    with pytest.raises(UsageError, match=message):
        find_learning_rate(small(), phantoms, **options)

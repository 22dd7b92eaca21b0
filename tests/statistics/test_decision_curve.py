"""Decision curves, compared with counts by scikit-learn and a bootstrap of patients written out."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.decision_curve import THRESHOLD_PROBABILITIES, decision_curve, net_benefit


def images(n=200, seed=0):
    random = np.random.default_rng(seed)
    labels = random.random(n) < 0.4
    probabilities = np.clip(0.3 + 0.3 * labels + 0.2 * random.normal(size=n), 0, 1)
    return probabilities, labels, [f"p{i // 3}" for i in range(n)]


def by_hand(probabilities, labels, threshold):
    _, fp, _, tp = confusion_matrix(labels, probabilities >= threshold, labels=[False, True]).ravel()
    return (tp - fp * threshold / (1 - threshold)) / len(labels)


def test_net_benefit_agrees_with_counts():
    probabilities, labels, _ = images()
    model, everybody = net_benefit(probabilities, labels, THRESHOLD_PROBABILITIES)
    for threshold, value, all_treated in zip(THRESHOLD_PROBABILITIES, model, everybody, strict=True):
        assert value == pytest.approx(by_hand(probabilities, labels, threshold))
        assert all_treated == pytest.approx(by_hand(np.ones(len(labels)), labels, threshold))


def test_probability_equal_to_the_threshold_is_treated():
    assert net_benefit([0.25, 0.1], [True, False], [0.25])[0].tolist() == [0.5]


def test_treating_everyone_gains_nothing_at_the_prevalence():
    labels = np.arange(10) < 4
    _, everybody = net_benefit(np.full(10, 0.5), labels, [0.0, 0.4])
    assert everybody == pytest.approx([0.4, 0.0])


@pytest.mark.slow
def test_intervals_agree_with_a_bootstrap_of_patients():
    probabilities, labels, patients = images()
    (point,) = decision_curve(probabilities, labels, patients, thresholds=[0.35], seed=4)
    random, keys = np.random.default_rng(9), np.array(patients)
    rows_of = {key: np.flatnonzero(keys == key) for key in set(patients)}
    draws = []
    for _ in range(2000):
        rows = np.concatenate([rows_of[key] for key in random.choice(sorted(rows_of), len(rows_of))])
        model, everybody = (by_hand(p[rows], labels[rows], 0.35) for p in (probabilities, np.ones(len(labels))))
        draws.append((model, everybody, model - max(everybody, 0)))
    for interval, values in zip((point.net_benefit, point.treat_all, point.gain), np.array(draws).T, strict=True):
        low, high = np.quantile(values, [0.025, 0.975])
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.15 * (high - low))
        assert (interval.method, interval.seed, interval.n) == ("patient bootstrap", 4, 200)
    assert point.gain.value == pytest.approx(point.net_benefit.value - max(point.treat_all.value, 0))


def test_curve_has_each_threshold_with_its_own_numbers():
    probabilities, labels, patients = images(60)
    points = decision_curve(probabilities, labels, patients, resamples=50)
    assert [point.threshold_probability for point in points] == list(THRESHOLD_PROBABILITIES)
    for point in points:
        expected = by_hand(probabilities, labels, point.threshold_probability)
        assert point.net_benefit.value == pytest.approx(expected)
        if (probabilities >= point.threshold_probability).any():
            assert point.net_benefit.low <= point.net_benefit.high


@pytest.mark.parametrize(("probability", "threshold"), [(1.2, 0.5), (0.5, 1.0), (0.5, -0.1)])
def test_values_out_of_range_are_an_error(probability, threshold):
    with pytest.raises(UndefinedMetricError, match="within 0 to 1"):
        net_benefit([probability], [True], [threshold])


def test_net_benefit_that_resampling_cannot_vary_has_no_interval():
    (point,) = decision_curve([0.2, 0.3, 0.4, 0.1] * 2, [True, False, True, False] * 2, None, thresholds=[0.9])
    assert (point.net_benefit.value, point.net_benefit.low) == (0, None)
    assert "no probability reaches the threshold" in point.net_benefit.reason
    assert point.treat_all.low is not None

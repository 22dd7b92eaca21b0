"""Second opinions: scikit-learn for areas, DeLong's variance from its definition, simulated coverage."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.inputs import patient_numbers
from pneumoscope.statistics.intervals import patient_bootstrap, wilson
from pneumoscope.statistics.roc import (
    auroc,
    auroc_interval,
    delong_covariance,
    precision_recall_curve,
    roc_curve,
    weighted_auprc,
    weighted_auroc,
)


@st.composite
def images(draw, most=60):
    """Scores with many ties, and both labels."""
    n = draw(st.integers(2, most))
    scores = draw(st.lists(st.integers(-8, 8), min_size=n, max_size=n))
    labels = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    assume(any(labels) and not all(labels))
    return np.array(scores) / 4, np.array(labels)


@given(images())
def test_auroc_agrees_with_scikit_learn(case):
    scores, labels = case
    assert auroc(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)


@given(images(), st.integers(0, 2**32 - 1))
def test_weighted_areas_are_scikit_learns(case, seed):
    scores, labels = case
    weights = np.random.default_rng(seed).integers(0, 4, (3, len(scores))).astype(float)
    for row, area, precision in zip(
        weights, weighted_auroc(scores, labels, weights), weighted_auprc(scores, labels, weights), strict=True
    ):
        if row[labels].sum() and row[~labels].sum():
            assert area == pytest.approx(metrics.roc_auc_score(labels, scores, sample_weight=row), abs=1e-12)
            theirs = metrics.average_precision_score(labels, scores, sample_weight=row)
            assert precision == pytest.approx(theirs, abs=1e-12)
        else:
            assert math.isnan(area)


@given(images())
def test_a_monotone_transform_changes_nothing_and_swapped_labels_flip(case):
    scores, labels = case
    area = auroc(scores, labels)
    assert auroc(np.exp(scores) * 3 + 1, labels) == area
    assert auroc(scores, ~labels) == pytest.approx(1 - area, abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - area, abs=1e-12)


def test_auroc_by_hand():
    """Pneumonia 3, 2, 1 against normal 2, 0: pairs won 1 + 1, 1/2 + 1, 0 + 1 of 6."""
    assert auroc([3, 2, 1, 2, 0], [True, True, True, False, False]) == pytest.approx(4.5 / 6)


@pytest.mark.parametrize(("labels", "missing"), [([True, True], "NORMAL"), ([False, False], "PNEUMONIA")])
def test_one_class_has_no_auroc(labels, missing):
    with pytest.raises(UndefinedMetricError, match=f"there is no {missing} image"):
        auroc([0.1, 0.2], labels)
    found = auroc_interval([0.1, 0.2], labels)
    assert found.value is None
    assert found.reason == f"there is no {missing} image"


def test_roc_curve_by_hand_with_a_tie():
    rate, sensitivity, thresholds = roc_curve([0.9, 0.5, 0.5, 0.1], [True, True, False, False])
    assert rate.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert sensitivity.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert thresholds.tolist() == [math.inf, 0.9, 0.5, 0.1]


@given(images())
def test_roc_curve_keeps_every_threshold_and_counts_scores_at_or_above_it(case):
    scores, labels = case
    rate, sensitivity, thresholds = roc_curve(scores, labels)
    assert thresholds[1:].tolist() == sorted(set(scores.tolist()), reverse=True)
    for at, wrong, right in zip(thresholds, rate, sensitivity, strict=True):
        assert right == np.mean(scores[labels] >= at)
        assert wrong == np.mean(scores[~labels] >= at)


def test_precision_recall_curve_by_hand_with_a_tie():
    # From the top: 0.9 is a pneumonia; at 0.5 one of each; at 0.1 a normal image.
    sensitivity, precision, thresholds = precision_recall_curve([0.9, 0.5, 0.5, 0.1], [True, True, False, False])
    assert thresholds.tolist() == [0.9, 0.5, 0.1]
    assert sensitivity.tolist() == [0.5, 1.0, 1.0]
    assert precision == pytest.approx([1.0, 2 / 3, 0.5])


@given(images())
def test_area_below_the_precision_recall_steps_is_the_average_precision(case):
    scores, labels = case
    sensitivity, precision, thresholds = precision_recall_curve(scores, labels)
    assert thresholds.tolist() == sorted(set(scores.tolist()), reverse=True)
    area = float(np.sum(np.diff(sensitivity, prepend=0.0) * precision))
    assert area == pytest.approx(weighted_auprc(scores, labels, np.ones((1, len(scores))))[0], abs=1e-12)


@pytest.mark.parametrize("curve", [roc_curve, precision_recall_curve])
def test_one_class_has_no_curve(curve):
    with pytest.raises(UndefinedMetricError, match="no PNEUMONIA image"):
        curve([0.1, 0.2], [False, False])


def delong_by_definition(scores, labels):
    """Variance from all pairs, as DeLong writes it: no ranks."""
    positive, negative = scores[labels], scores[~labels]
    won = (positive[:, None] > negative[None, :]) + 0.5 * (positive[:, None] == negative[None, :])
    return won.mean(), won.mean(axis=1).var(ddof=1) / len(positive) + won.mean(axis=0).var(ddof=1) / len(negative)


@given(images())
def test_delong_is_its_definition(case):
    scores, labels = case
    assume(labels.sum() > 1 and (~labels).sum() > 1)
    area, covariance = delong_covariance(scores, labels, np.arange(len(scores)))
    mean, variance = delong_by_definition(scores, labels)
    assert area[0] == pytest.approx(mean, abs=1e-12)
    assert covariance[0, 0] == pytest.approx(variance, abs=1e-12)


def test_delong_by_hand():
    """Pneumonia 3, 1 against normal 2, 0: shares won 1 and 1/2, lost to 1/2 and 1; variance (1/8)/2 + (1/8)/2."""
    area, covariance = delong_covariance([3, 1, 2, 0], [True, True, False, False], np.arange(4))
    assert (area[0], covariance[0, 0]) == pytest.approx((0.75, 0.125))


def test_copied_images_of_a_patient_add_nothing():
    """Each image three times under one patient has the variance of the images alone: here n counts patients."""
    random = np.random.default_rng(2)
    scores, labels = random.normal(size=60), random.random(60) < 0.5
    _, once = delong_covariance(scores, labels, np.arange(60))
    _, thrice = delong_covariance(np.tile(scores, 3), np.tile(labels, 3), np.tile(np.arange(60), 3))
    assert thrice == pytest.approx(once, rel=1e-9)


def test_patients_with_images_of_both_labels_by_hand():
    """Two patients, each with a pneumonia and a normal image: won shares 1, 1/2 and 1/2, 1, deviations 1/8 and -1/8 twice.

    Pneumonia of a (+1/8) goes with the normal image 0 (+1/8), so the covariance within patients adds: 1/16 + 1/16 + 4/32.
    """
    scores, labels = [3, 1, 0, 2], [True, True, False, False]
    apart = delong_covariance(scores, labels, np.arange(4))[1][0, 0]
    together = delong_covariance(scores, labels, np.array([0, 1, 0, 1]))[1][0, 0]
    opposed = delong_covariance(scores, labels, np.array([0, 1, 1, 0]))[1][0, 0]
    assert (apart, together) == pytest.approx((0.125, 0.25))
    assert opposed == pytest.approx(0.0, abs=1e-12)


def test_a_class_of_one_patient_has_no_variance():
    with pytest.raises(UndefinedMetricError, match="here are 1 and 2"):
        delong_covariance([1, 2, 3, 4], [True, True, False, False], np.array([0, 0, 1, 2]))


def test_delong_by_patient_agrees_with_the_patient_bootstrap():
    random = np.random.default_rng(4)
    groups = np.repeat(np.arange(200), random.integers(1, 5, 200))
    sick = (random.random(200) < 0.6)[groups]
    logits = random.normal(size=200)[groups] + 0.5 * random.normal(size=len(groups)) + 1.5 * sick
    patients = [f"p{group}" for group in groups]
    ours = auroc_interval(logits, sick, patients)
    drawn = patient_bootstrap(weighted_auroc, logits, sick, patients)
    images = auroc_interval(logits, sick)
    assert ours.method == "delong by patient"
    assert images.method == "delong"
    assert (ours.low, ours.high) == pytest.approx((drawn.low, drawn.high), abs=0.012)
    assert images.high - images.low < 0.8 * (ours.high - ours.low)


def test_the_interval_by_hand():
    scores, labels = np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False])
    half = 1.959963984540054 * math.sqrt(0.125) / (0.75 * 0.25)
    found = auroc_interval(scores, labels)
    low, high = (1 / (1 + math.exp(-(math.log(3) + side * half))) for side in (-1, 1))
    assert (found.value, found.low, found.high) == pytest.approx((0.75, low, high))


@given(images(), st.integers(1, 5))
def test_the_interval_contains_the_area(case, patients):
    scores, labels = case
    keys = [f"p{place % (patients * 3)}" for place in range(len(scores))]
    found = auroc_interval(scores, labels, keys)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_perfect_separation_is_not_certainty():
    scores, labels = np.arange(30.0), np.arange(30) >= 12
    found = auroc_interval(scores, labels)
    assert found.value == 1.0
    assert (found.low, found.high) == pytest.approx((wilson(12, 12).low, 1.0))
    assert found.method == "wilson of 12 pairs"


def test_the_interval_covers():
    random = np.random.default_rng(6)
    truth = 0.8  # normal scores one standard deviation and a fifth apart: AUROC = Phi(d / sqrt 2)
    distance = math.sqrt(2) * 0.8416212335729143
    inside = 0
    for _ in range(1000):
        labels = np.arange(100) < 60
        found = auroc_interval(random.normal(size=100) + distance * labels, labels)
        inside += found.low <= truth <= found.high
    assert abs(inside / 1000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)


def test_patient_numbers_reach_the_variance():
    scores, labels = [3, 1, 2, 0], [True, True, False, False]
    assert auroc_interval(scores, labels, ["a", "a", "b", "c"]).method == "wilson of 1 pairs"
    assert patient_numbers(["a", "a", "b", "c"], 4).tolist() == [0, 0, 1, 2]

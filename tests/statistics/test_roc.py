"""ROC analysis, checked against scikit-learn, the definition of DeLong's variance, and simulated coverage."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.inputs import patient_groups
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
def images(draw, max_size=60):
    """Return scores with many ties, and labels of both classes."""
    n = draw(st.integers(2, max_size))
    scores = draw(st.lists(st.integers(-8, 8), min_size=n, max_size=n))
    labels = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    assume(any(labels) and not all(labels))
    return np.array(scores) / 4, np.array(labels)


@given(images())
def test_auroc_agrees_with_scikit_learn(case):
    scores, labels = case
    assert auroc(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)


@given(images(), st.integers(0, 2**32 - 1))
def test_weighted_areas_agree_with_scikit_learn(case, seed):
    scores, labels = case
    weights = np.random.default_rng(seed).integers(0, 4, (3, len(scores))).astype(float)
    for row, area, precision in zip(
        weights, weighted_auroc(scores, labels, weights), weighted_auprc(scores, labels, weights), strict=True
    ):
        if row[labels].sum() and row[~labels].sum():
            assert area == pytest.approx(metrics.roc_auc_score(labels, scores, sample_weight=row), abs=1e-12)
            reference = metrics.average_precision_score(labels, scores, sample_weight=row)
            assert precision == pytest.approx(reference, abs=1e-12)
        else:
            assert math.isnan(area)


@given(images())
def test_auroc_is_invariant_to_monotone_transforms_and_mirrored_by_swapped_labels(case):
    scores, labels = case
    area = auroc(scores, labels)
    assert auroc(np.exp(scores) * 3 + 1, labels) == area
    assert auroc(scores, ~labels) == pytest.approx(1 - area, abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - area, abs=1e-12)


def test_auroc_by_hand():
    """Pneumonia 3, 2, 1 against normal 2, 0: pairs won 1 + 1, 1/2 + 1, 0 + 1 of 6."""
    assert auroc([3, 2, 1, 2, 0], [True, True, True, False, False]) == pytest.approx(4.5 / 6)


@pytest.mark.parametrize(("labels", "missing"), [([True, True], "NORMAL"), ([False, False], "PNEUMONIA")])
def test_auroc_needs_both_classes(labels, missing):
    with pytest.raises(UndefinedMetricError, match=f"AUROC needs both classes; there are .*0 {missing}"):
        auroc([0.1, 0.2], labels)
    interval = auroc_interval([0.1, 0.2], labels)
    assert interval.value is None
    assert interval.reason == f"there is no {missing} image"


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
    for at, fpr, tpr in zip(thresholds, rate, sensitivity, strict=True):
        assert tpr == np.mean(scores[labels] >= at)
        assert fpr == np.mean(scores[~labels] >= at)


def test_precision_recall_curve_by_hand_with_a_tie():
    # In descending order: PNEUMONIA at 0.9, one of each at 0.5, NORMAL at 0.1.
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
def test_curves_need_both_classes(curve):
    with pytest.raises(UndefinedMetricError, match="2 NORMAL and 0 PNEUMONIA"):
        curve([0.1, 0.2], [False, False])


def delong_by_definition(scores, labels):
    """Return the AUROC and its variance from all pairs, without ranks."""
    positive, negative = scores[labels], scores[~labels]
    won = (positive[:, None] > negative[None, :]) + 0.5 * (positive[:, None] == negative[None, :])
    return won.mean(), won.mean(axis=1).var(ddof=1) / len(positive) + won.mean(axis=0).var(ddof=1) / len(negative)


@given(images())
def test_delong_variance_agrees_with_its_definition(case):
    scores, labels = case
    assume(labels.sum() > 1 and (~labels).sum() > 1)
    area, covariance = delong_covariance(scores, labels, np.arange(len(scores)))
    mean, variance = delong_by_definition(scores, labels)
    assert area[0] == pytest.approx(mean, abs=1e-12)
    assert covariance[0, 0] == pytest.approx(variance, abs=1e-12)


def test_delong_variance_by_hand():
    """Pneumonia 3, 1 against normal 2, 0: fractions won 1 and 1/2, lost to 1/2 and 1; variance (1/8)/2 + (1/8)/2."""
    area, covariance = delong_covariance([3, 1, 2, 0], [True, True, False, False], np.arange(4))
    assert (area[0], covariance[0, 0]) == pytest.approx((0.75, 0.125))


def test_copies_of_an_image_of_one_patient_do_not_change_the_variance():
    random = np.random.default_rng(2)
    scores, labels = random.normal(size=60), random.random(60) < 0.5
    _, once = delong_covariance(scores, labels, np.arange(60))
    _, thrice = delong_covariance(np.tile(scores, 3), np.tile(labels, 3), np.tile(np.arange(60), 3))
    assert thrice == pytest.approx(once, rel=1e-9)


def test_patients_with_images_of_both_labels_by_hand():
    """Two patients have a PNEUMONIA and a NORMAL image each: fractions won 1, 1/2 and 1/2, 1, deviations 1/8 and -1/8.

    Deviations within a patient have equal signs, so their covariance adds: 1/16 + 1/16 + 4/32.
    """
    scores, labels = [3, 1, 0, 2], [True, True, False, False]
    apart = delong_covariance(scores, labels, np.arange(4))[1][0, 0]
    together = delong_covariance(scores, labels, np.array([0, 1, 0, 1]))[1][0, 0]
    opposed = delong_covariance(scores, labels, np.array([0, 1, 1, 0]))[1][0, 0]
    assert (apart, together) == pytest.approx((0.125, 0.25))
    assert opposed == pytest.approx(0.0, abs=1e-12)


def test_variance_needs_two_patients_in_each_class():
    with pytest.raises(UndefinedMetricError, match=r"each class \(PNEUMONIA: 1, NORMAL: 2\)$"):
        delong_covariance([1, 2, 3, 4], [True, True, False, False], np.array([0, 0, 1, 2]))


def test_delong_by_patient_agrees_with_the_patient_bootstrap():
    random = np.random.default_rng(4)
    groups = np.repeat(np.arange(200), random.integers(1, 5, 200))
    sick = (random.random(200) < 0.6)[groups]
    logits = random.normal(size=200)[groups] + 0.5 * random.normal(size=len(groups)) + 1.5 * sick
    patients = [f"p{group}" for group in groups]
    by_patient = auroc_interval(logits, sick, patients)
    bootstrap = patient_bootstrap(weighted_auroc, logits, sick, patients)
    by_image = auroc_interval(logits, sick)
    assert by_patient.method == "delong by patient"
    assert by_image.method == "delong"
    assert (by_patient.low, by_patient.high) == pytest.approx((bootstrap.low, bootstrap.high), abs=0.012)
    assert by_image.high - by_image.low < 0.8 * (by_patient.high - by_patient.low)


def test_auroc_interval_by_hand():
    scores, labels = np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False])
    half = 1.959963984540054 * math.sqrt(0.125) / (0.75 * 0.25)
    interval = auroc_interval(scores, labels)
    low, high = (1 / (1 + math.exp(-(math.log(3) + side * half))) for side in (-1, 1))
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.75, low, high))


@given(images(), st.integers(1, 5))
def test_auroc_interval_contains_the_auroc(case, patients):
    scores, labels = case
    keys = [f"p{index % (patients * 3)}" for index in range(len(scores))]
    interval = auroc_interval(scores, labels, keys)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_the_interval_of_perfect_separation_has_a_width():
    scores, labels = np.arange(30.0), np.arange(30) >= 12
    interval = auroc_interval(scores, labels)
    assert interval.value == 1.0
    assert (interval.low, interval.high) == pytest.approx((wilson(12, 12).low, 1.0))
    assert interval.method == "wilson of 12 pairs"


def test_auroc_interval_has_coverage():
    random = np.random.default_rng(6)
    truth = 0.8  # of normal distributions at distance d: AUROC = Phi(d / sqrt 2)
    distance = math.sqrt(2) * 0.8416212335729143
    inside = 0
    for _ in range(1000):
        labels = np.arange(100) < 60
        interval = auroc_interval(random.normal(size=100) + distance * labels, labels)
        inside += interval.low <= truth <= interval.high
    assert abs(inside / 1000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)


def test_patients_reach_the_variance():
    scores, labels = [3, 1, 2, 0], [True, True, False, False]
    assert auroc_interval(scores, labels, ["a", "a", "b", "c"]).method == "wilson of 1 pair"
    assert patient_groups(["a", "a", "b", "c"], 4).tolist() == [0, 0, 1, 2]

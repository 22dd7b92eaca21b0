"""Threshold metrics, checked against scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.results import Confusion
from pneumoscope.statistics.intervals import newcombe
from pneumoscope.statistics.metrics import (
    confusion,
    threshold_metrics,
    weighted_f1,
    weighted_mcc,
)

REFERENCE = {
    "accuracy": metrics.accuracy_score,
    "sensitivity": metrics.recall_score,
    "specificity": lambda y, d: metrics.recall_score(~y, ~d),
    "precision": metrics.precision_score,
    "negative_predictive_value": lambda y, d: metrics.precision_score(~y, ~d),
    "f1": metrics.f1_score,
    "balanced_accuracy": metrics.balanced_accuracy_score,
    "mcc": metrics.matthews_corrcoef,
    "positive_likelihood_ratio": lambda y, d: metrics.class_likelihood_ratios(y, d)[0],
    "negative_likelihood_ratio": lambda y, d: metrics.class_likelihood_ratios(y, d)[1],
}


def classified(tp, fn, tn, fp):
    return np.repeat([True, False, False, True], [tp, fn, tn, fp]), np.repeat([True, False], [tp + fn, tn + fp])


@given(st.tuples(*[st.integers(3, 40)] * 4))  # six images of each label, below which there is no bootstrap
def test_values_agree_with_scikit_learn(cells):
    decisions, labels = classified(*cells)
    result = threshold_metrics(decisions, labels, None, resamples=20)
    assert list(result) == [
        "accuracy",
        "sensitivity",
        "specificity",
        "precision",
        "negative_predictive_value",
        "f1",
        "balanced_accuracy",
        "mcc",
        "positive_likelihood_ratio",
        "negative_likelihood_ratio",
    ]
    for name, interval in result.items():
        assert interval.value == pytest.approx(REFERENCE[name](labels, decisions), abs=1e-12), name
        assert interval.low <= interval.high


def test_a_published_row_by_hand():
    decisions, labels = classified(363, 27, 213, 21)
    assert confusion(decisions, labels) == Confusion(tp=363, fn=27, tn=213, fp=21)
    result = threshold_metrics(decisions, labels, None)
    expected = {"accuracy": 576 / 624, "sensitivity": 363 / 390, "specificity": 213 / 234, "precision": 363 / 384}
    for name, value in expected.items():
        assert result[name].value == pytest.approx(value)
        assert result[name].method == "wilson"
    assert result["f1"].value == pytest.approx(2 * 363 / (2 * 363 + 27 + 21))
    assert result["f1"].method == "patient bootstrap"
    assert result["f1"].seed == 0
    assert [result[name].n for name in ("accuracy", "sensitivity", "specificity", "precision")] == [624, 390, 234, 384]
    assert all(interval.low <= interval.value <= interval.high for interval in result.values())


@given(st.integers(0, 2**32 - 1))
def test_weighted_metrics_agree_with_scikit_learn(seed):
    random = np.random.default_rng(seed)
    decisions, labels = random.random(30) < 0.6, random.random(30) < 0.6
    weights = random.integers(0, 4, (2, 30)).astype(float)
    for function, reference in (
        (weighted_f1, metrics.f1_score),
        (weighted_mcc, metrics.matthews_corrcoef),
    ):
        for row, value in zip(weights, function(decisions.astype(float), labels, weights), strict=True):
            if not math.isnan(value):
                assert value == pytest.approx(reference(labels, decisions, sample_weight=row), abs=1e-9)


@pytest.mark.parametrize(
    ("cells", "undefined"),
    [
        (
            (0, 5, 5, 0),
            {
                "precision": "no image is predicted as pneumonia",
                "mcc": "all images have one label, or all have",
                "positive_likelihood_ratio": "no NORMAL image is predicted as pneumonia",
            },
        ),
        (
            (5, 0, 0, 5),
            {
                "negative_predictive_value": "every image is predicted as pneumonia",
                "mcc": "all images have one",
                "negative_likelihood_ratio": "every NORMAL image is predicted as pneumonia",
            },
        ),
        (
            (3, 2, 0, 0),
            {
                "specificity": "there is no NORMAL image",
                "balanced_accuracy": "there is no NORMAL image",
                "mcc": "all images",
                "positive_likelihood_ratio": "there is no NORMAL image",
                "negative_likelihood_ratio": "there is no NORMAL image",
            },
        ),
        (
            (0, 0, 5, 0),
            {
                "sensitivity": "there is no PNEUMONIA image",
                "precision": "no image is predicted",
                "f1": "there is no PNEUMONIA image and none is predicted as pneumonia",
                "balanced_accuracy": "there is no PNEUMONIA image",
                "mcc": "all images have one label",
                "positive_likelihood_ratio": "there is no PNEUMONIA image",
                "negative_likelihood_ratio": "there is no PNEUMONIA image",
            },
        ),
    ],
)
def test_undefined_metrics_are_none_with_a_reason(cells, undefined):
    result = threshold_metrics(*classified(*cells), None, resamples=50)
    assert {name for name, interval in result.items() if interval.value is None} == set(undefined)
    for name, reason in undefined.items():
        assert result[name].reason.startswith(reason)
        assert (result[name].low, result[name].high) == (None, None)


def test_f1_without_true_positives_is_zero():
    assert threshold_metrics(*classified(0, 4, 6, 2), None, resamples=50)["f1"].value == 0.0


def test_repeated_patients_widen_every_interval():
    """Four copies of each image of a patient give the same values, and intervals as wide as for one copy."""
    decisions, labels = classified(40, 10, 25, 5)
    once = threshold_metrics(decisions, labels, None)
    keys = [f"p{index}" for index in range(len(labels))] * 4
    four = threshold_metrics(np.tile(decisions, 4), np.tile(labels, 4), keys)
    for name, interval in four.items():
        assert interval.value == pytest.approx(once[name].value), name
        width = once[name].high - once[name].low
        assert interval.high - interval.low == pytest.approx(width, rel=0.03), name
    assert four["sensitivity"].method.startswith("wilson, design effect 4.0")


def test_metrics_need_images():
    with pytest.raises(UndefinedMetricError, match="there are no images"):
        threshold_metrics([], [], None)
    with pytest.raises(UndefinedMetricError, match=r"shape \(1,\)"):
        confusion([True], [True, False])


def test_balanced_accuracy_by_hand():
    """12 of 13 and 0 of 5: Wilson's intervals are [0.667, 0.986] and [0, 0.434]; the mean 0.4615 is
    0.5 sqrt(0.2564^2 + 0^2) above its lower end and 0.5 sqrt(0.0632^2 + 0.4345^2) below its upper one."""
    result = threshold_metrics(*classified(12, 1, 0, 5), None)
    balanced = result["balanced_accuracy"]
    assert balanced.value == pytest.approx(0.46154, abs=1e-5)
    assert (balanced.low, balanced.high) == (pytest.approx(0.3333, abs=1e-3), pytest.approx(0.6811, abs=1e-3))
    assert (balanced.method, balanced.n, balanced.seed) == ("wilson, both labels", 18, None)


def test_the_interval_of_balanced_accuracy_follows_from_newcombes_difference():
    """The mean of a and b is half of a - (1 - b), plus one half."""
    result = threshold_metrics(*classified(40, 10, 25, 5), None)["balanced_accuracy"]
    difference = newcombe(40, 50, 5, 30)
    assert result.low == pytest.approx((difference.low + 1) / 2)
    assert result.high == pytest.approx((difference.high + 1) / 2)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ((12, 1, 0, 5), "all 5 NORMAL images are classified incorrectly"),
        ((12, 1, 5, 0), "all 5 NORMAL images are classified correctly"),
        ((13, 0, 3, 2), "all 13 PNEUMONIA images are classified correctly"),
    ],
)
def test_bootstrap_has_no_interval_if_a_class_has_no_or_only_errors(cells, reason):
    result = threshold_metrics(*classified(*cells), None, resamples=50)
    for name in ("f1", "mcc"):
        assert result[name].value is not None
        assert (result[name].low, result[name].high) == (None, None)
        assert result[name].reason == f"{reason}, which resampling cannot vary"

"""Second opinion: scikit-learn, image by image and weighted."""

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

THEIRS = {
    "accuracy": metrics.accuracy_score,
    "sensitivity": metrics.recall_score,
    "specificity": lambda y, d: metrics.recall_score(~y, ~d),
    "precision": metrics.precision_score,
    "negative_predictive_value": lambda y, d: metrics.precision_score(~y, ~d),
    "f1": metrics.f1_score,
    "balanced_accuracy": metrics.balanced_accuracy_score,
    "mcc": metrics.matthews_corrcoef,
}


def decided(tp, fn, tn, fp):
    return np.repeat([True, False, False, True], [tp, fn, tn, fp]), np.repeat([True, False], [tp + fn, tn + fp])


@given(st.tuples(*[st.integers(1, 40)] * 4))
def test_values_are_scikit_learns(cells):
    decisions, labels = decided(*cells)
    found = threshold_metrics(decisions, labels, None, resamples=20)
    assert list(found) == [
        "accuracy",
        "sensitivity",
        "specificity",
        "precision",
        "negative_predictive_value",
        "f1",
        "balanced_accuracy",
        "mcc",
    ]
    for name, interval in found.items():
        assert interval.value == pytest.approx(THEIRS[name](labels, decisions), abs=1e-12), name
        assert interval.low <= interval.high


def test_the_published_row_of_alexnet_adam():
    """363, 27, 213, 21 worked by hand; intervals contain their values and name their method."""
    decisions, labels = decided(363, 27, 213, 21)
    assert confusion(decisions, labels) == Confusion(tp=363, fn=27, tn=213, fp=21)
    found = threshold_metrics(decisions, labels, None)
    expected = {"accuracy": 576 / 624, "sensitivity": 363 / 390, "specificity": 213 / 234, "precision": 363 / 384}
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value)
        assert found[name].method == "wilson"
    assert found["f1"].value == pytest.approx(2 * 363 / (2 * 363 + 27 + 21))
    assert found["f1"].method == "patient bootstrap"
    assert found["f1"].seed == 0
    assert [found[name].n for name in ("accuracy", "sensitivity", "specificity", "precision")] == [624, 390, 234, 384]
    assert all(interval.low <= interval.value <= interval.high for interval in found.values())


@given(st.integers(0, 2**32 - 1))
def test_weighted_numbers_are_scikit_learns(seed):
    random = np.random.default_rng(seed)
    decisions, labels = random.random(30) < 0.6, random.random(30) < 0.6
    weights = random.integers(0, 4, (2, 30)).astype(float)
    for ours, theirs in (
        (weighted_f1, metrics.f1_score),
        (weighted_mcc, metrics.matthews_corrcoef),
    ):
        for row, value in zip(weights, ours(decisions.astype(float), labels, weights), strict=True):
            if not math.isnan(value):
                assert value == pytest.approx(theirs(labels, decisions, sample_weight=row), abs=1e-9)


@pytest.mark.parametrize(
    ("cells", "undefined"),
    [
        ((0, 5, 5, 0), {"precision": "no image is called pneumonia", "mcc": "all images have one label, or all are"}),
        ((5, 0, 0, 5), {"negative_predictive_value": "every image is called pneumonia", "mcc": "all images have one"}),
        (
            (3, 2, 0, 0),
            {
                "specificity": "there is no NORMAL image",
                "balanced_accuracy": "there is no NORMAL image",
                "mcc": "all images",
            },
        ),
        (
            (0, 0, 5, 0),
            {
                "sensitivity": "there is no PNEUMONIA image",
                "precision": "no image is called",
                "f1": "there is no PNEUMONIA image and none is called so",
                "balanced_accuracy": "there is no PNEUMONIA image",
                "mcc": "all images have one label",
            },
        ),
    ],
)
def test_what_does_not_exist_is_none_with_a_reason(cells, undefined):
    found = threshold_metrics(*decided(*cells), None, resamples=50)
    assert {name for name, interval in found.items() if interval.value is None} == set(undefined)
    for name, reason in undefined.items():
        assert found[name].reason.startswith(reason)
        assert (found[name].low, found[name].high) == (None, None)


def test_f1_of_a_network_that_finds_none_is_zero():
    assert threshold_metrics(*decided(0, 4, 6, 2), None, resamples=50)["f1"].value == 0.0


def test_repeated_patients_widen_every_interval():
    """Each image four times under one key: the values stay, the intervals are those of the images alone."""
    decisions, labels = decided(40, 10, 25, 5)
    once = threshold_metrics(decisions, labels, None)
    keys = [f"p{place}" for place in range(len(labels))] * 4
    four = threshold_metrics(np.tile(decisions, 4), np.tile(labels, 4), keys)
    for name, interval in four.items():
        assert interval.value == pytest.approx(once[name].value), name
        width = once[name].high - once[name].low
        assert interval.high - interval.low == pytest.approx(width, rel=0.03), name
    assert four["sensitivity"].method.startswith("wilson, design effect 4.0")


def test_without_images_there_is_nothing():
    with pytest.raises(UndefinedMetricError, match="there is no image"):
        threshold_metrics([], [], None)
    with pytest.raises(UndefinedMetricError, match=r"shape \(1,\)"):
        confusion([True], [True, False])


def test_balanced_accuracy_of_few_images_by_hand():
    """12 of 13 and 0 of 5: Wilson's intervals are [0.667, 0.986] and [0, 0.434]; the mean 0.4615 is
    0.5 sqrt(0.2564^2 + 0^2) above its lower end and 0.5 sqrt(0.0632^2 + 0.4345^2) below its upper one."""
    found = threshold_metrics(*decided(12, 1, 0, 5), None)
    balanced = found["balanced_accuracy"]
    assert balanced.value == pytest.approx(0.46154, abs=1e-5)
    assert (balanced.low, balanced.high) == (pytest.approx(0.3333, abs=1e-3), pytest.approx(0.6811, abs=1e-3))
    assert (balanced.method, balanced.n, balanced.seed) == ("wilson, both labels", 18, None)


def test_balanced_accuracy_is_half_of_newcombes_difference():
    """The mean of a and b is half of a - (1 - b) and half of one, and that difference has Newcombe's interval."""
    found = threshold_metrics(*decided(40, 10, 25, 5), None)["balanced_accuracy"]
    difference = newcombe(40, 50, 5, 30)
    assert found.low == pytest.approx((difference.low + 1) / 2)
    assert found.high == pytest.approx((difference.high + 1) / 2)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ((12, 1, 0, 5), "all 5 NORMAL images are called wrongly"),
        ((12, 1, 5, 0), "all 5 NORMAL images are called rightly"),
        ((13, 0, 3, 2), "all 13 PNEUMONIA images are called rightly"),
    ],
)
def test_where_a_label_is_called_all_alike_a_bootstrap_has_no_interval(cells, words):
    found = threshold_metrics(*decided(*cells), None, resamples=50)
    for name in ("f1", "mcc"):
        assert found[name].value is not None
        assert (found[name].low, found[name].high) == (None, None)
        assert found[name].reason == f"{words}: drawing images anew cannot vary that"

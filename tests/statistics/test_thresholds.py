"""Operating points, checked against every possible threshold and scikit-learn's ROC curve."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.thresholds import threshold_at_sensitivity, threshold_at_specificity, youden_threshold


@st.composite
def images(draw):
    n = draw(st.integers(2, 40))
    scores = draw(st.lists(st.integers(0, 12), min_size=n, max_size=n))
    labels = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    assume(any(labels) and not all(labels))
    return np.array(scores) / 12, np.array(labels)


def youden(scores, labels, threshold):
    predicted = scores >= threshold
    return predicted[labels].mean() - predicted[~labels].mean()


@given(images())
def test_youden_threshold_has_the_highest_index_and_misses_fewest(case):
    scores, labels = case
    fpr, tpr, thresholds = metrics.roc_curve(labels, scores, drop_intermediate=False)
    threshold = youden_threshold(scores, labels)
    assert 0 <= threshold <= 1
    assert youden(scores, labels, threshold) == pytest.approx((tpr - fpr).max(), abs=1e-12)
    equally_good = [t for t in thresholds if youden(scores, labels, t) > (tpr - fpr).max() - 1e-12]
    assert (scores >= threshold).sum() == max((scores >= t).sum() for t in equally_good)


def test_youden_threshold_lies_midway_between_scores():
    scores, labels = [0.1, 0.2, 0.6, 0.8], [False, False, True, True]
    assert youden_threshold(scores, labels) == pytest.approx(0.4)


def test_of_equal_indices_the_lowest_threshold_is_returned():
    """At 0.7 sensitivity is 1/2 and specificity 1, at 0.2 sensitivity is 1 and specificity 1/2: both have index 1/2."""
    scores, labels = [0.1, 0.3, 0.5, 0.9], [False, True, False, True]
    assert youden_threshold(scores, labels) == pytest.approx(0.2)


def test_a_network_without_skill_predicts_pneumonia_for_every_image():
    assert youden_threshold([0.5, 0.5, 0.5], [True, False, True]) == 0.5
    assert youden_threshold([0.9, 0.1], [False, True]) == 0.1


def test_neighboring_floats_are_separated():
    lower, upper = 0.5, np.nextafter(0.5, 1)
    assert youden_threshold([lower, upper], [False, True]) == upper


@given(images(), st.floats(0.01, 1))
def test_threshold_at_sensitivity_is_the_highest_that_reaches_it(case, sensitivity):
    scores, labels = case
    threshold = threshold_at_sensitivity(scores, labels, sensitivity)
    assert (scores[labels] >= threshold).mean() >= sensitivity - 1e-9
    assert (scores[labels] > threshold).mean() < sensitivity


def test_threshold_at_sensitivity_by_hand():
    scores, labels = np.arange(100) / 100, np.ones(100, dtype=bool)
    assert threshold_at_sensitivity(scores, labels, 0.99) == 0.01
    assert threshold_at_sensitivity(scores, labels, 1.0) == 0.0
    assert threshold_at_sensitivity(scores, labels, 0.07) == 0.93


@pytest.mark.parametrize("sensitivity", [0.0, -0.5, 1.01])
def test_a_sensitivity_outside_0_to_1_is_rejected(sensitivity):
    with pytest.raises(UndefinedMetricError, match=f"sensitivity is {sensitivity}, not above 0"):
        threshold_at_sensitivity([0.5], [True], sensitivity)


def test_a_threshold_needs_a_pneumonia_image():
    with pytest.raises(UndefinedMetricError, match="needs a PNEUMONIA image"):
        threshold_at_sensitivity([0.5, 0.6], [False, False])
    with pytest.raises(UndefinedMetricError, match="2 NORMAL and 0 PNEUMONIA"):
        youden_threshold([0.5, 0.6], [False, False])


@given(images(), st.floats(0.01, 1))
def test_threshold_at_specificity_is_the_lowest_that_reaches_it(case, specificity):
    scores, labels = case
    threshold = threshold_at_specificity(scores, labels, specificity)
    assert 0 <= threshold <= 1
    reached = (scores[~labels] < threshold).mean()
    if reached < specificity - 1e-9:
        # No threshold up to 1 excludes NORMAL images that score 1.
        assert threshold == 1
        assert (scores[~labels] == 1).mean() > 1 - specificity
        return
    # With the next lower score as threshold the specificity would be too low.
    below = scores[scores < threshold]
    assert (scores[~labels] < below.max()).mean() < specificity if below.size else True


def test_threshold_at_specificity_lies_midway_to_the_next_higher_score():
    scores, labels = [0.1, 0.2, 0.3, 0.7, 0.9], [False, False, False, True, True]
    assert threshold_at_specificity(scores, labels, 1.0) == pytest.approx(0.5)
    # Two of three NORMAL images suffice for 0.6: midway between 0.2 and 0.3.
    assert threshold_at_specificity(scores, labels, 0.6) == pytest.approx(0.25)
    # No score above the highest NORMAL score: midway to 1.
    assert threshold_at_specificity([0.1, 0.8], [True, False], 1.0) == pytest.approx(0.9)


def test_a_specificity_without_normal_images_or_out_of_range_is_rejected():
    with pytest.raises(UndefinedMetricError, match="needs a NORMAL image"):
        threshold_at_specificity([0.5], [True])
    with pytest.raises(UndefinedMetricError, match=r"specificity is 1\.5"):
        threshold_at_specificity([0.5, 0.6], [True, False], 1.5)

"""Second opinions: every threshold tried by hand, and scikit-learn's ROC curve."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.thresholds import at_sensitivity, at_specificity, highest_youden


@st.composite
def images(draw):
    n = draw(st.integers(2, 40))
    scores = draw(st.lists(st.integers(0, 12), min_size=n, max_size=n))
    labels = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    assume(any(labels) and not all(labels))
    return np.array(scores) / 12, np.array(labels)


def youden(scores, labels, threshold):
    called = scores >= threshold
    return called[labels].mean() - called[~labels].mean()


@given(images())
def test_best_has_the_highest_index_and_misses_fewest(case):
    scores, labels = case
    wrong, right, thresholds = metrics.roc_curve(labels, scores, drop_intermediate=False)
    chosen = highest_youden(scores, labels)
    assert 0 <= chosen <= 1
    assert youden(scores, labels, chosen) == pytest.approx((right - wrong).max(), abs=1e-12)
    equally_good = [t for t in thresholds if youden(scores, labels, t) > (right - wrong).max() - 1e-12]
    assert (scores >= chosen).sum() == max((scores >= t).sum() for t in equally_good)


def test_best_by_hand_lies_midway():
    scores, labels = [0.1, 0.2, 0.6, 0.8], [False, False, True, True]
    assert highest_youden(scores, labels) == pytest.approx(0.4)


def test_of_equal_indices_the_lowest_threshold_is_taken():
    """At 0.7: 1 of 2 found, 0 of 2 wrong. At 0.3: 2 of 2 found, 1 of 2 wrong. Both have index 1/2."""
    scores, labels = [0.1, 0.3, 0.5, 0.9], [False, True, False, True]
    assert highest_youden(scores, labels) == pytest.approx(0.2)


def test_a_useless_network_calls_every_image_pneumonia():
    assert highest_youden([0.5, 0.5, 0.5], [True, False, True]) == 0.5
    assert highest_youden([0.9, 0.1], [False, True]) == 0.1


def test_neighbouring_floats_are_still_parted():
    lower, upper = 0.5, np.nextafter(0.5, 1)
    assert highest_youden([lower, upper], [False, True]) == upper


@given(images(), st.floats(0.01, 1))
def test_sensitivity_is_reached_and_not_by_a_lower_threshold_than_needed(case, sensitivity):
    scores, labels = case
    chosen = at_sensitivity(scores, labels, sensitivity)
    assert (scores[labels] >= chosen).mean() >= sensitivity - 1e-9
    assert (scores[labels] > chosen).mean() < sensitivity


def test_sensitivity_by_hand():
    scores, labels = np.arange(100) / 100, np.ones(100, dtype=bool)
    assert at_sensitivity(scores, labels, 0.99) == 0.01
    assert at_sensitivity(scores, labels, 1.0) == 0.0
    assert at_sensitivity(scores, labels, 0.07) == 0.93


@pytest.mark.parametrize("sensitivity", [0.0, -0.5, 1.01])
def test_a_sensitivity_is_a_share(sensitivity):
    with pytest.raises(UndefinedMetricError, match=f"sensitivity of {sensitivity} is not"):
        at_sensitivity([0.5], [True], sensitivity)


def test_without_pneumonia_there_is_no_threshold():
    with pytest.raises(UndefinedMetricError, match="needs a pneumonia"):
        at_sensitivity([0.5, 0.6], [False, False])
    with pytest.raises(UndefinedMetricError, match="there is no PNEUMONIA image"):
        highest_youden([0.5, 0.6], [False, False])


@given(images(), st.floats(0.01, 1))
def test_specificity_is_reached_wherever_it_can_be_and_no_image_fewer_is_called(case, specificity):
    scores, labels = case
    threshold = at_specificity(scores, labels, specificity)
    assert 0 <= threshold <= 1
    found = (scores[~labels] < threshold).mean()
    if found < specificity - 1e-9:
        # Normals that score 1 cannot be told from pneumonias by any threshold.
        assert threshold == 1
        assert (scores[~labels] == 1).mean() > 1 - specificity
        return
    # The next lower score as a threshold would call too many normals pneumonia.
    below = scores[scores < threshold]
    assert (scores[~labels] < below.max()).mean() < specificity if below.size else True


def test_specificity_by_hand_lies_midway_between_the_last_normal_and_what_scores_above():
    scores, labels = [0.1, 0.2, 0.3, 0.7, 0.9], [False, False, False, True, True]
    assert at_specificity(scores, labels, 1.0) == pytest.approx(0.5)
    # Two of three normals are enough for 0.6: midway between 0.2 and 0.3.
    assert at_specificity(scores, labels, 0.6) == pytest.approx(0.25)
    # Nothing scores above the last normal: midway to 1.
    assert at_specificity([0.1, 0.8], [True, False], 1.0) == pytest.approx(0.9)


def test_a_specificity_without_normals_or_out_of_range_is_undefined():
    with pytest.raises(UndefinedMetricError, match="needs a normal image"):
        at_specificity([0.5], [True])
    with pytest.raises(UndefinedMetricError, match=r"specificity of 1\.5"):
        at_specificity([0.5, 0.6], [True, False], 1.5)

"""Second opinions: isotonic regression fitted anew for each image, numbers worked by hand, and calibration in simulation."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.venn_abers import fit_venn_abers


def intervals(fitted, scores):
    return np.array([fitted.interval(score) for score in scores]).T


@st.composite
def images(draw):
    scores = draw(st.lists(st.integers(0, 15), min_size=2, max_size=25))
    labels = draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    assume(any(labels) and not all(labels))
    return np.array(scores, dtype=float), np.array(labels)


@settings(deadline=None)
@given(images(), st.integers(-1, 16))
def test_both_answers_are_those_of_a_fit_with_the_image_itself(case, place):
    scores, labels = case
    new = place + 0.5  # between the scores of calibration images
    low, high = fit_venn_abers(scores, labels).interval(new)
    for answer, label in ((low, 0.0), (high, 1.0)):
        fit = IsotonicRegression().fit(np.r_[scores, new], np.r_[labels, label])
        assert answer == pytest.approx(float(fit.predict([new])[0]))


@settings(deadline=None)
@given(images())
def test_the_answers_rise_with_the_score_and_do_not_cross(case):
    low, high = intervals(fit_venn_abers(*case), np.linspace(-1, 16, 200))
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) >= 0).all()
    assert (low < high).all()


def test_by_hand():
    """One normal image at 0, one pneumonia at 1.

    Below both: as a normal image 0; as a pneumonia it pools with the normal one, 1/2. Between them: 0 and 1. Above both: 1/2, 1.
    """
    fitted = fit_venn_abers([0.0, 1.0], [False, True])
    assert [fitted.interval(score) for score in (-5.0, 0.5, 7.0)] == [(0, 0.5), (0, 1), (0.5, 1)]


def test_on_the_score_of_a_calibration_image_the_wider_answer_of_both_sides_is_given():
    fitted = fit_venn_abers([0.0, 1.0], [False, True])
    assert [fitted.interval(score) for score in (0.0, 1.0)] == [(0, 1), (0, 1)]


def test_observed_shares_lie_between_the_means_of_both_answers():
    """40 data sets of 60 calibration images; 300 new images each, in three bands of the score."""
    random = np.random.default_rng(0)
    found = {band: [] for band in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.0))}

    def draw(n):
        scores = random.random(n)
        return scores, random.random(n) < scores**2  # a score that is no probability

    for _ in range(40):
        fitted = fit_venn_abers(*draw(60))
        scores, labels = draw(300)
        low, high = intervals(fitted, scores)
        for (start, end), rows in found.items():
            inside = (scores >= start) & (scores < end)
            rows.append(np.c_[low[inside], labels[inside], high[inside]])
    for rows in found.values():
        low, observed, high = np.concatenate(rows).mean(axis=0)
        assert low - 0.02 < observed < high + 0.02
        assert high - low < 0.25


def test_one_class_cannot_calibrate():
    with pytest.raises(UndefinedMetricError, match="here are 2 images of one"):
        fit_venn_abers([0.1, 0.2], [True, True])

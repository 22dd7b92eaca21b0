"""Second opinions: p-values counted as the book defines them, numbers worked by hand, and coverage in simulation."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.conformal import uncertain_band


def possible(score, own, coverage, *, low_is_strange):
    """By the definition: the share of images of the label, the new one included, that are at least as strange."""
    stranger = sum((other <= score) if low_is_strange else (other >= score) for other in own)
    return (stranger + 1) / (len(own) + 1) > 1 - coverage + 1e-9  # 1 - 0.8 is below 1 / 5 in floating point


@st.composite
def images(draw):
    pneumonia = draw(st.lists(st.integers(0, 30), min_size=4, max_size=40))
    normal = draw(st.lists(st.integers(0, 30), min_size=4, max_size=40))
    return np.array(pneumonia) / 30, np.array(normal) / 30


@given(images(), st.sampled_from([0.5, 0.6, 0.75, 0.8]), st.integers(0, 30))
def test_outside_the_band_exactly_one_label_is_possible(case, coverage, place):
    pneumonia, normal = case
    score = place / 30
    band = uncertain_band(np.r_[pneumonia, normal], np.repeat([True, False], [len(pneumonia), len(normal)]), coverage)
    as_pneumonia = possible(score, pneumonia, coverage, low_is_strange=True)
    as_normal = possible(score, normal, coverage, low_is_strange=False)
    if score < band.low:
        assert (as_normal, as_pneumonia) == (True, False)
    elif score > band.high:
        assert (as_normal, as_pneumonia) == (False, True)
    elif band.low < score < band.high:
        assert as_normal == as_pneumonia


def test_by_hand_where_labels_overlap():
    """Nine images of each label and a coverage of 0.8: of 10 ranks 2 are given up, so the second strangest is the end."""
    pneumonia = [0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95]
    normal = [0.05, 0.1, 0.15, 0.25, 0.3, 0.35, 0.45, 0.55, 0.65]
    assert uncertain_band([*pneumonia, *normal], [True] * 9 + [False] * 9, 0.8) == (0.4, 0.55)


def test_by_hand_where_neither_label_is_possible_between_them():
    pneumonia, normal = [0.6, 0.7, 0.8, 0.9], [0.1, 0.2, 0.3, 0.4]
    # Of 5 ranks 2 are given up: pneumonias from 0.7, normals to 0.3; in between an image is strange for both.
    assert uncertain_band([*pneumonia, *normal], [True] * 4 + [False] * 4, 0.6) == (0.3, 0.7)


def test_the_stated_share_is_reached_for_each_label_whatever_the_scores():
    """400 draws of 60 calibration and 60 new images of each label; the mean coverage has a standard error below 0.003."""
    random = np.random.default_rng(0)
    covered = {True: [], False: []}
    for _ in range(400):
        pneumonia, normal = random.beta(4, 2, 120), random.beta(2, 3, 120)
        band = uncertain_band(np.r_[pneumonia[:60], normal[:60]], np.repeat([True, False], 60), 0.9)
        covered[True].append((pneumonia[60:] >= band.low).mean())
        covered[False].append((normal[60:] <= band.high).mean())
    for found in covered.values():
        assert 0.89 < np.mean(found) < 0.925


@given(images(), st.sampled_from([0.5, 0.8]))
def test_a_monotone_change_of_scores_changes_nothing_else(case, coverage):
    pneumonia, normal = case
    scores = np.r_[pneumonia, normal]
    labels = np.repeat([True, False], [len(pneumonia), len(normal)])
    assume(len(pneumonia) >= 4)
    band, cubed = uncertain_band(scores, labels, coverage), uncertain_band(scores**3, labels, coverage)
    assert cubed == pytest.approx((band.low**3, band.high**3))


def test_too_few_images_for_the_coverage_are_refused():
    with pytest.raises(UndefinedMetricError, match=r"coverage of 0.9 needs 9 NORMAL images or more; here are 8"):
        uncertain_band(np.linspace(0, 1, 28), [True] * 20 + [False] * 8, 0.9)
    uncertain_band(np.linspace(0, 1, 29), [True] * 20 + [False] * 9, 0.9)
    with pytest.raises(UndefinedMetricError, match=r"coverage of 1\.0 is not between"):
        uncertain_band([0.1, 0.9], [False, True], 1.0)

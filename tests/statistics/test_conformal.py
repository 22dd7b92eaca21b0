"""Uncertainty bands and Venn-Abers intervals, checked against their definitions, by hand and by simulation."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.conformal import fit_uncertainty_band, fit_venn_abers


def is_possible(score, scores_of_label, coverage, *, low_is_extreme):
    """Return whether the conformal p value, the fraction of images at least as extreme, exceeds 1 - coverage."""
    as_extreme = sum((other <= score) if low_is_extreme else (other >= score) for other in scores_of_label)
    return (as_extreme + 1) / (
        len(scores_of_label) + 1
    ) > 1 - coverage + 1e-9  # 1 - 0.8 is below 1 / 5 in floating point


@st.composite
def images(draw):
    pneumonia = draw(st.lists(st.integers(0, 30), min_size=4, max_size=40))
    normal = draw(st.lists(st.integers(0, 30), min_size=4, max_size=40))
    return np.array(pneumonia) / 30, np.array(normal) / 30


@given(images(), st.sampled_from([0.5, 0.6, 0.75, 0.8]), st.integers(0, 30))
def test_outside_the_band_exactly_one_label_is_possible(case, coverage, step):
    pneumonia, normal = case
    score = step / 30
    band = fit_uncertainty_band(
        np.r_[pneumonia, normal], np.repeat([True, False], [len(pneumonia), len(normal)]), coverage
    )
    as_pneumonia = is_possible(score, pneumonia, coverage, low_is_extreme=True)
    as_normal = is_possible(score, normal, coverage, low_is_extreme=False)
    if score < band.low:
        assert (as_normal, as_pneumonia) == (True, False)
    elif score > band.high:
        assert (as_normal, as_pneumonia) == (False, True)
    elif band.low < score < band.high:
        assert as_normal == as_pneumonia


def test_band_by_hand_where_labels_overlap():
    """With nine images of each label and a coverage of 0.8, 2 of 10 ranks are excluded: the second most extreme is the end."""
    pneumonia = [0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95]
    normal = [0.05, 0.1, 0.15, 0.25, 0.3, 0.35, 0.45, 0.55, 0.65]
    assert fit_uncertainty_band([*pneumonia, *normal], [True] * 9 + [False] * 9, 0.8) == (0.4, 0.55)


def test_band_by_hand_where_neither_label_is_possible():
    pneumonia, normal = [0.6, 0.7, 0.8, 0.9], [0.1, 0.2, 0.3, 0.4]
    # 2 of 5 ranks are excluded: PNEUMONIA from 0.7, NORMAL up to 0.3; in between an image is atypical of both.
    assert fit_uncertainty_band([*pneumonia, *normal], [True] * 4 + [False] * 4, 0.6) == (0.3, 0.7)


def test_coverage_is_reached_for_each_label():
    """With 400 draws of 60 calibration and 60 new images of each label the standard error is below 0.003."""
    random = np.random.default_rng(0)
    covered = {True: [], False: []}
    for _ in range(400):
        pneumonia, normal = random.beta(4, 2, 120), random.beta(2, 3, 120)
        band = fit_uncertainty_band(np.r_[pneumonia[:60], normal[:60]], np.repeat([True, False], 60), 0.9)
        covered[True].append((pneumonia[60:] >= band.low).mean())
        covered[False].append((normal[60:] <= band.high).mean())
    for coverages in covered.values():
        assert 0.89 < np.mean(coverages) < 0.925


@given(images(), st.sampled_from([0.5, 0.8]))
def test_a_monotone_transform_of_the_scores_transforms_the_band(case, coverage):
    pneumonia, normal = case
    scores = np.r_[pneumonia, normal]
    labels = np.repeat([True, False], [len(pneumonia), len(normal)])
    assume(len(pneumonia) >= 4)
    band, cubed = fit_uncertainty_band(scores, labels, coverage), fit_uncertainty_band(scores**3, labels, coverage)
    assert cubed == pytest.approx((band.low**3, band.high**3))


def test_too_few_images_for_the_coverage_are_rejected():
    with pytest.raises(UndefinedMetricError, match=r"coverage of 0.9 needs at least 9 NORMAL images; there are 8"):
        fit_uncertainty_band(np.linspace(0, 1, 28), [True] * 20 + [False] * 8, 0.9)
    fit_uncertainty_band(np.linspace(0, 1, 29), [True] * 20 + [False] * 9, 0.9)
    with pytest.raises(UndefinedMetricError, match=r"coverage is 1\.0, not between"):
        fit_uncertainty_band([0.1, 0.9], [False, True], 1.0)


# --- Venn-Abers -----------------------------------------------------------------------------------------------------


def intervals(fitted, scores):
    return np.array([fitted.interval(score) for score in scores]).T


@st.composite
def tied_scores(draw):
    scores = draw(st.lists(st.integers(0, 15), min_size=2, max_size=25))
    labels = draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    assume(any(labels) and not all(labels))
    return np.array(scores, dtype=float), np.array(labels)


@settings(deadline=None)
@given(tied_scores(), st.integers(-1, 16))
def test_both_probabilities_are_those_of_isotonic_regression_with_the_new_image(case, index):
    scores, labels = case
    new = index + 0.5  # between the scores of calibration images
    low, high = fit_venn_abers(scores, labels).interval(new)
    for probability, label in ((low, 0.0), (high, 1.0)):
        fit = IsotonicRegression().fit(np.r_[scores, new], np.r_[labels, label])
        assert probability == pytest.approx(float(fit.predict([new])[0]))


@settings(deadline=None)
@given(tied_scores())
def test_both_probabilities_increase_with_the_score_and_do_not_cross(case):
    low, high = intervals(fit_venn_abers(*case), np.linspace(-1, 16, 200))
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) >= 0).all()
    assert (low < high).all()


def test_venn_abers_by_hand():
    """One NORMAL image scores 0, one PNEUMONIA image scores 1.

    Below both, a NORMAL image gives 0, and a PNEUMONIA image pools with the NORMAL one to 1/2. Between them: 0 and 1.
    Above
    both: 1/2 and 1.
    """
    fitted = fit_venn_abers([0.0, 1.0], [False, True])
    assert [fitted.interval(score) for score in (-5.0, 0.5, 7.0)] == [(0, 0.5), (0, 1), (0.5, 1)]


def test_on_the_score_of_a_calibration_image_the_interval_is_the_wider_of_both_sides():
    fitted = fit_venn_abers([0.0, 1.0], [False, True])
    assert [fitted.interval(score) for score in (0.0, 1.0)] == [(0, 1), (0, 1)]


def test_observed_rates_lie_between_the_mean_probabilities():
    """40 data sets of 60 calibration images; 300 new images each, in three bands of the score."""
    random = np.random.default_rng(0)
    rows_by_band = {band: [] for band in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.0))}

    def draw(n):
        scores = random.random(n)
        return scores, random.random(n) < scores**2  # not calibrated

    for _ in range(40):
        fitted = fit_venn_abers(*draw(60))
        scores, labels = draw(300)
        low, high = intervals(fitted, scores)
        for (start, end), rows in rows_by_band.items():
            inside = (scores >= start) & (scores < end)
            rows.append(np.c_[low[inside], labels[inside], high[inside]])
    for rows in rows_by_band.values():
        low, observed, high = np.concatenate(rows).mean(axis=0)
        assert low - 0.02 < observed < high + 0.02
        assert high - low < 0.25


def test_venn_abers_needs_both_classes():
    with pytest.raises(UndefinedMetricError, match="there are 0 NORMAL and 2 PNEUMONIA images"):
        fit_venn_abers([0.1, 0.2], [True, True])

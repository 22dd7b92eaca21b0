"""Fitting a model to a site: what enough images support, and cross-fitting without leaks."""

import dataclasses

import msgspec
import numpy as np
import pytest
from scipy.special import expit, logit
from tests.conftest import LIMITS, POINTS

from pneumoscope.bundle.card import Intervals, read_bundle
from pneumoscope.evaluation.fitting import fit_calibration
from pneumoscope.evaluation.site_fit import (
    SiteFit,
    SiteImages,
    apply_fit,
    assign_folds,
    cross_fit,
    fit_site,
    outputs_with,
    with_prevalence,
)
from pneumoscope.statistics.calibration import adjust_prevalence
from pneumoscope.statistics.thresholds import threshold_at_sensitivity, youden_threshold


@pytest.fixture(scope="module")
def card(shared_maker):
    bundle = shared_maker.bundle(shared_maker.root / "site fit", rejection_limits=LIMITS, operating_points=POINTS)
    intervals = Intervals(edges=(0.0,), low=(0.0, 0.5), high=(0.4, 1.0), method="venn-abers", n=8)
    return msgspec.structs.replace(read_bundle(bundle)[0], intervals=intervals)


def site(normal, pneumonia, *, seed=0, per_patient=1, shift=0.0):
    """Return images of a site, with patients of several images."""
    rng = np.random.default_rng(seed)
    labels = np.arange(normal + pneumonia) >= normal
    n = len(labels)
    return SiteImages(
        labels=labels,
        patients=tuple(f"p{i // per_patient}" for i in range(n)),
        excluded=np.zeros(n, bool),
        logits=rng.normal(np.where(labels, 2.0, -2.0), 1.5) + shift,
        upright=rng.uniform(0.5, 1, n),
        distances=rng.uniform(0.8, 1.5, n),
    )


def test_folds_keep_patients_together_and_spread_the_labels():
    images = site(203, 402, per_patient=3)
    folds = assign_folds(images.labels, images.patients, 0)

    by_patient = {}
    for patient, fold in zip(images.patients, folds.tolist(), strict=True):
        assert by_patient.setdefault(patient, fold) == fold
    assert sorted(set(folds.tolist())) == [0, 1, 2, 3, 4]
    for label in (False, True):
        counts = np.bincount(folds[images.labels == label])
        assert counts.max() - counts.min() <= 4
    assert np.array_equal(folds, assign_folds(images.labels, images.patients, 0))
    assert not np.array_equal(folds, assign_folds(images.labels, images.patients, 1))


def test_patients_without_a_name_are_separate():
    images = dataclasses.replace(site(50, 50), patients=("",) * 100)
    assert np.bincount(assign_folds(images.labels, images.patients, 0)).tolist() == [20] * 5


def test_enough_images_change_every_part_but_the_age_classifier(card):
    images = site(400, 400, shift=1.0)
    images.distances[:40] = 2.5  # 5% beyond the limit of 1.9
    fit = fit_site(card, images)

    accepted = images.subset(images.distances <= fit.limits["ood_detector"])
    assert fit.limits["ood_detector"] == 2.5
    assert fit.limits["input_classifier"] == 0.3  # all are more upright than that
    scores = expit(accepted.logits)
    assert fit.operating_points["balanced"].threshold == youden_threshold(scores, accepted.labels)
    assert fit.operating_points["rule_out"].threshold == threshold_at_sensitivity(scores, accepted.labels, 0.99)
    assert set(fit.operating_points) == {"balanced", "rule_out", "rule_in"}
    assert fit.calibration == fit_calibration(accepted.logits.astype(np.float32), accepted.labels, 0.5)
    assert fit.not_changed == {}


@pytest.mark.parametrize(
    ("normal", "pneumonia", "changed", "kept"),
    [
        (400, 299, {"calibration", "balanced", "rule_in", "limits"}, {"rule_out"}),
        (299, 400, {"calibration", "balanced", "rule_out", "limits"}, {"rule_in"}),
        (100, 100, {"calibration", "balanced"}, {"rule_out", "rule_in", "input_classifier", "ood_detector"}),
        (99, 300, {"calibration", "rule_out", "limits"}, {"calibration", "balanced", "rule_in"}),
        (50, 49, set(), {"calibration", "balanced", "rule_out", "rule_in", "input_classifier", "ood_detector"}),
    ],
)
def test_each_part_needs_enough_images(card, normal, pneumonia, changed, kept):
    fit = fit_site(card, site(normal, pneumonia))

    parts = {*fit.operating_points, *(["limits"] if fit.limits else []), *(["calibration"] if fit.calibration else [])}
    assert parts == changed
    assert set(fit.not_changed) == kept
    assert all(str(number) in " ".join(fit.not_changed.values()) for number in {normal, pneumonia} if number < 100)


def test_with_few_images_only_the_prevalence_changes(card):
    fit = fit_site(card, site(99, 300))

    assert (fit.calibration.slope, fit.calibration.n) == (card.calibration.slope, card.calibration.n)
    assert fit.calibration.prevalence == pytest.approx(300 / 399)
    x = np.array([-3.0, 0.0, 2.0])
    before = expit(card.calibration.slope * x + card.calibration.intercept)
    after = expit(fit.calibration.slope * x + fit.calibration.intercept)
    np.testing.assert_allclose(after, adjust_prevalence(before, 0.5, 300 / 399))
    np.testing.assert_allclose(logit(fit.intervals.low[1]) - logit(0.5), logit(300 / 399))
    assert "only the prevalence was changed" in fit.not_changed["calibration"]


def test_stated_prevalence_is_used_whatever_the_images(card):
    assert fit_site(card, site(10, 10), 0.1).calibration.prevalence == 0.1
    large = fit_site(card, site(400, 400), 0.1).calibration
    assert large.prevalence == 0.1
    assert large.slope == pytest.approx(fit_site(card, site(400, 400)).calibration.slope)
    assert with_prevalence(card, 0.5) == (card.calibration, card.intervals)


def test_rejected_images_are_left_out_of_the_fit(card):
    images = site(200, 200)
    wrong = dataclasses.replace(
        images,
        labels=np.r_[images.labels, ~images.labels],
        patients=images.patients * 2,
        excluded=np.r_[images.excluded, ~images.excluded],
        logits=np.tile(images.logits, 2),
        upright=np.tile(images.upright, 2),
        distances=np.tile(images.distances, 2),
    )
    assert fit_site(card, wrong) == fit_site(card, images)
    assert wrong.rejected(card).sum() == 400


def test_limits_only_become_wider(card):
    images = site(200, 200)
    images.upright[:] = 0.9
    images.distances[:] = 1.0
    assert fit_site(card, images).limits == {"ood_detector": 1.9, "input_classifier": 0.3}
    images.upright[:10] = 0.1
    assert fit_site(card, images).limits["input_classifier"] == pytest.approx(0.1)


def test_age_limit_is_kept_with_a_reason(card):
    aged = msgspec.structs.replace(card.rejection_limits, max_age_score=0.5, age_share=0.01)
    images = dataclasses.replace(site(200, 200), age_scores=np.full(400, 0.9))
    fit = fit_site(msgspec.structs.replace(card, rejection_limits=aged, age_range=(1, 5)), images)
    assert "age_classifier" not in fit.limits
    assert "outside the age range" in fit.not_changed["age_classifier"]


def test_cross_fitting_never_judges_an_image_by_itself(card):
    images = site(300, 300, shift=0.5, per_patient=2)
    folds = assign_folds(images.labels, images.patients, 0)
    inside = folds == 2

    outputs = cross_fit(card, images, None, 0)

    expected = outputs_with(apply_fit(card, fit_site(card, images.subset(~inside))), images.subset(inside))
    np.testing.assert_array_equal(outputs.probabilities[inside], expected.probabilities)
    np.testing.assert_array_equal(outputs.decisions["balanced"][inside], expected.decisions["balanced"])
    # Moving the logits of one fold changes its outputs by the card of the other folds only.
    moved = dataclasses.replace(images, logits=images.logits + 5 * inside)
    again = cross_fit(card, moved, None, 0)
    calibration = fit_site(card, images.subset(~inside)).calibration
    np.testing.assert_allclose(
        again.probabilities[inside], expit(calibration.slope * moved.logits[inside] + calibration.intercept)
    )


def test_nothing_fitted_is_the_card(card):
    images = site(30, 30)
    assert apply_fit(card, SiteFit()) == card
    outputs = outputs_with(card, images)
    np.testing.assert_array_equal(outputs.decisions["balanced"], expit(images.logits) >= 0.4)
    np.testing.assert_array_equal(outputs.rejected, False)

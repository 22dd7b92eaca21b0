"""Fitting a model to a site: what enough images support, and cross-fitting without leaks."""

import dataclasses

import msgspec
import numpy as np
import pytest
from scipy.special import expit, logit
from tests.conftest import LIMITS, POINTS

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import Intervals
from pneumoscope.bundle.prevalence import with_prevalence
from pneumoscope.evaluation.acceptance.site_fit import (
    SiteFit,
    apply_fit,
    assign_folds,
    choose_fit,
    cross_fit,
    fit_site,
    outputs_with,
    rate,
    sample_prevalence,
)
from pneumoscope.evaluation.acceptance.site_images import SiteImages
from pneumoscope.evaluation.fitting import fit_calibration
from pneumoscope.statistics.probabilities import adjust_prevalence
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
    assert "input_classifier" not in fit.limits  # all are more upright than its limit
    scores = expit(accepted.logits)
    assert fit.operating_points["balanced"].threshold == youden_threshold(scores, accepted.labels)
    assert fit.operating_points["rule_out"].threshold == threshold_at_sensitivity(scores, accepted.labels, 0.99)
    assert set(fit.operating_points) == {"balanced", "rule_out", "rule_in"}
    assert fit.calibration == fit_calibration(
        accepted.logits.astype(np.float32), accepted.labels, sample_prevalence(accepted.labels)
    )
    assert (fit.recalibrated, fit.not_changed) == (True, {})
    assert all(point.site for point in fit.operating_points.values())


@pytest.mark.parametrize(
    ("normal", "pneumonia", "changed", "kept"),
    [
        (400, 299, {"calibration", "balanced", "rule_in"}, {"rule_out"}),
        (299, 400, {"calibration", "balanced", "rule_out"}, {"rule_in"}),
        (100, 100, {"calibration", "balanced"}, {"rule_out", "rule_in", "input_classifier", "ood_detector"}),
        (99, 300, {"calibration", "rule_out"}, {"calibration", "balanced", "rule_in"}),
        (
            50,
            49,
            set(),
            {"prevalence", "calibration", "balanced", "rule_out", "rule_in", "input_classifier", "ood_detector"},
        ),
    ],
)
def test_each_part_needs_enough_images(card, normal, pneumonia, changed, kept):
    fit = fit_site(card, site(normal, pneumonia))

    parts = {*fit.operating_points, *(["calibration"] if fit.calibration else [])}
    assert parts == changed
    assert set(fit.not_changed) == kept
    assert all(str(number) in " ".join(fit.not_changed.values()) for number in {normal, pneumonia} if number < 100)


def test_with_few_images_only_the_prevalence_changes(card):
    fit = fit_site(card, site(99, 300))
    prevalence = 300.5 / 400

    assert not fit.recalibrated
    assert (fit.calibration.slope, fit.calibration.n) == (card.calibration.slope, card.calibration.n)
    assert fit.calibration.prevalence == pytest.approx(prevalence)
    x = np.array([-3.0, 0.0, 2.0])
    before = expit(card.calibration.slope * x + card.calibration.intercept)
    after = expit(fit.calibration.slope * x + fit.calibration.intercept)
    np.testing.assert_allclose(after, adjust_prevalence(before, 0.5, prevalence))
    np.testing.assert_allclose(logit(fit.intervals.low[1]) - logit(0.5), logit(prevalence))
    assert (
        "needs 100 patients with accepted images of each label; there are 300 with and 99 without"
        in (fit.not_changed["calibration"])
    )


def test_the_cards_own_prevalence_changes_nothing(card):
    assert with_prevalence(card, 0.5) == (card.calibration, card.intervals)


def test_patients_count_and_not_images(card):
    many = site(400, 400, per_patient=8)  # 50 patients of each label
    fit = fit_site(card, many)
    assert (fit.operating_points, fit.limits, fit.recalibrated) == ({}, {}, False)
    assert "there are 50 with and 50 without" in fit.not_changed["balanced"]


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
    assert fit_site(card, images).limits == {}
    images.upright[:10] = 0.2
    assert fit_site(card, images).limits == {"input_classifier": pytest.approx(0.2)}


def test_limits_change_by_at_most_a_factor_of_two(card):
    images = site(200, 200)
    images.upright[:200] = 0.001
    images.distances[:200] = 50.0
    assert fit_site(card, images).limits == {"input_classifier": 0.15, "ood_detector": 3.8}


def test_age_limit_is_kept_with_a_reason(card):
    aged = msgspec.structs.replace(card.rejection_limits, max_age_score=0.5, age_share=0.01)
    images = dataclasses.replace(site(200, 200), age_scores=np.full(400, 0.9))
    fit = fit_site(msgspec.structs.replace(card, rejection_limits=aged, age_range=(1, 5)), images)
    assert "age_classifier" not in fit.limits
    assert "outside the age range" in fit.not_changed["age_classifier"]


@pytest.mark.slow
def test_cross_fitting_uses_other_patients_only(card):
    images = site(300, 300, shift=0.5, per_patient=2)
    folds = assign_folds(images.labels, images.patients, 0)
    inside = folds == 2

    outputs = cross_fit(card, images, 0)

    expected = outputs_with(apply_fit(card, fit_site(card, images.subset(~inside))), images.subset(inside))
    np.testing.assert_array_equal(outputs.probabilities[inside], expected.probabilities)
    np.testing.assert_array_equal(outputs.decisions["balanced"][inside], expected.decisions["balanced"])
    # Moving the logits of one fold changes its outputs by the card of the other folds only.
    moved = dataclasses.replace(images, logits=images.logits + 5 * inside)
    again = cross_fit(card, moved, 0)
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


def test_parts_that_do_not_help_are_kept(card):
    # The card's threshold of 0.4 and its calibration are right for these images.
    rng = np.random.default_rng(0)
    images = site(300, 300)
    logits = rng.normal(0, 3, 600)
    exact = dataclasses.replace(images, logits=logits, labels=rng.random(600) < expit(0.8 * logits + 0.1))
    fit, outputs = choose_fit(card, exact, 0)
    assert not fit.recalibrated
    assert "does not lower the Brier score" in fit.not_changed["calibration"]
    np.testing.assert_allclose(outputs.probabilities, expit(fit.calibration.slope * logits + fit.calibration.intercept))
    assert fit.limits == {}


@pytest.mark.slow
def test_card_and_fit_are_compared_on_images_that_the_fit_accepts(card):
    # The card rejects all images by their distance; the wider limit accepts nearly all, and a new threshold is needed.
    images = site(400, 400, shift=2.5)
    images.distances[:] = np.random.default_rng(1).uniform(2.0, 3.0, 800)
    fit, outputs = choose_fit(card, images, 0)

    assert images.rejected(card).all()
    assert outputs.rejected.mean() < 0.05
    assert {"balanced", "rule_in"} <= set(fit.operating_points)
    assert fit.recalibrated
    assert rate(images, outputs, "balanced", positive=False).value > 0.8


@pytest.mark.parametrize(("normal", "pneumonia"), [(20, 20), (49, 50)])  # of 99, those outside a fold are enough
def test_outputs_without_a_fitted_part_are_those_of_the_card(card, normal, pneumonia):
    images = site(normal, pneumonia)
    fit, outputs = choose_fit(card, images, 0)
    before = outputs_with(card, images)
    assert (fit.calibration, fit.operating_points, fit.limits) == (None, {}, {})
    np.testing.assert_array_equal(outputs.probabilities, before.probabilities)
    for name, decisions in before.decisions.items():
        np.testing.assert_array_equal(outputs.decisions[name], decisions)


@pytest.mark.slow
def test_figures_of_new_thresholds_are_cross_fitted(card):
    images = site(640, 640, shift=2.5, per_patient=2)
    fit, _ = choose_fit(card, images, 0)
    folds = assign_folds(images.labels, images.patients, 0)

    assert {"balanced", "rule_in"} <= set(fit.operating_points)
    for name, point in fit.operating_points.items():
        decisions = np.zeros(1280, dtype=bool)
        for fold in range(5):
            others = fit_site(card, images.subset(folds != fold), share=0.76).operating_points[name].threshold
            decisions[folds == fold] = expit(images.logits[folds == fold]) >= others
        assert point.threshold == fit_site(card, images).operating_points[name].threshold
        assert point.sensitivity.value == decisions[images.labels].mean()
        assert point.specificity.value == (~decisions[~images.labels]).mean()
        assert (point.sensitivity.n, point.specificity.n) == (640, 640)


def test_limits_that_are_kept_are_those_of_the_cross_fitted_outputs(card):
    """The images outside a fold are enough for limits if the needed number is that of all images, and all are too few."""
    images = site(145, 145)
    images.distances[:60] = 3.0
    fit, outputs = choose_fit(card, images, 0)

    assert fit.limits == {}
    np.testing.assert_array_equal(outputs.rejected, images.rejected(card))


def test_outputs_of_a_profile_that_changes_the_prevalence_only_are_not_recalibrated(card):
    images = site(95, 295)  # 76 outside a fold would be enough
    fit, outputs = choose_fit(card, images, 0)
    folds = assign_folds(images.labels, images.patients, 0)

    assert fit.calibration.slope == card.calibration.slope
    for fold in range(5):
        constants = (logit(outputs.probabilities) - card.calibration.slope * images.logits)[folds == fold]
        np.testing.assert_allclose(constants, constants[0])


@pytest.mark.slow
def test_threshold_whose_figures_are_unknown_is_kept_with_the_reason(card):
    """The limits of all images accept the only normal image, those of the other folds reject it."""
    images = site(1, 400, shift=-3.0)
    images.distances[:] = np.random.default_rng(0).uniform(2.0, 3.0, 401)
    images.distances[0] = 3.125
    folds = assign_folds(images.labels, images.patients, 0)
    beside, elsewhere = np.flatnonzero((folds == folds[0]) & images.labels)[:2], np.flatnonzero(folds != folds[0])[:6]
    # 2% of 401 are 8 images, and 2% of those outside the fold of the normal image are 6.
    images.distances[[*beside, *elsewhere]] = 3.25
    fit, outputs = choose_fit(card, images, 0)

    assert fit.limits == {"ood_detector": 3.125}
    assert outputs.rejected[0]
    assert "rule_out" not in fit.operating_points
    assert fit.not_changed["rule_out"] == "there is no accepted image without pneumonia"

"""Statistics on the card, compared with numbers computed by hand."""

import dataclasses

import numpy as np
import pytest
from tests.conftest import LIMITS

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import INPUT_CLASSES
from pneumoscope.evaluation.fitting import (
    fit_operating_points,
    fit_outlier_summary,
    fit_reference_distribution,
    fit_rejection_limits,
)
from pneumoscope.inference.session import Outputs
from pneumoscope.runs.recipe import RejectionOptions


def checked(count, input_classes, age_score=None):
    """Return outputs of images with a distance of 1."""
    return Outputs(
        np.zeros(count, np.float32),
        input_classes=input_classes,
        ood_distance=np.ones(count, np.float32),
        age_score=age_score,
    )


def test_rejection_limits_by_hand():
    # Of 40 images, fractions of 0.05 and 0.1 are two and four: the third lowest probability, the fifth highest distance.
    input_classes = np.zeros((40, len(INPUT_CLASSES)), np.float32)
    input_classes[:, 0] = np.r_[0.1, 0.2, 0.3, np.linspace(0.6, 0.99, 37)]
    distance = np.r_[np.ones(35), 2.0, 3.0, 4.0, 5.0, 6.0].astype(np.float32)
    logit = np.zeros(40, np.float32)
    augmented = [
        Outputs(logit[part], input_classes=input_classes[part], ood_distance=distance[part])
        for part in (slice(0, 30), slice(30, 40))
    ]
    options = RejectionOptions(classifier_share=0.05, distance_share=0.1)
    # Without augmentation, the last 10 images are not upright, and no distance is above the limit.
    plain = [dataclasses.replace(part, ood_distance=np.ones_like(part.ood_distance)) for part in augmented]
    plain[1] = dataclasses.replace(plain[1], input_classes=np.minimum(plain[1].input_classes, np.float32(0.29)))

    limits = fit_rejection_limits(plain, augmented, options, [""] * 40)

    assert (limits.min_upright, limits.max_distance) == (pytest.approx(0.3), 2.0)
    assert (limits.rejected.value, limits.rejected.n) == (12 / 40, 40)
    assert limits.input_classes == INPUT_CLASSES


def test_age_limit_and_passed_outliers_by_hand():
    # A fraction of 0.05 of 40 images is two: the limit is the third highest score.
    input_classes = np.full((40, len(INPUT_CLASSES)), 0.9, np.float32)
    score = np.r_[np.linspace(0, 0.3, 37), 0.7, 0.8, 0.85].astype(np.float32)
    outputs = [checked(40, input_classes, score)]

    limits = fit_rejection_limits(outputs, outputs, RejectionOptions(age_share=0.05), [""] * 40)

    assert (limits.max_age_score, limits.age_share) == (pytest.approx(0.7), 0.05)
    assert limits.rejected.value == 2 / 40
    # Of four other images, the limit passes the first; the second is not upright.
    score, upright = np.float32([0.1, 0.1, 0.9, 0.9]), np.float32([0.9, 0.1, 0.9, 0.9])
    others = [checked(4, upright[:, None], score)]
    summary = fit_outlier_summary(limits, others, ["a", "b", "c", "d"], 7)
    assert (summary.n_train, summary.passed.value, summary.passed.n) == (7, 0.25, 4)
    alone = {name: passed.value for name, passed in summary.passed_alone.items()}
    assert alone == {"input_classifier": 0.75, "age_classifier": 0.5, "ood_detector": 1}
    assert fit_outlier_summary(limits, [], [], 7).passed is None


def test_image_that_is_more_likely_in_the_age_range_than_not_is_never_rejected_by_the_age_classifier():
    input_classes = np.full((40, len(INPUT_CLASSES)), 0.9, np.float32)
    score = np.linspace(0.01, 0.2, 40, dtype=np.float32)
    outputs = [checked(40, input_classes, score)]

    limits = fit_rejection_limits(outputs, outputs, RejectionOptions(), [""] * 40)

    assert limits.max_age_score == 0.5


def test_image_that_is_more_likely_upright_than_not_is_never_rejected_by_the_classifier():
    input_classes = np.full((40, len(INPUT_CLASSES)), 0.9, np.float32)
    outputs = [checked(40, input_classes)]

    limits = fit_rejection_limits(outputs, outputs, RejectionOptions(), [""] * 40)

    assert limits.min_upright == 0.5


def test_reference_distribution_leaves_out_rejected_images(maker):
    # Of 22 images, the first is not upright and the last is out of distribution.
    card, _ = read_bundle(maker.bundle(maker.root / "b", rejection_limits=LIMITS))
    logit = np.r_[99.0, np.linspace(-3, 3, 20), -99.0].astype(np.float32)
    input_classes = np.zeros((22, len(INPUT_CLASSES)), np.float32)
    input_classes[:, 0], input_classes[0, 0] = 0.9, LIMITS.min_upright - 0.01
    distance = np.r_[np.ones(21), LIMITS.max_distance + 0.1].astype(np.float32)
    batches = [
        Outputs(logit[part], input_classes=input_classes[part], ood_distance=distance[part])
        for part in (slice(0, 16), slice(16, 22))
    ]

    reference = fit_reference_distribution(card, batches, np.arange(22) % 2 == 0)

    probabilities = 1 / (1 + np.exp(-(0.8 * np.linspace(-3, 3, 20) + 0.1)))  # calibration of the test bundle
    assert reference.deciles == pytest.approx(np.quantile(probabilities, np.arange(0.1, 0.95, 0.1)), rel=1e-5)
    assert (reference.n, reference.n_pneumonia) == (20, 10)
    rejected = [dataclasses.replace(batch, input_classes=np.zeros_like(batch.input_classes)) for batch in batches]
    assert fit_reference_distribution(card, rejected, np.ones(22, np.bool_)) is None


def test_operating_points_by_hand():
    scores = np.array([0.1, 0.2, 0.6, 0.7, 0.8, 0.9])
    labels = np.array([False, False, False, True, True, True])

    points = fit_operating_points(scores, labels, [""] * 6)

    assert points["balanced"].threshold == pytest.approx(0.65)
    assert points["rule_out"].threshold == pytest.approx(0.7)
    assert points["rule_in"].threshold == pytest.approx(0.65)
    assert {name: (point.rule, point.target, point.n) for name, point in points.items()} == {
        "half": ("fixed", None, None),
        "balanced": ("youden", None, 6),
        "rule_out": ("sensitivity", 0.99, 3),
        "rule_in": ("specificity", 0.99, 3),
    }
    # At 0.5, two of three normal images are correct; their Wilson interval is [0.208, 0.939].
    specificity = points["half"].specificity
    assert (specificity.value, specificity.n, specificity.method) == (pytest.approx(2 / 3), 3, "wilson")
    assert (specificity.low, specificity.high) == (pytest.approx(0.2077, abs=1e-4), pytest.approx(0.9385, abs=1e-4))
    assert points["half"].sensitivity.value == 1


def test_only_fitted_thresholds_are_marked_as_augmented():
    scores = np.array([0.1, 0.2, 0.6, 0.7, 0.8, 0.9])
    points = fit_operating_points(scores, scores > 0.65, [""] * 6, augmented=scores)

    assert [name for name, point in points.items() if not point.augmented] == ["half"]


def test_thresholds_are_of_augmented_images_and_their_accuracy_is_of_unmodified_ones():
    labels = np.array([False, False, False, True, True, True])
    scores = np.array([0.1, 0.2, 0.6, 0.7, 0.8, 0.9])
    augmented = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])

    points = fit_operating_points(scores, labels, [""] * 6, augmented=augmented)

    # 0.35 separates the augmented images. At this threshold, one unmodified normal image is a false positive.
    assert points["balanced"].threshold == pytest.approx(0.35)
    assert points["balanced"].sensitivity.value == 1
    assert points["balanced"].specificity.value == pytest.approx(2 / 3)
    assert points["half"].specificity.value == pytest.approx(2 / 3)


def test_targets_are_reached_on_unmodified_and_on_augmented_images():
    labels = np.array([False, False, False, True, True, True])
    scores = np.array([0.1, 0.2, 0.6, 0.7, 0.8, 0.9])
    lower, higher = scores - 0.05, scores + 0.05

    for augmented in (lower, higher):
        points = fit_operating_points(scores, labels, [""] * 6, augmented=augmented)
        for each in (scores, augmented):
            assert (each[labels] >= points["rule_out"].threshold).all()
            assert (each[~labels] < points["rule_in"].threshold).all()
    # The stricter of both: the lowest pneumonia, and midway between the highest normal image and the next score.
    assert fit_operating_points(scores, labels, [""] * 6, augmented=lower)["rule_out"].threshold == pytest.approx(0.65)
    assert fit_operating_points(scores, labels, [""] * 6, augmented=higher)["rule_out"].threshold == pytest.approx(0.7)
    assert fit_operating_points(scores, labels, [""] * 6, augmented=lower)["rule_in"].threshold == pytest.approx(0.65)
    assert fit_operating_points(scores, labels, [""] * 6, augmented=higher)["rule_in"].threshold == pytest.approx(0.7)


def test_uncertainty_band_is_fitted_on_augmented_images():
    labels = np.repeat([False, True], 19)
    scores = np.r_[np.linspace(0, 0.2, 19), np.linspace(0.8, 1, 19)]
    augmented = np.r_[np.linspace(0, 0.6, 19), np.linspace(0.4, 1, 19)]

    point = fit_operating_points(scores, labels, [""] * 38, augmented=augmented)["balanced"]

    alone = fit_operating_points(augmented, labels, [""] * 38)["balanced"]
    assert point.uncertainty_band == alone.uncertainty_band
    assert point.uncertainty_band != fit_operating_points(scores, labels, [""] * 38)["balanced"].uncertainty_band


def test_uncertainty_band_needs_19_images_of_each_label():
    # With 20 ranks, a coverage of 0.95 excludes one: the most extreme image of each label is an end of the band.
    scores = np.r_[np.linspace(0, 0.6, 19), np.linspace(0.4, 1, 19)]
    labels = np.repeat([False, True], 19)

    points = fit_operating_points(scores, labels, [""] * 38)

    band = points["balanced"].uncertainty_band
    assert (band.low, band.high) == (pytest.approx(0.4), pytest.approx(0.6))
    assert (band.coverage, band.n_normal, band.n_pneumonia) == (0.95, 19, 19)
    assert all(point.uncertainty_band is None for name, point in points.items() if name != "balanced")
    assert fit_operating_points(scores[1:], labels[1:], [""] * 37)["balanced"].uncertainty_band is None


def test_uncertainty_band_is_extended_to_the_threshold():
    extended = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = np.repeat([False, True], 40)
        scores = 1 / (1 + np.exp(-rng.normal(np.where(labels, 1.5, -1.5), rng.uniform(0.3, 3))))
        point = fit_operating_points(scores, labels, [""] * 80)["balanced"]
        band = point.uncertainty_band
        assert band.low <= point.threshold <= band.high
        wrong = [scores[~labels] > band.high, scores[labels] < band.low]
        assert all(fraction.mean() <= 0.05 for fraction in wrong)
        extended |= {end for end in ("low", "high") if getattr(band, end) == point.threshold}
    assert extended == {"low", "high"}

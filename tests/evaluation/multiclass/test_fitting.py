"""Fits of the card of several classes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from pneumoscope.bundle.card import COVERAGE
from pneumoscope.bundle.multiclass_card import TemperatureScaling
from pneumoscope.evaluation.multiclass.fitting import fit_prediction_sets, fit_temperature_scaling
from pneumoscope.statistics.conformal import few_images_text

CLASSES = ("a", "b", "c")


@pytest.fixture
def targets():
    return np.repeat(np.arange(3), 60)


def draw_logits(targets, seed, *, signal):
    """Return logits in which each image has a higher one for its own class by `signal` of that class."""
    logits = np.random.default_rng(seed).normal(size=(len(targets), 3))
    logits[np.arange(len(targets)), targets] += np.array(signal)[targets]
    return logits.astype(np.float32)


def test_prediction_sets_have_their_coverage_on_unmodified_and_augmented_images(targets):
    # Class a is easier if the images are augmented, and class b harder.
    unmodified = draw_logits(targets, 0, signal=(0.5, 3.0, 2.0))
    augmented = draw_logits(targets, 1, signal=(3.0, 0.5, 2.0))
    calibration = fit_temperature_scaling(augmented, targets)
    variants = [softmax(logits.astype(float) / calibration.temperature, axis=1) for logits in (unmodified, augmented)]
    sets = fit_prediction_sets(variants, targets, CLASSES)
    for probabilities in variants:
        for k, name in enumerate(CLASSES):
            own = probabilities[targets == k, k]
            assert np.mean(own >= sets.classes[name].threshold) >= 0.95
    assert {each.n for each in sets.classes.values()} == {60}
    alone = [fit_prediction_sets([probabilities], targets, CLASSES) for probabilities in variants]
    lowest = {name: min(each.classes[name].threshold for each in alone) for name in CLASSES}
    assert {name: each.threshold for name, each in sets.classes.items()} == lowest
    assert alone[0].classes["a"].threshold < alone[1].classes["a"].threshold
    assert alone[0].classes["b"].threshold > alone[1].classes["b"].threshold


def test_a_class_with_too_few_images_leaves_no_prediction_sets():
    few = np.repeat(np.arange(3), (60, 60, 18))
    logits = draw_logits(few, 0, signal=(1.0, 1.0, 1.0))
    assert fit_prediction_sets([softmax(logits, axis=1)], few, CLASSES) is None
    assert few_images_text({"a": 60, "b": 60, "c": 18}, COVERAGE) == (
        "a coverage of 95% needs 19 validation images of each class; there are 18 of c"
    )


def test_19_images_of_each_class_are_enough_for_prediction_sets():
    enough = np.repeat(np.arange(3), 19)
    logits = draw_logits(enough, 0, signal=(1.0, 1.0, 1.0))
    assert fit_prediction_sets([softmax(logits, axis=1)], enough, CLASSES) is not None
    assert few_images_text(dict.fromkeys(CLASSES, 19), COVERAGE) == ""


@pytest.mark.parametrize(("scale", "bound"), [(-1, "upper bound (1000)"), (1e-7, "lower bound (0.001)"), (1, "")])
def test_a_temperature_at_its_bound_is_remarked_on(targets, scale, bound):
    """Logits of the wrong sign are best at the highest temperature, and tiny ones at the lowest."""
    logits = scale * draw_logits(targets, 0, signal=(2.0, 2.0, 2.0))
    remark = fit_temperature_scaling(logits, targets).remark()
    assert (bound in remark, bool(remark)) == (True, bool(bound))


def test_a_bundle_without_calibration_has_no_temperature_to_remark_on():
    assert TemperatureScaling(temperature=1000, method="none", n=0).remark() == ""

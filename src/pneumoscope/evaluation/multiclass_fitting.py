"""Fit what the card of a bundle of several classes states on the outputs for validation images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.multiclass_card import ClassThreshold, PredictionSets, TemperatureScaling
from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.evaluation.fitting import COVERAGE
from pneumoscope.statistics.conformal import fit_class_thresholds
from pneumoscope.statistics.inputs import IntArray
from pneumoscope.statistics.softmax import softmax
from pneumoscope.statistics.temperature import fit_temperature

__all__ = ["fit_prediction_sets", "fit_temperature_scaling"]


def fit_temperature_scaling(logits: npt.NDArray[np.float32], targets: IntArray) -> TemperatureScaling:
    """Return the temperature scaling.

    Args:
        logits: Logits of the validation images, shape (n, K).
        targets: Index of the class of each image, shape (n,).
    """
    return TemperatureScaling(temperature=fit_temperature(logits, targets), method="temperature", n=len(targets))


def fit_prediction_sets(
    logits: npt.NDArray[np.float32], targets: IntArray, classes: Sequence[str], calibration: TemperatureScaling
) -> PredictionSets | None:
    """Return the thresholds of the classes for `fitting.COVERAGE`; None if a class has too few images for it.

    Args:
        logits, targets: As for `fit_temperature_scaling`.
        classes: Names of the classes.
        calibration: Calibration of the probabilities.
    """
    probabilities = softmax(logits, calibration.temperature)
    try:
        thresholds = fit_class_thresholds(probabilities, targets, classes, COVERAGE)
    except UndefinedMetricError:
        return None
    counts = np.bincount(targets, minlength=len(classes)).tolist()
    return PredictionSets(
        coverage=COVERAGE,
        classes={
            name: ClassThreshold(threshold=threshold, n=n)
            for name, threshold, n in zip(classes, thresholds, counts, strict=True)
        },
    )

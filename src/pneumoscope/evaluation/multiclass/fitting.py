"""Fit the validation-based parts of a multiclass bundle's card."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.card import COVERAGE
from pneumoscope.bundle.multiclass_card import ClassThreshold, PredictionSets, TemperatureScaling
from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.conformal import fit_class_thresholds
from pneumoscope.statistics.inputs import FloatArray, IntArray
from pneumoscope.statistics.temperature import fit_temperature

__all__ = ["fit_prediction_sets", "fit_temperature_scaling"]


def fit_temperature_scaling(logits: npt.NDArray[np.float32], targets: IntArray) -> TemperatureScaling:
    """Return the temperature scaling.

    Args:
        logits: Logits of the validation images, shape (n, K).
        targets: Class index of each image, shape (n,).
    """
    return TemperatureScaling(temperature=fit_temperature(logits, targets), method="temperature", n=len(targets))


def fit_prediction_sets(
    variants: Sequence[FloatArray],
    targets: IntArray,
    classes: Sequence[str],
) -> PredictionSets | None:
    """Return the class thresholds for a coverage of `card.COVERAGE`; None if a class has too few images.

    The threshold of a class is the lowest over the variants of the images, so that the coverage holds for each variant.

    Args:
        variants: Calibrated probabilities of the validation images: unmodified and, if they fit the calibration,
            augmented; each of shape (n, K).
        targets: Class index of each image, shape (n,).
        classes: Names of the classes.
    """
    try:
        fitted = [fit_class_thresholds(probabilities, targets, classes, COVERAGE) for probabilities in variants]
    except UndefinedMetricError:
        return None
    thresholds = map(min, zip(*fitted, strict=True))
    counts = np.bincount(targets, minlength=len(classes)).tolist()
    return PredictionSets(
        coverage=COVERAGE,
        classes={
            name: ClassThreshold(threshold=threshold, n=n)
            for name, threshold, n in zip(classes, thresholds, counts, strict=True)
        },
    )

"""Turn multiclass logits into probabilities, a prediction set and a decision."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.core.prediction import Rejection
from pneumoscope.statistics.inputs import BoolArray, FloatArray
from pneumoscope.statistics.probabilities import softmax

__all__ = ["ClassDecision", "class_probabilities", "decide_class", "possible_classes"]


@dataclasses.dataclass(frozen=True, slots=True)
class ClassDecision:
    """The part of a `Prediction` that follows from the card and the logits."""

    decision: Literal["classified", "uncertain", "rejected"]
    probabilities: dict[str, float] | None
    predicted_class: str | None
    prediction_set: tuple[str, ...] | None


def decide_class(card: MulticlassCard, logits: npt.ArrayLike, rejection: Rejection | None = None) -> ClassDecision:
    """Return the decision for one image.

    The decision is "classified" if the prediction set contains only the most probable class, or if the card has no prediction
    sets; otherwise it is "uncertain".

    Args:
        card: Card of the bundle.
        logits: Outputs of the network, shape (K,).
        rejection: Reason to make no prediction. A rejected image gets no probabilities, because the model has no basis for
            them.
    """
    if rejection:
        return ClassDecision("rejected", None, None, None)
    values = class_probabilities(card, logits)
    predicted = card.classes[int(values.argmax())]
    inside = possible_classes(card, values)
    possible = None
    if inside is not None:
        possible = tuple(name for name, each in zip(card.classes, inside.tolist(), strict=True) if each)
    return ClassDecision(
        "classified" if possible in (None, (predicted,)) else "uncertain",
        dict(zip(card.classes, values.tolist(), strict=True)),
        predicted,
        possible,
    )


def class_probabilities(card: MulticlassCard, logits: npt.ArrayLike) -> FloatArray:
    """Return the calibrated class probabilities for logits of shape (..., K)."""
    return softmax(logits, card.calibration.temperature)


def possible_classes(card: MulticlassCard, probabilities: FloatArray) -> BoolArray | None:
    """Return whether each class is in the prediction set, for probabilities (..., K); None if the card has no prediction sets."""
    thresholds = card.thresholds()
    return None if thresholds is None else np.asarray(probabilities >= np.array(thresholds))

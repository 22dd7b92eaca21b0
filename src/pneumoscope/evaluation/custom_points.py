"""Custom operating points: a probability such as "0.3", or a target such as "sens=0.95" reached on validation scores.

Their names are the same in commands, results, reports and cards.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal

from pneumoscope.bundle.card import UncertaintyBand
from pneumoscope.core.errors import UsageError
from pneumoscope.core.messages import operating_point_rule
from pneumoscope.core.names import closest_name
from pneumoscope.statistics.inputs import BoolArray, FloatArray
from pneumoscope.statistics.thresholds import threshold_at_sensitivity, threshold_at_specificity

__all__ = [
    "FIXED_POINT",
    "ChosenThreshold",
    "CustomPoint",
    "canonical_names",
    "choose_thresholds",
    "custom_points",
    "is_probability",
    "needs_validation",
    "parse_custom_point",
]

FIXED_POINT = "half"  # the only standard operating point of predictions without validation images
_TARGETS: dict[str, Literal["sensitivity", "specificity"]] = {"sens": "sensitivity", "spec": "specificity"}
_EXAMPLES = "a probability such as 0.3, a sensitivity such as sens=0.95, or a specificity such as spec=0.9"


@dataclasses.dataclass(frozen=True)
class CustomPoint:
    """A user-specified operating point.

    Attributes:
        name: The name, with the shortest form of the number, such as "sens=0.95".
        rule: Whether the threshold is a probability, or reaches a target on validation scores.
        value: Probability or target, above 0 and below 1; a target may be 1.
    """

    name: str
    rule: Literal["probability", "sensitivity", "specificity"]
    value: float


@dataclasses.dataclass(frozen=True)
class ChosenThreshold:
    """A threshold that is not from a card; see `evaluation.metrics.Threshold`.

    Attributes:
        threshold: Threshold on the score.
        rule: How it was chosen, as a phrase.
        uncertainty_band: Always None: every image is decided by the threshold.
    """

    threshold: float
    rule: str
    uncertainty_band: UncertaintyBand | None = None

    def rule_text(self) -> str:
        """Return how the threshold was chosen, as a phrase."""
        return self.rule


def parse_custom_point(text: str) -> CustomPoint | None:
    """Return the custom operating point in a text; None if the text is a name, such as "balanced".

    Raises:
        UsageError: The number is missing or out of range.
    """
    kind, equals, number = text.strip().partition("=")
    if not equals:
        if not number and not _is_number(kind):
            return None
        kind, number = "", kind
    target = _similar_target(kind) if equals and kind not in _TARGETS else kind
    if target is None:
        raise UsageError(f"there is no operating point {text!r}", hint=f"Give a name, {_EXAMPLES}")
    rule = _TARGETS[target] if target else "probability"
    value = float(number) if _is_number(number) else math.nan
    if not (0 < value < 1 or (value == 1 and target)):
        raise UsageError(
            f"the {rule} of the operating point {text!r} is not a number between 0 and 1", hint=f"Give {_EXAMPLES}"
        )
    if target != kind:
        raise UsageError(f"there is no operating point {text!r}", hint=f"Did you mean {f'{target}={number}'!r}?")
    # Drop trailing zeros, so that 0.95 and .950 have the same name.
    return CustomPoint(f"{kind}{equals}{value:.12g}", rule, value)


def _similar_target(kind: str) -> str | None:
    """Return "sens" or "spec" for a similar text, such as "SENS" or "sensitivity"; None without a match."""
    closest = closest_name(kind, (*_TARGETS, *_TARGETS.values()), 0.75)
    return next((short for short, rule in _TARGETS.items() if closest in {short, rule}), None)


def canonical_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return unique names of operating points, with the numbers of custom ones in their shortest form.

    Raises:
        UsageError: See `parse_custom_point`.
    """
    return tuple(dict.fromkeys(point.name if (point := parse_custom_point(name)) else name for name in names))


def custom_points(names: Iterable[str], known: Collection[str]) -> tuple[CustomPoint, ...]:
    """Return the custom operating points among the names, except those that the card already has."""
    return tuple(point for name in names if name not in known and (point := parse_custom_point(name)))


def is_probability(name: str) -> bool:
    """Return whether a name of an operating point is a probability, such as "0.3"."""
    point = parse_custom_point(name)
    return point is not None and point.rule == "probability"


def needs_validation(point: CustomPoint | None) -> bool:
    """Return whether a point is a target, whose threshold is chosen on validation scores."""
    return point is not None and point.rule != "probability"


def choose_thresholds(
    points: Sequence[CustomPoint],
    score_at: Callable[[float], float],
    validation: tuple[FloatArray, BoolArray] | None,
) -> dict[str, ChosenThreshold]:
    """Return the thresholds of custom operating points by name.

    Args:
        points: The operating points.
        score_at: Maps a calibrated probability to the score before calibration.
        validation: Scores of validation images, and True for pneumonia, each of shape (n,); None if no point is a
            target.
    """
    return {point.name: _choose_threshold(point, score_at, validation) for point in points}


def _choose_threshold(
    point: CustomPoint, score_at: Callable[[float], float], validation: tuple[FloatArray, BoolArray] | None
) -> ChosenThreshold:
    if point.rule == "probability":
        return ChosenThreshold(score_at(point.value), f"fixed probability of {point.value:.12g}")
    if validation is None:
        raise UsageError(
            f"the threshold of the operating point {point.name!r} is chosen on validation images, and there are none",
            hint="Give validation images or predictions, or a fixed probability such as --operating-point 0.3",
        )
    scores, labels = validation
    if point.rule == "sensitivity":
        threshold, n = threshold_at_sensitivity(scores, labels, point.value), int(labels.sum())
    else:
        threshold, n = threshold_at_specificity(scores, labels, point.value), int((~labels).sum())
    return ChosenThreshold(threshold, operating_point_rule(point.rule, point.value, n, augmented=False))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

"""Turn network outputs into a decision or a rejection.

All decisions are made here: the CLI, the Python API, the service and the evaluation call this module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.card import INPUT_CLASSES, Calibration, Card, InputCheck, OperatingPoint, RejectionLimits
from pneumoscope.core.errors import UnknownNameError
from pneumoscope.core.interval import Interval
from pneumoscope.core.prediction import PatientAge, Rejection, Uncertainty
from pneumoscope.core.prediction_codes import ASSUMPTIONS, OVERRIDES, Assumption, Decision, RejectionCode, WarningCode
from pneumoscope.statistics.conformal import VennAbers

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

__all__ = [
    "DEFAULT_OPERATING_POINT",
    "DecisionResult",
    "InputRequirements",
    "calibrate",
    "decide",
    "failed_checks",
    "find_operating_point",
    "find_warnings",
    "reject_by_age",
    "reject_by_file",
    "reject_by_network",
    "score_at_probability",
    "sigmoid",
    "threshold_probability",
]

DEFAULT_OPERATING_POINT = "balanced"
# Warnings that are replaced by the warning of an assumption, if it is made.
_ASSUMPTIONS: dict[WarningCode, Assumption] = {
    "modality_not_stated": "chest",
    "body_part_not_stated": "chest",
    "view_not_stated": "frontal",
    "one_side_stated": "frontal",
}
_ASSUMED: dict[Assumption, WarningCode] = {"chest": "assumed_chest", "frontal": "assumed_frontal"}
_FAULTS: tuple[RejectionCode, ...] = tuple(code for code in INPUT_CLASSES if code != "upright")


@dataclasses.dataclass(frozen=True, slots=True)
class DecisionResult:
    """The part of a `Prediction` that follows from the card and the logit."""

    decision: Decision
    probability: float | None
    interval: Interval | None
    threshold: float
    rejection: Rejection | None
    uncertainty: Uncertainty | None


def decide(card: Card, point: OperatingPoint, logit: float, rejection: Rejection | None = None) -> DecisionResult:
    """Return the decision for one image at an operating point.

    Args:
        card: Card of the bundle; its calibration maps logits to probabilities.
        point: Operating point with the threshold and the uncertainty band.
        logit: Output of the network.
        rejection: Reason to make no prediction. A rejected image gets no probability, because the model has no basis for one.
    """
    threshold = threshold_probability(card, point)
    if rejection:
        return DecisionResult("rejected", None, None, threshold, rejection, None)
    score = float(sigmoid(np.asarray(logit, dtype=np.float64)))
    probability = float(calibrate(card.calibration, logit))
    decision: Decision = "pneumonia" if score >= point.threshold else "no_pneumonia"
    uncertainty = None
    band = point.uncertainty_band
    if band and band.low <= score <= band.high:
        decision = "uncertain"
        low, high = (float(calibrate(card.calibration, _logit(end))) for end in (band.low, band.high))
        uncertainty = Uncertainty(low, high, band.coverage)
    return DecisionResult(decision, probability, _interval(card, logit, probability), threshold, None, uncertainty)


def _interval(card: Card, logit: float, probability: float) -> Interval | None:
    if card.intervals is None:
        return None
    low, high = VennAbers(card.intervals.edges, card.intervals.low, card.intervals.high).interval(logit)
    # Platt scaling and Venn-Abers are fitted independently; extend the interval to include the probability.
    low, high = min(low, probability), max(high, probability)
    return Interval(probability, low, high, method=card.intervals.method, n=card.intervals.n, level=None)


def reject_by_file(rejections: Iterable[Rejection], assumptions: Collection[Assumption]) -> Rejection | None:
    """Return the first rejection based on the header or pixels that no assumption overrides, or None."""
    return next((each for each in rejections if OVERRIDES.get(each.code) not in assumptions), None)


class InputRequirements(Protocol):
    """The part of a card that specifies which images its network accepts."""

    @property
    def rejection_limits(self) -> RejectionLimits | None:
        """Limits beyond which images are rejected; None if the network has no input checks."""

    @property
    def age_range(self) -> tuple[float, float] | None:
        """Minimum and maximum patient age in years, inclusive; None if the model is for all ages."""


def find_warnings(
    card: InputRequirements,
    warnings: Iterable[WarningCode],
    rejections: Iterable[Rejection],
    age: PatientAge | None,
    assumptions: Collection[Assumption],
) -> tuple[WarningCode, ...]:
    """Return the warnings that accompany a prediction.

    Args:
        card: Card of the bundle; without an age range, an unknown age causes no warning.
        warnings: Warnings about the file.
        rejections: Overridden rejections based on the header or pixels; each adds a warning.
        age: Age of the patient; None if unknown.
        assumptions: Overrides of DICOM headers.
    """
    overridden = {OVERRIDES[each.code] for each in rejections}
    found: list[WarningCode] = ["age_not_stated"] if card.age_range is not None and age is None else []
    found.extend(code for code in warnings if _ASSUMPTIONS.get(code) not in assumptions)
    assumed = overridden | {_ASSUMPTIONS[code] for code in warnings if _ASSUMPTIONS.get(code) in assumptions}
    return (*found, *(_ASSUMED[each] for each in ASSUMPTIONS if each in assumed))


def reject_by_network(
    card: InputRequirements,
    input_classes: Sequence[float] | None,
    ood_distance: float | None,
    age_score: float | None = None,
) -> Rejection | None:
    """Return the rejection by the input classifier, age classifier or OOD detector, or None if the image passes all.

    Args:
        card: Card of the bundle, with limits fitted on validation images.
        input_classes: Probabilities of `INPUT_CLASSES`; None if the bundle has no input classifier.
        ood_distance: Distance from the training images, see `models.input_checks`; None if the bundle has no OOD detector.
        age_score: Score that the patient is outside the age range, 0 to 1; None if the bundle has no age classifier.
    """
    limits = card.rejection_limits
    if limits is None:
        return None
    failed = failed_checks(limits, None if input_classes is None else input_classes[0], ood_distance, age_score)
    if failed.get("input_classifier") and input_classes is not None:
        most_likely = max(_FAULTS, key=lambda fault: input_classes[INPUT_CLASSES.index(fault)])
        return Rejection(most_likely, {"probability": input_classes[0], "limit": limits.min_upright})
    if failed.get("age_classifier") and age_score is not None and limits.max_age_score is not None:
        return Rejection(
            "outside_age_range_estimated", {"score": age_score, "limit": limits.max_age_score} | _age_range(card)
        )
    if failed.get("ood_detector") and ood_distance is not None:
        return Rejection("out_of_distribution", {"distance": ood_distance, "limit": limits.max_distance})
    return None


def failed_checks(
    limits: RejectionLimits,
    upright: float | FloatArray | None,
    ood_distance: float | FloatArray | None,
    age_score: float | FloatArray | None,
) -> dict[InputCheck, np.bool_ | BoolArray]:
    """Return, for each available check, whether it rejects an image or each image of an array; NaN is rejected.

    Args:
        limits: Rejection limits of the card.
        upright, ood_distance, age_score: Outputs of the network; None skips the check.
    """
    failed: dict[InputCheck, np.bool_ | BoolArray] = {}
    if upright is not None:
        failed["input_classifier"] = ~np.greater_equal(upright, limits.min_upright)
    if age_score is not None and limits.max_age_score is not None:
        failed["age_classifier"] = ~np.less_equal(age_score, limits.max_age_score)
    if ood_distance is not None:
        failed["ood_detector"] = ~np.less_equal(ood_distance, limits.max_distance)
    return failed


def reject_by_age(card: InputRequirements, age: PatientAge | None, *, required: bool = False) -> Rejection | None:
    """Return the rejection by the stated or entered age, or None if it is within the card's range.

    Args:
        card: Card of the bundle; without an age range, no image is rejected.
        age: Age of the patient; None if unknown.
        required: Whether to reject if the age is unknown.
    """
    if card.age_range is None:
        return None
    if age is None:
        return Rejection("age_required", _age_range(card)) if required else None
    if age.years is None:
        return Rejection("age_not_understood", {"stated": age.stated})
    if card.age_range[0] <= age.years < card.age_range[1] + 1:
        return None
    return Rejection("outside_age_range", {"age": age.years} | _age_range(card))


def _age_range(card: InputRequirements) -> dict[str, str | int | float]:
    assert card.age_range is not None  # required by an age classifier
    return {"minimum": card.age_range[0], "maximum": card.age_range[1]}


def score_at_probability(calibration: Calibration, probability: float) -> float:
    """Return the score before calibration for a calibrated probability, which must be strictly between 0 and 1."""
    return float(sigmoid(np.asarray((_logit(probability) - calibration.intercept) / calibration.slope)))


class _Threshold(Protocol):
    @property
    def threshold(self) -> float: ...


def threshold_probability(card: Card, point: _Threshold) -> float:
    """Return the threshold of an operating point as a calibrated probability, 0 to 1."""
    return float(calibrate(card.calibration, _logit(point.threshold)))


def find_operating_point(card: Card, name: str = "") -> OperatingPoint:
    """Return the named operating point, or `DEFAULT_OPERATING_POINT` if the name is empty.

    Raises:
        UnknownNameError: The card does not contain that operating point.
    """
    name = name or DEFAULT_OPERATING_POINT
    if name not in card.operating_points:
        hint = f"Known: {', '.join(sorted(card.operating_points))}; custom ones such as 0.3 are for evaluations"
        raise UnknownNameError("operating point", name, card.operating_points, hint=hint)
    return card.operating_points[name]


def calibrate(calibration: Calibration, logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return calibrated probabilities of pneumonia, 0 to 1, for logits of any shape, including infinite ones."""
    return sigmoid(calibration.slope * np.asarray(logits, dtype=np.float64) + calibration.intercept)


def sigmoid(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)) in double precision, without overflow for large |x|."""
    x = np.asarray(logits, dtype=np.float64)
    return np.exp(-np.logaddexp(0.0, -x))


def _logit(score: float) -> float:
    # Scores 0 and 1 give infinite logits, which are valid thresholds: all images reach the former, none the latter.
    with np.errstate(divide="ignore"):
        return float(np.log(score) - np.log1p(-score))

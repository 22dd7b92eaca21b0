"""Where a network's output becomes a decision: the only place, for the command line, Python, the service and the report."""

from __future__ import annotations

import dataclasses

import numpy as np

from pneumoscope.bundle.card import Card, OperatingPoint
from pneumoscope.core.errors import UnknownNameError
from pneumoscope.core.results import Decision
from pneumoscope.inference.session import calibrated, sigmoid
from pneumoscope.statistics.venn_abers import VennAbers

__all__ = ["DEFAULT_OPERATING_POINT", "Verdict", "decide", "find_operating_point", "threshold_probability"]

DEFAULT_OPERATING_POINT = "balanced"


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of an image that could be read; see `results.Prediction`."""

    decision: Decision
    probability: float | None
    interval: tuple[float, float] | None
    interval_reason: str
    threshold: float
    reason: str


def decide(card: Card, point: OperatingPoint, logit: float, refused: str = "") -> Verdict:
    """Judge one image.

    Args:
        card: of the bundle; its calibration turns scores into probabilities.
        point: where on the score pneumonia begins.
        logit: of the image.
        refused: why it is not to be judged (see `session.refuse`); empty where it is. Then no probability is given: a number
            for what the model cannot know would be taken for knowledge.
    """
    threshold = threshold_probability(card, point)
    if refused:
        return Verdict("rejected", None, None, "the image is rejected", threshold, refused)
    score = float(sigmoid(np.asarray(logit, dtype=np.float64)))
    probability = float(calibrated(card.calibration, logit))
    decision: Decision = "pneumonia" if score >= point.threshold else "normal"
    reason = ""
    if point.uncertainty_band and point.uncertainty_band.low <= score <= point.uncertainty_band.high:
        decision = "uncertain"
        reason = f"either label is too likely for {point.band.coverage:.0%} of the images of each to be called rightly"
    interval = None
    if card.intervals:
        low, high = VennAbers(card.intervals.edges, card.intervals.low, card.intervals.high).interval(logit)
        # Both rest on the same images in different ways; the wider interval keeps the promise of the narrower.
        interval = (min(low, probability), max(high, probability))
    return Verdict(
        decision=decision,
        probability=probability,
        interval=interval,
        interval_reason="" if interval else "this bundle states none",
        threshold=threshold,
        reason=reason,
    )


def threshold_probability(card: Card, point: OperatingPoint) -> float:
    """The threshold of a point on the scale of the probability, where an image's own can be compared with it."""
    return float(calibrated(card.calibration, _logit(point.threshold)))


def find_operating_point(card: Card, name: str = "") -> OperatingPoint:
    """The operating point of that name; `DEFAULT_OPERATING_POINT` where it is empty.

    Raises:
        UnknownNameError: the card has none.
    """
    name = name or DEFAULT_OPERATING_POINT
    if name not in card.operating_points:
        raise UnknownNameError("operating point", name, card.operating_points)
    return card.operating_points[name]


def _logit(score: float) -> float:
    """The logit of a score, 0 to 1; its ends are infinite, as thresholds that every image or none reaches."""
    with np.errstate(divide="ignore"):
        return float(np.log(score) - np.log1p(-score))

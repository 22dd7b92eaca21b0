"""Convert the probabilities of a card to a different prevalence of pneumonia.

The odds of every probability are multiplied by a constant (Saerens 2002), which shifts the calibrated logit. Thresholds and
uncertainty bands apply to scores before calibration, so decisions do not change.
"""

from __future__ import annotations

import math

import msgspec

from pneumoscope.bundle.card import Calibration, Card, Intervals
from pneumoscope.core.errors import UsageError
from pneumoscope.statistics.probabilities import adjust_prevalence

__all__ = ["apply_prevalence", "with_prevalence"]


def apply_prevalence(card: Card, prevalence: float) -> Card:
    """Return the card with calibration, intervals and reference distribution for a different prevalence.

    Args:
        card: Card of the bundle.
        prevalence: Prevalence of pneumonia among the site's images.

    Raises:
        UsageError: The prevalence is not between 0 and 1.
    """
    if not 0 < prevalence < 1:
        raise UsageError(
            f"the prevalence is {prevalence:g}, not between 0 and 1",
            hint="Pass the fraction of your images that show pneumonia, such as 0.2",
        )
    calibration, intervals = with_prevalence(card, prevalence)
    reference = card.reference_distribution
    if reference is not None:
        deciles = _adjusted(reference.deciles, card.calibration.prevalence, prevalence)
        reference = msgspec.structs.replace(reference, deciles=deciles)
    return msgspec.structs.replace(card, calibration=calibration, intervals=intervals, reference_distribution=reference)


def with_prevalence(card: Card, prevalence: float) -> tuple[Calibration, Intervals | None]:
    """Return the calibration and intervals of a card for a different prevalence of pneumonia."""
    old = card.calibration
    shift = _log_odds(prevalence) - _log_odds(old.prevalence)
    calibration = msgspec.structs.replace(old, intercept=old.intercept + shift, prevalence=prevalence)
    if card.intervals is None:
        return calibration, None
    low, high = (_adjusted(side, old.prevalence, prevalence) for side in (card.intervals.low, card.intervals.high))
    return calibration, msgspec.structs.replace(card.intervals, low=low, high=high)


def _adjusted(probabilities: tuple[float, ...], source: float, target: float) -> tuple[float, ...]:
    return tuple(adjust_prevalence(probabilities, source, target).tolist())


def _log_odds(prevalence: float) -> float:
    return math.log(prevalence) - math.log1p(-prevalence)

"""Statistics of the dashboard: decisions, reviewer agreement, probabilities by day and data drift."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from pneumoscope.bundle.card import Card
from pneumoscope.core.prediction import DECISIONS, Decision
from pneumoscope.core.results import Interval
from pneumoscope.service.storage.records import PredictionStatistics
from pneumoscope.statistics.drift import MIN_IMAGES as MIN_DRIFT_IMAGES
from pneumoscope.statistics.drift import Drift, measure_drift
from pneumoscope.statistics.intervals import proportion

__all__ = ["MIN_DRIFT_IMAGES", "DailyProbabilities", "Dashboard", "summarize"]

_MAX_DAYS = 60  # days with images in the chart


@dataclasses.dataclass(frozen=True, slots=True)
class DailyProbabilities:
    """Probabilities of one day.

    Attributes:
        date: Day in UTC, "2026-01-31".
        images: Number of images.
        quartiles: Lower quartile, median and upper quartile of the probabilities; None if no image has one.
    """

    date: str
    images: int
    quartiles: tuple[float, float, float] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Dashboard:
    """Summary of the predictions of one model at one operating point.

    Attributes:
        images: Number of images.
        proportions: Proportion of each decision; empty without images.
        agreement: Proportion of reviews that agree with the decision; None without reviews.
        agreement_by_decision: The same for each decision that has reviews.
        days: The latest days with images, oldest first.
        drift: Comparison of the probabilities with the reference distribution; None if it is not possible.
        drift_unavailable: Reason if `drift` is None, else empty.
    """

    images: int
    proportions: Mapping[Decision, Interval]
    agreement: Interval | None
    agreement_by_decision: Mapping[Decision, Interval]
    days: tuple[DailyProbabilities, ...]
    drift: Drift | None
    drift_unavailable: Literal["", "too_few_images", "no_reference"]


def summarize(predictions: Sequence[PredictionStatistics], card: Card) -> Dashboard:
    """Return the summary of predictions.

    Args:
        predictions: Predictions of one model at one operating point, in any order.
        card: The model's card.
    """
    agreement: dict[Decision, list[bool]] = defaultdict(list)
    days: dict[str, list[float | None]] = defaultdict(list)
    for each in predictions:
        days[each.created[:10]].append(each.probability)
        if each.agrees is not None:
            agreement[each.decision].append(each.agrees)
    probabilities = [each.probability for each in predictions if each.probability is not None]
    reference = card.reference_distribution
    comparable = reference is not None and len(probabilities) >= MIN_DRIFT_IMAGES
    all_reviews = [agrees for reviews in agreement.values() for agrees in reviews]
    return Dashboard(
        images=len(predictions),
        proportions={
            decision: proportion([each.decision == decision for each in predictions], None) for decision in DECISIONS
        }
        if predictions
        else {},
        agreement=proportion(all_reviews, None) if all_reviews else None,
        agreement_by_decision={
            decision: proportion(agreement[decision], None) for decision in DECISIONS if agreement[decision]
        },
        days=tuple(_daily_probabilities(date, days[date]) for date in sorted(days)[-_MAX_DAYS:]),
        drift=measure_drift(probabilities, reference.deciles, reference.n) if reference and comparable else None,
        drift_unavailable="no_reference" if reference is None else "" if comparable else "too_few_images",
    )


def _daily_probabilities(date: str, probabilities: Sequence[float | None]) -> DailyProbabilities:
    present = [each for each in probabilities if each is not None]
    if not present:
        return DailyProbabilities(date, len(probabilities), None)
    lower, median, upper = statistics.quantiles(present, method="inclusive") if len(present) > 1 else present * 3
    return DailyProbabilities(date, len(probabilities), (lower, median, upper))

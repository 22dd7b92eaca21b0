"""What became of the images so far: shares with their intervals, agreement, and whether the scores drift."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import get_args

from pneumoscope.bundle.card import Card
from pneumoscope.core.prediction import Decision
from pneumoscope.core.results import Interval
from pneumoscope.service.storage.records import PredictionStatistics
from pneumoscope.statistics.drift import MIN_IMAGES, Drift, measure_drift
from pneumoscope.statistics.intervals import proportion

__all__ = ["DECISIONS", "Dashboard", "Day", "overview"]

DECISIONS: tuple[Decision, ...] = get_args(Decision)
_DAYS = 60  # with images that are drawn


@dataclasses.dataclass(frozen=True, slots=True)
class Day:
    """One day in UTC, "2026-01-31": images, and the quartiles of their probabilities (None where none has one)."""

    date: str
    images: int
    quartiles: tuple[float, float, float] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Dashboard:
    """Images that one model judged at one operating point.

    Attributes:
        images: how many.
        shares: of each decision.
        agreement: of people with the decision, by decision and under "" for all, among images that somebody read.
        days: the last with images, oldest first.
        drift: of the images that have a probability against the card's; None where it cannot be said, for `no_drift`.
        no_drift: "few" (under `statistics.drift.MIN_IMAGES` images), "card" (it states no spread), or empty.
    """

    images: int
    shares: Mapping[Decision, Interval]
    agreement: Mapping[str, Interval]
    days: tuple[Day, ...]
    drift: Drift | None
    no_drift: str


def overview(judged: Sequence[PredictionStatistics], card: Card) -> Dashboard:
    """Sum up images.

    Args:
        judged: newest first.
        card: of the model that judged them.
    """
    counts = Counter(each.decision for each in judged)
    read: dict[str, list[bool]] = defaultdict(list)
    days: dict[str, list[float | None]] = defaultdict(list)
    for each in judged:
        if each.agrees is not None:
            read[""].append(each.agrees)
            read[each.decision].append(each.agrees)
        days[each.created[:10]].append(each.probability)
    probabilities = [each.probability for each in judged if each.probability is not None]
    no_drift = "card" if card.reference_distribution is None else "few" if len(probabilities) < MIN_IMAGES else ""
    return Dashboard(
        images=len(judged),
        shares={decision: proportion([each.decision == decision for each in judged], None) for decision in DECISIONS}
        if counts
        else {},
        agreement={decision: proportion(read[decision], None) for decision in ("", *DECISIONS) if read[decision]},
        days=tuple(_day(date, days[date]) for date in sorted(days)[-_DAYS:]),
        drift=None
        if no_drift or card.reference_distribution is None
        else measure_drift(probabilities, card.reference_distribution.deciles, card.reference_distribution.n),
        no_drift=no_drift,
    )


def _day(date: str, probabilities: Sequence[float | None]) -> Day:
    found = [each for each in probabilities if each is not None]
    if not found:
        return Day(date, len(probabilities), None)
    low, middle, high = statistics.quantiles(found, method="inclusive") if len(found) > 1 else found * 3
    return Day(date, len(probabilities), (low, middle, high))

"""Statistics of the dashboard: decisions, agreement of readers and model, daily probabilities, and image drift."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal
from zoneinfo import ZoneInfo

from pneumoscope.bundle.card import Card
from pneumoscope.bundle.site_profile import SiteProfile
from pneumoscope.core.interval import Interval
from pneumoscope.core.prediction_codes import DECISIONS, Decision
from pneumoscope.inference.decision import calibrate
from pneumoscope.service.storage.queries import Filter, ImageCounts, PredictionStatistics
from pneumoscope.service.storage.records import format_time
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.reviews import LABELS, Label
from pneumoscope.service.time_zone import local_date, start_of_day
from pneumoscope.statistics.agreement import cohen_kappa
from pneumoscope.statistics.drift import MIN_IMAGES as MIN_DRIFT_IMAGES
from pneumoscope.statistics.drift import Drift, DriftTest, detect_drift, measure_drift
from pneumoscope.statistics.intervals import proportion, wilson

__all__ = [
    "FALSE_ALARM_PROBABILITY",
    "MIN_DRIFT_IMAGES",
    "DailyProbabilities",
    "Dashboard",
    "MonthlyDrift",
    "PairAgreement",
    "PeriodCounts",
    "ReaderAgreement",
    "count_periods",
    "is_shown",
    "latest_months",
    "monitor_month",
    "summarize",
]

FALSE_ALARM_PROBABILITY = 0.05  # of at least one false alarm per year

_MAX_DAYS = 60  # days with images in the chart
_PERIODS = (1, 7, 30, None)  # days, ending today


@dataclasses.dataclass(frozen=True, slots=True)
class PeriodCounts:
    """Numbers of images in a period; each image counts with its latest prediction by any model.

    Attributes:
        days: Length of the period, which ends today; None for all time.
        since: First day; None for all time.
        all: Counts of all images.
        decided: Counts of the images whose decision the reader may see.
        unreadable: Number of unreadable files.
    """

    days: int | None
    since: datetime.date | None
    all: ImageCounts
    decided: ImageCounts
    unreadable: int


@dataclasses.dataclass(frozen=True, slots=True)
class DailyProbabilities:
    """Probabilities of one day.

    Attributes:
        date: Day in the time zone of the web interface, "2026-01-31".
        images: Number of images.
        quartiles: Lower quartile, median and upper quartile of the probabilities; None if no image has a probability.
    """

    date: str
    images: int
    quartiles: tuple[float, float, float] | None


@dataclasses.dataclass(frozen=True, slots=True)
class ReaderAgreement:
    """Agreement of the model with a reader, whose labels are the reference.

    Images that the reader labeled unusable, and rejected or uncertain images, are excluded.

    Attributes:
        reader: Name of the reader.
        labels: Number of images by label.
        sensitivity: Proportion of images labeled pneumonia for which the model decided pneumonia.
        specificity: Proportion of images labeled with another finding or none for which the model decided no pneumonia.
        kappa: Cohen's kappa of reader and model.
    """

    reader: str
    labels: Mapping[Label, int]
    sensitivity: Interval
    specificity: Interval
    kappa: Interval


@dataclasses.dataclass(frozen=True, slots=True)
class PairAgreement:
    """Cohen's kappa of two readers, pneumonia against all other labels, on images that both could read."""

    readers: tuple[str, str]
    kappa: Interval


@dataclasses.dataclass(frozen=True, slots=True)
class Dashboard:
    """Summary of the predictions of one model at one operating point.

    Attributes:
        images: Number of images.
        proportions: Proportion of each decision; empty without images.
        readers: Agreement of the model with each reader; readers with most images first.
        pairs: Agreement of each pair of readers who labeled the same images.
        days: The latest days with images, oldest first.
        drift: Comparison of the probabilities with the reference distribution; None if unavailable.
        drift_unavailable: Reason why `drift` is None; otherwise empty.
    """

    images: int
    proportions: Mapping[Decision, Interval]
    readers: tuple[ReaderAgreement, ...]
    pairs: tuple[PairAgreement, ...]
    days: tuple[DailyProbabilities, ...]
    drift: Drift | None
    drift_unavailable: Literal["", "too_few_images", "no_reference"]


def is_shown(prediction: PredictionStatistics, blind_reader: str | None) -> bool:
    """Return whether a reader may see the decision; see `count_periods`."""
    return blind_reader is None or any(review.reviewer == blind_reader for review in prediction.reviews)


def count_periods(
    repository: PredictionRepository, today: datetime.date, time_zone: ZoneInfo, blind_reader: str | None = None
) -> list[PeriodCounts]:
    """Return the numbers of images for today, the last 7 and 30 days, and all time.

    Args:
        repository: The predictions.
        today: Current date in the time zone.
        time_zone: Time zone of the days.
        blind_reader: Reader who may only see decisions of images with a review by this reader; None if all are visible.
    Raises:
        StorageError: The database cannot be read.
    """
    counts = []
    for days in _PERIODS:
        since = days and today - datetime.timedelta(days - 1)
        time = format_time(start_of_day(since, time_zone)) if since else ""
        where = Filter(since=time or None, latest=True)
        everything = repository.count_images(where)
        decided = (
            everything
            if blind_reader is None
            else repository.count_images(dataclasses.replace(where, reviewed_by=blind_reader))
        )
        unreadable = repository.unreadable_files.find(limit=0, since=time)[1]
        counts.append(PeriodCounts(days, since or None, everything, decided, unreadable))
    return counts


def summarize(predictions: Sequence[PredictionStatistics], card: Card, time_zone: ZoneInfo) -> Dashboard:
    """Return the summary of predicted images; each image counts once, with its latest prediction.

    Args:
        predictions: Predictions of one model at one operating point, in any order.
        card: The model's card.
        time_zone: Time zone of the days.
    """
    latest: dict[str, PredictionStatistics] = {}
    for each in sorted(predictions, key=lambda each: each.last_predicted):
        latest[each.pixel_sha256] = each
    images = list(latest.values())
    days: dict[str, list[float | None]] = defaultdict(list)
    for each in images:
        days[local_date(each.created, time_zone).isoformat()].append(each.probability)
    probabilities = [each.probability for each in images if each.probability is not None]
    reference = card.reference_distribution
    comparable = reference is not None and len(probabilities) >= MIN_DRIFT_IMAGES
    return Dashboard(
        images=len(images),
        proportions={
            decision: proportion([each.decision == decision for each in images], None) for decision in DECISIONS
        }
        if images
        else {},
        readers=_compare_with_readers(images),
        pairs=_compare_readers(images),
        days=tuple(_daily_probabilities(date, days[date]) for date in sorted(days)[-_MAX_DAYS:]),
        drift=measure_drift(probabilities, reference.deciles, reference.n) if reference and comparable else None,
        drift_unavailable="no_reference" if reference is None else "" if comparable else "too_few_images",
    )


def _compare_with_readers(images: Sequence[PredictionStatistics]) -> tuple[ReaderAgreement, ...]:
    by_reader: dict[str, list[tuple[Decision, Label]]] = defaultdict(list)
    for image in images:
        for review in image.reviews:
            by_reader[review.reviewer].append((image.decision, review.label))
    return tuple(
        _agreement(reader, readings) for reader, readings in sorted(by_reader.items(), key=lambda each: -len(each[1]))
    )


def _agreement(reader: str, readings: Sequence[tuple[Decision, Label]]) -> ReaderAgreement:
    compared = [
        (decision == "pneumonia", label == "pneumonia")
        for decision, label in readings
        if decision in ("pneumonia", "no_pneumonia") and label != "unusable"
    ]
    decided, labeled = [each[0] for each in compared], [each[1] for each in compared]
    return ReaderAgreement(
        reader=reader,
        labels={label: sum(each == label for _, each in readings) for label in LABELS},
        sensitivity=wilson(sum(decision for decision, label in compared if label), sum(labeled)),
        specificity=wilson(
            sum(not decision for decision, label in compared if not label), len(compared) - sum(labeled)
        ),
        kappa=cohen_kappa(decided, labeled),
    )


def _compare_readers(images: Sequence[PredictionStatistics]) -> tuple[PairAgreement, ...]:
    pairs: dict[tuple[str, str], list[tuple[bool, bool]]] = defaultdict(list)
    for image in images:
        usable = sorted((each for each in image.reviews if each.label != "unusable"), key=lambda each: each.reviewer)
        for a, b in itertools.combinations(usable, 2):
            pairs[a.reviewer, b.reviewer].append((a.label == "pneumonia", b.label == "pneumonia"))
    return tuple(
        PairAgreement(readers, cohen_kappa([a for a, _ in ratings], [b for _, b in ratings]))
        for readers, ratings in sorted(pairs.items(), key=lambda each: -len(each[1]))
    )


@dataclasses.dataclass(frozen=True, slots=True)
class MonthlyDrift:
    """Comparison of the images of one calendar month with the site profile.

    Attributes:
        month: "2026-01", in the time zone of the web interface.
        images: Number of different images.
        tests: Tests by quantity: "probability", the image statistics in the profile, and "rejected"; empty with fewer
            than `MIN_DRIFT_IMAGES` images.
    """

    month: str
    images: int
    tests: Mapping[str, DriftTest]


def latest_months(today: datetime.date, count: int) -> list[str]:
    """Return the latest calendar months as "2026-01", newest first, starting with the current one."""
    current = today.year * 12 + today.month - 1  # months since year 0
    return [f"{month // 12:04d}-{month % 12 + 1:02d}" for month in range(current, current - count, -1)]


def monitor_month(
    month: str, predictions: Sequence[PredictionStatistics], profile: SiteProfile, card: Card
) -> MonthlyDrift:
    """Return the comparison of one month's images with the site profile.

    Each month is one of twelve checks per year that share `FALSE_ALARM_PROBABILITY`. The probability of a false alarm
    does not depend on how often the result is viewed, because no images are added to a complete month.

    Args:
        month: The month, for the result.
        predictions: Predictions of the month, newest first; each image counts once, with the latest one.
        profile: A site profile with a reference for monitoring.
        card: The card, adjusted to the profile.
    """
    by_image: dict[str, PredictionStatistics] = {}
    for each in predictions:
        by_image.setdefault(each.pixel_sha256, each)
    images = list(by_image.values())
    if len(images) < MIN_DRIFT_IMAGES:
        return MonthlyDrift(month, len(images), {})
    recent: dict[str, list[float]] = defaultdict(list)
    for each in images:
        if each.probability is not None:
            recent["probability"].append(each.probability)
        if each.image_statistics:
            for name, value in dataclasses.asdict(each.image_statistics).items():
                recent[name].append(value)
    reference: dict[str, list[float]] = {name: values for name, values in profile.monitoring.items() if name != "logit"}
    # Logits and probabilities have the same ranks, and people read probabilities.
    probabilities = calibrate(card.calibration, profile.monitoring.get("logit", [])).tolist()
    tests = detect_drift(
        {"probability": probabilities, **reference},
        recent,
        rejected=(profile.monitored_rejected, sum(each.decision == "rejected" for each in images)),
        images=(profile.monitored_patients, len(images)),
        false_alarms=FALSE_ALARM_PROBABILITY / 12,
    )
    return MonthlyDrift(month, len(images), {test.name: test for test in tests})


def _daily_probabilities(date: str, probabilities: Sequence[float | None]) -> DailyProbabilities:
    present = [each for each in probabilities if each is not None]
    if not present:
        return DailyProbabilities(date, len(probabilities), None)
    lower, median, upper = statistics.quantiles(present, method="inclusive") if len(present) > 1 else present * 3
    return DailyProbabilities(date, len(probabilities), (lower, median, upper))

"""Statistics of the dashboard, against values computed by hand and by simulation."""

import dataclasses
import datetime
import itertools
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from tests.conftest import LIMITS
from tests.service.conftest import prediction

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import Proportion, ReferenceDistribution
from pneumoscope.bundle.site_profile import SiteProfile
from pneumoscope.core.prediction import Failure, ImageStatistics
from pneumoscope.service.storage.queries import Filter, PredictionStatistics
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.reviews import Review
from pneumoscope.service.web.dashboard import (
    FALSE_ALARM_PROBABILITY,
    count_periods,
    is_shown,
    latest_months,
    monitor_month,
    summarize,
)

UTC = ZoneInfo("UTC")
NUMBERS = itertools.count()  # of images
DECILES = tuple(k / 10 for k in range(1, 10))


@pytest.fixture
def card(maker):
    reference = ReferenceDistribution(deciles=DECILES, n=100, n_pneumonia=60)
    return read_bundle(maker.bundle(maker.root / "b", rejection_limits=LIMITS, reference_distribution=reference))[0]


def predicted(day, decision, probability, *labels, image=None, statistics=None):
    """Return a prediction, of a new image by default.

    Labels are those of the readers A, B, ..., and None stands for no label.
    """
    time = f"2026-01-{day:02d}T10:00:00.000000Z"
    reviews = tuple(
        Review(label, "", "", time, reader) for reader, label in zip("ABC", labels, strict=False) if label is not None
    )
    return PredictionStatistics(
        time, time, decision, probability, image or f"image {next(NUMBERS)}", statistics, reviews
    )


@pytest.fixture
def dated():
    """A function that adds a prediction, or the record of an unreadable file, at a time; and the repository."""
    clock = [None]
    repository = PredictionRepository(None, now=lambda: clock[0])

    def add(time, decision="pneumonia", **fields):
        clock[0] = datetime.datetime.fromisoformat(time)
        image = time.encode()
        if decision == "unreadable":
            failed = dataclasses.replace(prediction(None, None), failure=Failure("unreadable_image", "empty", ""))
            return repository.unreadable_files.add(failed, image, user="me")
        probability = None if decision == "rejected" else 0.5
        return repository.add(prediction(probability, decision, **fields), image, user="me")[0]

    yield add, repository
    repository.close()


def test_images_are_counted_by_days_of_the_time_zone(dated):
    add, repository = dated
    taipei = ZoneInfo("Asia/Taipei")
    # In Taipei, 2026-01-31 begins at 16:00 UTC of the day before.
    for time, decision in (
        ("2026-01-30T16:00:00+00:00", "pneumonia"),
        ("2026-01-30T15:59:00+00:00", "uncertain"),
        ("2026-01-24T16:00:00+00:00", "rejected"),
        ("2026-01-24T15:59:00+00:00", "no_pneumonia"),
        ("2026-01-01T16:00:00+00:00", "rejected"),
        ("2026-01-01T15:59:00+00:00", "pneumonia"),
        ("2026-01-30T16:01:00+00:00", "unreadable"),
        ("2026-01-29T16:00:00+00:00", "unreadable"),
    ):
        add(time, decision)
    repository.review(repository.find(Filter(), order="newest").predictions[0].id, "pneumonia", user="anna")
    periods = count_periods(repository, datetime.date(2026, 1, 31), taipei)
    assert [each.since and each.since.isoformat() for each in periods] == [
        "2026-01-31",
        "2026-01-25",
        "2026-01-02",
        None,
    ]
    assert [each.all.images for each in periods] == [1, 3, 5, 6]
    assert [each.all.unread for each in periods] == [0, 2, 4, 5]
    assert [each.unreadable for each in periods] == [1, 2, 2, 2]
    assert [each.all.rejections for each in periods] == [{}, {"blank": 1}, {"blank": 2}, {"blank": 2}]
    assert periods[1].all.decisions == {"pneumonia": 1, "uncertain": 1, "rejected": 1}
    assert all(each.decided == each.all for each in periods)


def test_decisions_are_counted_only_of_the_images_that_a_blind_reader_has_read(dated):
    add, repository = dated
    read, _, other = (add(f"2026-01-01T1{hour}:00:00+00:00", "rejected") for hour in range(3))
    repository.review(read.id, "unusable", user="anna")
    repository.review(other.id, "unusable", user="ben")
    counts = count_periods(repository, datetime.date(2026, 1, 1), UTC, blind_reader="anna")[0]
    assert (counts.all.images, counts.decided.images, counts.decided.rejections) == (3, 1, {"blank": 1})


def test_blind_reader_is_shown_a_prediction_after_a_label_of_their_own():
    found = predicted(1, "pneumonia", 0.9, None, "pneumonia")
    assert [is_shown(found, reader) for reader in (None, "A", "B")] == [True, False, True]


def test_proportions_and_daily_quartiles(card):
    dashboard = summarize(
        [
            predicted(3, "rejected", None),
            predicted(2, "pneumonia", 0.9),
            predicted(2, "pneumonia", 0.7),
            predicted(2, "no_pneumonia", 0.1),
            predicted(1, "uncertain", 0.5),
        ],
        card,
        UTC,
    )
    assert dashboard.images == 5
    assert {name: each.value for name, each in dashboard.proportions.items()} == {
        "no_pneumonia": 0.2, "pneumonia": 0.4, "uncertain": 0.2, "rejected": 0.2,
    }  # fmt: skip
    assert (dashboard.readers, dashboard.pairs) == ((), ())
    assert [(day.date[-2:], day.images) for day in dashboard.days] == [("01", 1), ("02", 3), ("03", 1)]
    assert dashboard.days[0].quartiles == (0.5, 0.5, 0.5)
    assert dashboard.days[1].quartiles == pytest.approx(tuple(np.quantile([0.1, 0.7, 0.9], [0.25, 0.5, 0.75])))
    assert dashboard.days[2].quartiles is None
    assert (dashboard.drift, dashboard.drift_unavailable) == (None, "too_few_images")


def test_agreement_of_readers_and_model(card):
    """By hand: of A's images, 3 of 4 with pneumonia and 2 of 3 without are decided alike."""
    readings = [
        ("pneumonia", "pneumonia", "pneumonia"), ("pneumonia", "pneumonia", "no_finding"), ("pneumonia", "pneumonia"),
        ("no_pneumonia", "pneumonia", "pneumonia"), ("no_pneumonia", "no_finding", "no_finding"),
        ("no_pneumonia", "other_finding", "other_finding"), ("pneumonia", "no_finding"),
        ("uncertain", "pneumonia"), ("rejected", "pneumonia"), ("pneumonia", "unusable", "pneumonia"), ("pneumonia",),
    ]  # fmt: skip
    dashboard = summarize(
        [predicted(1, decision, 0.5, *labels, image=str(n)) for n, (decision, *labels) in enumerate(readings)],
        card,
        UTC,
    )
    a, b = dashboard.readers
    assert (a.reader, b.reader) == ("A", "B")
    assert dict(a.labels) == {"pneumonia": 6, "other_finding": 1, "no_finding": 2, "unusable": 1}
    assert (a.sensitivity.value, a.sensitivity.n) == (0.75, 4)
    assert (a.specificity.value, a.specificity.n) == (pytest.approx(2 / 3), 3)
    wilson = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert (a.sensitivity.low, a.sensitivity.high) == pytest.approx((wilson.low, wilson.high))
    assert a.kappa.value == pytest.approx(cohen_kappa_score([1, 1, 1, 0, 0, 0, 1], [1, 1, 1, 1, 0, 0, 0]))
    (pair,) = dashboard.pairs
    assert (pair.readers, pair.kappa.n) == (("A", "B"), 5)
    assert pair.kappa.value == pytest.approx(cohen_kappa_score([1, 1, 1, 0, 0], [1, 0, 1, 0, 0]))


def test_latest_prediction_of_an_image_is_compared(card):
    """An image with two predictions counts once."""
    dashboard = summarize(
        [
            predicted(2, "pneumonia", 0.9, "pneumonia", image="x"),
            predicted(1, "no_pneumonia", 0.1, "pneumonia", image="x"),
        ],
        card,
        UTC,
    )
    assert (dashboard.readers[0].sensitivity.value, dashboard.readers[0].sensitivity.n) == (1, 1)


def test_drift_compares_images_with_a_probability(card):
    predictions = [predicted(1, "pneumonia", 0.95) for _ in range(60)] + [
        predicted(1, "rejected", None) for _ in range(10)
    ]
    dashboard = summarize(predictions, card, UTC)
    assert (dashboard.drift.n, dashboard.drift.counts[9], dashboard.drift_unavailable) == (60, 60, "")
    assert dashboard.drift.difference == pytest.approx(0.9)


def test_image_that_was_predicted_again_counts_once_with_its_latest_decision(card):
    again = [predicted(1, "rejected", None, image="x"), predicted(2, "pneumonia", 0.95, image="x")]
    dashboard = summarize([*again, predicted(2, "no_pneumonia", 0.1)], card, UTC)
    assert dashboard.images == 2
    assert dashboard.proportions["rejected"].value == 0
    assert dashboard.proportions["pneumonia"].value == 0.5
    assert [each.date for each in dashboard.days] == ["2026-01-02"]


def test_no_drift_without_images_or_without_a_reference(card, maker):
    empty = summarize([], card, UTC)
    assert (empty.images, empty.proportions, empty.readers, empty.days) == (0, {}, (), ())
    assert empty.drift_unavailable == "too_few_images"
    without_reference = read_bundle(maker.bundle(maker.root / "no-reference"))[0]
    dashboard = summarize([predicted(1, "no_pneumonia", 0.1) for _ in range(60)], without_reference, UTC)
    assert (dashboard.drift, dashboard.drift_unavailable) == (None, "no_reference")


def profile(card, monitoring, patients, rejected):
    return SiteProfile(
        format=1, version="0.1.0", created="2026-01-02T03:04:05+00:00", name="North", model=card.name,
        onnx_sha256=card.onnx_sha256, card_sha256=card.sha256(), images_sha256="a" * 64, seen=[], n=1, patients=1,
        n_pneumonia=1, seed=0, prevalence=None, prevalence_source="data", calibration=None, intervals=None,
        operating_points={}, limits={}, rejected=Proportion(value=0, low=0, high=1, n=1, method="wilson"),
        reference_distribution=None, monitoring=monitoring, monitored_patients=patients, monitored_rejected=rejected,
        not_changed={},
    )  # fmt: skip


def sample(rng, n, shift=0.0):
    """Logits, statistics that depend on them in part, and 3% rejected images, of one population."""
    logits = rng.normal(0, 2, n)
    brightness = 120 + 5 * logits + rng.normal(0, 10, n) + shift
    others = rng.normal((40, 3, 10), (5, 1, 4), (n, 3))
    statistics = [ImageStatistics(*map(float, (first, *rest))) for first, rest in zip(brightness, others, strict=True)]
    return logits, statistics, rng.random(n) < 0.03


def reference(card, rng, n):
    logits, statistics, rejected = sample(rng, n)
    names = ("brightness", "contrast", "sharpness", "border")
    values = {name: sorted(getattr(each, name) for each in statistics) for name in names}
    return profile(card, {"logit": sorted(logits[~rejected].tolist()), **values}, n, int(rejected.sum()))


def month_of(card, rng, n, shift=0.0):
    logits, statistics, rejected = sample(rng, n, shift)
    probabilities = 1 / (1 + np.exp(-(card.calibration.slope * logits + card.calibration.intercept)))
    return [
        predicted(1, "rejected" if out else "pneumonia", None if out else float(p), image=str(k), statistics=each)
        for k, (p, each, out) in enumerate(zip(probabilities, statistics, rejected, strict=True))
    ]


def test_latest_months_start_with_the_current_one():
    assert latest_months(datetime.date(2026, 2, 28), 4) == ["2026-02", "2026-01", "2025-12", "2025-11"]


def test_each_quantity_of_a_month_is_compared_with_the_site_profile(card):
    rng = np.random.default_rng(0)
    site = reference(card, rng, 300)
    month = month_of(card, rng, 80, shift=15)
    found = monitor_month("2026-01", month, site, card)

    assert (found.month, found.images) == ("2026-01", 80)
    assert list(found.tests) == ["probability", "brightness", "contrast", "sharpness", "border", "rejected"]
    assert [name for name, test in found.tests.items() if test.alarm] == ["brightness"]
    probabilities = np.array([each.probability for each in month if each.probability is not None])
    logits = (np.log(probabilities / (1 - probabilities)) - card.calibration.intercept) / card.calibration.slope
    expected = stats.ks_2samp(site.monitoring["logit"], logits, method="asymp").pvalue
    assert found.tests["probability"].p_value == pytest.approx(expected)
    assert found.tests["probability"].recent == pytest.approx(np.median(probabilities))
    rejected = sum(each.decision == "rejected" for each in month)
    table = [[site.monitored_rejected, 300 - site.monitored_rejected], [rejected, 80 - rejected]]
    assert found.tests["rejected"].p_value == stats.fisher_exact(table).pvalue


def test_an_image_counts_once_a_month_and_few_images_are_not_tested(card):
    rng = np.random.default_rng(1)
    site, month = reference(card, rng, 300), month_of(card, rng, 49)
    assert monitor_month("2026-01", month * 3, site, card).images == 49
    assert monitor_month("2026-01", month * 3, site, card).tests == {}
    newest_first = [predicted(2, "rejected", None, image="0"), *month, predicted(1, "pneumonia", 0.9, image="49")]
    found = monitor_month("2026-01", newest_first, site, card)
    others = sum(each.decision == "rejected" for each in month[1:])
    assert (found.images, found.tests["rejected"].recent) == (50, (1 + others) / 50)
    assert list(found.tests) == ["rejected"]  # 48 have image statistics, and fewer a probability
    with_statistics = month_of(card, rng, 52)
    found = monitor_month("2026-01", [*newest_first[:1], *with_statistics], site, card)
    assert found.tests["brightness"].n_recent == 51


@pytest.mark.slow
def test_false_alarms_in_a_year_are_as_rare_as_promised(card):
    rng = np.random.default_rng(2)
    years = 100
    alarms = []
    for _ in range(years):
        site = reference(card, rng, 250)
        months = (monitor_month("2026-01", month_of(card, rng, 60), site, card) for _ in range(12))
        alarms.append(any(test.alarm for month in months for test in month.tests.values()))
    limit = FALSE_ALARM_PROBABILITY
    assert np.mean(alarms) <= limit + 2 * np.sqrt(limit * (1 - limit) / years)

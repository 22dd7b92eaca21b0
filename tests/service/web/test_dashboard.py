"""Statistics of the dashboard, against values computed by hand."""

import numpy as np
import pytest
from tests.conftest import LIMITS

from pneumoscope.bundle.card import ReferenceDistribution, read_bundle
from pneumoscope.service.storage.records import PredictionStatistics
from pneumoscope.service.web.dashboard import summarize

DECILES = tuple(k / 10 for k in range(1, 10))


@pytest.fixture
def card(maker):
    reference = ReferenceDistribution(deciles=DECILES, n=100, n_pneumonia=60)
    return read_bundle(maker.bundle(maker.root / "b", rejection_limits=LIMITS, reference_distribution=reference))[0]


def predicted(day, decision, probability, agrees=None):
    return PredictionStatistics(f"2026-01-{day:02d}T10:00:00.000000Z", decision, probability, agrees)


def test_proportions_agreement_and_daily_quartiles(card):
    dashboard = summarize(
        [
            predicted(3, "rejected", None, False),
            predicted(2, "pneumonia", 0.9, True),
            predicted(2, "pneumonia", 0.7, True),
            predicted(2, "no_pneumonia", 0.1, False),
            predicted(1, "uncertain", 0.5),
        ],
        card,
    )
    assert dashboard.images == 5
    assert {name: each.value for name, each in dashboard.proportions.items()} == {
        "no_pneumonia": 0.2, "pneumonia": 0.4, "uncertain": 0.2, "rejected": 0.2,
    }  # fmt: skip
    # Wilson interval of 2 of 4, by its formula.
    z, n = 1.959964, 4
    half = z / (1 + z * z / n) * np.sqrt(0.25 / n + z * z / (4 * n * n))
    agreement = dashboard.agreement
    assert (agreement.value, agreement.n) == (0.5, 4)
    assert (agreement.low, agreement.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    assert {name: (each.value, each.n) for name, each in dashboard.agreement_by_decision.items()} == {
        "no_pneumonia": (0, 1), "pneumonia": (1, 2), "rejected": (0, 1),
    }  # fmt: skip
    assert [(day.date[-2:], day.images) for day in dashboard.days] == [("01", 1), ("02", 3), ("03", 1)]
    assert dashboard.days[0].quartiles == (0.5, 0.5, 0.5)
    assert dashboard.days[1].quartiles == pytest.approx(tuple(np.quantile([0.1, 0.7, 0.9], [0.25, 0.5, 0.75])))
    assert dashboard.days[2].quartiles is None
    assert (dashboard.drift, dashboard.drift_unavailable) == (None, "too_few_images")


def test_drift_compares_images_with_a_probability(card):
    predictions = [predicted(1, "pneumonia", 0.95)] * 60 + [predicted(1, "rejected", None)] * 10
    dashboard = summarize(predictions, card)
    assert (dashboard.drift.n, dashboard.drift.counts[9], dashboard.drift_unavailable) == (60, 60, "")
    assert dashboard.drift.difference == pytest.approx(0.9)


def test_no_drift_without_images_or_without_a_reference(card, maker):
    empty = summarize([], card)
    assert (empty.images, empty.proportions, empty.agreement, empty.days) == (0, {}, None, ())
    assert empty.drift_unavailable == "too_few_images"
    without_reference = read_bundle(maker.bundle(maker.root / "no-reference"))[0]
    dashboard = summarize([predicted(1, "no_pneumonia", 0.1)] * 60, without_reference)
    assert (dashboard.drift, dashboard.drift_unavailable) == (None, "no_reference")

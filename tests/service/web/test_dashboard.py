"""The overview's numbers, by hand."""

import numpy as np
import pytest
from tests.conftest import LIMITS

from pneumoscope.bundle.card import ReferenceDistribution, read_bundle
from pneumoscope.service.storage.records import PredictionStatistics
from pneumoscope.service.web.dashboard import overview

TENTHS = tuple(k / 10 for k in range(1, 10))


@pytest.fixture
def card(maker):
    spread = ReferenceDistribution(deciles=TENTHS, n=100, n_pneumonia=60)
    return read_bundle(maker.bundle(maker.root / "b", rejection_limits=LIMITS, reference_distribution=spread))[0]


def judged(day, decision, probability, agrees=None):
    return PredictionStatistics(f"2026-01-{day:02d}T10:00:00.000000Z", decision, probability, agrees)


def test_shares_agreement_and_days(card):
    found = overview(
        [
            judged(3, "rejected", None, False),
            judged(2, "pneumonia", 0.9, True),
            judged(2, "pneumonia", 0.7, True),
            judged(2, "normal", 0.1, False),
            judged(1, "uncertain", 0.5),
        ],
        card,
    )
    assert found.images == 5
    assert {name: share.value for name, share in found.shares.items()} == {
        "normal": 0.2, "pneumonia": 0.4, "uncertain": 0.2, "rejected": 0.2,
    }  # fmt: skip
    # Wilson for 2 of 4, by the formula: (2 + 1.96^2/2) / (4 + 1.96^2) -+ ...
    z, n = 1.959964, 4
    half = z / (1 + z * z / n) * np.sqrt(0.25 / n + z * z / (4 * n * n))
    assert found.agreement[""].value == 0.5
    assert (found.agreement[""].low, found.agreement[""].high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    assert {name: (each.value, each.n) for name, each in found.agreement.items() if name} == {
        "normal": (0, 1), "pneumonia": (1, 2), "rejected": (0, 1),
    }  # fmt: skip
    assert [(day.date[-2:], day.images) for day in found.days] == [("01", 1), ("02", 3), ("03", 1)]
    assert found.days[0].quartiles == (0.5, 0.5, 0.5)
    assert found.days[1].quartiles == pytest.approx(tuple(np.quantile([0.1, 0.7, 0.9], [0.25, 0.5, 0.75])))
    assert found.days[2].quartiles is None
    assert (found.drift, found.no_drift) == (None, "few")


def test_drift_is_of_images_with_a_probability(card):
    images = [judged(1, "pneumonia", 0.95)] * 60 + [judged(1, "rejected", None)] * 10
    found = overview(images, card)
    assert (found.drift.n, found.drift.counts[9], found.no_drift) == (60, 60, "")
    assert found.drift.difference == pytest.approx(0.9)


def test_without_images_or_without_a_spread_it_says_so(card, maker):
    empty = overview([], card)
    assert (empty.images, empty.shares, empty.days, empty.no_drift) == (0, {}, (), "few")
    silent = read_bundle(maker.bundle(maker.root / "silent"))[0]
    assert overview([judged(1, "normal", 0.1)] * 60, silent).no_drift == "card"

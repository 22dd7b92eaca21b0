"""The rate of a run, by a clock that the test sets."""

from __future__ import annotations

import pytest

from pneumoscope.archive import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_rate_is_that_of_the_last_two_minutes(clock: list[float]) -> None:
    counter = progress.ProgressCounter(total=10_000, done=0, failed=0)
    for batch in [10] * 100 + [40] * 100:  # one each 2 s: 5, then 20 images per second
        clock[0] += 2
        counter.add(batch, 0)
    state = counter.progress()
    assert state.rate == pytest.approx(20, rel=0.02)
    assert state.seconds_left == pytest.approx((10_000 - 5000) / 20, rel=0.02)


def test_batches_that_take_longer_than_two_minutes_have_a_rate(clock: list[float]) -> None:
    counter = progress.ProgressCounter(total=1024, done=0, failed=0)
    for _ in range(2):
        clock[0] += 256
        counter.add(256, 1)
    state = counter.progress()
    assert (state.rate, state.seconds_left, state.failed) == (1.0, 512.0, 2)

"""Images of all requests wait in one queue with an end, and go through the network together."""

import sys
import threading
from concurrent.futures import CancelledError

import pytest
from tests.service.conftest import png

from pneumoscope.core.errors import BusyError
from pneumoscope.inference.model import BATCH, load_model
from pneumoscope.service.inference_queue import InferenceQueue


class Gated:
    """A model that waits to be let through, and remembers what it was given at once."""

    def __init__(self, model):
        self.model, self.open, self.given, self.begun = model, threading.Event(), [], threading.Semaphore(0)

    def predict_batch(self, images):
        self.given.append(len(images))
        self.begun.release()
        assert self.open.wait(10)
        return self.model.predict_batch(images)


@pytest.fixture
def gated(shared_maker):
    folder = shared_maker.root / "queued"
    if not folder.exists():
        shared_maker.bundle(folder, gain=0.05)
    return Gated(load_model(folder, threads=1))


def named(*levels):
    return [(png(level), f"{level}.png") for level in levels]


def test_what_waits_goes_through_together_and_each_gets_its_own(gated):
    scoring = InferenceQueue(gated, max_waiting=100, workers=1)
    first = scoring.submit(named(90))
    assert gated.begun.acquire(timeout=10)
    rest = [scoring.submit(named(level))[0] for level in range(100, 106)]
    gated.open.set()
    found = [future.result(10) for future in [*first, *rest]]
    assert [each.path for each in found] == ["90.png", *(f"{level}.png" for level in range(100, 106))]
    assert len({each.probability for each in found}) == 7
    assert gated.given == [1, BATCH, 6 - BATCH]
    scoring.close()


def test_workers_share_what_waits(gated):
    scoring = InferenceQueue(gated, max_waiting=100, workers=2)
    first = scoring.submit(named(90)), scoring.submit(named(91))
    for _ in first:
        assert gated.begun.acquire(timeout=10)
    rest = scoring.submit(named(*range(100, 106)))
    gated.open.set()
    assert len({future.result(10).path for future in rest}) == 6
    assert gated.given[:2] == [1, 1]
    assert max(gated.given) <= 3  # and not 4 for one, and 2 for the other
    scoring.close()


def test_past_the_end_of_the_queue_a_request_is_refused_whole_and_at_once(gated):
    scoring = InferenceQueue(gated, max_waiting=3, workers=1)
    with scoring.admitted(2):
        assert scoring.waiting == 2
        with pytest.raises(BusyError, match="2 images wait to be scored; 3 may"), scoring.admitted(2):
            pass
        with scoring.admitted(1):
            assert scoring.waiting == 3
    assert scoring.waiting == 0
    with scoring.admitted(4):  # alone, it may be longer than the queue
        assert scoring.waiting == 4
    scoring.close()


def test_a_image_whose_request_has_gone_is_not_scored(gated):
    scoring = InferenceQueue(gated, max_waiting=10, workers=1)
    first = scoring.submit(named(90))
    assert gated.begun.acquire(timeout=10)
    large = bytes(2**20)
    gone, here = scoring.submit([(large, "large.png"), *named(110)])
    held = sys.getrefcount(large)
    assert gone.cancel()
    assert sys.getrefcount(large) == held - 1  # it is in memory no longer than somebody waits for it
    gated.open.set()
    assert here.result(10).path == "110.png"
    assert first[0].result(10)
    with pytest.raises(CancelledError):
        gone.result(10)
    assert gated.given == [1, 1]
    scoring.close()


def test_a_image_that_cannot_be_read_is_an_answer_of_its_own(gated):
    gated.open.set()
    scoring = InferenceQueue(gated, max_waiting=10, workers=2)
    good, bad = scoring.submit([(png(), "good.png"), (b"no image", "bad.png")])
    assert good.result(10).decision
    assert (bad.result(10).decision, bad.result(10).path) == (None, "bad.png")
    scoring.close()


def test_what_was_taken_in_is_answered_before_it_stops_and_nothing_more_is_taken(gated):
    scoring = InferenceQueue(gated, max_waiting=100, workers=2)
    futures = scoring.submit(named(*range(90, 110)))
    threading.Timer(0.2, gated.open.set).start()
    scoring.close()
    assert all(future.done() and future.result(0).error == "" for future in futures)
    with pytest.raises(BusyError, match="stopping"):
        scoring.submit(named(90))
    with pytest.raises(BusyError, match="stopping"), scoring.admitted(1):
        pass
    scoring.close()


def test_a_fault_reaches_those_whose_images_have_it_and_no_other(gated, monkeypatch):
    bad, batch = png(120), gated.model.predict_batch

    def fail_on_one(images):
        if bad in images:
            raise MemoryError("too large")
        return batch(images)

    monkeypatch.setattr(gated.model, "predict_batch", fail_on_one)
    scoring = InferenceQueue(gated, max_waiting=10, workers=1)
    first = scoring.submit(named(90))
    assert gated.begun.acquire(timeout=10)
    rest = scoring.submit(named(100, 120, 130))
    gated.open.set()
    assert [future.result(10).path for future in (first[0], rest[0], rest[2])] == ["90.png", "100.png", "130.png"]
    with pytest.raises(MemoryError):
        rest[1].result(10)
    assert scoring.submit(named(140))[0].result(10).path == "140.png"
    scoring.close()

"""The inference queue: batches, fairness between workers, its limit and its shutdown."""

import sys
import threading
from concurrent.futures import CancelledError

import pytest
from tests.service.conftest import png

from pneumoscope.core.errors import BusyError
from pneumoscope.core.prediction import PatientAge
from pneumoscope.inference.model import BATCH_SIZE, load_model
from pneumoscope.service.inference_queue import InferenceQueue


class Gated:
    """A model that waits until it is opened, and records the size of each batch."""

    def __init__(self, model):
        self.model, self.open, self.given, self.begun = model, threading.Event(), [], threading.Semaphore(0)

    def predict_batch(self, images, **options):
        self.given.append(len(images))
        self.begun.release()
        assert self.open.wait(60)
        return self.model.predict_batch(images, **options)


@pytest.fixture
def gated(shared_maker):
    folder = shared_maker.root / "queued"
    if not folder.exists():
        shared_maker.bundle(folder, gain=0.05)
    return Gated(load_model(folder, threads=1))


def named(*levels):
    return [(png(level), f"{level}.png") for level in levels]


def test_waiting_images_share_a_batch(gated):
    queue = InferenceQueue(gated, max_waiting=100, workers=1)
    first = queue.submit(named(90))
    assert gated.begun.acquire(timeout=60)
    rest = [queue.submit(named(level))[0] for level in range(100, 106)]
    gated.open.set()
    found = [future.result(60) for future in [*first, *rest]]
    assert [each.path for each in found] == ["90.png", *(f"{level}.png" for level in range(100, 106))]
    assert len({each.probability for each in found}) == 7
    assert gated.given == [1, 2, 2, 2]
    assert max(gated.given) == BATCH_SIZE
    queue.close(60)


def test_each_image_of_a_batch_has_its_own_age(gated):
    queue = InferenceQueue(gated, max_waiting=100, workers=1)
    first = queue.submit(named(90))
    assert gated.begun.acquire(timeout=60)
    rest = queue.submit(named(100, 110), age=3) + queue.submit(named(120))
    gated.open.set()
    assert [future.result(60).age for future in [*first, *rest]] == [None, *2 * [PatientAge(3, "entered")], None]
    assert gated.given == [1, 2, 1]
    queue.close(60)


def test_workers_share_waiting_images(gated):
    queue = InferenceQueue(gated, max_waiting=100, workers=2)
    first = queue.submit(named(90)), queue.submit(named(91))
    for _ in first:
        assert gated.begun.acquire(timeout=60)
    rest = queue.submit(named(*range(100, 106)))
    gated.open.set()
    assert len({future.result(60).path for future in rest}) == 6
    assert gated.given[:2] == [1, 1]
    assert max(gated.given) <= 3  # not 4 for one and 2 for the other
    queue.close(60)


def test_full_queue_rejects_a_whole_request(gated):
    queue = InferenceQueue(gated, max_waiting=3, workers=1)
    with queue.reserve(2):
        assert queue.waiting == 2
        with pytest.raises(BusyError, match="2 images are waiting, and the limit is 3"), queue.reserve(2):
            pass
        with queue.reserve(1):
            assert queue.waiting == 3
    assert queue.waiting == 0
    with queue.reserve(4):  # an empty queue accepts a request larger than itself
        assert queue.waiting == 4
    queue.close(60)


def test_image_of_a_cancelled_request_is_not_scored(gated):
    queue = InferenceQueue(gated, max_waiting=10, workers=1)
    first = queue.submit(named(90))
    assert gated.begun.acquire(timeout=60)
    large = bytes(2**20)
    gone, here = queue.submit([(large, "large.png"), *named(110)])
    held = sys.getrefcount(large)
    assert gone.cancel()
    assert sys.getrefcount(large) == held - 1  # the queue holds no reference to a cancelled image
    gated.open.set()
    assert here.result(60).path == "110.png"
    assert first[0].result(60)
    with pytest.raises(CancelledError):
        gone.result(60)
    assert gated.given == [1, 1]
    queue.close(60)


def test_unreadable_image_has_a_failure(gated):
    gated.open.set()
    queue = InferenceQueue(gated, max_waiting=10, workers=2)
    good, bad = queue.submit([(png(), "good.png"), (b"no image", "bad.png")])
    assert good.result(60).decision
    assert (bad.result(60).decision, bad.result(60).path) == (None, "bad.png")
    assert bad.result(60).failure.message.startswith("the file cannot be read: not an image")
    queue.close(60)


def test_close_scores_accepted_images_and_accepts_no_more(gated):
    queue = InferenceQueue(gated, max_waiting=100, workers=2)
    futures = queue.submit(named(*range(90, 110)))
    threading.Timer(0.2, gated.open.set).start()
    queue.close(60)
    assert all(future.done() and future.result(0).failure is None for future in futures)
    with pytest.raises(BusyError, match="stopping"):
        queue.submit(named(90))
    with pytest.raises(BusyError, match="stopping"), queue.reserve(1):
        pass
    queue.close(60)


def test_close_does_not_wait_longer_than_its_timeout(gated):
    queue = InferenceQueue(gated, max_waiting=100, workers=2)
    (future,) = queue.submit(named(90))
    assert gated.begun.acquire(timeout=60)
    queue.close(0.01)
    assert not future.done()
    gated.open.set()
    assert future.result(60).decision


def test_internal_error_of_an_image_affects_no_other(gated, monkeypatch):
    bad, batch = png(120), gated.model.predict_batch

    def fail_on_one(images, **options):
        if bad in images:
            raise MemoryError("too large")
        return batch(images, **options)

    monkeypatch.setattr(gated.model, "predict_batch", fail_on_one)
    queue = InferenceQueue(gated, max_waiting=10, workers=1)
    first = queue.submit(named(90))
    assert gated.begun.acquire(timeout=60)
    rest = queue.submit(named(100, 120, 130))
    gated.open.set()
    assert [future.result(60).path for future in (first[0], rest[0], rest[2])] == ["90.png", "100.png", "130.png"]
    with pytest.raises(MemoryError):
        rest[1].result(60)
    assert queue.submit(named(140))[0].result(60).path == "140.png"
    queue.close(60)

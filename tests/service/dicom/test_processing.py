"""Attempts to predict a received instance: counted in the database, so that an image that kills the process is given up."""

import asyncio
import threading
import time
from contextlib import suppress

import pytest
from pydicom.uid import generate_uid
from tests.images import dicom
from tests.service.conftest import AT_ONCE

from pneumoscope.core.errors import BusyError, StorageError
from pneumoscope.service.app import create_app
from pneumoscope.service.predictions import PredictionService
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.queries import Filter
from pneumoscope.service.storage.repository import PredictionRepository

SECONDS = 60


class Killed(BaseException):
    """Stands for the end of the process: nothing handles it."""


@pytest.fixture(autouse=True)
def second_attempt_at_once(monkeypatch):
    monkeypatch.setattr("pneumoscope.service.dicom.processing._SECOND_ATTEMPT_SECONDS", 0)


def opened(model, folder):
    """Return the application of a process that was just started."""
    return create_app(model, PredictionRepository(folder), Settings(dicom=AT_ONCE))


def close(app):
    app.state.service.queue.close(SECONDS)
    app.state.service.repository.close()


def receive(app, level):
    elements = {"SOPInstanceUID": generate_uid(), "StudyInstanceUID": "1.2.3", "PatientID": "7", "PatientAge": "003Y"}
    sent = dicom(level, **elements)
    assert app.state.processor.receive(sent, "image", "PACS").status == 0x0000
    return sent


def run(app, is_done):
    """Predict what waits until a condition holds, then stop as a service does that shuts down."""

    async def process():
        task = asyncio.create_task(app.state.processor.run())
        deadline = time.monotonic() + SECONDS
        while not task.done() and not is_done():
            assert time.monotonic() < deadline, "it is not done"
            await asyncio.sleep(0.02)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(process(), 2 * SECONDS))


def is_empty(app):
    return lambda: app.state.service.repository.inbox.status().instances == 0


def attempts(app):
    return [each.attempts for each in app.state.service.repository.inbox.ready(100)]


def test_image_that_kills_the_process_is_given_up_after_3_attempts_and_no_other_is(model, tmp_path, monkeypatch):
    predict, killed = PredictionService.predict_received, []
    app = opened(model, tmp_path / "data")
    _, deadly, _ = (receive(app, level) for level in (90, 100, 110))

    async def kill(self, instance, *arguments, **options):
        if instance == deadly:
            killed.append(instance)
            raise Killed
        await asyncio.sleep(0.1)  # the others are not done when the process ends
        await predict(self, instance, *arguments, **options)

    monkeypatch.setattr(PredictionService, "predict_received", kill)
    for _ in range(3):
        with pytest.raises(Killed):
            run(app, is_empty(app))
        close(app)
        app = opened(model, tmp_path / "data")
    run(app, is_empty(app))
    assert len(killed) == 3
    repository = app.state.service.repository
    (failed,), _ = repository.unreadable_files.find()
    assert failed.failure.code == "internal_error"
    assert repository.find(Filter()).total == 2
    close(app)


def test_process_that_is_killed_for_another_reason_gives_up_no_image(model, tmp_path, monkeypatch):
    predict, runs, killed = PredictionService.predict_received, [], []

    async def kill(self, *arguments, **options):
        if len(killed) == 8:
            await predict(self, *arguments, **options)
        elif len(killed) < len(runs):  # once in each run, whatever is predicted then
            killed.append(1)
            raise Killed
        else:
            await asyncio.Event().wait()

    monkeypatch.setattr(PredictionService, "predict_received", kill)
    app = opened(model, tmp_path / "data")
    for level in range(90, 130, 5):
        receive(app, level)
    for number in range(8):
        runs.append(number)
        with pytest.raises(Killed):
            run(app, is_empty(app))
        close(app)
        app = opened(model, tmp_path / "data")
    run(app, is_empty(app))
    assert app.state.service.repository.unreadable_files.find()[1] == 0
    assert app.state.service.repository.find(Filter()).total == 8
    close(app)


def test_process_that_is_killed_when_it_starts_gives_up_no_image(model, tmp_path, monkeypatch):
    """Only one image waits, so that it would be attempted at each start."""
    predict, attempted = PredictionService.predict_received, []

    async def kill(*_, **__):
        raise Killed

    monkeypatch.setattr("pneumoscope.service.dicom.processing._SECOND_ATTEMPT_SECONDS", 3)
    app = opened(model, tmp_path / "data")
    receive(app, 90)
    with monkeypatch.context() as patched:
        patched.setattr(PredictionService, "predict_received", kill)
        with pytest.raises(Killed):
            run(app, is_empty(app))
    close(app)

    async def note(self, *arguments, **options):
        attempted.append(time.monotonic())
        await predict(self, *arguments, **options)

    monkeypatch.setattr(PredictionService, "predict_received", note)
    for _ in range(3):  # killed after half a second
        app, start = opened(model, tmp_path / "data"), time.monotonic()
        run(app, lambda start=start: time.monotonic() > start + 0.5)
        assert attempts(app) == [1]
        close(app)
    app, start = opened(model, tmp_path / "data"), time.monotonic()
    receive(app, 100)  # a new image does not wait
    run(app, is_empty(app))
    new, old = attempted
    assert new < old
    assert start + 3 <= old
    assert app.state.service.repository.find(Filter()).total == 2
    close(app)


def test_image_that_always_causes_an_unexpected_error_is_given_up_after_3_attempts(model, monkeypatch):
    tried = []

    async def fail(*_, **__):
        tried.append(1)
        raise ValueError("a value of the header")

    monkeypatch.setattr(PredictionService, "predict_received", fail)
    app = opened(model, None)
    receive(app, 100)
    run(app, is_empty(app))
    assert len(tried) == 3
    assert app.state.service.repository.unreadable_files.find()[1] == 1
    close(app)


def test_attempt_that_a_shutdown_interrupts_is_not_counted(model, monkeypatch):
    begun = []

    async def wait(*_, **__):
        begun.append(1)
        await asyncio.Event().wait()

    monkeypatch.setattr(PredictionService, "predict_received", wait)
    app = opened(model, None)
    receive(app, 90)
    receive(app, 100)
    for count in (2, 4):
        run(app, lambda count=count: len(begun) == count)
        assert attempts(app) == [0, 0]
    close(app)


def test_attempt_that_fails_before_a_shutdown_is_taken_back_once(model, monkeypatch):
    begun = []

    async def fail_or_wait(*_, **__):
        begun.append(1)
        if len(begun) == 1:
            raise BusyError("the queue is full")
        await asyncio.Event().wait()

    monkeypatch.setattr(PredictionService, "predict_received", fail_or_wait)
    app = opened(model, None)
    receive(app, 90)
    receive(app, 100)
    run(app, lambda: len(begun) == 2 and sorted(attempts(app)) == [0, 1])
    assert attempts(app) == [0, 0]
    close(app)


def test_attempt_that_ended_with_an_unexpected_error_before_a_shutdown_stays_counted(model, monkeypatch):
    begun = []

    async def fail_or_wait(*_, **__):
        begun.append(1)
        if len(begun) == 1:
            raise ValueError("a value of the header")
        await asyncio.Event().wait()

    monkeypatch.setattr(PredictionService, "predict_received", fail_or_wait)
    app = opened(model, None)
    receive(app, 90)
    receive(app, 100)
    run(app, lambda: len(begun) == 2)
    assert sorted(attempts(app)) == [0, 1]
    close(app)


def test_attempt_that_a_shutdown_interrupts_while_it_is_counted_is_taken_back(model, monkeypatch):
    app = opened(model, None)
    receive(app, 90)
    inbox = app.state.service.repository.inbox
    begun, begin = threading.Event(), inbox.begin_attempts

    def begin_slowly(instances):
        begun.set()
        time.sleep(0.5)
        begin(instances)

    monkeypatch.setattr(inbox, "begin_attempts", begin_slowly)
    run(app, begun.is_set)
    time.sleep(1)  # a thread that goes on would count it now
    assert attempts(app) == [0]
    close(app)


def test_attempt_that_cannot_be_taken_back_is_before_the_next_one_begins(model, monkeypatch):
    tried, refused = [], []

    async def fail(*_, **__):
        tried.append(1)
        raise BusyError("the queue is full")

    app = opened(model, None)
    receive(app, 100)
    inbox = app.state.service.repository.inbox
    cancel = inbox.cancel_attempts

    def cancel_every_third_time(instances):
        refused.append(1)
        if len(refused) % 3:
            raise StorageError("locked")
        cancel(instances)

    monkeypatch.setattr(PredictionService, "predict_received", fail)
    monkeypatch.setattr(inbox, "cancel_attempts", cancel_every_third_time)
    run(app, lambda: len(tried) == 6)
    assert app.state.service.repository.unreadable_files.find()[1] == 0
    monkeypatch.setattr(inbox, "cancel_attempts", cancel)
    run(app, lambda: len(tried) == 7)
    assert attempts(app) == [0]
    close(app)


def test_image_that_was_given_up_is_tried_again_only_after_its_record_was_deleted(model, monkeypatch):
    tried = []

    async def fail(*_, **__):
        tried.append(1)
        raise ValueError("a value of the header")

    monkeypatch.setattr(PredictionService, "predict_received", fail)
    app = opened(model, None)
    sent = receive(app, 100)
    run(app, is_empty(app))
    processor, records = app.state.processor, app.state.service.repository.unreadable_files
    assert processor.receive(sent, "image", "PACS").status == 0x0000  # a pull that runs every night
    assert is_empty(app)()
    (record,), _ = records.find()
    records.remove(record.id, user="reader")
    assert processor.receive(sent, "image", "PACS").status == 0x0000
    assert not is_empty(app)()
    run(app, is_empty(app))
    assert (len(tried), records.find()[1]) == (6, 1)
    close(app)


@pytest.mark.parametrize("error", [StorageError("full"), BusyError("the queue is full")])
def test_attempt_that_fails_for_want_of_space_is_not_counted(model, monkeypatch, error):
    tried = []

    async def fail(*_, **__):
        tried.append(1)
        raise error

    monkeypatch.setattr(PredictionService, "predict_received", fail)
    app = opened(model, None)
    receive(app, 100)
    run(app, lambda: len(tried) == 5)
    assert attempts(app) == [0]
    close(app)


def test_image_that_is_sent_again_while_its_file_is_found_missing_is_predicted(model, monkeypatch):
    app = opened(model, None)
    receive(app, 100)
    monkeypatch.setattr(
        app.state.service.repository.inbox, "content", lambda _: None
    )  # as it was before it was sent again
    run(app, is_empty(app))
    assert app.state.service.repository.find(Filter()).total == 1
    close(app)

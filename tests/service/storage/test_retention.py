"""Images that are too old go, now and then; what fails is told, and tried again."""

import threading
from datetime import timedelta

import pytest
from tests.service.conftest import add

from pneumoscope.core.errors import StorageError
from pneumoscope.service.storage.retention import Retention


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr("pneumoscope.service.storage.retention._EVERY", 0.01)


def test_old_images_go_and_what_fails_is_told_and_tried_again(records, soon, monkeypatch, caplog):
    add(records)
    expire, errors, done = records.expire, [StorageError("locked"), KeyError("DOE^JANE")], threading.Event()

    def fail_twice(age, *, stopped):
        if errors:
            raise errors.pop(0)
        removed = expire(age, stopped=stopped)
        done.set()
        return removed

    monkeypatch.setattr(records, "expire", fail_twice)
    retention = Retention(records, timedelta(0))
    retention.start()
    assert done.wait(10)
    retention.stop()
    assert list(records.blobs.stored()) == []
    assert caplog.messages == [
        "old images could not be removed, which is tried again: locked",
        "old images could not be removed, which is tried again: KeyError",
    ]


def test_without_an_age_images_stay_and_removals_that_failed_are_done(records, soon, monkeypatch):
    record, _ = add(records)
    add(records, b"stays")
    remove, failures, done = records.blobs.remove, [1, 1, 1], threading.Event()

    def fail(sha256):
        if failures:
            failures.pop()
            raise StorageError("busy")
        remove(sha256)
        done.set()

    monkeypatch.setattr(records.blobs, "remove", fail)
    with pytest.raises(StorageError):
        records.remove(record.id, user="me")
    retention = Retention(records, None)
    retention.start()
    assert done.wait(10)
    retention.stop()
    assert [records.blobs.get(key) for key, _ in records.blobs.stored()] == [b"stays"]


def test_when_it_is_stopped_the_rest_is_left_for_another_time(records, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.storage.repository._BATCH", 1)
    for place in range(5):
        add(records, bytes([place]))
    turns = iter([False, False, True])
    assert records.expire(timedelta(0), stopped=lambda: next(turns)) == 2
    assert len(list(records.blobs.stored())) == 3

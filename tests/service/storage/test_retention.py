"""Retention: expired images are removed at intervals; failures are logged and retried."""

import threading
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import func, insert, select
from tests.service.conftest import add

from pneumoscope.core.errors import StorageError
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.storage.database import read_transaction, write_transaction
from pneumoscope.service.storage.outbox_records import NEW_ROW
from pneumoscope.service.storage.retention import Retention
from pneumoscope.service.storage.tables import outbox, received_instances


def test_expired_images_are_removed_and_failures_are_retried(repository, monkeypatch, caplog):
    add(repository)
    expire, done = Retention.expire_images, threading.Event()
    errors = [StorageError("locked"), KeyError("DOE^JANE")]

    def fail_twice(self, age, *, stopped):
        if errors:
            raise errors.pop(0)
        removed = expire(self, age, stopped=stopped)
        done.set()
        return removed

    monkeypatch.setattr(Retention, "expire_images", fail_twice)
    retention = Retention(repository, timedelta(0), interval_seconds=0.01)
    retention.start()
    assert done.wait(60)
    retention.stop(60)
    assert list(repository.storage.blobs.stored()) == []
    assert caplog.messages == [
        "Images or identities could not be removed; the next run tries again: locked",
        "Images or identities could not be removed; the next run tries again: KeyError",
    ]


def test_image_that_cannot_be_removed_does_not_keep_other_images_from_expiring(repository, monkeypatch, caplog):
    stuck, _ = add(repository, b"stuck")
    remove, expire, done = repository.storage.blobs.remove, Retention.expire_images, threading.Event()

    def fail_on_stuck(sha256):
        if sha256 == stuck.image_sha256:
            raise StorageError("read-only")
        remove(sha256)

    def expire_and_report(self, age, *, stopped):
        expire(self, age, stopped=stopped)
        done.set()

    monkeypatch.setattr(repository.storage.blobs, "remove", fail_on_stuck)
    monkeypatch.setattr(Retention, "expire_images", expire_and_report)
    with pytest.raises(StorageError):
        repository.remove(stuck.id, user="me")
    add(repository, b"expired")
    retention = Retention(repository, timedelta(0), interval_seconds=0.01)
    retention.start()
    assert done.wait(60)
    retention.stop(60)
    assert [key for key, _ in repository.storage.blobs.stored()] == [stuck.image_sha256]
    assert set(caplog.messages) == {"Images or identities could not be removed; the next run tries again: read-only"}


def test_without_an_age_only_failed_removals_are_retried(repository, monkeypatch):
    record, _ = add(repository)
    add(repository, b"stays")
    remove, failures, done = repository.storage.blobs.remove, [1, 1, 1], threading.Event()

    def fail(sha256):
        if failures:
            failures.pop()
            raise StorageError("busy")
        remove(sha256)
        done.set()

    monkeypatch.setattr(repository.storage.blobs, "remove", fail)
    with pytest.raises(StorageError):
        repository.remove(record.id, user="me")
    retention = Retention(repository, None, interval_seconds=0.01)
    retention.start()
    assert done.wait(60)
    retention.stop(60)
    assert [repository.storage.blobs.get(key) for key, _ in repository.storage.blobs.stored()] == [b"stays"]


def test_stop_leaves_the_rest_for_the_next_run(repository, monkeypatch):
    for place in range(5):
        add(repository, bytes([place]))
    turns = iter([False, False, True, True])  # the last one is of unreadable files
    assert Retention(repository, batch=1).expire_images(timedelta(0), stopped=lambda: next(turns)) == 2
    assert len(list(repository.storage.blobs.stored())) == 3


def add_old_headers(repository, count):
    """Add received instances and results with identifiers, as of a year ago."""
    instance = {
        "image_bytes": 1, "sender": "PACS", "reply_to": "PACS", "study_instance_uid": "1.2", "sop_instance_uid": "1.2.3",
        "header": "{}", "received": "2025", "due": "2025", "state": "predicted", "processed": "2025", "prediction_id": "",
        "failure_code": "", "settings": "",
    }  # fmt: skip
    result = NEW_ROW | {
        "destination": "PACS", "kind": "structured_report", "prediction_id": "a", "failure_code": "", "model_sha256": "b",
        "operating_point": "balanced", "sop_instance_uid": "1.2.3", "header": "{}", "withdrawn_uids": "{}",
        "created": "2025", "due": "2025",
    }  # fmt: skip
    with write_transaction(repository.engine) as connection:
        connection.execute(insert(received_instances), [instance | {"image_sha256": str(n)} for n in range(count)])
        connection.execute(insert(outbox), [result | {"result_uid": str(n)} for n in range(count)])


def identified(repository):
    """Return the numbers of received instances and of results that have identifiers."""
    with read_transaction(repository.engine) as connection:
        counts = [select(func.count()).where(table.c.sop_instance_uid != "") for table in (received_instances, outbox)]
        return [connection.execute(each).scalar_one() for each in counts]


def test_identifiers_of_many_instances_and_results_are_removed_in_short_transactions(repository, monkeypatch):
    add_old_headers(repository, 10)
    sizes, transaction = [], repository.storage.write_transaction

    @contextmanager
    def counted():
        before = sum(identified(repository))
        with transaction() as connection:
            yield connection
        sizes.append(before - sum(identified(repository)))

    monkeypatch.setattr(repository.storage, "write_transaction", counted)
    Retention(repository, batch=3).expire_identities(timedelta(days=30))
    assert [each for each in sizes if each] == 2 * [3, 3, 3, 1]
    assert identified(repository) == [0, 0]
    events = [row.event for row in read_rows(repository.engine)]
    assert events == 10 * ["instance_identity_removed"] + 4 * ["delivery_cancelled"]
    assert {(each.state, bool(each.finished)) for each in repository.outbox.find(("cancelled",))} == {
        ("cancelled", True)
    }


def test_stop_leaves_the_rest_of_the_identifiers_for_the_next_run(repository, monkeypatch):
    add_old_headers(repository, 10)
    turns = iter([False, False, False, True, False, True, True])  # the first one is of unreadable files
    Retention(repository, batch=3).expire_identities(timedelta(days=30), stopped=lambda: next(turns))
    assert identified(repository) == [4, 7]
    Retention(repository, batch=3).expire_identities(timedelta(days=30))
    assert identified(repository) == [0, 0]


def test_stop_does_not_wait_longer_than_its_timeout(repository, monkeypatch):
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    def wait():
        begun.set()
        assert release.wait(60)
        ended.set()

    monkeypatch.setattr(repository.storage, "retry_failed", wait)
    retention = Retention(repository, None, interval_seconds=0.01)
    retention.start()
    assert begun.wait(60)
    retention.stop(0.01)
    assert not ended.is_set()
    release.set()
    assert ended.wait(60)

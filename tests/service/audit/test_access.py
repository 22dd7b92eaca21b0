"""The audit log records who viewed which image, who exported predictions, and who signed in and out."""

import contextlib
import json
import logging

import pytest
from tests.service.conftest import add

from pneumoscope.core.errors import StorageError
from pneumoscope.service.audit.access import AccessLog
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.database import write_transaction


class Clock:
    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def access_log(repository, clock):
    return AccessLog(repository.engine, monotonic=clock)


def views(repository):
    return [(row.user, row.prediction_id) for row in read_rows(repository.engine) if row.event == "viewed"]


def test_view_is_recorded_with_user_image_and_model(repository, access_log):
    stored, _ = add(repository)
    access_log.viewed("ward-3", [stored.id])
    *_, row = read_rows(repository.engine)
    assert (row.user, row.event, row.prediction_id) == ("ward-3", "viewed", stored.id)
    assert (row.image_sha256, row.model_sha256) == (stored.image_sha256, stored.model.sha256)
    assert verify(repository.engine, images=repository.storage.blobs).rows == 2


def test_view_within_five_minutes_is_recorded_once_for_each_user_and_image(repository, access_log, clock):
    first, second = (add(repository, image)[0].id for image in (b"1", b"2"))
    for user in ("a", "a", "b"):
        access_log.viewed(user, [first, second])
    assert sorted(views(repository)) == sorted((user, id) for user in "ab" for id in (first, second))
    clock.time = 299
    access_log.viewed("a", [first])
    assert len(views(repository)) == 4
    clock.time = 301
    access_log.viewed("a", [first])
    assert len(views(repository)) == 5


def test_view_of_an_unknown_image_is_not_recorded_until_it_exists(repository, access_log):
    stored, _ = add(repository)
    repository.remove(stored.id, user="me")
    access_log.viewed("a", [stored.id])
    assert views(repository) == []
    add(repository)
    access_log.viewed("a", [stored.id])
    assert views(repository) == [("a", stored.id)]


def test_sign_in_sign_out_and_export_are_recorded(repository, access_log):
    access_log.signed_in("ward-3", "reader", "code")
    access_log.exported("ward-3", 12)
    access_log.signed_out("ward-3")
    assert [(row.event, row.user, json.loads(row.details)) for row in read_rows(repository.engine)] == [
        ("signed_in", "ward-3", {"method": "code", "role": "reader"}),
        ("exported", "ward-3", {"predictions": 12}),
        ("signed_out", "ward-3", {}),
    ]


def test_access_is_granted_with_a_warning_if_it_cannot_be_recorded(repository, access_log, monkeypatch, caplog):
    stored, _ = add(repository)

    def fail(*_, **__):
        raise StorageError("the disk is full")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr("pneumoscope.service.audit.access.write_transaction", fail)
        access_log.viewed("a", [stored.id])
        access_log.signed_out("a")
    assert caplog.messages == 2 * ["Access was not recorded in the audit log: the disk is full"]
    access_log.viewed("a", [stored.id])  # tried again
    assert views(repository) == [("a", stored.id)]


def test_view_whose_commit_failed_is_recorded_the_next_time(repository, access_log, monkeypatch):
    stored, _ = add(repository)

    @contextlib.contextmanager
    def fail_to_commit(engine):
        with write_transaction(engine) as connection:
            yield connection
            connection.rollback()
            raise StorageError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("pneumoscope.service.audit.access.write_transaction", fail_to_commit)
        access_log.viewed("a", [stored.id])
    assert views(repository) == []
    access_log.viewed("a", [stored.id])
    assert views(repository) == [("a", stored.id)]

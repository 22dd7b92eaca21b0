"""Events of finished studies in the outbox, on SQLite and PostgreSQL."""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from tests.service.conftest import prediction

from pneumoscope.core.errors import UnknownNameError
from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import ImageInfo
from pneumoscope.service.storage.database import write_transaction
from pneumoscope.service.storage.received_instances import Outcome, ReceivedInstance, finish
from pneumoscope.service.storage.records import format_time
from pneumoscope.service.storage.study_events import enqueue_study_event, find_event_study

UID = "1.2.3"
WEBHOOKS = ("ris", "portal")


def receive(repository, name):
    """Store an instance, and return it as the processor gets it."""
    instance = ReceivedInstance("PACS", "", UID, f"{UID}.{name}", "{}")
    repository.inbox.submit(instance, name.encode(), timedelta(0), "settings").result(60)
    return next(each for each in repository.inbox.ready(100) if each.sop_instance_uid == instance.sop_instance_uid)


def enqueue(connection, time):
    enqueue_study_event(
        connection, WEBHOOKS, UID, UID, model_sha256="ab" * 32, operating_point="balanced", time=time
    )  # fmt: skip


def predict(repository, instance):
    """Store the prediction of an instance as the processor does, and return its id."""
    name, time = instance.sop_instance_uid, format_time(datetime.now(UTC))
    found = dataclasses.replace(
        prediction(name=name),
        identity=Identity(study_instance_uid=UID, sop_instance_uid=name),
        image=ImageInfo(30, 20, "DICOM", name.ljust(64, "0")),
    )

    def record(connection, id):
        finish(connection, instance, Outcome("predicted", "settings", id), time)
        enqueue(connection, time)

    return repository.submit(found, name.encode(), user="PACS", callback=record).result(60)[0].id


def waiting(repository):
    return [(each.destination, each.revision) for each in repository.outbox.find()]


def deliver(repository):
    repository.outbox.record_delivered(repository.outbox.find(), datetime.now(UTC))


def test_event_follows_the_last_instance_and_has_a_revision(repository):
    first, second = receive(repository, "1"), receive(repository, "2")
    predict(repository, first)
    assert waiting(repository) == []
    predict(repository, second)
    assert waiting(repository) == [("ris", 1), ("portal", 1)]
    deliver(repository)
    third = receive(repository, "3")
    assert waiting(repository) == []
    id = predict(repository, third)
    assert waiting(repository) == [("ris", 2), ("portal", 2)]
    events = repository.outbox.find()
    assert len({each.result_uid for each in events}) == 1
    assert events[0].subject.prediction_id == id
    assert len(find_event_study(repository.engine, events[0])) == 3


def test_lost_instance_ends_the_wait_and_is_counted(repository):
    first, lost = receive(repository, "1"), receive(repository, "2")
    predict(repository, first)
    with write_transaction(repository.engine) as connection:
        time = format_time(datetime.now(UTC))
        finish(connection, lost, Outcome("lost", "settings"), time)
        enqueue(connection, time)
    assert [each.unreadable for each in repository.outbox.find()] == 2 * [{"lost": 1}]


def test_deletion_is_an_event_for_the_webhooks_that_know_of_the_study(repository):
    first, second = (predict(repository, receive(repository, name)) for name in "12")
    repository.outbox.cancel(destination="portal", time=datetime.now(UTC))
    deliver(repository)
    repository.remove(second, user="me")
    assert waiting(repository) == [("ris", 3)]
    (event,) = repository.outbox.find()
    assert [each.id for each in find_event_study(repository.engine, event)] == [first]
    repository.remove(first, user="me")
    assert waiting(repository) == [("ris", 4)]
    assert find_event_study(repository.engine, repository.outbox.find()[0]) == []
    with pytest.raises(UnknownNameError):
        find_event_study(repository.engine, event)


def test_deletion_is_an_event_for_a_webhook_that_may_have_got_an_event_that_was_cancelled(repository):
    first = predict(repository, receive(repository, "1"))
    event, other = (repository.outbox.begin(each.number) for each in repository.outbox.find())
    repository.outbox.record_failure([event], "timeout", datetime.now(UTC), maybe_delivered=True)
    repository.outbox.record_failure([other], "connection_refused", datetime.now(UTC))
    for each in (event, other):
        repository.outbox.cancel(destination=each.destination, time=datetime.now(UTC))
    repository.remove(first, user="me")
    assert waiting(repository) == [("ris", 2)]

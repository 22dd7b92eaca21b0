"""The outbox in the database: which results hold, under which header, and in which order they are sent."""

import dataclasses
from datetime import timedelta

import alembic.command
import pytest
from sqlalchemy import select, text
from tests.service.storage.exchange import KINDS, SOP_UID, Exchange, header, patient_and_study, uids

from pneumoscope.core.errors import UsageError
from pneumoscope.core.prediction import Failure
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.service.storage.database import open_database, read_transaction, write_transaction
from pneumoscope.service.storage.outbox import Outbox
from pneumoscope.service.storage.outbox_records import NEW_ROW, result_uid
from pneumoscope.service.storage.received_instances import copies_of
from pneumoscope.service.storage.records import format_time
from pneumoscope.service.storage.results import remove_headers
from pneumoscope.service.storage.study_events import enqueue_study_event
from pneumoscope.service.storage.tables import received_instances


@pytest.fixture
def exchange(repository):
    return Exchange(repository)


# --- which results hold -----------------------------------------------------------------------------------------------


def test_each_result_of_several_models_is_in_a_rejection_note(exchange):
    ids = []
    for model in ("a", "b"):
        received = exchange.receive("1", header("A"), settings=model)
        ids.append(exchange.predict(received, "1", header("A"), model=model, settings=model))
        exchange.deliver()
    delivered = uids(exchange.results("delivered"))
    assert len(delivered) == 4
    exchange.withdraw(*ids)
    assert uids(exchange.results("withdrawn")) == delivered
    assert set.union(*(withdrawn for *_, withdrawn in exchange.notes())) == delivered


def test_result_that_may_have_arrived_before_it_was_cancelled_is_withdrawn_by_the_one_that_replaces_it(exchange):
    """The destination would otherwise have two valid results of one image."""
    received = exchange.receive("1", header("A"))
    id = exchange.predict(received, "1", header("A"), kinds=KINDS[:1])
    cancelled = exchange.outbox.begin(exchange.rows()[0].number)
    exchange.outbox.cancel([cancelled.number], time=exchange.tick())
    exchange.predict(received, "1", header("B"), kinds=KINDS[:1])
    assert exchange.notes() == [("A", "1.2.3", {cancelled.result_uid})]
    exchange.predict(received, "1", header("B"), kinds=KINDS[:1])
    exchange.deliver()
    (valid,) = exchange.results("delivered")
    assert valid.result_uid != cancelled.result_uid
    exchange.withdraw(id)
    assert exchange.notes() == [("B", "1.2.3", {valid.result_uid})]


def test_results_of_the_same_pixels_by_another_model_stay_beside(exchange):
    for model in ("a", "b"):
        exchange.predict(exchange.receive("1", header("A"), settings=model), "1", header("A"), model=model)
        exchange.deliver()
    assert len(exchange.rows("delivered")) == len(exchange.rows()) == 4


def test_results_of_replaced_pixels_are_withdrawn_by_another_model(exchange):
    exchange.predict(exchange.receive("1", header("A")), "1", header("A"))
    earlier = uids(exchange.deliver())
    exchange.predict(exchange.receive("2", header("A")), "2", header("A"), model="b")
    assert uids(exchange.results("withdrawn")) == earlier
    assert exchange.notes() == [("A", "1.2.3", earlier)]


@pytest.mark.parametrize("code", ["lost", "decode_error"])
def test_report_of_an_unreadable_file_is_withdrawn_by_the_result_of_another_model(exchange, code):
    exchange.fail(exchange.receive("1", header("A")), code, header("A"))
    reported = uids(exchange.deliver())
    exchange.predict(exchange.receive("1", header("B")), "1", header("B"), model="b")
    assert uids(exchange.results("withdrawn")) == reported
    assert len(exchange.results("waiting")) == 2


# --- the header ---------------------------------------------------------------------------------------------------------


def test_patient_corrected_while_a_result_is_sent_in_vain_is_that_of_the_next_attempt(exchange):
    exchange.predict(exchange.receive("1", header("A")), "1", header("A"))
    refused, unanswered = [exchange.outbox.begin(each.number) for each in exchange.rows()]
    exchange.receive("1", header("B"))
    exchange.outbox.record_failure([refused], "http_503", exchange.tick())
    exchange.outbox.record_failure([unanswered], "association_aborted", exchange.tick(), maybe_delivered=True)
    assert [patient_and_study(each)[0] for each in exchange.rows()] == ["B", "A"]


def test_patient_corrected_while_a_result_is_cancelled_is_that_of_the_result_when_it_is_retried(exchange):
    exchange.predict(exchange.receive("1", header("A")), "1", header("A"))
    number = exchange.rows()[0].number
    exchange.outbox.cancel([number], time=exchange.tick())
    exchange.receive("1", header("B"))
    exchange.outbox.retry([number], time=exchange.tick())
    assert {patient_and_study(each)[0] for each in exchange.rows("waiting")} == {"B"}


@pytest.mark.parametrize("missing", ["study", "series"])
def test_header_without_study_or_series_is_that_of_no_waiting_result(exchange, missing):
    exchange.predict(exchange.receive("1", header("A")), "1", header("A"))
    (refused, _) = [exchange.outbox.begin(each.number) for each in exchange.rows()]
    exchange.outbox.record_failure([refused], "http_503", exchange.tick())
    exchange.receive("1", header("B", **{missing: ""}))
    exchange.outbox.record_failure([exchange.outbox.begin(refused.number)], "http_503", exchange.tick())
    assert [patient_and_study(each) for each in exchange.rows()] == 2 * [("A", "1.2.3")]


def test_rejection_note_is_in_the_study_in_which_the_results_were_delivered(exchange):
    exchange.predict(exchange.receive("1", header("A")), "1", header("A"))
    delivered = uids(exchange.deliver())
    exchange.predict(exchange.receive("2", header("B", "1.2.99")), "2", header("B", "1.2.99"))
    assert exchange.notes() == [("A", "1.2.3", delivered)]
    exchange.receive("2", header("C", "1.2.100"))
    assert exchange.notes() == [("A", "1.2.3", delivered)]
    assert {patient_and_study(each) for each in exchange.results("waiting")} == {("C", "1.2.100")}


def test_rejection_note_has_the_patient_corrected_before_the_delivery_and_not_after_it(exchange):
    first = exchange.receive("1", header("A", "1.2.3"))
    exchange.predict(first, "1", header("A", "1.2.3"))
    second = exchange.receive("2", header("B", "1.2.4"))  # not predicted yet, but its header is that of the results
    delivered = uids(exchange.deliver())
    exchange.receive("1", header("C", "1.2.5"))
    exchange.predict(second, "2", header("C", "1.2.5"))
    assert exchange.notes() == [("B", "1.2.4", delivered)]


def test_rejection_note_of_a_result_whose_image_was_sent_again_since_has_its_header(exchange):
    exchange.predict(exchange.receive("1", header("A")), "1", header("A"))
    exchange.deliver()
    other = exchange.receive("2", header("B", "1.2.99"))
    again = exchange.receive(
        "1", header("A"), settings="other"
    )  # the time of the first reception is not known any more
    exchange.predict(again, "1", header("A"), settings="other", kinds=())
    exchange.predict(other, "2", header("B", "1.2.99"))
    assert [note[:2] for note in exchange.notes()] == [("A", "1.2.3")]


def test_very_many_copies_without_a_study_do_not_hide_a_correction(exchange, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.storage.results.MAX_COPIES", 2)
    exchange.predict(exchange.receive("1", header("A")), "1", header("A"), kinds=KINDS[:1])
    (due,) = exchange.outbox.due("PACS", exchange.tick(), 100)
    begun = exchange.outbox.begin(due.number)
    exchange.receive("1", header("B"))
    for pixels in ("2", "3", "4"):
        exchange.receive(pixels, header("C", ""))
    exchange.outbox.record_failure([begun], "status_a700", exchange.tick())
    (waiting,) = exchange.rows("waiting")
    assert patient_and_study(waiting)[0] == "B"


def test_rejection_note_has_the_header_of_the_object_that_was_sent_again_without_an_answer(exchange):
    id = exchange.predict(exchange.receive("1", header("A")), "1", header("A"))
    begun = [exchange.outbox.begin(each.number) for each in exchange.outbox.due("PACS", exchange.tick(), 100)]
    exchange.outbox.record_failure(begun, "timeout", exchange.tick(), maybe_delivered=True)
    exchange.receive("1", header("B", "1.2.99"))
    exchange.now += timedelta(minutes=15)
    assert [patient_and_study(each) for each in exchange.deliver()] == 2 * [("A", "1.2.3")]
    exchange.withdraw(id)
    assert [note[:2] for note in exchange.notes()] == [("A", "1.2.3")]


def test_delivered_note_keeps_no_header(exchange):
    id = exchange.predict(exchange.receive("1", header("A")), "1", header("A"))
    exchange.deliver()
    exchange.withdraw(id)
    assert {each.subject.header for each in exchange.results()} == {""}
    exchange.deliver()
    assert {each.subject.header for each in exchange.rows()} == {""}


def test_removed_header_leaves_no_text_that_a_reason_quotes(exchange):
    reason = {
        "failure_reason": "color_not_supported",
        "failure_parameters": '{"photometric": "DOE^JANE", "samples": 3}',
    }
    exchange.fail(exchange.receive("1", header("A")), "unreadable_image", header("A"), **reason)
    exchange.deliver()
    (sent,) = exchange.rows()
    with write_transaction(exchange.repository.engine) as connection:
        remove_headers(connection, [sent.number], format_time(exchange.tick()))
    (kept,) = exchange.rows()
    assert "DOE" in repr(dataclasses.asdict(sent.subject))
    assert "DOE" not in repr(dataclasses.asdict(kept.subject))
    assert kept.subject.failure == Failure("unreadable_image", "", reason=UnreadableReason("color_not_supported"))


def test_note_of_an_object_that_could_not_be_written_is_cancelled(exchange):
    id = exchange.predict(exchange.receive("1", header("A")), "1", header("A"), kinds=KINDS[:1])
    (due,) = exchange.outbox.due("PACS", exchange.tick(), 100)
    begun = exchange.outbox.begin(due.number)
    exchange.withdraw(id)  # while it is being written
    exchange.outbox.record_cancelled(begun, "unknown_name", exchange.tick())
    assert {(each.kind, each.state) for each in exchange.rows()} == {
        (KINDS[0], "cancelled"), ("rejection_note", "cancelled"),
    }  # fmt: skip


def test_object_that_may_have_arrived_and_can_no_longer_be_written_is_withdrawn(exchange):
    """Its image was removed, for example, before the second attempt."""
    id = exchange.predict(exchange.receive("1", header("A")), "1", header("A"), kinds=KINDS[:1])
    (due,) = exchange.outbox.due("PACS", exchange.tick(), 100)
    exchange.outbox.record_failure(
        [exchange.outbox.begin(due.number)], "timeout", exchange.tick(), maybe_delivered=True
    )
    exchange.outbox.record_cancelled(exchange.outbox.begin(due.number), "gone", exchange.tick())
    assert [(each.state, each.error) for each in exchange.rows()] == [("cancelled", "gone")]
    exchange.withdraw(id)
    assert exchange.notes() == [("A", "1.2.3", {due.result_uid})]


def test_cancelled_rejection_note_is_retried_although_a_later_one_is_about_another_object(exchange):
    received, notes = exchange.receive("1", header("A")), []
    for _ in range(2):
        id = exchange.predict(received, "1", header("A"), kinds=KINDS[:1])
        exchange.deliver()
        exchange.withdraw(id)
        notes.append(exchange.rows("waiting")[0])
        exchange.outbox.cancel(time=exchange.tick())
    assert exchange.outbox.retry([each.number for each in notes], time=exchange.tick()) == 2
    assert [withdrawn for *_, withdrawn in exchange.notes()] == [set(each.withdrawn_uids.values()) for each in notes]


def test_withdrawn_results_and_delivered_notes_keep_their_study_and_no_header(exchange):
    id = exchange.predict(exchange.receive("1", header("A")), "1", header("A"))
    exchange.receive("1", header("A", "1.2.99"))  # before the delivery
    exchange.deliver()
    exchange.withdraw(id)
    exchange.deliver()
    rows = exchange.rows("withdrawn", "delivered")
    assert {(each.study_instance_uid, each.subject.header) for each in rows} == {("1.2.99", "")}
    assert len(rows) == 3


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 9])
def test_object_that_was_cancelled_many_times_gets_another_uid_each_time(exchange, count):
    received = exchange.receive("1", header("A"))
    for _ in range(count):
        exchange.predict(received, "1", header("A"), kinds=KINDS[:1])
        exchange.predict(received, "1", header("A"), kinds=KINDS[:1])  # it waits, and is not added again
        exchange.outbox.cancel(time=exchange.tick())
    rows = exchange.rows()
    id = rows[0].subject.prediction_id
    assert [each.result_uid for each in rows] == [result_uid(KINDS[0], SOP_UID, id, number) for number in range(count)]


def test_copy_that_is_sent_again_with_other_settings_is_the_last_one(exchange):
    first, second = exchange.receive("1", header("A")), exchange.receive("2", header("B"))
    for received, pixels in ((first, "1"), (second, "2")):
        exchange.predict(received, pixels, header("B"))
    again = exchange.receive("1", header("A"), settings="other")
    with read_transaction(exchange.repository.engine) as connection:
        assert [each.image_sha256 for each in copies_of(connection, again)] == [second.image_sha256]
        (_, last) = connection.execute(select(received_instances).order_by(received_instances.c.number)).mappings()
    assert (last["number"], last["image_sha256"]) == (again.number, first.image_sha256)
    assert again.number > second.number


# --- attempts -----------------------------------------------------------------------------------------------------------


def test_object_that_is_withdrawn_while_it_is_sent_in_vain_has_no_rejection_note(exchange):
    id = exchange.predict(exchange.receive("1", header("A")), "1", header("A"))
    sent = [exchange.outbox.begin(each.number) for each in exchange.rows()]
    exchange.withdraw(id)
    ((*_, withdrawn),) = exchange.notes()
    assert withdrawn == uids(sent)
    exchange.outbox.record_failure(sent[:1], "http_503", exchange.tick())
    ((*_, withdrawn),) = exchange.notes()
    assert withdrawn == uids(sent[1:])
    exchange.outbox.record_failure(sent[1:], "http_503", exchange.tick())
    assert {(each.state, each.error, each.maybe_delivered, each.subject.header) for each in exchange.rows()} == {
        ("cancelled", "superseded", False, "")
    }
    (status,) = exchange.outbox.status()
    assert (status.waiting, status.delivered) == (0, 0)


def test_object_that_is_withdrawn_while_it_is_sent_without_an_answer_keeps_its_rejection_note(exchange):
    id = exchange.predict(exchange.receive("1", header("A")), "1", header("A"), kinds=KINDS[:1])
    sent = exchange.outbox.begin(exchange.rows()[0].number)
    exchange.withdraw(id)
    exchange.outbox.record_failure([sent], "timeout", exchange.tick(), maybe_delivered=True)
    assert [withdrawn for *_, withdrawn in exchange.notes()] == [{sent.result_uid}]


def test_objects_that_are_refused_again_and_again_delay_no_later_one(exchange):
    exchange.predict(exchange.receive("1", header("A")), "1", header("A"))
    refused = exchange.outbox.due("PACS", exchange.now, 10)
    exchange.outbox.record_failure(refused, "sop_class_not_accepted", exchange.now)  # due again in 5 s
    received = exchange.receive("1", header("A"), settings="b")
    exchange.predict(received, "1", header("A"), model="b", settings="b")
    later = exchange.rows("waiting")[2:]
    due = exchange.outbox.due("PACS", exchange.now + timedelta(hours=1), 10)
    assert [each.number for each in due] == [each.number for each in (*later, *refused)]


def test_result_whose_successor_was_added_is_not_retried(exchange):
    received = exchange.receive("1", header("A"))
    exchange.predict(received, "1", header("A"), kinds=KINDS[:1])
    (first,) = exchange.rows()
    exchange.outbox.cancel([first.number], time=exchange.tick())
    exchange.predict(received, "1", header("A"), kinds=KINDS[:1])
    (second,) = exchange.rows("waiting")
    with pytest.raises(UsageError, match=f"result {first.number} was replaced by result {second.number}"):
        exchange.outbox.retry([first.number], time=exchange.tick())
    exchange.outbox.cancel([second.number], time=exchange.tick())
    assert exchange.outbox.retry([second.number], time=exchange.tick()) == 1


def test_event_is_not_retried_beside_a_later_one_of_its_study(exchange):
    with write_transaction(exchange.repository.engine) as connection:
        for study in ("1.2.3", "1.2.3", "1.2.4"):
            enqueue_study_event(
                connection, ["ris"], study, study, model_sha256="a" * 64, operating_point="balanced",
                time=format_time(exchange.tick()),
            )  # fmt: skip
    first, second, other = sorted(each.number for each in exchange.rows())
    with pytest.raises(UsageError, match=f"result {first} was replaced by result {second}"):
        exchange.outbox.retry([first], time=exchange.tick())
    exchange.outbox.cancel([second, other], time=exchange.tick())
    assert exchange.outbox.retry([second, other], time=exchange.tick()) == 2


# --- revisions ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("migrations")
def test_objects_of_an_earlier_revision_are_in_the_study_of_their_header(tmp_path, database, monkeypatch):
    upgrade = alembic.command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(alembic.command, "upgrade", lambda config, _: upgrade(config, "0017"))
        engine = open_database(tmp_path / "data", database)
    row = NEW_ROW | {
        "destination": "PACS", "prediction_id": "a", "failure_code": "", "model_sha256": "b", "due": "",
        "operating_point": "balanced", "sop_instance_uid": "1", "withdrawn_uids": "{}", "created": "2026",
    }  # fmt: skip
    rows = [
        row | {"result_uid": "1", "kind": KINDS[0], "header": header("王^'\\", "1.2.3"), "study_instance_uid": ""},
        row | {"result_uid": "2", "kind": KINDS[0], "header": header("A", study=""), "study_instance_uid": ""},
        row | {"result_uid": "3", "kind": KINDS[0], "header": "", "study_instance_uid": ""},
        row | {"result_uid": "4", "kind": "webhook", "header": "", "study_instance_uid": "1.2.4"},
    ]
    with write_transaction(engine) as connection:
        names = ", ".join(rows[0])
        connection.execute(text(f"INSERT INTO outbox ({names}) VALUES (:{names.replace(', ', ', :')})"), rows)
    engine.dispose()
    engine = open_database(tmp_path / "data", database)
    assert [each.study_instance_uid for each in Outbox(engine).find()] == ["1.2.3", "", "", "1.2.4"]
    assert {each.subject.failure for each in Outbox(engine).find()} == {None}
    engine.dispose()


# --- lost files ---------------------------------------------------------------------------------------------------------


def test_file_that_is_sent_again_before_its_loss_is_recorded_is_not_lost(exchange):
    received = exchange.receive("1", header("A"))
    exchange.inbox.files.remove(received.image_sha256)
    assert exchange.inbox.content(received) is None
    exchange.receive("1", header("A"))  # acknowledged as a duplicate
    recorded = []
    content = exchange.inbox.finish_lost(received, "s", lambda connection, time: recorded.append(time))
    assert content == exchange.inbox.content(received) is not None
    assert (recorded, [each.number for each in exchange.inbox.ready(10)]) == ([], [received.number])


def test_missing_file_is_recorded_as_lost(exchange):
    received = exchange.receive("1", header("A"))
    exchange.inbox.files.remove(received.image_sha256)
    recorded = []
    assert exchange.inbox.finish_lost(received, "s", lambda connection, time: recorded.append(time)) is None
    assert (len(recorded), exchange.inbox.ready(10)) == (1, [])

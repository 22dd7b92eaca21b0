"""Storage commitment in the database: what is requested when, what a report changes, and what survives a restart."""

import itertools
import json
from datetime import UTC, datetime, timedelta

import alembic.command
import pytest
from sqlalchemy import insert, select, text

from pneumoscope.core.errors import UsageError
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.commitments import MAX_FAILURES, CommitmentReport, Commitments, is_due
from pneumoscope.service.storage.database import open_database, read_transaction, write_transaction
from pneumoscope.service.storage.outbox import Outbox
from pneumoscope.service.storage.outbox_records import NEW_ROW, ResultSubject, retry_delay
from pneumoscope.service.storage.outbox_status import OutboxStatus
from pneumoscope.service.storage.resending import resend
from pneumoscope.service.storage.results import enqueue, find_old_headers, remove_headers, withdraw
from pneumoscope.service.storage.tables import outbox

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SUBJECT = ResultSubject(
    "ab" * 16, "", "cd" * 32, "balanced", "1.2.3", '{"00100020": {"vr": "LO", "Value": ["SECRET"]}}'
)


class Sent:
    """An outbox with two objects that are delivered to a destination that is asked for commitment."""

    def __init__(self, engine):
        self.engine, self.now = engine, START
        self.outbox, self.commitments = Outbox(engine), Commitments(engine)
        with write_transaction(engine) as connection:
            enqueue(connection, SUBJECT, ["PACS"], ["secondary_capture", "structured_report"], START.isoformat())
        self.deliver()
        self.uids = [each.result_uid for each in self.rows]

    @property
    def rows(self):
        return self.outbox.find(("waiting", "delivered", "withdrawn", "cancelled"))

    def deliver(self):
        """Deliver what is due within a day, and wait until its commitment is to be requested."""
        due = self.outbox.due("PACS", self.now + timedelta(days=1), 10)
        for each in due:
            self.outbox.record_delivered([each], self.now, requests_commitment=True)
        self.now += timedelta(seconds=10)
        return len(due)

    def request(self, wait=HOUR, limit=100):
        return self.commitments.begin("PACS", self.now, wait, limit)

    def commitments_are_due(self, hours):
        """Return whether a request would be due after a number of hours; nothing is recorded."""
        due = is_due("PACS", self.now + hours * HOUR)
        with read_transaction(self.engine) as connection:
            return connection.execute(select(outbox.c.number).where(due)).first() is not None

    def report(self, request, committed=(), failed=(), destination="PACS"):
        reasons = dict.fromkeys(failed, 0x0112)
        report = CommitmentReport(request.transaction_uid, frozenset(committed), reasons)
        return self.commitments.record_report(destination, report, self.now)

    def states(self):
        return [(each.state, each.commitment, each.error) for each in self.rows]

    def status(self):
        (status,) = self.outbox.status()
        return status


@pytest.fixture
def sent(repository):
    return Sent(repository.engine)


def test_committed_objects_are_not_requested_again(sent):
    assert (sent.status().delivered, sent.status().committed, sent.status().uncommitted) == (2, 0, 2)
    request = sent.request()
    assert [each.result_uid for each in request.deliveries] == sent.uids
    sent.commitments.record_accepted(request.transaction_uid, sent.now, HOUR)
    assert sent.report(request, sent.uids)
    assert sent.states() == 2 * [("delivered", "committed", "")]
    assert (sent.status().delivered, sent.status().committed, sent.status().uncommitted) == (2, 2, 0)
    sent.now += timedelta(days=30)
    assert sent.request() is None


def test_commitment_is_void_once_an_object_is_sent_again_and_not_before(sent):
    assert sent.report(sent.request(), sent.uids)
    numbers = [each.number for each in sent.rows]
    assert resend(sent.engine, numbers, time=sent.now) == 2
    sent.outbox.cancel(numbers, time=sent.now)
    assert [each[:2] for each in sent.states()] == 2 * [("delivered", "committed")]
    assert (sent.status().delivered, sent.status().committed) == (2, 2)
    assert resend(sent.engine, numbers, time=sent.now) == 2
    assert sent.outbox.retry(numbers, time=sent.now) == 2  # at once
    assert sent.request() is None
    assert sent.deliver() == 2
    assert sent.states() == 2 * [("delivered", "pending", "")]
    assert (sent.status().delivered, sent.status().committed) == (2, 0)
    assert sent.report(sent.request(), sent.uids)
    assert (sent.status().delivered, sent.status().committed) == (2, 2)


def test_commitment_is_not_requested_while_an_object_waits_to_be_sent_again(sent):
    assert resend(sent.engine, [each.number for each in sent.rows], time=sent.now) == 2
    sent.now += timedelta(minutes=1)
    assert sent.request() is None
    sent.deliver()
    assert len(sent.request().deliveries) == 2


def test_object_is_not_requested_before_it_is_delivered_or_where_it_is_not_asked_for(repository):
    opened = Outbox(repository.engine)
    with write_transaction(repository.engine) as connection:
        enqueue(connection, SUBJECT, ["PACS"], ["secondary_capture"], START.isoformat())
    commitments, later = Commitments(repository.engine), START + timedelta(days=1)
    assert commitments.begin("PACS", later, HOUR, 10) is None
    (waiting,) = opened.due("PACS", later, 10)
    opened.record_delivered([waiting], START)
    assert commitments.begin("PACS", later, HOUR, 10) is None
    (found,) = opened.find(("delivered",))
    assert found.commitment == ""


def test_object_that_is_not_committed_is_sent_again_and_finally_shown_as_failed(sent):
    first, second = sent.uids
    for number in range(1, MAX_FAILURES + 1):
        request = sent.request()
        assert len(request.deliveries) == (2 if number == 1 else 1)
        assert sent.report(request, [second] if number == 1 else [], [first])
        if number < MAX_FAILURES:
            assert sent.states()[0] == ("waiting", "", "not_committed_0112")
            assert (sent.status().waiting, sent.status().failing, sent.status().delivered) == (1, 1, 2)
            assert sent.outbox.due("PACS", sent.now, 10) == []  # not at once
            assert sent.deliver() == 1
            assert sent.rows[0].result_uid == first
    assert sent.states() == [("delivered", "failed", "not_committed_0112"), ("delivered", "committed", "")]
    status = sent.status()
    assert (status.delivered, status.committed, status.uncommitted, status.commitment_failing) == (2, 1, 1, 1)
    sent.now += timedelta(days=30)
    assert sent.request() is None
    entries = [row for row in read_rows(sent.engine) if row.event == "commitment_failed"]
    assert [json.loads(row.details) for row in entries] == 3 * [{"object": "secondary_capture", "reason": "0112"}]
    assert {(row.user, row.prediction_id) for row in entries} == {("PACS", SUBJECT.prediction_id)}
    verify(sent.engine)


def test_failed_object_can_be_sent_again_by_hand_and_a_committed_one_cannot(sent):
    first, second = sent.uids
    for _ in range(MAX_FAILURES):
        request = sent.request()
        sent.report(request, {second} & {each.result_uid for each in request.deliveries}, [first])
        sent.deliver()
    numbers = [each.number for each in sent.rows]
    with pytest.raises(UsageError, match="does not wait: it was delivered"):
        sent.outbox.retry(numbers[1:], time=sent.now)
    assert sent.outbox.retry(numbers[:1], time=sent.now) == 1
    assert sent.status().delivered == 2
    sent.deliver()
    assert sent.report(sent.request(), [first])
    assert sent.states() == 2 * [("delivered", "committed", "")]
    assert (sent.status().delivered, sent.status().committed) == (2, 2)


def test_request_without_a_report_is_repeated_as_another_transaction_and_less_often(sent):
    transactions, waits = [], []
    for _ in range(7):
        request = sent.request()
        transactions.append(request.transaction_uid)
        sent.commitments.record_accepted(request.transaction_uid, sent.now, HOUR)
        waited = next(n for n in itertools.count(1) if sent.commitments_are_due(n))
        waits.append(waited)
        sent.now += waited * HOUR
    assert waits == [1, 2, 4, 8, 16, 24, 24]
    assert len(set(transactions)) == 7
    assert sent.states() == 2 * [("delivered", "requested", "commitment_not_reported")]
    assert sent.status().commitment_failing == 2
    # A report of an earlier transaction changes nothing.
    assert not sent.report(type(request)(transactions[0], ()), sent.uids)
    assert sent.status().committed == 0
    assert sent.report(request, sent.uids)
    assert sent.states() == 2 * [("delivered", "committed", "")]


def test_failed_request_is_repeated_after_5_seconds_up_to_15_minutes():
    delays = [retry_delay(failures).total_seconds() for failures in range(1, 11)]
    assert delays == [5, 10, 20, 40, 80, 160, 320, 640, 900, 900]


def test_failed_requests_do_not_lengthen_the_wait_for_a_report(sent):
    for _ in range(10):
        request = sent.request()
        sent.commitments.postpone(request.transaction_uid, "connection_refused", sent.now + timedelta(minutes=15))
        assert sent.states() == 2 * [("delivered", "pending", "connection_refused")]
        assert not sent.commitments_are_due(0.24)
        assert sent.commitments_are_due(0.25)
        sent.now += timedelta(minutes=15)
    request = sent.request()
    sent.commitments.record_accepted(request.transaction_uid, sent.now, HOUR)
    assert sent.states() == 2 * [("delivered", "requested", "")]
    assert not sent.commitments_are_due(0.99)
    assert sent.commitments_are_due(1)


def test_report_of_a_request_that_was_not_answered_is_accepted(sent):
    request = sent.request()
    sent.commitments.postpone(request.transaction_uid, "association_aborted", sent.now)
    assert sent.report(request, sent.uids)
    assert sent.states() == 2 * [("delivered", "committed", "")]


def test_report_of_another_peer_transaction_or_object_changes_nothing(sent):
    request = sent.request()
    before = sent.states()
    assert not sent.report(request, sent.uids, destination="OTHER")
    assert not sent.report(type(request)("2.25.1", ()), sent.uids)
    assert not sent.report(type(request)("", ()), sent.uids)
    assert not sent.report(request, [*sent.uids, "1.2.3.4"])
    assert not sent.report(request, sent.uids, ["1.2.3.4"])
    assert sent.states() == before
    assert [row.event for row in read_rows(sent.engine)] == ["delivered", "delivered"]


def test_report_that_comes_twice_is_recorded_once(sent):
    first, second = sent.uids
    request = sent.request()
    for _ in range(2):
        assert sent.report(request, [second], [first])
    assert sent.rows[0].commitment_failures == 1
    assert sent.status().committed == 1
    sent.deliver()
    assert not sent.report(request, [], [first])  # the object is another delivery's now
    assert sent.rows[0].commitment_failures == 1


def test_object_that_a_report_leaves_out_is_requested_again(sent):
    assert sent.report(sent.request(), sent.uids[:1])
    sent.now += 2 * HOUR
    assert [each.result_uid for each in sent.request().deliveries] == sent.uids[1:]


def test_commitment_survives_a_restart(sent, empty_database, tmp_path):
    request = sent.request()
    again = open_database(tmp_path / "data", empty_database)  # as after SIGKILL: nothing was closed
    commitments = Commitments(again)
    assert commitments.begin("PACS", sent.now, HOUR, 10) is None  # the report is awaited
    report = CommitmentReport(request.transaction_uid, frozenset(sent.uids), {})
    assert commitments.record_report("PACS", report, sent.now)
    again.dispose()
    assert sent.states() == 2 * [("delivered", "committed", "")]


def test_withdrawn_object_is_not_requested_and_not_sent_again(sent):
    request = sent.request()
    with write_transaction(sent.engine) as connection:
        withdraw(connection, [SUBJECT.prediction_id], START.isoformat())
    assert sent.report(request, [], sent.uids)
    assert [each.state for each in sent.rows if each.kind != "rejection_note"] == 2 * ["withdrawn"]
    assert {each.subject.header for each in sent.rows if each.kind != "rejection_note"} == {""}
    assert [each.kind for each in sent.outbox.find()] == ["rejection_note"]
    sent.now += timedelta(days=2)
    assert sent.request() is None


def test_object_whose_identity_was_removed_can_be_committed_but_is_not_sent_again(sent):
    request = sent.request()
    with write_transaction(sent.engine) as connection:
        remove_headers(connection, [each.number for each in sent.rows], START.isoformat())
    assert sent.report(request, sent.uids[:1], sent.uids[1:])
    assert sent.states() == [("delivered", "committed", ""), ("delivered", "failed", "not_committed_0112")]


@pytest.mark.parametrize("destinations", [[], ["archive"]])
def test_failed_commitments_are_cleared_when_commitment_is_disabled(sent, destinations):
    for _ in range(MAX_FAILURES):
        sent.report(sent.request(), failed=sent.uids)
        sent.deliver()
    sent.commitments.end(["PACS"])
    assert (sent.status().uncommitted, sent.status().commitment_failing) == (2, 2)
    sent.commitments.end(destinations)
    assert (sent.status().uncommitted, sent.status().commitment_failing) == (0, 0)
    assert sent.states() == 2 * [("delivered", "", "")]


@pytest.mark.parametrize("bad", [0, 37, 99])
def test_object_that_causes_rejections_is_finally_requested_alone_without_delaying_others(repository, bad):
    """The oldest hundred objects have the one that the peer refuses; two hundred others follow."""
    sent = Sent(repository.engine)
    add_delivered(repository.engine, 300, "pending")
    with write_transaction(repository.engine) as connection:
        due = {"commitment_due": sent.now.isoformat()}
        connection.execute(outbox.update().where(outbox.c.result_uid.not_in(sent.uids)).values(due))
        connection.execute(outbox.update().where(outbox.c.result_uid.in_(sent.uids)).values(commitment=""))
    sizes, committed, refused = [], set(), f"pending{bad}"
    done = end = sent.now + timedelta(minutes=40)
    while sent.now < end:
        while request := sent.request():
            uids = [each.result_uid for each in request.deliveries]
            if refused in uids:
                sent.commitments.record_rejected(request.transaction_uid, 0x0110, sent.now)
                sizes.append(len(uids))
            else:
                sent.commitments.record_accepted(request.transaction_uid, sent.now, HOUR)
                assert sent.report(request, uids)
                committed.update(uids)
        if len(committed) == 299:
            done = min(done, sent.now)
        sent.now += timedelta(seconds=5)
    assert (sizes[0], sizes[6:]) == (100, [1, 1, 1, 1])  # the last ones up to 15 minutes apart
    assert all(later <= max(1, earlier // 2) for earlier, later in itertools.pairwise(sizes))
    assert (len(committed), done - START < timedelta(minutes=6)) == (299, True)
    (row,) = (each for each in sent.rows if each.result_uid == refused)
    assert (row.state, row.commitment, row.error) == ("delivered", "pending", "status_0110")


def test_rejection_is_known_after_the_service_was_killed_during_the_next_request(sent):
    refused = sent.request(limit=1)
    sent.commitments.record_rejected(refused.transaction_uid, 0x0110, sent.now)
    sent.now += timedelta(seconds=5)
    others = sent.request(limit=1)
    sent.request(limit=1)  # the outcome of this one is not recorded
    sent.now += 2 * HOUR
    first, second = sent.request(limit=2), sent.request(limit=2)
    assert [each.result_uid for each in first.deliveries] == [each.result_uid for each in others.deliveries]
    assert [each.result_uid for each in second.deliveries] == [each.result_uid for each in refused.deliveries]
    sent.commitments.record_accepted(second.transaction_uid, sent.now, HOUR)
    sent.now += 48 * HOUR
    assert len(sent.request(limit=2).deliveries) == 2


def test_rejected_objects_do_not_delay_others(sent):
    """Each of the others is requested before a refused one is requested again, however long that has been due."""
    refused = sent.request(limit=1)
    sent.commitments.record_rejected(refused.transaction_uid, 0x0110, sent.now)
    sent.now += timedelta(minutes=15)
    (first,) = sent.request(limit=1).deliveries
    assert first.result_uid != refused.deliveries[0].result_uid
    (second,) = sent.request(limit=1).deliveries
    assert second.result_uid == refused.deliveries[0].result_uid


def test_failed_request_is_not_counted_as_a_rejection(sent):
    request = sent.request()
    sent.commitments.record_rejected(request.transaction_uid, 0x0110, sent.now)
    sent.now += timedelta(seconds=5)
    request = sent.request(limit=2)
    assert len(request.deliveries) == 1
    sent.commitments.postpone(request.transaction_uid, "timeout", sent.now)
    sent.now += timedelta(minutes=15)
    assert sent.request(limit=2).deliveries[0].result_uid == request.deliveries[0].result_uid  # before the refused one
    assert len(sent.request(limit=2).deliveries) == 1
    assert sent.request() is None


def test_commitment_is_not_awaited_after_it_is_disabled(sent):
    sent.request()
    sent.commitments.end(["PACS"])
    assert {each.commitment for each in sent.rows} == {"requested"}
    sent.commitments.end([])
    assert sent.states() == 2 * [("delivered", "", "")]


def test_clock_that_is_set_back_does_not_keep_commitments_waiting(sent):
    sent.request()
    sent.now -= timedelta(days=365)
    assert sent.request() is not None


# --- upkeep ------------------------------------------------------------------------------------------------------------------


def add_delivered(engine, count, commitment):
    row = NEW_ROW | {
        "destination": "PACS", "kind": "structured_report", "prediction_id": "a", "failure_code": "", "model_sha256": "b",
        "operating_point": "balanced", "sop_instance_uid": "", "header": "", "withdrawn_uids": "{}", "created": "",
        "due": "", "state": "delivered", "commitment": commitment,
    }  # fmt: skip
    with write_transaction(engine) as connection:
        connection.execute(insert(outbox), [row | {"result_uid": f"{commitment}{place}"} for place in range(count)])


@pytest.mark.parametrize("commitment", ["", "committed"])
def test_cost_of_status_due_and_retention_does_not_grow_with_delivered_objects(tmp_path, commitment):
    """The steps of SQLite's virtual machine are counted, since times vary."""
    engine = open_database(tmp_path / "data")
    opened, commitments = Sent(engine).outbox, Commitments(engine)

    def steps():
        count = 0

        def step():
            nonlocal count
            count += 1

        def expire():
            with write_transaction(engine) as connection:
                assert find_old_headers(connection, "2000", 500) == []

        counted = []
        for operation in (
            opened.status,
            opened.find_uncommitted,
            lambda: opened.due("PACS", START, 10),
            lambda: commitments.begin("PACS", START, HOUR, 10),
            lambda: opened.is_result("1.2.3"),
            expire,
        ):
            with engine.connect() as connection:
                driver = connection.connection.driver_connection
                driver.set_progress_handler(step, 1)
            count = 0
            operation()
            counted.append(count)
        return counted

    before = steps()
    assert min(before) > 0
    add_delivered(engine, 5000, commitment)
    after = steps()
    engine.dispose()
    assert [later < earlier + 200 for earlier, later in zip(before, after, strict=True)] == len(before) * [True], (
        before, after,
    )  # fmt: skip


def test_totals_are_those_of_the_rows_after_every_kind_of_change(sent):
    sent.report(sent.request(), sent.uids[:1], sent.uids[1:])
    sent.deliver()
    withdraw_all(sent)
    sent.deliver()
    counted = sum(each.state in ("delivered", "withdrawn") for each in sent.rows)
    assert (sent.status().delivered, counted) == (3, 3)
    assert OutboxStatus("PACS", 0, 0, None, 3, 1, 1, 0) == sent.status()


def withdraw_all(sent):
    with write_transaction(sent.engine) as connection:
        withdraw(connection, [SUBJECT.prediction_id], START.isoformat())


def begin_all(sent):
    for each in sent.outbox.find():
        sent.outbox.begin(each.number)


def fail_all(sent):
    sent.outbox.record_failure(sent.outbox.find(), "timeout", sent.now, maybe_delivered=True)


def confirm_all(sent):
    """Confirm what is being sent, even if it was cancelled or withdrawn meanwhile."""
    found = [each for each in sent.rows if each.kind != "rejection_note" and each.maybe_delivered]
    sent.outbox.record_delivered(found, sent.now, requests_commitment=True)
    sent.now += timedelta(seconds=10)


def refuse(sent):
    sent.report(sent.request(), failed=sent.uids)


def commit(sent):
    sent.report(sent.request(), committed=sent.uids)


def refuse_for_good(sent):
    for _ in range(MAX_FAILURES):
        refuse(sent)
        sent.deliver()


def retry_all(sent):
    sent.outbox.retry([each.number for each in sent.rows], time=sent.now)


def cancel_all(sent):
    sent.outbox.cancel(time=sent.now)


def forget_all(sent):
    with write_transaction(sent.engine) as connection:
        remove_headers(connection, [each.number for each in sent.rows], START.isoformat())


@pytest.mark.parametrize(
    "steps",
    [
        [(refuse, 2), (Sent.deliver, 2), (commit, 2)],
        [(refuse, 2), (withdraw_all, 2), (Sent.deliver, 3)],
        [(refuse, 2), (begin_all, 2), (withdraw_all, 2), (confirm_all, 2)],
        [(refuse, 2), (cancel_all, 2), (withdraw_all, 2)],
        [(refuse, 2), (cancel_all, 2), (retry_all, 2), (Sent.deliver, 2)],
        [(refuse_for_good, 2), (retry_all, 2), (Sent.deliver, 2), (commit, 2)],
        [(refuse_for_good, 2), (retry_all, 2), (fail_all, 2), (withdraw_all, 2)],
        [(refuse, 2), (forget_all, 2)],
        [(commit, 2), (withdraw_all, 2), (Sent.deliver, 3)],
    ],
)
def test_objects_that_were_confirmed_are_counted_once_and_for_good(sent, steps):
    assert sent.status().delivered == 2
    for step, expected in steps:
        step(sent)
        assert sent.status().delivered == expected, step


@pytest.mark.parametrize(
    "steps",
    [
        [(begin_all, 0), (fail_all, 0), (withdraw_all, 0)],
        [(begin_all, 0), (cancel_all, 0), (confirm_all, 2)],
        [(begin_all, 0), (withdraw_all, 0), (confirm_all, 2), (Sent.deliver, 3)],
        [(begin_all, 0), (cancel_all, 0), (withdraw_all, 0), (confirm_all, 2)],
        [(begin_all, 0), (forget_all, 0), (confirm_all, 2)],
    ],
)
def test_objects_that_were_not_confirmed_are_not_counted(repository, monkeypatch, steps):
    with monkeypatch.context() as patch:
        patch.setattr(Sent, "deliver", lambda _: 0)
        sent = Sent(repository.engine)
    for step, expected in steps:
        step(sent)
        assert sent.status().delivered == expected, step
        # A second count: an object that was confirmed has no answer outstanding.
        states = "delivered", "withdrawn"
        assert sum(each.state in states and not each.maybe_delivered for each in sent.rows) == expected, step


@pytest.mark.usefixtures("migrations")
def test_results_of_an_earlier_revision_are_counted_and_not_asked_for(tmp_path, database, monkeypatch):
    upgrade = alembic.command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(alembic.command, "upgrade", lambda config, _: upgrade(config, "0010"))
        engine = open_database(tmp_path / "data", database)
    states = ["delivered", "withdrawn", "waiting", "cancelled", "withdrawn"]
    row = NEW_ROW | {
        "kind": "structured_report", "prediction_id": "a", "failure_code": "", "model_sha256": "b", "due": "",
        "operating_point": "balanced", "sop_instance_uid": "1", "header": "{}", "withdrawn_uids": "{}", "created": "2026",
    }  # fmt: skip
    rows = [
        row | {"destination": destination, "result_uid": str(number), "state": state, "maybe_delivered": number == 4}
        for destination in ("PACS", "archive")
        for number, state in enumerate(states if destination == "PACS" else ["cancelled"])
    ]
    with write_transaction(engine) as connection:
        names = ", ".join(rows[0])
        connection.execute(text(f"INSERT INTO outbox ({names}) VALUES (:{names.replace(', ', ', :')})"), rows)
    engine.dispose()
    engine = open_database(tmp_path / "data", database)
    assert Outbox(engine).status() == [
        OutboxStatus("PACS", 1, 0, "2026", 2, 0, 0, 0), OutboxStatus("archive", 0, 0, None, 0, 0, 0, 0),
    ]  # fmt: skip
    assert Commitments(engine).begin("PACS", START, HOUR, 10) is None
    engine.dispose()

"""Kill a process at every step of receiving, predicting and delivering, and start again: nothing is lost, nothing is doubled.

`tests.service.crash_steps` says what a step is; the PACS is a file, which keeps what was sent to it.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from tests.service.crash_steps import (
    KINDS,
    deliver_results,
    pacs_file,
    process_instances,
    receive_instances,
    received,
    request_commitment,
    steps_until_killed,
)

from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.commitments import CommitmentReport, Commitments
from pneumoscope.service.storage.database import read_transaction, write_transaction
from pneumoscope.service.storage.outbox_records import ResultSubject
from pneumoscope.service.storage.queries import Filter
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.results import enqueue
from pneumoscope.service.storage.tables import received_instances


def ignore(_):
    """Stand for the step of an operation that must not be killed."""


def prepare(folder, database, operation, number):
    """Do what precedes an operation."""
    repository = PredictionRepository(folder, database)
    if operation is not receive_instances:
        receive_instances(repository, number, ignore)
    if operation is deliver_results:
        process_instances(repository, number, ignore)
    repository.close()


def continue_after_crash(repository, number):
    """Let the sender send everything again, predict it, and deliver the results."""
    receive_instances(repository, number, ignore)
    process_instances(repository, number, ignore)
    deliver_results(repository, number, ignore)


def rows(repository):
    with read_transaction(repository.engine) as connection:
        return connection.execute(select(received_instances)).mappings().all()


@pytest.mark.slow
@pytest.mark.parametrize("operation", [receive_instances, process_instances, deliver_results])
def test_crash_at_any_step_loses_and_doubles_no_instance_and_no_result(tmp_path, database, operation):
    folder = tmp_path / "data"
    seen = set()
    for number in range(200):
        prepare(folder, database, operation, number)
        steps, killed = steps_until_killed(operation, folder, database, number)
        seen.update(step.partition(" ")[0] for step in steps)

        repository = PredictionRepository(folder, database)
        stored = {row["sop_instance_uid"]: row["state"] for row in rows(repository)}
        for step in steps:
            if step.startswith("answer"):  # acknowledged: it is waiting, and its file is there
                instance, content = received(number, int(step[-1]))
                assert stored[instance.sop_instance_uid] == "waiting"
                found = next(
                    each for each in repository.inbox.ready(100) if each.sop_instance_uid == instance.sop_instance_uid
                )
                assert repository.inbox.content(found) == content
        waiting = {row["image_sha256"] for row in rows(repository) if row["state"] == "waiting"}
        assert set(repository.inbox.files.staging_files()) == waiting

        continue_after_crash(repository, number)
        uids = [f"1.2.{number}.{place}" for place in range(2)]
        found = [row for row in rows(repository) if row["sop_instance_uid"] in uids]
        assert [row["state"] for row in found] == ["predicted", "predicted"]
        assert repository.inbox.files.staging_files() == []
        paths = repository.find(Filter(), limit=200)
        assert paths.total == len({row["prediction_id"] for row in rows(repository)})
        deliveries = [each for each in repository.outbox.find(("delivered",)) if each.subject.sop_instance_uid in uids]
        assert sorted((each.subject.sop_instance_uid, each.kind) for each in deliveries) == sorted(
            (uid, kind) for uid in uids for kind in KINDS
        )
        assert repository.outbox.find(("waiting", "cancelled", "withdrawn")) == []
        at_pacs = dict.fromkeys(pacs_file(repository).read_text().splitlines())  # without repeats
        copies = Counter(line.split()[0] for line in at_pacs)
        assert copies == Counter(each.result_uid for each in repository.outbox.find(("delivered",), 10_000))
        if not killed:
            verify(repository.engine, images=repository.storage.blobs)
        repository.close()
        if not killed:
            break
    else:
        pytest.fail("the operation does not end")
    expected = {
        receive_instances: {"open", "half", "fsync", "INSERT", "commit", "committed", "answer"},
        process_instances: {"INSERT", "UPDATE", "commit", "committed", "remove"},
        deliver_results: {"UPDATE", "send", "sent", "commit", "committed"},
    }
    assert expected[operation] <= seen


@pytest.mark.slow
def test_crash_at_any_step_of_a_request_loses_no_commitment_and_counts_none_twice(tmp_path, database):
    folder, seen = tmp_path / "data", set()
    for number in range(100):
        repository = PredictionRepository(folder, database)
        subject = ResultSubject("ab" * 16, "", "cd" * 32, "balanced", f"1.2.{number}", "{}")
        with write_transaction(repository.engine) as connection:
            enqueue(connection, subject, ["PACS"], KINDS, "2026-01-01T00:00:00.000000Z")
        due = repository.outbox.due("PACS", datetime.now(UTC), 100)
        repository.outbox.record_delivered(due, datetime.now(UTC) - timedelta(minutes=1), requests_commitment=True)
        repository.close()
        steps, killed = steps_until_killed(request_commitment, folder, database, number)
        seen.update(step.partition(" ")[0] for step in steps)

        repository = PredictionRepository(folder, database)
        commitments, now = Commitments(repository.engine), datetime.now(UTC)
        if "sent" in steps and "answer" not in steps:  # the report comes after the restart
            transaction_uid, *uids = pacs_file(repository).read_text().splitlines()[-1].split()
            assert commitments.record_report("PACS", CommitmentReport(transaction_uid, frozenset(uids), {}), now)
        request = commitments.begin("PACS", now + timedelta(days=1), timedelta(hours=1), 100)
        if request:  # it was killed before the PACS got the request
            assert "sent" not in steps
            uids = frozenset(each.result_uid for each in request.deliveries)
            assert commitments.record_report("PACS", CommitmentReport(request.transaction_uid, uids, {}), now)
        assert {each.commitment for each in repository.outbox.find(("delivered",))} == {"committed"}
        (status,) = repository.outbox.status()
        assert (status.committed, status.delivered, status.uncommitted) == (2 * number + 2, 2 * number + 2, 0)
        repository.close()
        if not killed:
            break
    else:
        pytest.fail("the operation does not end")
    assert {"UPDATE", "send", "sent", "commit", "committed", "answer"} <= seen

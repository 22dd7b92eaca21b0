"""`pneumoscope outbox`."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from pneumoscope.cli import cli, run_and_exit
from pneumoscope.cli.outbox import command
from pneumoscope.service.storage.commitments import MAX_FAILURES, CommitmentReport, Commitments
from pneumoscope.service.storage.database import open_database, write_transaction
from pneumoscope.service.storage.outbox import Outbox, ResultSubject, enqueue

TIME = "2026-01-02T03:04:05.000000Z"
KINDS = ("secondary_capture", "structured_report")


@pytest.fixture
def folder(tmp_path):
    """A data directory with two results for each of two destinations."""
    engine = open_database(tmp_path / "records")
    subject = ResultSubject(
        "ab" * 16, "", "cd" * 32, "balanced", "1.2.3", '{"00100020": {"vr": "LO", "Value": ["SECRET"]}}'
    )
    with write_transaction(engine) as connection:
        enqueue(connection, subject, ("PACS", "archive"), KINDS, TIME)
    engine.dispose()
    return tmp_path / "records"


def run(folder, *arguments):
    result = CliRunner().invoke(command, [*arguments, "--data-dir", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def listed(folder, *options):
    return json.loads(run(folder, "list", "--json", *options).stdout)["results"]


def test_results_are_listed_without_identifiers(folder):
    found = listed(folder)
    assert [(each["number"], each["destination"], each["kind"]) for each in found] == [
        (1, "PACS", KINDS[0]), (2, "PACS", KINDS[1]), (3, "archive", KINDS[0]), (4, "archive", KINDS[1]),
    ]  # fmt: skip
    assert {(each["state"], each["attempts"], each["created"], each["prediction_id"]) for each in found} == {
        ("waiting", 0, TIME, "ab" * 16)
    }
    header, first, *others = run(folder, "list").stdout.splitlines()
    assert header.split() == ["number", "destination", "object", "state", "commitment", "attempts", "created", "error"]
    assert first.split() == ["1", "PACS", "secondary_capture", "waiting", "-", "0", TIME[:19]]
    assert len(others) == 3
    assert "SECRET" not in run(folder, "list").output + run(folder, "list", "--json").output


def test_cancelled_results_are_retried_by_number(folder):
    assert "Cancelled 2 results" in run(folder, "cancel", "--destination", "PACS").stderr
    assert [each["number"] for each in listed(folder)] == [3, 4]
    assert [each["error"] for each in listed(folder, "--state", "cancelled")] == ["cancelled", "cancelled"]
    assert "1 result due now" in run(folder, "retry", "2").stderr
    assert "3 results due now" in run(folder, "retry", "--all").stderr
    engine = open_database(folder)
    assert {row.number for row in Outbox(engine).find()} == {2, 3, 4}
    engine.dispose()


def test_list_without_results_prints_nothing(folder):
    run(folder, "cancel", "--all")
    empty = run(folder, "list")
    assert (empty.stdout, empty.stderr) == ("", "No results wait; --state lists others\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["retry"], "select results"),
        (["cancel", "1", "--all"], "select results"),
        (["retry", "99"], "there is no result '99'"),
        (["retry", "--destination", "PCS"], "there is no destination with results 'PCS'. Did you mean 'PACS'?"),
        (["cancel", "--destination", "PACS", "--all"], "select results"),
    ],
)
def test_wrong_selection_is_an_error_that_says_what_to_do(folder, arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        run_and_exit(cli, ["outbox", *arguments, "--data-dir", str(folder)])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert len(listed(folder)) == 4


def test_results_without_commitment_are_listed_and_sent_again_by_number(folder):
    engine, time = open_database(folder), datetime(2026, 1, 2, 4, tzinfo=UTC)
    outbox, commitments = Outbox(engine), Commitments(engine)
    first, second = outbox.due("PACS", time, 10)
    outbox.record_delivered([first, second], time, asks_commitment=True)
    for _ in range(MAX_FAILURES):
        time += timedelta(hours=1)
        for waiting in outbox.due("PACS", time, 10):
            outbox.record_delivered([waiting], time, asks_commitment=True)
        time += timedelta(hours=1)
        request = commitments.begin("PACS", time, timedelta(hours=1), 10)
        uids = frozenset({second.result_uid} & {each.result_uid for each in request.deliveries})
        report = CommitmentReport(request.transaction_uid, uids, {first.result_uid: 0x0213})
        assert commitments.record_report("PACS", report, time)
    engine.dispose()
    (found,) = listed(folder, "--uncommitted")
    assert (found["number"], found["state"], found["commitment"]) == (first.number, "delivered", "failed")
    assert (found["error"], found["commitment_requested"][:19]) == ("not_committed_0213", time.isoformat()[:19])
    assert "failed" in run(folder, "list", "--uncommitted").stdout.splitlines()[1].split()
    assert [each["commitment"] for each in listed(folder, "--state", "delivered")] == ["failed", "committed"]
    assert "1 result due now" in run(folder, "retry", str(first.number)).stderr
    assert [each["number"] for each in listed(folder)] == [1, 3, 4]
    assert "No results lack storage commitment" in run(folder, "list", "--uncommitted").stderr

"""`pneumoscope outbox`."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from pneumoscope.cli import cli, run_and_exit
from pneumoscope.cli.outbox import command
from pneumoscope.service.storage.commitments import MAX_FAILURES, CommitmentReport, Commitments
from pneumoscope.service.storage.database import open_database, write_transaction
from pneumoscope.service.storage.outbox import Outbox
from pneumoscope.service.storage.outbox_records import ResultSubject
from pneumoscope.service.storage.results import enqueue

TIME = "2026-01-02T03:04:05.000000Z"
STUDY = "1.2.840.99999999.1.20260102030405.123456789012345678901234567890"  # nearly as long as a UID may be
KINDS = ("secondary_capture", "structured_report")


@pytest.fixture
def folder(tmp_path):
    """A data directory with two results for each of two destinations."""
    engine = open_database(tmp_path / "records")
    header = {
        "00100020": {"vr": "LO", "Value": ["SECRET"]}, "0020000D": {"vr": "UI", "Value": [STUDY]},
        "0020000E": {"vr": "UI", "Value": ["1.2"]},
    }  # fmt: skip
    subject = ResultSubject("ab" * 16, "", "cd" * 32, "balanced", "1.2.3", json.dumps(header))
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
    assert {(each["study_instance_uid"], each["next_attempt"]) for each in found} == {(STUDY, TIME)}
    header, study, first, *others = run(folder, "list").stdout.splitlines()
    assert re.split("  +", header.strip()) == ["number", "destination", "object", "attempts", "next attempt", "error"]
    assert study == f"study {STUDY}, predicted {TIME[:16]}Z"
    assert first.split() == ["1", "PACS", "secondary_capture", "0", f"{TIME[:19]}Z"]
    assert len(others) == 3
    assert "SECRET" not in run(folder, "list").output + run(folder, "list", "--json").output


def test_list_states_the_next_attempt_and_fits_in_110_columns(folder):
    engine = open_database(folder)
    outbox, time = Outbox(engine), datetime(2026, 1, 2, 4, tzinfo=UTC)
    outbox.record_unreachable("PACS", "calling_ae_title_not_recognized", time)
    (first, *_) = outbox.due("archive", time, 10)
    outbox.record_delivered([first], time, requests_commitment=True)
    engine.dispose()
    found = listed(folder, "--state", "waiting", "--state", "delivered")
    assert [(each["state"], each["next_attempt"]) for each in found] == [
        ("waiting", "2026-01-02T04:00:05.000000Z"), ("waiting", "2026-01-02T04:00:05.000000Z"),
        ("delivered", "2026-01-02T04:00:02.000000Z"), ("waiting", TIME),
    ]  # fmt: skip
    lines = run(folder, "list").stdout.splitlines()
    assert lines[2].split()[-2:] == ["2026-01-02T04:00:05Z", "calling_ae_title_not_recognized"]
    lines += run(folder, "list", "--uncommitted").stdout.splitlines()
    assert max(map(len, lines)) <= 110
    assert lines[-1].split() == [
        "3",
        "archive",
        "secondary_capture",
        "0",
        "2026-01-02T04:00:02Z",
        "2026-01-02T04:00:00Z",
    ]
    both = run(folder, "list", "--state", "waiting", "--state", "delivered").stdout.splitlines()
    assert both[0].split()[3:5] == ["state", "commitment"]
    assert both[4].split()[3:5] == ["delivered", "pending"]


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
    assert (empty.stdout, empty.stderr) == ("", "No results are waiting. Use --state to list others\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["retry"], "select results"),
        (["cancel", "1", "--all"], "select results"),
        (["retry", "99"], "there is no result '99'"),
        (["retry", "--destination", "PCS"], "there is no destination with results 'PCS'. Did you mean 'PACS'?"),
        (["cancel", "--destination", "PACS", "--all"], "select results"),
        (["retry", "--study", STUDY], "Add --delivered"),
        (["retry", "--delivered"], "select delivered results"),
        (["retry", "--delivered", "--all"], "select delivered results"),
        (["retry", "--delivered", "--destination", "PACS"], "select delivered results"),
        (["retry", "--delivered", "1", "--study", STUDY], "select delivered results"),
        (["retry", "--delivered", "1"], "result 1 has not been delivered (state: waiting)"),
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
    outbox.record_delivered([first, second], time, requests_commitment=True)
    for _ in range(MAX_FAILURES):
        time += timedelta(hours=1)
        for waiting in outbox.due("PACS", time, 10):
            outbox.record_delivered([waiting], time, requests_commitment=True)
        time += timedelta(hours=1)
        request = commitments.begin("PACS", time, timedelta(hours=1), 10)
        uids = frozenset({second.result_uid} & {each.result_uid for each in request.deliveries})
        report = CommitmentReport(request.transaction_uid, uids, {first.result_uid: 0x0213})
        assert commitments.record_report("PACS", report, time)
    engine.dispose()
    (found,) = listed(folder, "--uncommitted")
    assert (found["number"], found["state"], found["commitment"]) == (first.number, "delivered", "failed")
    assert (found["error"], found["commitment_requested"][:19]) == ("not_committed_0213", time.isoformat()[:19])
    assert "not_committed_0213" in run(folder, "list", "--uncommitted").stdout
    assert [each["commitment"] for each in listed(folder, "--state", "delivered")] == ["failed", "committed"]
    assert "1 result due now" in run(folder, "retry", str(first.number)).stderr
    assert [each["number"] for each in listed(folder)] == [1, 3, 4]
    assert "No results lack storage commitment" in run(folder, "list", "--uncommitted").stderr


def test_delivered_result_is_sent_again_by_number_and_by_study(folder):
    engine, time = open_database(folder), datetime(2026, 1, 2, 4, tzinfo=UTC)
    outbox = Outbox(engine)
    outbox.record_delivered(outbox.due("PACS", time, 10), time)
    engine.dispose()
    assert [each["number"] for each in listed(folder)] == [3, 4]
    assert {each["study_instance_uid"] for each in listed(folder, "--state", "delivered")} == {STUDY}
    assert "1 result due now" in run(folder, "retry", "--delivered", "1").stderr
    assert [each["number"] for each in listed(folder)] == [1, 3, 4]
    assert "1 result due now" in run(folder, "retry", "--delivered", "--study", STUDY, "--destination", "PACS").stderr
    assert [each["number"] for each in listed(folder)] == [1, 2, 3, 4]
    for name, words in (("PCS", "Did you mean 'PACS'?"), ("archive", "no study with delivered results")):
        arguments = [
            "outbox",
            "retry",
            "--delivered",
            "--study",
            STUDY,
            "--destination",
            name,
            "--data-dir",
            str(folder),
        ]
        failed = CliRunner().invoke(cli, arguments)
        assert words in str(failed.exception), name

"""The audit log on SQLite and PostgreSQL: altered rows are detected, and `audit-log show` prints the rows."""

import json
import subprocess
import sys

import pytest
from sqlalchemy import text
from tests.service.conftest import add

from pneumoscope.core.errors import AuditLogError, StorageError
from pneumoscope.service.audit.log import Entry, append, read_rows, verify_hashes
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.blob_store import content_hash
from pneumoscope.service.storage.database import write_transaction
from pneumoscope.service.storage.repository import PredictionRepository


def test_altered_rows_are_detected(repository):
    for place in range(4):
        add(repository, bytes([place]))
    last = verify(repository.engine)
    assert last.rows == 4
    changes = {
        "UPDATE audit_log SET \"user\" = 'another' WHERE number = 2": "row 2 .* do not match its hash",
        "UPDATE audit_log SET time = '2026' WHERE number = 4": "row 4 .* do not match its hash",
        "DELETE FROM audit_log WHERE number = 3": "row 3 .* missing",
        "UPDATE audit_log SET previous_hash = hash WHERE number = 3": "row 3 .* does not contain the hash",
    }
    for change, words in changes.items():
        with (
            pytest.raises(StorageError, match="append-only"),
            write_transaction(repository.engine) as connection,
        ):
            connection.execute(text(change))
        verify(repository.engine)
        # The owner of the database can drop the triggers; the hashes still show the change.
        with repository.engine.connect() as connection, connection.begin() as transaction:
            if connection.dialect.name == "postgresql":
                connection.execute(text("DROP TRIGGER audit_log_append_only ON audit_log"))
            else:
                connection.execute(text("DROP TRIGGER audit_log_append_only_update"))
                connection.execute(text("DROP TRIGGER audit_log_append_only_delete"))
            connection.execute(text(change))
            with pytest.raises(AuditLogError, match=words):
                verify_hashes(connection)
            transaction.rollback()


def test_rows_missing_at_the_end_are_detected_by_a_recorded_hash(tmp_path):
    repository = PredictionRepository(tmp_path / "data")
    add(repository, b"a")
    first = verify(repository.engine).last_hash
    add(repository, b"b")
    last = verify(repository.engine).last_hash
    assert verify(repository.engine, expected=first) == verify(repository.engine, expected=last)
    with repository.engine.connect() as connection, connection.begin():
        connection.execute(text("DROP TRIGGER audit_log_append_only_delete"))
        connection.execute(text("DELETE FROM audit_log WHERE number = 2"))
        connection.execute(text("DELETE FROM predictions WHERE image_sha256 = :image"), {"image": content_hash(b"b")})
    verify(repository.engine, expected=first)
    with pytest.raises(AuditLogError, match=r"no row with the hash .* \(1 row\)"):
        verify(repository.engine, expected=last)
    repository.close()


def test_row_is_rolled_back_with_its_transaction(repository):
    def fail():
        with write_transaction(repository.engine) as connection:
            append(connection, [Entry(time="", user="me", event="predicted")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert verify(repository.engine).rows == 0


def test_rows_are_read_newest_last(repository):
    for image in (b"a", b"b", b"c"):
        add(repository, image)
    assert [row.number for row in read_rows(repository.engine)] == [1, 2, 3]
    assert [row.number for row in read_rows(repository.engine, last=2)] == [2, 3]
    assert [row.number for row in read_rows(repository.engine, last=9)] == [1, 2, 3]


def test_value_of_another_type_is_detected(tmp_path):
    """SQLite stores values of any type in any column."""
    repository = PredictionRepository(tmp_path / "data")
    add(repository)
    with repository.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER IF EXISTS audit_log_update")
        for (trigger,) in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").all():
            connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
        connection.exec_driver_sql("UPDATE audit_log SET user = CAST(user AS BLOB)")
    with pytest.raises(AuditLogError, match="row 1 of the audit log was altered"):
        verify(repository.engine)
    repository.close()


def shown(folder, database, *options):
    where = ["--database", database] if database else ["--data-dir", str(folder)]
    command = [sys.executable, "-m", "pneumoscope", "audit-log", "show", *where, *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.slow
def test_show_prints_one_line_per_row(repository, empty_database, tmp_path):
    assert shown(tmp_path / "data", empty_database) == ""
    assert json.loads(shown(tmp_path / "data", empty_database, "--json")) == {"rows": []}
    record, _ = add(repository)
    repository.review(record.id, "pneumonia", note="Jane Doe", user="you")
    repository.remove(record.id, user="you")
    lines = shown(tmp_path / "data", empty_database).splitlines()
    times = [row.time for row in read_rows(repository.engine)]
    assert [line.partition(" result_sha256=")[0].split() for line in lines[:1] + lines[2:]] == [
        [times[0], "me", "predicted", record.id, "decision=pneumonia", "probability=0.75"],
        [times[2], "you", "deleted", record.id],
    ]
    assert "label=pneumonia review_sha256=" in lines[1]
    assert "Doe" not in str(lines)
    assert shown(tmp_path / "data", empty_database, "--limit", "1").splitlines() == lines[2:]
    found = json.loads(shown(tmp_path / "data", empty_database, "--json", "--limit", "2"))["rows"]
    assert [(row["number"], row["event"], row["details"].get("label")) for row in found] == [
        (2, "reviewed", "pneumonia"),
        (3, "deleted", None),
    ]
    assert found[1]["previous_hash"] == found[0]["hash"]


def test_show_escapes_control_characters(tmp_path):
    repository = PredictionRepository(tmp_path / "data")
    with write_transaction(repository.engine) as connection:
        append(connection, [Entry(time="2026", user="\x1b[2J", event="\r", details={"a": "\u009b"})])
        connection.execute(text("DROP TRIGGER audit_log_append_only_update"))
        connection.execute(text("UPDATE audit_log SET details = '{' || details"))
    repository.close()
    (line,) = shown(tmp_path / "data", "").splitlines()
    assert (line.isprintable(), line.split()[:3]) == (True, ["2026", "\\x1b[2J", "\\r"])
    assert json.loads(shown(tmp_path / "data", "", "--json"))["rows"][0]["details"].startswith("{{")


def test_show_ends_silently_when_its_output_is_closed(tmp_path):
    repository = PredictionRepository(tmp_path / "data")
    with write_transaction(repository.engine) as connection:
        append(connection, 2000 * [Entry(time="2026", user="me", event="predicted")])  # more than a pipe holds
    repository.close()
    ran = subprocess.run(
        f"{sys.executable} -m pneumoscope audit-log show --data-dir data | head -n 1",
        shell=True, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert ran.stdout.startswith("2026  me")
    assert ran.stderr == ""

"""The audit log, on SQLite and on PostgreSQL: every change of a row shows; rows are read as they stand."""

import json
import subprocess
import sys

import pytest
from sqlalchemy import text
from tests.service.conftest import add

from pneumoscope.core.errors import AuditLogError, StorageError
from pneumoscope.service.audit.log import Entry, append, read_rows, verify, verify_rows
from pneumoscope.service.storage.blob_store import content_hash
from pneumoscope.service.storage.database import write_transaction
from pneumoscope.service.storage.repository import PredictionRepository


def test_every_change_of_the_trail_is_seen(records):
    for place in range(4):
        add(records, bytes([place]))
    last = verify(records.engine)
    assert last.rows == 4
    changes = {
        "UPDATE audit_log SET who = 'nobody' WHERE number = 2": "row 2 .* what it says",
        "UPDATE audit_log SET at = '2026' WHERE number = 4": "row 4 .* what it says",
        "DELETE FROM audit_log WHERE number = 3": "row 3 .* missing",
        "UPDATE audit_log SET previous = hash WHERE number = 3": "row 3 .* does not follow",
    }
    for change, words in changes.items():
        with pytest.raises(StorageError, match="only ever added to"), writing(records.engine) as connection:
            connection.execute(text(change))
        verify(records.engine)
        # Whoever owns the database can take the triggers away; the chain still tells.
        with records.engine.connect() as connection, connection.begin() as transaction:
            if connection.dialect.name == "postgresql":
                connection.execute(text("DROP TRIGGER only_added_to ON audit_log"))
            else:
                connection.execute(text("DROP TRIGGER only_added_to_update"))
                connection.execute(text("DROP TRIGGER only_added_to_delete"))
            connection.execute(text(change))
            with pytest.raises(AuditLogError, match=words):
                verify_rows(connection)
            transaction.rollback()


def test_rows_cut_from_the_end_are_seen_by_the_hash_that_was_written_down(tmp_path):
    records = PredictionRepository(tmp_path / "data")
    add(records, b"a")
    first = verify(records.engine).last
    add(records, b"b")
    last = verify(records.engine).last
    assert verify(records.engine, expected=first) == verify(records.engine, expected=last)
    with records.engine.connect() as connection, connection.begin():
        connection.execute(text("DROP TRIGGER only_added_to_delete"))
        connection.execute(text("DELETE FROM audit_log WHERE number = 2"))
        connection.execute(text("DELETE FROM predictions WHERE image_sha256 = :image"), {"image": content_hash(b"b")})
    verify(records.engine, expected=first)
    with pytest.raises(AuditLogError, match="none of the 1 rows"):
        verify(records.engine, expected=last)
    records.close()


def test_a_row_is_not_there_where_what_it_tells_of_failed(records):
    def fail():
        with write_transaction(records.engine) as connection:
            append(connection, [Entry(at="", user="me", what="predicted")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert verify(records.engine).rows == 0


def test_rows_are_read_as_they_stand_the_newest_last(records):
    for image in (b"a", b"b", b"c"):
        add(records, image)
    assert [row.number for row in read_rows(records.engine)] == [1, 2, 3]
    assert [row.number for row in read_rows(records.engine, last=2)] == [2, 3]
    assert [row.number for row in read_rows(records.engine, last=9)] == [1, 2, 3]


def test_a_value_that_is_no_text_is_a_row_that_was_altered(tmp_path):
    """SQLite keeps anything in any column."""
    records = PredictionRepository(tmp_path / "data")
    add(records)
    with records.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER IF EXISTS audit_log_update")
        for (trigger,) in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").all():
            connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
        connection.exec_driver_sql("UPDATE audit_log SET who = CAST(who AS BLOB)")
    with pytest.raises(AuditLogError, match="row 1 of the audit log was altered"):
        verify(records.engine)
    records.close()


def shown(folder, database, *options):
    where = ["--database", database] if database else ["--data-dir", str(folder)]
    command = [sys.executable, "-m", "pneumoscope", "audit-log", "show", *where, *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.slow
def test_show_prints_a_row_a_line(records, database, tmp_path):
    assert shown(tmp_path / "data", database) == ""
    assert json.loads(shown(tmp_path / "data", database, "--json")) == {"rows": []}
    record, _ = add(records)
    records.review(record.id, agrees=True, note="Jane Doe", user="you")
    records.remove(record.id, user="you")
    lines = shown(tmp_path / "data", database).splitlines()
    times = [row.at for row in read_rows(records.engine)]
    assert [line.partition(" rest=")[0].split() for line in lines[:1] + lines[2:]] == [
        [times[0], "me", "predicted", record.id, "decision=pneumonia", "probability=0.75"],
        [times[2], "you", "deleted", record.id],
    ]
    assert "agrees=true note=" in lines[1]
    assert "Doe" not in str(lines)
    assert shown(tmp_path / "data", database, "--limit", "1").splitlines() == lines[2:]
    found = json.loads(shown(tmp_path / "data", database, "--json", "--limit", "2"))["rows"]
    assert [(row["number"], row["what"], row["details"].get("agrees")) for row in found] == [
        (2, "reviewed", True),
        (3, "deleted", None),
    ]
    assert found[1]["previous"] == found[0]["hash"]


def test_what_was_put_into_a_row_moves_no_cursor(tmp_path):
    records = PredictionRepository(tmp_path / "data")
    with write_transaction(records.engine) as connection:
        append(connection, [Entry(at="2026", who="\x1b[2J", what="\r", details={"a": "\u009b"})])
        connection.execute(text("DROP TRIGGER only_added_to_update"))
        connection.execute(text("UPDATE audit_log SET details = '{' || details"))
    records.close()
    (line,) = shown(tmp_path / "data", "").splitlines()
    assert (line.isprintable(), line.split()[:3]) == (True, ["2026", "\\x1b[2J", "\\r"])
    assert json.loads(shown(tmp_path / "data", "", "--json"))["rows"][0]["details"].startswith("{{")


def test_show_ends_in_silence_when_its_reader_has_gone(tmp_path):
    records = PredictionRepository(tmp_path / "data")
    with write_transaction(records.engine) as connection:
        append(connection, 2000 * [Entry(at="2026", user="me", what="predicted")])  # more than a pipe holds
    records.close()
    ran = subprocess.run(
        f"{sys.executable} -m pneumoscope audit-log show --data-dir data | head -n 1",
        shell=True, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert ran.stdout.startswith("2026  me")
    assert ran.stderr == ""

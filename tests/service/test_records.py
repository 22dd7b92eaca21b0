"""What a service keeps, on SQLite and on PostgreSQL: once, whole, in order, and with a trail that shows every change."""

import dataclasses
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from pneumoscope.errors import GoneError, StorageError, TrailError, UnknownNameError, UsageError
from pneumoscope.results import FilmFacts, ModelFacts, Prediction
from pneumoscope.service.database import DATABASE_FILE, open_database, writing
from pneumoscope.service.film_store import film_hash
from pneumoscope.service.record import Filter, record_id
from pneumoscope.service.records import Records
from pneumoscope.service.tables import METADATA
from pneumoscope.service.trail import append, verify

MODEL = ModelFacts("grey", "0.1.0", "ab" * 32)


def prediction(probability=0.75, decision="pneumonia", name="a film.png"):
    interval = None if probability is None else (probability / 2, (1 + probability) / 2)
    why = "the film is rejected" if probability is None else ""
    reason = "blank" if decision == "rejected" else ""
    return Prediction(name, decision, probability, interval, why, 0.4, reason, FilmFacts(30, 20, "PNG"), MODEL)


def add(records, film=b"film", **said):
    return records.add(prediction(**said), film, operating_point="balanced", who="me")


def test_what_is_kept_comes_back_as_it_was(records):
    record, new = add(records, name="é <b>\u202e.png")
    assert new
    assert records.get(record.id) == record
    assert record.prediction == prediction(name="é <b>\u202e.png")
    assert (record.film_sha256, record.film_bytes) == (film_hash(b"film"), 4)
    assert records.film(record) == b"film"
    assert record.id == record_id(film_hash(b"film"), MODEL.sha256, "balanced")
    rejected, _ = add(records, b"other", probability=None, decision="rejected")
    assert rejected.prediction == prediction(None, "rejected")


def test_the_same_film_is_kept_once_as_it_was_first(records):
    first, _ = add(records, name="first.png")
    again, new = add(records, name="again.png", probability=0.2)
    assert (again, new) == (first, False)
    other, new = records.add(prediction(), b"film", operating_point="rule-out", who="me")
    assert new
    assert other.id != first.id
    assert verify(records.engine).rows == 2


def test_the_same_film_from_many_at_once_is_kept_once(records):
    found = []
    threads = [threading.Thread(target=lambda: found.append(add(records, b"same"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({record for record, _ in found}) == 1
    assert sum(new for _, new in found) == 1
    assert verify(records.engine).rows == 1


def test_pages_show_each_record_once_while_more_are_added(records):
    scores = [0.5, 0.1, None, 0.9, 0.5, 0.5]
    for place, score in enumerate(scores):
        add(records, bytes([place]), probability=score, decision="rejected" if score is None else "normal")
    for order, expected in [
        ("highest", [0.9, 0.5, 0.5, 0.5, 0.1, None]),
        ("lowest", [0.1, 0.5, 0.5, 0.5, 0.9, None]),
        ("oldest", scores),
        ("newest", scores[::-1]),
    ]:
        seen, after = [], ""
        while True:
            page = records.find(Filter(), order=order, limit=2, after=after)
            assert page.total == 6
            seen += page.records
            if not (after := page.next):
                break
        assert [record.prediction.probability for record in seen] == expected
        assert len({record.id for record in seen}) == 6
    first = records.find(Filter(), limit=2)
    add(records, b"newer")
    second = records.find(Filter(), limit=2, after=first.next)
    assert [each.prediction.probability for each in second.records] == scores[3:1:-1]


def test_records_are_found_by_decision_review_and_time(tmp_path, database):
    times = iter(datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 30))
    records = Records(tmp_path / "data", database, now=lambda: next(times))
    a, _ = add(records, b"a", decision="normal")
    b, _ = add(records, b"b")
    records.review(a.id, agrees=False, note="a shadow", who="me")

    def found(**wanted):
        return [record.id for record in records.find(Filter(**wanted), order="oldest").records]

    assert found() == [a.id, b.id]
    assert found(decision="normal") == found(reviewed=True) == found(until="2026-01-02") == [a.id]
    assert found(decision="pneumonia") == found(reviewed=False) == found(since="2026-01-02") == [b.id]
    assert found(decision="normal", reviewed=False) == []
    records.close()


@pytest.mark.parametrize("asked", [{"limit": 0}, {"limit": 201}, {"after": "ab" * 16}])
def test_a_page_that_cannot_be_is_refused(records, asked):
    with pytest.raises(UsageError):
        records.find(Filter(), **asked)


def test_a_review_replaces_the_one_before_and_both_are_in_the_trail(records):
    record, _ = add(records)
    records.review(record.id, agrees=True, note="", who="me")
    reviewed = records.review(record.id, agrees=False, note="Jane Doe", who="you")
    assert (reviewed.review.agrees, reviewed.review.note) == (False, "Jane Doe")
    assert records.get(record.id) == reviewed
    with records.engine.connect() as connection:
        rows = connection.execute(text("SELECT who, what, details FROM audit_trail ORDER BY number")).all()
    assert [(row.who, row.what) for row in rows] == [("me", "judged"), ("me", "reviewed"), ("you", "reviewed")]
    assert "Doe" not in str(rows)


def test_what_is_deleted_is_gone_with_its_film(records):
    record, _ = add(records)
    other, _ = records.add(prediction(), b"film", operating_point="rule-out", who="me")
    records.remove(record.id, who="me")
    assert records.film(other) == b"film"  # which another record needs
    records.remove(other.id, who="me")
    assert records.films.get(record.film_sha256) is None
    for ask in (records.get, lambda key: records.remove(key, who="me")):
        with pytest.raises(UnknownNameError, match="there is no prediction"):
            ask(record.id)
    assert verify(records.engine).rows == 4


def test_films_expire_and_their_numbers_stay(tmp_path, database):
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    records = Records(tmp_path / "data", database, now=lambda: now[0])
    old, _ = add(records, b"old")
    now[0] += timedelta(days=31)
    new, _ = add(records, b"new")
    assert records.expire(timedelta(days=30)) == 1
    assert records.expire(timedelta(days=30)) == 0
    assert records.film(records.get(new.id)) == b"new"
    found = records.get(old.id)
    assert found.prediction == old.prediction
    assert found.film_removed == "2026-02-01T00:00:00.000000Z"
    with pytest.raises(GoneError, match="was removed"):
        records.film(found)
    assert records.films.get(old.film_sha256) is None
    records.close()


def test_what_was_kept_is_there_after_a_start_and_what_a_killed_process_left_is_not(tmp_path, database):
    records = Records(tmp_path / "data", database)
    record, _ = add(records)
    orphan = records.films.keep(b"answered never")
    (tmp_path / "data/films/ab").mkdir(exist_ok=True)
    half = tmp_path / f"data/films/ab/.{'ab' * 32}-{'0' * 16}"
    half.write_bytes(b"half")
    records.close()

    again = Records(tmp_path / "data", database)
    assert again.get(record.id) == record
    assert again.film(record) == b"film"
    assert again.films.get(orphan) is None
    assert not half.exists()
    again.close()


def test_a_film_that_changed_on_the_disk_is_not_given_out(records, tmp_path):
    record, _ = add(records)
    (path,) = (tmp_path / "data/films").glob("*/*")
    path.write_bytes(b"another")
    with pytest.raises(StorageError, match="not the film that was kept"):
        records.film(record)


# --- the trail -------------------------------------------------------------------------------------------------------


def test_every_change_of_the_trail_is_seen(records):
    for place in range(4):
        add(records, bytes([place]))
    last = verify(records.engine)
    assert last.rows == 4
    changes = {
        "UPDATE audit_trail SET who = 'nobody' WHERE number = 2": "row 2 .* what it says",
        "UPDATE audit_trail SET at = '2026' WHERE number = 4": "row 4 .* what it says",
        "DELETE FROM audit_trail WHERE number = 3": "row 3 .* missing",
        "UPDATE audit_trail SET previous = hash WHERE number = 3": "row 3 .* does not follow",
    }
    for change, words in changes.items():
        with pytest.raises(StorageError, match="only ever added to"), writing(records.engine) as connection:
            connection.execute(text(change))
        verify(records.engine)
        # Whoever owns the database can take the triggers away; the chain still tells.
        with records.engine.connect() as connection, connection.begin() as transaction:
            if connection.dialect.name == "postgresql":
                connection.execute(text("DROP TRIGGER only_added_to ON audit_trail"))
            else:
                connection.execute(text("DROP TRIGGER only_added_to_update"))
                connection.execute(text("DROP TRIGGER only_added_to_delete"))
            connection.execute(text(change))
            with pytest.raises(TrailError, match=words):
                verify(_Same(connection))
            transaction.rollback()


class _Same:
    """An engine that gives the connection it was made with, in whose transaction the changes are."""

    def __init__(self, connection):
        self.connection, self.dialect, self.url = connection, connection.dialect, connection.engine.url

    def connect(self):
        return _Open(self.connection)


class _Open:
    def __init__(self, connection):
        self.connection = connection

    def __enter__(self):
        return self.connection

    def __exit__(self, *_):
        pass


def test_rows_cut_from_the_end_are_seen_by_the_hash_that_was_written_down(tmp_path):
    records = Records(tmp_path / "data")
    add(records, b"a")
    first = verify(records.engine).last
    add(records, b"b")
    last = verify(records.engine).last
    assert verify(records.engine, expected=first) == verify(records.engine, expected=last)
    with records.engine.connect() as connection, connection.begin():
        connection.execute(text("DROP TRIGGER only_added_to_delete"))
        connection.execute(text("DELETE FROM audit_trail WHERE number = 2"))
    verify(records.engine, expected=first)
    with pytest.raises(TrailError, match="none of the 1 rows"):
        verify(records.engine, expected=last)
    records.close()


def test_a_row_is_not_there_where_what_it_tells_of_failed(records):
    def fail():
        with writing(records.engine) as connection:
            append(connection, at="", who="me", what="judged")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert verify(records.engine).rows == 0


# --- opening ---------------------------------------------------------------------------------------------------------


def test_migrations_make_the_tables_that_the_code_reads(records):
    """Alembic's own comparison finds nothing to change."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with records.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_a_database_of_a_newer_version_is_refused(records, database, tmp_path):
    with writing(records.engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'of the future'"))
    with pytest.raises(StorageError, match="newer version"):
        open_database(tmp_path / "data", database)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("mysql://a@b/c", "takes postgresql://"),
        ("nonsense", "no address"),
        ("postgresql://me:secret@127.0.0.1:1/x", "cannot be"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_password(address, words):
    with pytest.raises((UsageError, StorageError), match=words) as caught:
        open_database(None, address)
    assert "secret" not in str(caught.value)


def test_a_folder_that_is_no_database_is_told(tmp_path):
    (tmp_path / DATABASE_FILE).write_bytes(b"no database, but a file of some length" * 100)
    with pytest.raises(StorageError, match="not a database"):
        open_database(tmp_path)


def test_a_locked_database_is_told_and_serves_again(tmp_path, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.database._PATIENCE", 0.1)
    records = Records(tmp_path / "data")
    other = open_database(tmp_path / "data")
    with writing(other), pytest.raises(StorageError, match="locked"):
        add(records)
    assert add(records)[1]
    records.close()
    other.dispose()


def test_nothing_is_kept_of_a_service_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = Records(None)
    record, _ = add(records)
    assert records.film(record) == b"film"
    assert verify(records.engine).rows == 1
    records.close()
    assert list(tmp_path.iterdir()) == []


def test_a_prediction_of_an_unreadable_film_is_not_kept(records):
    failed = dataclasses.replace(prediction(), decision=None, film=None, threshold=None)
    with pytest.raises(ValueError, match="nothing to keep"):
        records.add(failed, b"x", operating_point="balanced", who="me")

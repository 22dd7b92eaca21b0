"""What a service keeps, on SQLite and on PostgreSQL: once, whole, and in order."""

import dataclasses
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from tests.service.conftest import MODEL, add, prediction

from pneumoscope.errors import GoneError, StorageError, UnknownNameError, UsageError
from pneumoscope.service.database import DATABASE_FILE, open_database, reading, writing
from pneumoscope.service.film_store import film_hash
from pneumoscope.service.record import Filter, record_id
from pneumoscope.service.records import Records
from pneumoscope.service.tables import METADATA
from pneumoscope.service.trail import verify


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
        ("attention", [None, 0.9, 0.5, 0.5, 0.5, 0.1]),
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


def test_what_needs_eyes_is_what_nobody_has_read_and_first_what_the_model_leaves_open(records):
    said = {"rejected": None, "uncertain": 0.6, "pneumonia": 0.95, "normal": 0.1}
    made = {each: add(records, each.encode(), probability=said[each], decision=each)[0].id for each in reversed(said)}
    read, _ = add(records, b"read", probability=0.99, decision="pneumonia")
    records.review(read.id, agrees=True, note="", who="me")
    found = [each.id for each in records.find(Filter(), order="attention").records]
    assert set(found[:2]) == {made["rejected"], made["uncertain"]}
    assert found[2:] == [made["pneumonia"], made["normal"], read.id]


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
    assert (reviewed.review.agrees, reviewed.review.note, reviewed.review.who) == (False, "Jane Doe", "you")
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


def test_a_film_that_comes_while_it_is_removed_is_kept(records, monkeypatch):
    """Two requests, one after the other in the middle of the other."""
    first, _ = add(records)
    keep = records.films.keep

    def kept_and_then_removed_by_another(film):
        monkeypatch.setattr(records.films, "keep", keep)
        keep(film)
        records.remove(first.id, who="me")

    monkeypatch.setattr(records.films, "keep", kept_and_then_removed_by_another)
    second, new = records.add(prediction(), b"film", operating_point="rule-out", who="me")
    assert new
    assert records.film(second) == b"film"

    remove, found = records.films.remove, []

    def removed_while_another_comes(sha256):
        other = threading.Thread(target=lambda: found.append(add(records)[0]))
        other.start()
        other.join(0.3)
        remove(sha256)
        threads.append(other)

    threads = []
    monkeypatch.setattr(records.films, "remove", removed_while_another_comes)
    records.remove(second.id, who="me")
    threads[0].join(10)
    assert records.film(found[0]) == b"film"


def test_of_what_could_not_be_kept_there_is_no_film(records, monkeypatch):
    def fail(*_, **__):
        raise StorageError("full")

    with monkeypatch.context() as failing:
        failing.setattr("pneumoscope.service.records.append", fail)
        with pytest.raises(StorageError, match="full"):
            add(records)
    assert records.find(Filter()).total == 0
    assert records.films.get(film_hash(b"film")) is None


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
    assert add(records, b"old") == (found, False)  # what was removed does not come back
    assert records.films.get(old.film_sha256) is None
    records.close()


def test_a_film_that_is_missing_though_nobody_removed_it_is_told(records):
    record, _ = add(records)
    records.films.remove(record.film_sha256)
    with pytest.raises(StorageError, match=f"prediction '{record.id}' is missing") as caught:
        records.film(record)
    assert f"Restore {record.film_sha256[:2]}/{record.film_sha256} below films/ from a backup" in caught.value.advice
    add(records)
    assert records.film(record) == b"film"
    records.remove(record.id, who="me")
    with pytest.raises(GoneError, match="was removed"):  # by another request, since this one read the record
        records.film(record)


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
        (
            "postgresql://me:secret@127.0.0.1:1/x",
            r"cannot be used: Can't create a connection to host 127.0.0.1 and port 1",
        ),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_password(address, words):
    with pytest.raises((UsageError, StorageError), match=words) as caught:
        open_database(None, address)
    assert "secret" not in str(caught.value)


def test_of_what_postgresql_says_the_words_are_shown_and_no_more(postgresql_server):
    with pytest.raises(StorageError) as caught:
        open_database(None, postgresql_server.removesuffix("postgres") + "nowhere")
    assert caught.value.message.endswith('cannot be used: database "nowhere" does not exist')


def test_a_connection_that_is_lost_is_told_and_the_next_one_serves(postgresql_server):
    engine, other = open_database(None, postgresql_server), open_database(None, postgresql_server)
    others = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def lose():
        with reading(engine) as connection, other.connect() as killer:
            killer.execute(others)
            connection.execute(text("SELECT 1"))

    with pytest.raises(StorageError, match="cannot be used: "):
        lose()
    with reading(engine) as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()
    other.dispose()


def test_when_all_connections_are_busy_it_is_told(tmp_path, monkeypatch):
    engine = open_database(tmp_path)
    monkeypatch.setattr(engine.pool, "_timeout", 0.05)
    held = [engine.connect() for _ in range(15)]
    with pytest.raises(StorageError, match="all connections to it are busy"), reading(engine):
        pass
    for each in held:
        each.close()
    engine.dispose()


def test_a_reader_sees_one_state_while_others_write(records):
    add(records, b"a")
    with reading(records.engine) as connection:
        counted = text("SELECT count(*) FROM predictions")
        assert connection.execute(counted).scalar_one() == 1
        add(records, b"b")
        assert connection.execute(counted).scalar_one() == 1
    assert records.find(Filter()).total == 2


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

"""The database: opened, made newer, lost, locked and busy; what it says is said in our words."""

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from tests.service.conftest import add

from pneumoscope.core.errors import StorageError, UsageError
from pneumoscope.service.storage.database import DATABASE_FILE, open_database, reading, writing
from pneumoscope.service.storage.records import Filter
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.tables import METADATA

CANARY = "DOE^JANE"


def test_migrations_make_the_tables_that_the_code_reads(records):
    """Alembic's own comparison finds nothing to change."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with records.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_a_database_of_a_newer_version_is_refused(records, database, tmp_path):
    with write_transaction(records.engine) as connection:
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


@pytest.mark.parametrize("name", ["q?mode=memory", "p%20z", "a#b", "file:x", "ünï"])
def test_a_folder_has_its_database_in_it_whatever_it_is_called(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    records = PredictionRepository(Path(name))
    add(records)
    records.close()
    assert {file.name for file in tmp_path.iterdir()} == {name}
    assert (tmp_path / name / DATABASE_FILE).is_file()


def test_of_what_postgresql_says_the_words_are_shown_and_no_more(postgresql_server):
    with pytest.raises(StorageError) as caught:
        open_database(None, postgresql_server.removesuffix("postgres") + "nowhere")
    assert caught.value.message.endswith('cannot be used: database "nowhere" does not exist')


def test_a_connection_that_is_lost_is_told_and_the_next_one_serves(postgresql_server):
    engine, other = open_database(None, postgresql_server), open_database(None, postgresql_server)
    others = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def lose():
        with read_transaction(engine) as connection, other.connect() as killer:
            killer.execute(others)
            connection.execute(text("SELECT 1"))

    with pytest.raises(StorageError, match="cannot be used: "):
        lose()
    with read_transaction(engine) as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()
    other.dispose()


def test_a_table_that_somebody_holds_is_told_and_serves_again(postgresql_server, tmp_path, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.storage.database._PATIENCE", 1)
    records, other = PredictionRepository(tmp_path / "data", postgresql_server), open_database(None, postgresql_server)
    with other.connect() as held, held.begin():
        held.execute(text("LOCK TABLE audit_log IN SHARE MODE"))
        with pytest.raises(StorageError, match="lock timeout"):
            add(records, b"held")
    assert add(records, b"held")[1]
    records.close()
    other.dispose()


def test_a_connection_whose_driver_failed_in_the_middle_is_given_up(postgresql_server, tmp_path):
    records = PredictionRepository(tmp_path / "data", postgresql_server)
    for _ in range(3):
        with pytest.raises(UnicodeEncodeError):
            add(records, b"half", name="half of a character: \ud800")
    for place in range(12):
        add(records, bytes([place]))
    assert records.find(Filter(), limit=1).total >= 12
    records.close()


def test_a_database_that_has_not_every_character_is_refused(postgresql_server):
    engine = create_engine(postgresql_server.replace("postgresql", "postgresql+pg8000"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS latin"))
        connection.execute(text("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"))
    with pytest.raises(UsageError, match="encoded in LATIN1") as caught:
        open_database(None, postgresql_server.removesuffix("postgres") + "latin")
    assert "--encoding=UTF8" in caught.value.hint
    engine.dispose()


def test_no_value_is_in_what_the_driver_says(postgresql_server, tmp_path, caplog):
    """A connection that is lost in the middle of a row is told by SQLAlchemy's pool, with a trace."""
    records, other = PredictionRepository(tmp_path / "data", postgresql_server), open_database(None, postgresql_server)
    others = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def lose():
        with write_transaction(records.engine) as connection, other.connect() as killer:
            killer.execute(others)
            connection.execute(text("SELECT :name"), {"name": CANARY})

    with pytest.raises(StorageError) as caught:
        lose()
    assert CANARY not in caplog.text + str(caught.value) + repr(caught.value.__cause__)
    records.close()
    other.dispose()


def test_at_the_start_nobody_is_told_that_it_goes_on(postgresql_server):
    with pytest.raises(StorageError) as caught:
        open_database(None, "postgresql://me@127.0.0.1:1/x")
    assert caught.value.hint == "Start it, or name another one"


def test_a_lost_connection_is_told_where_the_driver_does_not_make_it_an_error_of_its_own(tmp_path):
    with pytest.raises(StorageError, match="reset by peer"), reading(open_database(tmp_path)):
        raise ConnectionResetError(104, "reset by peer")


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
    with read_transaction(records.engine) as connection:
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
    monkeypatch.setattr("pneumoscope.service.storage.database._PATIENCE", 0.1)
    records = PredictionRepository(tmp_path / "data")
    other = open_database(tmp_path / "data")
    with write_transaction(other), pytest.raises(StorageError, match="locked"):
        add(records)
    assert add(records)[1]
    records.close()
    other.dispose()

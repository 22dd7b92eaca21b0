"""The database: migrations, lost connections, locks and the messages of its errors."""

import contextlib
import dataclasses
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import alembic.command
import alembic.config
import pytest
from sqlalchemy import create_engine, event, select, text
from tests.service.conftest import add, prediction

from pneumoscope.core.errors import StorageError, UsageError
from pneumoscope.core.messages import failure_message
from pneumoscope.core.prediction import Failure, ImageStatistics, PatientAge
from pneumoscope.service.audit.log import Entry, append, read_rows
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.database import DATABASE_FILE, open_database, read_transaction, write_transaction
from pneumoscope.service.storage.queries import Filter
from pneumoscope.service.storage.records import StoredPrediction, new_row
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.tables import METADATA, REVISION

CANARY = "DOE^JANE"
SECONDS = 60


@pytest.mark.usefixtures("migrations")
def test_migrations_create_the_tables_of_the_code(tmp_path, database):
    """Alembic finds no difference."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = open_database(tmp_path / "data", database)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
        assert context.get_current_revision() == REVISION
    engine.dispose()


def test_new_database_of_a_test_is_the_same_as_a_migrated_one(tmp_path, migrated_sqlite):
    open_database(tmp_path).dispose()
    schemas = []
    for file in (tmp_path / DATABASE_FILE, migrated_sqlite):
        with contextlib.closing(sqlite3.connect(file)) as connection:
            found = connection.execute(
                "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
            ).fetchall()
            schemas.append((found, connection.execute("SELECT * FROM alembic_version").fetchall()))
    assert schemas[0] == schemas[1]


def test_migrated_database_is_opened_without_alembic(tmp_path, empty_database, monkeypatch):
    monkeypatch.setattr(alembic.command, "upgrade", lambda *_: pytest.fail("migrated again"))
    open_database(tmp_path / "data", empty_database).dispose()


def test_closing_waits_for_a_transaction_of_a_database_in_memory():
    repository = PredictionRepository(None)
    with ThreadPoolExecutor(1) as pool:
        with read_transaction(repository.engine) as connection:
            closing = pool.submit(repository.close)
            assert not wait([closing], 0.5).done
            assert connection.execute(text("SELECT 1")).scalar() == 1
        assert closing.result(SECONDS) is None


def test_read_only_database_is_not_writable(tmp_path):
    """SQLite begins a transaction of a writer on a file that it can only read."""
    repository = PredictionRepository(tmp_path)
    repository.storage.check_writable()
    read_only = create_engine(f"sqlite:///file:{tmp_path / DATABASE_FILE}?mode=ro&uri=true")

    @event.listens_for(read_only, "begin")
    def begin(connection):
        connection.connection.isolation_level = None
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    repository.storage.engine = read_only
    with pytest.raises(StorageError, match="readonly database"):
        repository.storage.check_writable()
    read_only.dispose()
    repository.close()


def test_database_of_a_newer_version_is_rejected(repository, empty_database, tmp_path):
    with write_transaction(repository.engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'of the future'"))
    with pytest.raises(StorageError, match="newer version"):
        open_database(tmp_path / "data", empty_database)


@pytest.mark.usefixtures("migrations")
def test_database_of_the_first_revision_is_migrated_and_still_verified(tmp_path, database, monkeypatch):
    upgrade = alembic.command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(alembic.command, "upgrade", lambda config, _: upgrade(config, "0001"))
        engine = open_database(tmp_path / "data", database)
    statistics = ("image_brightness", "image_contrast", "image_sharpness", "image_border")
    later = ("age", "age_source", "warnings", "model_site", "model_prevalence", "pixel_sha256", *statistics)
    row = {name: value for name, value in new_row(prediction(), b"image").items() if name not in later}
    row |= {"created": "2026-01-31T09:30:00.000000Z", "note": ""}  # a column of that revision
    details = {
        "decision": "pneumonia",
        "probability": 0.75,
        "result_sha256": "ee0bdd7b6da88af843d772c735da2b3ae515551f75fe25843dd456da9f9f82bc",  # by the first revision
    }
    entry = Entry(row["created"], "me", "predicted", row["id"], row["image_sha256"], row["model_sha256"], details)
    with write_transaction(engine) as connection:
        names = ", ".join(row)
        connection.execute(text(f"INSERT INTO predictions ({names}) VALUES (:{names.replace(', ', ', :')})"), row)
        append(connection, [entry])
    engine.dispose()

    repository = PredictionRepository(tmp_path / "data", database)
    record = repository.get(row["id"])
    assert (record.decision, record.age, record.warnings, record.model.site) == ("pneumonia", None, (), "")
    assert record.image_statistics is None
    add(repository, b"new", age=PatientAge(3, "entered"))
    assert verify(repository.engine).predictions == 2
    repository.close()


@pytest.mark.usefixtures("migrations")
def test_rejected_request_of_an_earlier_revision_is_counted(tmp_path, database, monkeypatch):
    upgrade = alembic.command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(alembic.command, "upgrade", lambda config, _: upgrade(config, "0020"))
        engine = open_database(tmp_path / "data", database)
    rows = [
        ("pending", "status_0110", 3),
        ("pending", "timeout", 3),
        ("requested", "status_0110", 1),
        ("", "status_a700", 0),
    ]
    with write_transaction(engine) as connection:
        for number, (commitment, error, attempts) in enumerate(rows):
            values = dict.fromkeys(
                ("prediction_id", "failure_code", "model_sha256", "operating_point", "sop_instance_uid", "header",
                 "withdrawn_uids", "created", "due"), ""
            )  # fmt: skip
            values |= {"number": number, "destination": "PACS", "kind": "secondary_capture", "result_uid": str(number),
                       "attempts": 0, "state": "delivered", "error": error, "maybe_delivered": False,
                       "commitment": commitment, "commitment_attempts": attempts}  # fmt: skip
            names = ", ".join(values)
            connection.execute(text(f"INSERT INTO outbox ({names}) VALUES (:{names.replace(', ', ', :')})"), values)
    engine.dispose()

    repository = PredictionRepository(tmp_path / "data", database)
    with read_transaction(repository.engine) as connection:
        found = connection.execute(text("SELECT commitment_rejections FROM outbox ORDER BY number")).scalars().all()
    repository.close()
    assert found == [3, 0, 1, 0]


@pytest.mark.usefixtures("migrations")
def test_record_of_an_unreadable_file_of_an_earlier_revision_has_a_message_only(tmp_path, database, monkeypatch):
    upgrade = alembic.command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(alembic.command, "upgrade", lambda config, _: upgrade(config, "0015"))
        engine = open_database(tmp_path / "data", database)
    row = {
        "id": "ab" * 16,
        "path": "a.zip",
        "image_sha256": "cd" * 32,
        "image_bytes": 4,
        "created": "2026-01-31T09:30:00.000000Z",
        "failure_code": "unreadable_image",
        "failure_message": "cannot read 'a.zip': it is a zip archive",
        "failure_hint": "Unpack it",
    }
    with write_transaction(engine) as connection:
        names = ", ".join(row)
        connection.execute(text(f"INSERT INTO unreadable_files ({names}) VALUES (:{names.replace(', ', ', :')})"), row)
        append(connection, [Entry(row["created"], "PACS", "unreadable", image_sha256=row["image_sha256"])])
    engine.dispose()

    repository = PredictionRepository(tmp_path / "data", database)
    ((file,), _) = repository.unreadable_files.find()
    assert file.failure == Failure("unreadable_image", row["failure_message"], "Unpack it")
    assert file.sender == "PACS"
    assert failure_message(file.failure, "zh-Hant") == "cannot read 'a.zip': it is a zip archive. Unpack it"
    repository.close()


# Site profile and stated prevalence of predictions, and their id and hash by revision 0020, which stored both as one text.
SITES = [
    (
        "", 1 / 3, "d6b5b4814b0c4ce83b2db1fec5392330",
        "376c01c4fa473edafac0f4d575c94a3e4517b2551fded36701967717a406aa4e",
    ),
    (
        "North (0123abcd)", None, "4825f5c0c97c861bb43612d499aa720c",
        "e491792f97cefcc82199e153738b094894f20589cd8ee744e06a0f204c3f9b1f",
    ),
]  # fmt: skip


def test_stated_prevalence_of_an_earlier_revision_becomes_a_number_and_is_still_verified(tmp_path, database):
    """A site profile whose name reads like a prevalence stays as it is."""
    sites = {("", None), ("prevalence=0.2 (0123abcd)", None), *((site, prevalence) for site, prevalence, *_ in SITES)}
    with contextlib.closing(PredictionRepository(tmp_path / "data", database)) as repository:
        for site, prevalence in sites:
            model = dataclasses.replace(prediction().model, site=site, prevalence=prevalence)
            repository.add(dataclasses.replace(prediction(), model=model), b"image", user="me")
        logged = {row.prediction_id: json.loads(row.details) for row in read_rows(repository.engine)}
        assert [logged[id]["result_sha256"] for *_, id, _ in SITES] == [result for *_, result in SITES]
        with write_transaction(repository.engine) as connection:
            config = alembic.config.Config()
            config.set_main_option("script_location", "pneumoscope.service.storage:migrations")
            config.attributes["connection"] = connection
            alembic.command.downgrade(config, "0020")
            texts = set(connection.execute(text("SELECT model_site FROM predictions")).scalars().all())
            alembic.command.upgrade(config, "head")
        assert texts == {"", "prevalence=0.2 (0123abcd)", "prevalence=0.3333333333333333", "North (0123abcd)"}
        found = {id: repository.get(id).model for id in logged}
        assert {(model.site, model.prevalence) for model in found.values()} == sites
        assert [(found[id].site, found[id].prevalence) for *_, id, _ in SITES] == [tuple(each[:2]) for each in SITES]
        assert verify(repository.engine).predictions == 4


@pytest.mark.parametrize("reviewed", [False, True])
def test_stored_prediction_is_flattened_to_its_row_in_the_database(repository, reviewed):
    record, _ = add(repository, image_statistics=ImageStatistics(101.5, 30.25, 2.0, 0.0))
    if reviewed:
        record = repository.review(record.id, "no_finding", note="a note", user="me")
    with repository.engine.connect() as connection:
        (row,) = connection.execute(select(METADATA.tables["predictions"])).mappings()
    stored = {name: value for name, value in row.items() if name != "identity_removed"}
    assert {name: value for name, value in record.to_row().items() if name in row} == stored
    assert StoredPrediction.from_row(record.to_row()) == record


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("mysql://a@b/c", "takes postgresql://"),
        ("nonsense", "not the URL of a database"),
        (
            "postgresql://me:secret@127.0.0.1:1/x",
            r"cannot be used: Can't create a connection to host 127.0.0.1 and port 1",
        ),
    ],
)
def test_invalid_address_is_rejected_without_showing_its_password(address, words):
    with pytest.raises((UsageError, StorageError), match=words) as caught:
        open_database(None, address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["q?mode=memory", "p%20z", "a#b", "file:x", "ünï"])
def test_database_is_in_the_data_directory_whatever_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    repository = PredictionRepository(Path(name))
    add(repository)
    repository.close()
    assert {file.name for file in tmp_path.iterdir()} == {name}
    assert (tmp_path / name / DATABASE_FILE).is_file()


def test_postgresql_error_shows_only_its_message(postgresql_server):
    with pytest.raises(StorageError) as caught:
        open_database(None, postgresql_server.removesuffix("postgres") + "nowhere")
    assert caught.value.message.endswith('cannot be used: database "nowhere" does not exist')


def test_lost_connection_is_an_error_and_the_next_one_works(postgresql_server):
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


def test_locked_table_is_an_error_until_it_is_released(postgresql_server, tmp_path, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.storage.database._LOCK_SECONDS", 1)
    repository, other = (
        PredictionRepository(tmp_path / "data", postgresql_server),
        open_database(None, postgresql_server),
    )
    with other.connect() as held, held.begin():
        held.execute(text("LOCK TABLE audit_log IN SHARE MODE"))
        with pytest.raises(StorageError, match="lock timeout"):
            add(repository, b"held")
    assert add(repository, b"held")[1]
    repository.close()
    other.dispose()


def test_connection_is_closed_after_its_driver_failed(postgresql_server, tmp_path):
    repository = PredictionRepository(tmp_path / "data", postgresql_server)
    for _ in range(3):
        with pytest.raises(UnicodeEncodeError):
            add(repository, b"half", name="half of a character: \ud800")
    for place in range(12):
        add(repository, bytes([place]))
    assert repository.find(Filter(), limit=1).total >= 12
    repository.close()


def test_database_that_is_not_utf8_is_rejected(postgresql_server):
    engine = create_engine(postgresql_server.replace("postgresql", "postgresql+pg8000"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS latin"))
        connection.execute(text("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"))
    with pytest.raises(UsageError, match="encoded in LATIN1") as caught:
        open_database(None, postgresql_server.removesuffix("postgres") + "latin")
    assert "--encoding=UTF8" in caught.value.hint
    engine.dispose()


def test_errors_of_the_driver_contain_no_value(postgresql_server, tmp_path, caplog):
    """SQLAlchemy's pool logs a connection that is lost within a transaction, with a traceback."""
    repository, other = (
        PredictionRepository(tmp_path / "data", postgresql_server),
        open_database(None, postgresql_server),
    )
    others = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def lose():
        with write_transaction(repository.engine) as connection, other.connect() as killer:
            killer.execute(others)
            connection.execute(text("SELECT :name"), {"name": CANARY})

    with pytest.raises(StorageError) as caught:
        lose()
    assert CANARY not in caplog.text + str(caught.value) + repr(caught.value.__cause__)
    repository.close()
    other.dispose()


def test_error_at_the_start_has_its_own_hint(postgresql_server):
    with pytest.raises(StorageError) as caught:
        open_database(None, "postgresql://me@127.0.0.1:1/x")
    assert caught.value.hint == "Start the database, or pass another address"


def test_bare_os_error_of_a_lost_connection_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="reset by peer"), read_transaction(open_database(tmp_path)):
        raise ConnectionResetError(104, "reset by peer")


def test_exhausted_pool_is_an_error(tmp_path, monkeypatch):
    engine = open_database(tmp_path)
    monkeypatch.setattr(engine.pool, "_timeout", 0.05)
    held = [engine.connect() for _ in range(15)]
    with pytest.raises(StorageError, match="all connections are busy"), read_transaction(engine):
        pass
    for each in held:
        each.close()
    engine.dispose()


def test_reader_sees_one_state_during_writes(repository):
    add(repository, b"a")
    with read_transaction(repository.engine) as connection:
        counted = text("SELECT count(*) FROM predictions")
        assert connection.execute(counted).scalar_one() == 1
        add(repository, b"b")
        assert connection.execute(counted).scalar_one() == 1
    assert repository.find(Filter()).total == 2


def test_damaged_database_file_is_rejected(tmp_path):
    (tmp_path / DATABASE_FILE).write_bytes(b"no database, but a file of some length" * 100)
    with pytest.raises(StorageError, match="not a database"):
        open_database(tmp_path)


def test_locked_database_is_an_error_until_it_is_released(tmp_path, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.storage.database._LOCK_SECONDS", 0.1)
    repository = PredictionRepository(tmp_path / "data")
    other = open_database(tmp_path / "data")
    with write_transaction(other), pytest.raises(StorageError, match="locked"):
        add(repository)
    assert add(repository)[1]
    repository.close()
    other.dispose()

"""Opens the service's database, SQLite in its data folder or PostgreSQL by its address, and brings its tables up to date."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.util
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import StaticPool

from pneumoscope.core.errors import PneumoscopeError, StorageError, UsageError
from pneumoscope.service.storage.data_directory import create_data_directory
from pneumoscope.service.storage.tables import TRAIL

__all__ = ["DATABASE_FILE", "open_database", "reading", "writing"]

DATABASE_FILE = "pneumoscope.sqlite"
_PATIENCE = 5  # seconds for another writer's lock, or for a connection
_SILENCE = 60  # seconds for PostgreSQL to say something


def open_database(folder: Path | None, address: str = "") -> Engine:
    """Open a database, and make or change its tables where they are older than this version.

    Args:
        folder: where SQLite's file lies; None keeps everything in memory, for as long as the process lives.
        address: of another database, "postgresql://user@host/name".
    Raises:
        UsageError: the address cannot be understood, or is of a database that is not supported.
        StorageError: it cannot be opened or written, or its tables are of a newer version.
    """
    engine = _postgresql(address) if address else _sqlite(folder)
    try:
        _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _migrate(engine: Engine) -> None:
    begin = "Start it, or name another one"
    with told(engine, begin), writing(engine, begin) as connection:
        if engine.dialect.name == "postgresql":
            encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
            if encoding != "UTF8":
                raise UsageError(
                    f"the database {_shown(engine)} is encoded in {encoding}, which has not every character of a name",
                    hint="createdb --encoding=UTF8 --template=template0",
                )
            # Two processes that start together would both make the tables.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('pneumoscope'))")
        config = alembic.config.Config()
        config.set_main_option("script_location", "pneumoscope.service.storage:migrations")
        config.attributes["connection"] = connection
        try:
            alembic.command.upgrade(config, "head")
        except alembic.util.CommandError as error:
            raise StorageError(
                f"the database {_shown(engine)} was made by a newer version: {error}",
                hint="Upgrade: pip install -U 'pneumoscope[serve]'",
            ) from error


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection that sees one state of the database, and changes nothing.

    Raises:
        StorageError: the database cannot be reached.
    """
    with told(engine), engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            # By itself it would show each statement another state. SQLite keeps to that of the first one.
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        with _left_whole(connection):
            yield connection


@contextlib.contextmanager
def writing(engine: Engine, hint: str = "") -> Iterator[Connection]:
    """A transaction of the one writer there is at a time; all of it is kept, or nothing.

    Args:
        engine: of the database.
        hint: see `told`.
    Raises:
        StorageError: the database cannot be reached or written, or another writer did not end in time.
    """
    with told(engine, hint), _writer(engine) as connection, connection.begin(), _left_whole(connection):
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_PATIENCE}s'")
            if connection.dialect.has_table(connection, TRAIL):
                connection.exec_driver_sql(f"LOCK TABLE {TRAIL} IN EXCLUSIVE MODE")
        yield connection


def _writer(engine: Engine) -> Connection:
    return engine.connect().execution_options(writes=True)


@contextlib.contextmanager
def _left_whole(connection: Connection) -> Iterator[None]:
    """Give up a connection to PostgreSQL whose driver failed in the middle of speaking: the next one would get its answers."""
    try:
        yield
    except (DBAPIError, PneumoscopeError):
        raise
    except BaseException:
        if connection.dialect.name == "postgresql":
            connection.invalidate()
        raise


@contextlib.contextmanager
def told(engine: Engine, hint: str = "") -> Iterator[None]:
    """What a database says in its own way, said in ours.

    Args:
        engine: of the database.
        hint: what to do; where empty, that of a service that goes on.
    """
    try:
        yield
    except (DBAPIError, PoolTimeoutError, OSError) as error:  # a lost connection is now and then a bare OSError
        raise StorageError(
            f"the database {_shown(engine)} cannot be used: {_why(error)}",
            hint=hint
            or "Nothing was changed. Free space, unlock or start it; the service goes on by itself when it is back",
        ) from error


def _sqlite(folder: Path | None) -> Engine:
    if folder is None:
        connect_args = {"check_same_thread": False}
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args=connect_args, hide_parameters=True)
    else:
        create_data_directory(folder)
        # Not as text: a folder's name may hold what means something else in an address.
        address = URL.create("sqlite", database=str(folder / DATABASE_FILE))
        engine = create_engine(address, connect_args={"timeout": _PATIENCE}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # Python's driver would begin transactions by itself, and late
        for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {setting}")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        # A writer waits for its turn at its beginning; one that turns from reading to writing may be refused at once.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(address: str) -> Engine:
    try:
        url = make_url(address)
        if url.get_backend_name() != "postgresql":
            raise UsageError(
                f"--database takes postgresql://, not {url.drivername}://", hint="SQLite needs no address: use --data"
            )
        # A driver whose licence is as free as ours.
        return create_engine(
            url.set(drivername="postgresql+pg8000"),
            pool_pre_ping=True,
            pool_size=8,
            pool_timeout=_PATIENCE,
            connect_args={"timeout": _SILENCE},
            hide_parameters=True,  # names of patients are among them
        )
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise UsageError("--database is no address of a database", hint="postgresql://user@host/name") from error
    except SQLAlchemyError as error:
        raise UsageError(f"--database cannot be used: {error}") from error


def _why(error: Exception) -> str:
    """What a driver says, without the rest that PostgreSQL sends with it: codes, and lines of its source."""
    if isinstance(error, PoolTimeoutError):
        return "all connections to it are busy"
    said = error.orig if isinstance(error, DBAPIError) else error
    if said and said.args and isinstance(said.args[0], dict):
        return str(said.args[0].get("M", "no reason given"))
    return " ".join(str(said).split()).rstrip(".")


def _shown(engine: Engine) -> str:
    """Where a database is, without its password."""
    return repr(engine.url.database or "in memory") if engine.dialect.name == "sqlite" else repr(str(engine.url))

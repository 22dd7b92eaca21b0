"""The service's database: SQLite in the data directory, or PostgreSQL; its schema is migrated when it is opened."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import StaticPool

from pneumoscope.core.errors import PneumoscopeError, StorageError, UsageError
from pneumoscope.service.storage.data_directory import create_data_directory
from pneumoscope.service.storage.tables import REVISION, audit_log

__all__ = ["DATABASE_FILE", "close_database", "open_database", "read_transaction", "write_transaction"]

DATABASE_FILE = "pneumoscope.sqlite"
_LOCK_SECONDS: float = 2  # wait for another writer's lock, or for a connection; clients wait for 3 s at most
_SOCKET_SECONDS = 60  # wait for a response of PostgreSQL


def open_database(folder: Path | None, address: str = "") -> Engine:
    """Open a database, and create its tables or migrate them to this version.

    Args:
        folder: Data directory with the SQLite file; None keeps the database in memory.
        address: URL of a PostgreSQL database, "postgresql://user@host/name", used instead of SQLite.
    Raises:
        UsageError: The address is invalid, or of a database that is not supported.
        StorageError: The database cannot be opened or written, or its tables are of a newer version.
    """
    engine = _create_postgresql_engine(address) if address else _create_sqlite_engine(folder)
    try:
        _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def close_database(engine: Engine) -> None:
    """Close the connections of a database. Wait for a transaction of a database in memory: closing its connection would crash."""
    with _connection_lock(engine):
        engine.dispose()


@contextlib.contextmanager
def read_transaction(engine: Engine) -> Iterator[Connection]:
    """Yield a connection that sees one state of the database and changes nothing.

    Raises:
        StorageError: The database cannot be reached.
    """
    with _connection_lock(engine), _storage_errors(engine), engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            # By default each statement would see another state. SQLite keeps to that of the first one.
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        with _invalidate_on_interrupt(connection):
            yield connection


@contextlib.contextmanager
def write_transaction(engine: Engine, hint: str = "", *, wait: bool = True) -> Iterator[Connection]:
    """Yield a connection in a transaction that excludes other writers; it is committed as a whole or not at all.

    Args:
        engine: Engine of the database.
        hint: What to do if it fails; the default is for a service that continues.
        wait: Whether to wait for another writer's lock.
    Raises:
        StorageError: The database cannot be reached or written, or another writer holds the lock for too long.
    """
    with (
        _connection_lock(engine),
        _storage_errors(engine, hint),
        engine.connect().execution_options(writes=True, wait=wait) as connection,
        connection.begin(),
        _invalidate_on_interrupt(connection),
    ):
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_lock_milliseconds(wait=wait)}")
            if connection.dialect.has_table(connection, audit_log.name):
                connection.exec_driver_sql(f"LOCK TABLE {audit_log.name} IN EXCLUSIVE MODE")
        yield connection


def _migrate(engine: Engine) -> None:
    hint = "Start the database, or pass another address"
    with write_transaction(engine, hint) as connection:
        if engine.dialect.name == "postgresql":
            encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
            if encoding != "UTF8":
                raise UsageError(
                    f"the database {_display_url(engine)} is encoded in {encoding}, which lacks characters of file names",
                    hint="createdb --encoding=UTF8 --template=template0",
                )
            # Two processes that start together would both create the tables.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('pneumoscope'))")
        if _revision(connection) != REVISION:
            _upgrade(connection)


def _revision(connection: Connection) -> str | None:
    """Return the revision of the tables, or None if there are none."""
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    revision: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return revision


def _upgrade(connection: Connection) -> None:
    import alembic.command  # takes longer to import than a migrated database to open
    import alembic.config
    import alembic.util

    config = alembic.config.Config()
    config.set_main_option("script_location", "pneumoscope.service.storage:migrations")
    config.attributes["connection"] = connection
    try:
        alembic.command.upgrade(config, "head")
    except alembic.util.CommandError as error:
        raise StorageError(
            f"the database {_display_url(connection.engine)} was created by a newer version: {error}",
            hint="Upgrade: pip install -U 'pneumoscope[serve]'",
        ) from error


def _connection_lock(engine: Engine) -> contextlib.AbstractContextManager[Any]:
    """Return the lock of a database in memory, of which all threads share one connection."""
    lock: contextlib.AbstractContextManager[Any] | None = engine.get_execution_options().get("connection_lock")
    return lock or contextlib.nullcontext()


@contextlib.contextmanager
def _invalidate_on_interrupt(connection: Connection) -> Iterator[None]:
    """Close a PostgreSQL connection that was interrupted in the middle of an exchange.

    The next user of the connection would otherwise receive the responses to the interrupted one.
    """
    try:
        yield
    except (DBAPIError, PneumoscopeError):
        raise
    except BaseException:
        if connection.dialect.name == "postgresql":
            connection.invalidate()
        raise


@contextlib.contextmanager
def _storage_errors(engine: Engine, hint: str = "") -> Iterator[None]:
    """Turn errors of the database driver into StorageError."""
    try:
        yield
    except (DBAPIError, PoolTimeoutError, OSError) as error:  # pg8000 raises a bare OSError if a connection is lost
        raise StorageError(
            f"the database {_display_url(engine)} cannot be used: {_driver_message(error)}",
            hint=hint or "Nothing was changed. Free space, unlock or start the database; the service then continues",
        ) from error


def _create_sqlite_engine(folder: Path | None) -> Engine:
    if folder is None:
        connect_args = {"check_same_thread": False}
        options = {"connection_lock": threading.RLock()}
        engine = create_engine(
            "sqlite://",
            poolclass=StaticPool,
            connect_args=connect_args,
            hide_parameters=True,
            execution_options=options,
        )
    else:
        create_data_directory(folder)
        # Not as text: a folder's name may contain characters with a meaning in URLs.
        url = URL.create("sqlite", database=str(folder / DATABASE_FILE))
        engine = create_engine(url, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # Python's driver would begin transactions by itself, and late
        for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {setting}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer waits for the lock at the start; upgrading a read transaction may fail at once.
        options = connection.get_execution_options()
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {_lock_milliseconds(wait=options.get('wait', True))}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")

    return engine


def _lock_milliseconds(*, wait: bool) -> int:
    return round(1000 * _LOCK_SECONDS) if wait else 1  # 0 would wait without limit in PostgreSQL


def _create_postgresql_engine(address: str) -> Engine:
    try:
        url = make_url(address)
        if url.get_backend_name() != "postgresql":
            raise UsageError(
                f"--database takes postgresql://, not {url.drivername}://", hint="For SQLite, pass only --data-dir"
            )
        return create_engine(
            url.set(drivername="postgresql+pg8000"),  # a driver with a permissive license
            pool_pre_ping=True,
            pool_size=8,
            pool_timeout=_LOCK_SECONDS,
            connect_args={"timeout": _SOCKET_SECONDS},
            hide_parameters=True,  # they include file names, which may name patients
        )
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise UsageError("--database is not the URL of a database", hint="postgresql://user@host/name") from error
    except SQLAlchemyError as error:
        raise UsageError(f"--database cannot be used: {error}") from error


def _driver_message(error: Exception) -> str:
    """Return the message of a driver's error, without the codes and source lines that PostgreSQL adds."""
    if isinstance(error, PoolTimeoutError):
        return "all connections are busy"
    original = error.orig if isinstance(error, DBAPIError) else error
    if original and original.args and isinstance(original.args[0], dict):
        return str(original.args[0].get("M", "no reason given"))
    return " ".join(str(original).split()).rstrip(".")


def _display_url(engine: Engine) -> str:
    """Return the location of a database without its password, quoted."""
    return repr(engine.url.database or "in memory") if engine.dialect.name == "sqlite" else repr(str(engine.url))

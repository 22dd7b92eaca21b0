"""The service's database, SQLite in the data directory or PostgreSQL. Opening it migrates the schema."""

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
_LOCK_SECONDS: float = 2  # wait for a lock or a connection; clients wait at most 3 s
_SOCKET_SECONDS = 60  # wait for a response from PostgreSQL


def open_database(folder: Path | None, address: str = "") -> Engine:
    """Open a database; create its tables or migrate them to this version.

    Args:
        folder: Data directory with the SQLite file; None keeps the database in memory.
        address: URL of a PostgreSQL database to use instead of SQLite, "postgresql://user@host/name".
    Raises:
        UsageError: The URL is invalid, or the database is not supported.
        StorageError: The database cannot be opened or written, or its tables have a newer version.
    """
    engine = _create_postgresql_engine(address) if address else _create_sqlite_engine(folder)
    try:
        _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def close_database(engine: Engine) -> None:
    """Close the connections of a database. First wait for any transaction in memory: closing its connection would crash."""
    with _connection_lock(engine):
        engine.dispose()


@contextlib.contextmanager
def read_transaction(engine: Engine) -> Iterator[Connection]:
    """Yield a read-only connection that sees a single snapshot of the database.

    Raises:
        StorageError: The database cannot be reached.
    """
    with _connection_lock(engine), _storage_errors(engine), engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            # By default, each statement would see a new snapshot. SQLite keeps that of the first statement.
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        with _invalidate_on_interrupt(connection):
            yield connection


@contextlib.contextmanager
def write_transaction(engine: Engine, hint: str = "", *, wait: bool = True) -> Iterator[Connection]:
    """Yield a connection in a transaction that excludes other writers; it is committed completely or not at all.

    Args:
        engine: Engine of the database.
        hint: Hint for the error; the default suits a running service.
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
            # Otherwise, two processes that start at the same time would both create the tables.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('pneumoscope'))")
        if _revision(connection) != REVISION:
            _upgrade(connection)


def _revision(connection: Connection) -> str | None:
    """Return the revision of the tables; None if there are no tables."""
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
    """Return the lock of an in-memory database, whose single connection is shared by all threads."""
    lock: contextlib.AbstractContextManager[Any] | None = engine.get_execution_options().get("connection_lock")
    return lock or contextlib.nullcontext()


@contextlib.contextmanager
def _invalidate_on_interrupt(connection: Connection) -> Iterator[None]:
    """Invalidate a PostgreSQL connection that was interrupted in the middle of an exchange.

    Otherwise, its next user would receive the responses to the interrupted one.
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
    """Convert errors of the database driver to StorageError."""
    try:
        yield
    except (DBAPIError, PoolTimeoutError, OSError) as error:  # pg8000 raises a bare OSError if the connection is lost
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
        # Not as text, because folder names may contain characters that are special in URLs.
        url = URL.create("sqlite", database=str(folder / DATABASE_FILE))
        engine = create_engine(url, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # Python's driver would begin transactions implicitly, and late
        for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {setting}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer waits for the lock at the start; upgrading a read transaction could fail immediately.
        options = connection.get_execution_options()
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {_lock_milliseconds(wait=options.get('wait', True))}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")

    return engine


def _lock_milliseconds(*, wait: bool) -> int:
    return round(1000 * _LOCK_SECONDS) if wait else 1  # 0 would mean no limit in PostgreSQL


def _create_postgresql_engine(address: str) -> Engine:
    try:
        url = make_url(address)
        if url.get_backend_name() != "postgresql":
            raise UsageError(
                f"--database takes postgresql://, not {url.drivername}://", hint="For SQLite, pass only --data-dir"
            )
        return create_engine(
            url.set(drivername="postgresql+pg8000"),  # a permissively licensed driver
            pool_pre_ping=True,
            pool_size=8,
            pool_timeout=_LOCK_SECONDS,
            connect_args={"timeout": _SOCKET_SECONDS},
            hide_parameters=True,  # they include file names, which may identify patients
        )
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise UsageError("--database is not the URL of a database", hint="postgresql://user@host/name") from error
    except SQLAlchemyError as error:
        raise UsageError(f"--database cannot be used: {error}") from error


def _driver_message(error: Exception) -> str:
    """Return the message of a driver error, without the codes and source lines that PostgreSQL adds."""
    if isinstance(error, PoolTimeoutError):
        return "all connections are busy"
    original = error.orig if isinstance(error, DBAPIError) else error
    if original and original.args and isinstance(original.args[0], dict):
        return str(original.args[0].get("M", "no reason given"))
    return " ".join(str(original).split()).rstrip(".")


def _display_url(engine: Engine) -> str:
    """Return the quoted location of a database, without its password."""
    return repr(engine.url.database or "in memory") if engine.dialect.name == "sqlite" else repr(str(engine.url))

"""Open the database of a service for the commands that read or change it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.options import database_option
from pneumoscope.core.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["open_service_database", "service_database_options"]


def service_database_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that locate the database of a service: `data_dir` and `database`."""
    for option in (
        database_option,
        click.option(
            "--data-dir", type=click.Path(path_type=Path),
            help="Data directory of the service.  [default: pneumoscope-data]",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@contextlib.contextmanager
def open_service_database(
    data_dir: Path | None, database: str, *, create: bool = False
) -> Iterator[tuple[Path | None, Engine]]:
    """Yield the data directory, if known, and the database engine.

    Args:
        data_dir: Data directory; None for the default, unless a database is given.
        database: URL of a PostgreSQL database; empty for SQLite in the data directory.
        create: Whether to create a missing database.

    Raises:
        UsageError: There is no database.
        StorageError: The database cannot be opened.
    """
    from pneumoscope.service.storage.database import DATABASE_FILE, open_database

    folder = data_dir if database else data_dir or Path("pneumoscope-data")
    if not create and folder and not (folder.is_dir() if database else (folder / DATABASE_FILE).is_file()):
        raise UsageError(
            f"no database in {str(folder)!r}", hint="Pass the data directory of the service with --data-dir"
        )
    engine = open_database(folder, database)
    try:
        yield folder, engine
    finally:
        engine.dispose()

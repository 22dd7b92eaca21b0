"""SQL queries over an archive with DuckDB, using the views `images` and `predictions`.

Only shards in the journal are read, which ignores leftovers of killed runs. The files are read in place.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from pneumoscope.archive.archive_folder import ArchiveFolder, PredictionSet
from pneumoscope.archive.journal import read_journal
from pneumoscope.archive.listing import Listing
from pneumoscope.archive.table import COLUMNS
from pneumoscope.core.errors import UsageError

__all__ = ["QueryResult", "connected", "query_archive"]

_SQL_TYPES = {"int64": "BIGINT", "int32": "INTEGER", "int16": "SMALLINT", "double": "DOUBLE", "string": "VARCHAR"}
_INSERTED = 1000  # shards per statement
_FETCHED = 2048  # rows


class QueryResult(NamedTuple):
    """Result of a query.

    Attributes:
        columns: Column names.
        rows: Rows, computed on iteration; iterating raises UsageError if the query fails.
    """

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]


@contextlib.contextmanager
def query_archive(path: Path, sql: str) -> Iterator[QueryResult]:
    """Yield the result of a query, whose rows are streamed inside the block.

    Args:
        path: Folder of the archive.
        sql: One or more statements; the rows of the last one are returned.

    Raises:
        UsageError: The query is invalid, or the folder is not an archive.
    """
    with connected(path) as connection:
        with _reported():
            cursor = connection.execute(sql)
            columns = tuple(column[0] for column in cursor.description or ())
        yield QueryResult(columns, _rows(cursor))


def _rows(cursor: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while True:
        with _reported():
            rows = cursor.fetchmany(_FETCHED)
        if not rows:
            return
        yield from rows


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Convert DuckDB errors to UsageError."""
    try:
        yield
    except duckdb.Error as error:
        raise UsageError(
            f"the query failed: {str(error).splitlines()[0]}",
            hint="The views are images and predictions; show their columns with: DESCRIBE predictions",
        ) from error


@contextlib.contextmanager
def connected(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection with the views of an archive.

    `images` has the columns of the listing, and `current`, which is false if the file changed later and has a newer row.
    `predictions` has `table.COLUMNS`, `model` (the set), `time` and `runtime` of the shard, and `current`.

    Raises:
        UsageError: The folder is not an archive.
        ArchiveError: The listing or a journal is damaged.
    """
    folder = ArchiveFolder.open(path)
    Listing(folder.listing)  # raises if it is damaged
    # Spill results that do not fit into memory to a temporary folder instead of the working directory.
    with (
        tempfile.TemporaryDirectory() as temporary,
        duckdb.connect(":memory:", config={"temp_directory": temporary}) as connection,
    ):
        # Never download an extension because a query uses it; only the statement INSTALL may.
        connection.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
        # List each file, because a bracket in a folder name would be special in a pattern.
        listed = ", ".join(_quoted(str(file.resolve())) for file in sorted(folder.listing.glob("rows-*.parquet")))
        connection.execute(
            f"CREATE VIEW images AS SELECT * EXCLUDE (source_bytes), row = max(row) OVER"  # noqa: S608  quoted
            f" (PARTITION BY source) AS current FROM read_parquet([{listed}], hive_partitioning = false)"
            if listed
            else "CREATE VIEW images AS SELECT 0::BIGINT AS row, 0 AS shard, '' AS source, 0::BIGINT AS size,"
            " 0::BIGINT AS modified, true AS current LIMIT 0"
        )
        connection.execute("CREATE TABLE shards (filename VARCHAR, model VARCHAR, time TIMESTAMP, runtime VARCHAR)")
        files = [each for chosen in folder.sets() for each in _finished(chosen)]
        for start in range(0, len(files), _INSERTED):
            values = ", ".join(f"({', '.join(map(_quoted, each))})" for each in files[start : start + _INSERTED])
            connection.execute(f"INSERT INTO shards VALUES {values}")  # noqa: S608  quoted
        connection.execute(_predictions_view([name for name, *_ in files]))
        yield connection


def _finished(chosen: PredictionSet) -> Iterator[tuple[str, str, str, str]]:
    """Yield the path, set, time and software of each finished shard whose file exists."""
    files = chosen.files()
    for number, entry in sorted(read_journal(chosen.journal).items()):
        if number in files:
            time = entry.finished.removesuffix("+00:00")
            yield str(files[number].resolve()), chosen.key, time, str(entry.runtime)


def _predictions_view(files: Sequence[str]) -> str:
    if not files:
        empty = ", ".join(f"NULL::{_SQL_TYPES[kind]} AS {name}" for name, kind in COLUMNS.items())
        return (
            f"CREATE VIEW predictions AS SELECT {empty}, '' AS model, NULL::TIMESTAMP AS time, '' AS runtime,"
            " true AS current LIMIT 0"
        )
    names = ", ".join(map(_quoted, files))
    return (
        "CREATE VIEW predictions AS SELECT p.* EXCLUDE (filename), s.model, s.time, s.runtime, i.current"  # noqa: S608  quoted
        f" FROM read_parquet([{names}], filename = true, hive_partitioning = false) p"
        " JOIN shards s USING (filename) JOIN images i USING (row)"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

"""SQL over an archive, with DuckDB: the views `images` and `predictions`.

Only shards in the journal are read, so that what a killed run left is not seen. The files are read in place.
"""

from __future__ import annotations

import contextlib
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


class QueryResult(NamedTuple):
    """The result of a query.

    Attributes:
        columns: Names of the columns.
        rows: The rows.
        is_complete: False if there are more rows.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    is_complete: bool


def query_archive(path: Path, sql: str, *, limit: int = 0) -> QueryResult:
    """Return the rows of a query.

    Args:
        path: Folder of the archive.
        sql: One or more statements; the rows of the last one are returned.
        limit: Maximum number of rows; 0 for all.
    Raises:
        UsageError: The query is wrong, or the folder is no archive.
    """
    with connected(path) as connection:
        try:
            cursor = connection.execute(sql)
            columns = tuple(column[0] for column in cursor.description or ())
            rows = cursor.fetchmany(limit + 1) if limit else cursor.fetchall()
        except duckdb.Error as error:
            raise UsageError(
                f"the query failed: {str(error).splitlines()[0]}",
                hint="The views are images and predictions; show their columns with: DESCRIBE predictions",
            ) from error
        return QueryResult(columns, tuple(rows[:limit] if limit else rows), not limit or len(rows) <= limit)


@contextlib.contextmanager
def connected(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection with the views of an archive.

    `images` has the columns of the listing, and `current`: false if the file has changed since, and has a newer row.
    `predictions` has those of `table.COLUMNS`, `model` (the set), `time` of the shard, and `current`.

    Raises:
        UsageError: The folder is no archive.
        ArchiveError: The listing or a journal is damaged.
    """
    folder = ArchiveFolder.open(path)
    Listing(folder.listing)  # raises if it is damaged
    with duckdb.connect(":memory:") as connection:
        # No extension is downloaded because a query uses it; only the statement INSTALL does that.
        connection.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
        # Each file by its name: in a pattern, a bracket in the name of a folder would have a meaning.
        listed = ", ".join(_quoted(str(file.resolve())) for file in sorted(folder.listing.glob("rows-*.parquet")))
        connection.execute(
            f"CREATE VIEW images AS SELECT * EXCLUDE (source_bytes), row = max(row) OVER"  # noqa: S608  quoted
            f" (PARTITION BY source) AS current FROM read_parquet([{listed}], hive_partitioning = false)"
            if listed
            else "CREATE VIEW images AS SELECT 0::BIGINT AS row, 0 AS shard, '' AS source, 0::BIGINT AS size,"
            " 0::BIGINT AS modified, true AS current LIMIT 0"
        )
        connection.execute("CREATE TABLE shards (filename VARCHAR, model VARCHAR, time TIMESTAMP)")
        files = [each for chosen in folder.sets() for each in _finished(chosen)]
        for start in range(0, len(files), _INSERTED):
            values = ", ".join(f"({', '.join(map(_quoted, each))})" for each in files[start : start + _INSERTED])
            connection.execute(f"INSERT INTO shards VALUES {values}")  # noqa: S608  quoted
        connection.execute(_predictions_view([name for name, _, _ in files]))
        yield connection


def _finished(chosen: PredictionSet) -> Iterator[tuple[str, str, str]]:
    """Yield the file, the set and the time of each finished shard whose file is there."""
    files = chosen.files()
    for number, entry in sorted(read_journal(chosen.journal).items()):
        if number in files:
            yield str(files[number].resolve()), chosen.key, entry.finished.removesuffix("+00:00")


def _predictions_view(files: Sequence[str]) -> str:
    if not files:
        empty = ", ".join(f"NULL::{_SQL_TYPES[kind]} AS {name}" for name, kind in COLUMNS.items())
        return (
            f"CREATE VIEW predictions AS SELECT {empty}, '' AS model, NULL::TIMESTAMP AS time, true AS current LIMIT 0"
        )
    names = ", ".join(map(_quoted, files))
    return (
        "CREATE VIEW predictions AS SELECT p.* EXCLUDE (filename), s.model, s.time, i.current"  # noqa: S608  quoted
        f" FROM read_parquet([{names}], filename = true, hive_partitioning = false) p"
        " JOIN shards s USING (filename) JOIN images i USING (row)"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

"""Verify a set of predictions: every listed image is in exactly one row, and no file was altered."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from pneumoscope.archive.archive_folder import ArchiveFolder, PredictionSet
from pneumoscope.archive.journal import Entry, read_journal
from pneumoscope.archive.listing import Listing, display_name
from pneumoscope.core.errors import StorageError

__all__ = ["Problem", "ProblemCode", "Verification", "verify_archive"]

# not_scored: the journal has no such shard. lost: its file is missing. altered: its file has another hash. wrong_rows: its file
# does not have exactly the listed images. not_listed: a file, or a line of the journal, of no listed shard. not_entered: a file
# that is not in the journal, which a killed run left and the next one replaces.
ProblemCode = Literal["not_scored", "lost", "altered", "wrong_rows", "not_listed", "not_entered"]


class Problem(NamedTuple):
    """A shard that is not as it should be.

    Attributes:
        shard: Number of the shard.
        code: What is wrong.
        first_row, last_row: Rows of the shard in the listing; -1 if it is not listed.
        missing, doubled: Number of listed rows that the file has not, and that it has more than once.
    """

    shard: int
    code: ProblemCode
    first_row: int
    last_row: int
    missing: int
    doubled: int


class Verification(NamedTuple):
    """The result for one set of predictions.

    Attributes:
        key: Name of the set.
        rows: Listed images.
        found: Listed images that are in exactly one row of an unaltered file.
        problems: By shard; empty if every image is found.
    """

    key: str
    rows: int
    found: int
    problems: tuple[Problem, ...]


def verify_archive(path: Path, key: str = "", *, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Read every file of a set, and compare it with the listing and the journal.

    Args:
        path: Folder of the archive.
        key: Name of the set, or its beginning; the only one if empty.
        progress: Called with the number of verified shards and of all shards.
    Raises:
        UsageError: The folder is no archive, or has several sets.
        ArchiveError: The listing or the journal is damaged.
        StorageError: A file cannot be read.
    """
    folder = ArchiveFolder.open(path)
    listing, chosen = Listing(folder.listing), folder.find_set(key)
    journal, files = read_journal(chosen.journal), chosen.files()
    problems: list[Problem] = []
    found = 0
    for number, first, rows in listing.ranges():
        problem = _check_shard(chosen, listing, number, first, rows, journal.get(number), files.get(number))
        if problem:
            problems.append(problem)
        else:
            found += rows
        if progress:
            progress(number + 1, listing.shards)
    problems.extend(_not_listed(listing.shards, journal, files))
    return Verification(chosen.key, listing.rows, found, tuple(problems))


def _check_shard(
    chosen: PredictionSet,
    listing: Listing,
    number: int,
    first: int,
    rows: int,
    entry: Entry | None,
    file: Path | None,
) -> Problem | None:
    def problem(code: ProblemCode, missing: int = rows, doubled: int = 0) -> Problem:
        return Problem(number, code, first, first + rows - 1, missing, doubled)

    if entry is None:
        return problem("not_entered" if file else "not_scored")
    if file is None:
        return problem("lost")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {str(file)!r}: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        return problem("altered")
    numbers, sources = _rows(content)
    if numbers != list(range(first, first + rows)):
        counts = Counter(numbers)
        return problem(
            "wrong_rows",
            missing=sum(counts[row] == 0 for row in range(first, first + rows)),
            doubled=sum(count - 1 for count in counts.values()),
        )
    if chosen.settings.identifiers:  # else the file has no names
        listed = map(display_name, listing.shard(number).names)
        if others := sum(source != name for source, name in zip(sources, listed, strict=True)):
            return problem("wrong_rows", missing=others)
    return None


def _rows(content: bytes) -> tuple[list[int], list[str | None]]:
    """Return the numbers and the names of the images of a shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Without threads: Arrow's may abort the process when it exits.
    table = pq.ParquetFile(pa.BufferReader(content)).read(columns=["row", "source"], use_threads=False)
    numbers: list[int] = np.asarray(table.column("row")).tolist()
    return numbers, table.column("source").to_pylist()


def _not_listed(shards: int, journal: dict[int, Entry], files: dict[int, Path]) -> Iterator[Problem]:
    for number in sorted({*journal, *files}):
        if number >= shards:
            yield Problem(number, "not_listed", -1, -1, 0, journal[number].rows if number in journal else 0)

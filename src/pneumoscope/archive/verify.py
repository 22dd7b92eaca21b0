"""Verify a prediction set: each listed image is in exactly one row, and no file was altered."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from pneumoscope.archive.archive_folder import ArchiveFolder, PredictionSet
from pneumoscope.archive.heatmaps import heatmap_rows
from pneumoscope.archive.journal import Entry, count_runtimes, read_journal
from pneumoscope.archive.listing import Listing, display_name
from pneumoscope.core.errors import StorageError

__all__ = ["Problem", "ProblemCode", "Verification", "verify_archive"]

# not_scored: the shard is not in the journal. lost: its file is missing. altered: the hash of its file differs.
# wrong_rows: its file does not contain exactly the listed images. not_listed: a file or journal entry of an unlisted
# shard. not_entered: a file missing from the journal, left by a killed run and replaced by the next. heatmaps_lost,
# heatmaps_altered: the same for the heatmap file, which also counts as altered if it does not contain exactly the
# accepted images. heatmaps_not_entered: the shard was scored again without heatmaps after its heatmap file was written,
# so that file cannot be verified.
ProblemCode = Literal[
    "not_scored",
    "lost",
    "altered",
    "wrong_rows",
    "not_listed",
    "not_entered",
    "heatmaps_lost",
    "heatmaps_altered",
    "heatmaps_not_entered",
]
# These shards are merely unfinished; nothing is lost.
_UNFINISHED = ("not_scored", "not_entered")
_HEATMAP_PROBLEMS = ("heatmaps_lost", "heatmaps_altered", "heatmaps_not_entered")


class Problem(NamedTuple):
    """A problem with a shard.

    Attributes:
        shard: Number of the shard.
        code: Kind of the problem.
        first_row, last_row: Rows of the shard in the listing; -1 if it is not listed.
        missing, doubled: Number of listed rows missing from the table, and of surplus rows; for an unlisted shard, all rows in
            the journal are surplus.
        path: Path of the file, which may be missing. "" for a shard that is not scored, or an unlisted shard without a file.
    """

    shard: int
    code: ProblemCode
    first_row: int
    last_row: int
    missing: int
    doubled: int
    path: str

    @property
    def is_unfinished(self) -> bool:
        """True if the shard is merely unfinished, so that nothing is lost or altered."""
        return self.code in _UNFINISHED


class Verification(NamedTuple):
    """Result for one prediction set.

    Attributes:
        key: Name of the set.
        shards: Number of listed shards.
        rows: Number of listed images.
        found: Number of listed images that are in exactly one row of an unaltered file.
        problems: Problems by shard; empty if all images are found, with heatmaps if the shard has them.
        runtimes: Number of shards by the software that scored them.
    """

    key: str
    shards: int
    rows: int
    found: int
    problems: tuple[Problem, ...]
    runtimes: Mapping[str, int]


def verify_archive(path: Path, key: str = "", *, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Read all files of a prediction set and compare them with the listing and the journal.

    Args:
        path: Folder of the archive.
        key: Name or prefix of the set; empty for the only one.
        progress: Callback with the number of shards verified so far and the total.

    Raises:
        UsageError: The folder is not an archive, or has several sets.
        ArchiveError: The listing or the journal is damaged.
        StorageError: A file cannot be read.
    """
    folder = ArchiveFolder.open(path)
    listing, chosen = Listing(folder.listing), folder.find_set(key)
    journal, files, heatmap_files = read_journal(chosen.journal), chosen.files(), chosen.heatmap_files()
    problems: list[Problem] = []
    found = 0
    for number, first, rows in listing.ranges():
        entry, file = journal.get(number), files.get(number)
        problem = _check_shard(chosen, listing, number, first, rows, entry, file, heatmap_files.get(number))
        if problem:
            problems.append(problem)
        if not problem or problem.code in _HEATMAP_PROBLEMS:
            found += rows
        if progress:
            progress(number + 1, listing.shards)
    problems.extend(_not_listed(listing.shards, journal, {**heatmap_files, **files}))
    runtimes = count_runtimes(journal.values())
    return Verification(chosen.key, listing.shards, listing.rows, found, tuple(problems), runtimes)


def _check_shard(
    chosen: PredictionSet,
    listing: Listing,
    number: int,
    first: int,
    rows: int,
    entry: Entry | None,
    file: Path | None,
    heatmap_file: Path | None,
) -> Problem | None:
    def problem(code: ProblemCode, missing: int = rows, doubled: int = 0) -> Problem:
        expected = chosen.heatmaps_path(number) if code in _HEATMAP_PROBLEMS else chosen.shard_path(number)
        path = "" if code == "not_scored" else str(expected)
        return Problem(number, code, first, first + rows - 1, missing, doubled, path)

    if entry is None:
        return problem("not_entered" if file else "not_scored")
    if file is None:
        return problem("lost")
    content = _read(file)
    if hashlib.sha256(content).hexdigest() != entry.table.sha256:
        return problem("altered")
    numbers, sources, probabilities = _columns(content)
    if numbers != list(range(first, first + rows)):
        counts = Counter(numbers)
        return problem(
            "wrong_rows",
            missing=sum(counts[row] == 0 for row in range(first, first + rows)),
            doubled=sum(count - 1 for count in counts.values()),
        )
    if chosen.settings.identifiers:  # otherwise the file contains no names
        listed = map(display_name, listing.shard(number).names)
        if others := sum(source != name for source, name in zip(sources, listed, strict=True)):
            return problem("wrong_rows", missing=others)
    if entry.heatmaps is None:
        return problem("heatmaps_not_entered", 0) if heatmap_file else None
    if heatmap_file is None:
        return problem("heatmaps_lost", 0)
    content = _read(heatmap_file)
    accepted = [row for row, probability in zip(numbers, probabilities, strict=True) if probability is not None]
    if hashlib.sha256(content).hexdigest() != entry.heatmaps.sha256 or heatmap_rows(content) != accepted:
        return problem("heatmaps_altered", 0)
    return None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {str(file)!r}: {error.strerror or error}") from error


def _columns(content: bytes) -> tuple[list[int], list[str | None], list[float | None]]:
    """Return the row numbers, names and probabilities of a shard's images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Without threads, because Arrow's may abort the process at exit.
    columns = ["row", "source", "probability"]
    table = pq.ParquetFile(pa.BufferReader(content)).read(columns=columns, use_threads=False)
    numbers: list[int] = np.asarray(table.column("row")).tolist()
    return numbers, table.column("source").to_pylist(), table.column("probability").to_pylist()


def _not_listed(shards: int, journal: dict[int, Entry], files: dict[int, Path]) -> Iterator[Problem]:
    for number in sorted({*journal, *files}):
        if number >= shards:
            rows = journal[number].rows if number in journal else 0
            yield Problem(number, "not_listed", -1, -1, 0, rows, str(files.get(number, "")))

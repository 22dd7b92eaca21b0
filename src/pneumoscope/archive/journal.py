"""The journal of a set of predictions: one line for each finished shard, appended after its file is in place.

A shard without a line is not finished. If a shard has several lines, the last one holds: its file was lost and written again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from pneumoscope.core.errors import ArchiveError, StorageError
from pneumoscope.core.files import append_line, fsync_directory

__all__ = [
    "Entry",
    "Runtime",
    "StoredFile",
    "append_entry",
    "count_runtimes",
    "drop_torn_line",
    "iter_journal",
    "read_journal",
]


class Runtime(Struct, frozen=True, kw_only=True):
    """The software that scored a shard: another version may compute other digits.

    Attributes:
        pneumoscope, onnxruntime: Versions.
        provider: Processor that ran the network; see `inference.providers`.
    """

    pneumoscope: str
    onnxruntime: str
    provider: str

    def __str__(self) -> str:
        """Return the versions and the processor."""
        return f"pneumoscope {self.pneumoscope}, onnxruntime {self.onnxruntime}, {self.provider}"


class StoredFile(Struct, frozen=True, kw_only=True):
    """A file as it was written.

    Attributes:
        sha256, bytes: Its hash and size.
    """

    sha256: str
    bytes: int


class Entry(Struct, frozen=True, kw_only=True):
    """A finished shard.

    Attributes:
        shard: Number of the shard.
        rows: Number of rows.
        failed: Number of images that could not be read.
        decisions: Number of images by decision.
        table: The Parquet file.
        heatmaps: The file of heatmaps; None if they were not requested.
        finished: Time, UTC, ISO 8601.
        seconds: Time that scoring took.
        runtime: Software that scored, perhaps on another machine.
    """

    shard: int
    rows: int
    failed: int
    decisions: dict[str, int]
    table: StoredFile
    heatmaps: StoredFile | None
    finished: str
    seconds: float
    runtime: Runtime


def count_runtimes(entries: Iterable[Entry]) -> dict[str, int]:
    """Return the number of shards by the software that scored them, most first."""
    return dict(Counter(str(entry.runtime) for entry in entries).most_common())


def read_journal(path: Path) -> dict[int, Entry]:
    """Return the finished shards by their number. A last line that a crash cut off is ignored.

    Raises:
        ArchiveError: Another line is malformed.
        StorageError: The file cannot be read.
    """
    return {entry.shard: entry for entry in iter_journal(path)}


def iter_journal(path: Path) -> Iterator[Entry]:
    """Yield the lines of a journal; see `read_journal`."""
    decoder = msgspec.json.Decoder(Entry)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield decoder.decode(line)
                except msgspec.DecodeError as error:
                    raise ArchiveError(
                        f"line {number} of {str(path)!r} is malformed: {error}", hint=_malformed_hint(line)
                    ) from error
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def _malformed_hint(line: bytes) -> str:
    """Return what to do about a line: JSON has the fields of another version, and other text is damage."""
    try:
        msgspec.json.decode(line)
    except msgspec.DecodeError:
        return "Remove the line, and run the same `pneumoscope archive score` again"
    return "Another version of pneumoscope wrote it: install that version, or choose another folder with --out"


def drop_torn_line(path: Path) -> None:
    """Remove a last line that a crash cut off. Only the process that holds the lock of the archive may call this."""
    try:
        with path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            kept = size
            while kept:
                start = max(0, kept - 2**16)
                file.seek(start)
                end = file.read(kept - start).rfind(b"\n")
                if end >= 0:
                    kept = start + end + 1
                    break
                kept = start
            if kept < size:
                file.truncate(kept)
                os.fsync(file.fileno())
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(path, error) from error


def append_entry(path: Path, entry: Entry) -> None:
    """Append one line, which is on disk when this returns.

    Raises:
        StorageError: The line cannot be written; the journal is as it was.
    """
    line = msgspec.json.encode(entry) + b"\n"
    try:
        is_new = not path.exists()
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            append_line(handle, line, size=os.fstat(handle).st_size)
        finally:
            os.close(handle)
        if is_new:
            fsync_directory(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write {str(path)!r}: {error.strerror or error}",
        hint="Free some space, and run the same `pneumoscope archive score` again. Finished shards are kept",
    )

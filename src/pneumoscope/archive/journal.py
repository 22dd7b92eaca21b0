"""The journal of a prediction set: one line for each finished shard, appended after its file is in place.

A shard without a line is not finished. If a shard has several lines because its file was lost and rewritten, the last one is
valid.
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
    """Software that scored a shard; the last digits of results may differ between versions.

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
    """Hash and size of a file as written.

    Attributes:
        sha256, bytes: Hash and size.
    """

    sha256: str
    bytes: int


class Entry(Struct, frozen=True, kw_only=True):
    """Journal entry of a finished shard.

    Attributes:
        shard: Number of the shard.
        rows: Number of rows.
        failed: Number of unreadable images.
        decisions: Number of images by decision.
        table: Parquet file.
        heatmaps: Heatmap file; None if not requested.
        finished: Time in UTC, ISO 8601.
        seconds: Duration of scoring.
        runtime: Software that scored the shard, possibly on another machine.
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
    """Return the number of shards by the software that scored them, most frequent first."""
    return dict(Counter(str(entry.runtime) for entry in entries).most_common())


def read_journal(path: Path) -> dict[int, Entry]:
    """Return the finished shards by number, ignoring a last line truncated by a crash.

    Raises:
        ArchiveError: Another line is malformed.
        StorageError: The file cannot be read.
    """
    return {entry.shard: entry for entry in iter_journal(path)}


def iter_journal(path: Path) -> Iterator[Entry]:
    """Yield the entries of a journal; see `read_journal`."""
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
    """Return a hint for a malformed line: valid JSON comes from another version, anything else is damaged."""
    try:
        msgspec.json.decode(line)
    except msgspec.DecodeError:
        return "Remove the line, and run the same `pneumoscope archive score` again"
    return "Another version of pneumoscope wrote it: install that version, or choose another folder with --out"


def drop_torn_line(path: Path) -> None:
    """Remove a last line truncated by a crash. The caller must hold the lock of the archive."""
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
    """Append one line and flush it to disk.

    Raises:
        StorageError: The line cannot be written; the journal is unchanged.
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

"""The listing of an archive: its images in a fixed order, each with a row number and a shard.

A listing is a series of Parquet files. The first contains the images found by the first run; each later run that finds new
images adds a file. Rows and shards are never renumbered, and files are never rewritten.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from pneumoscope.archive.readers import SourceImage
from pneumoscope.core.errors import ArchiveError
from pneumoscope.core.files import write_atomically
from pneumoscope.inference.batches import batched

if TYPE_CHECKING:
    import pyarrow as pa

    from pneumoscope.inference.discovery import SkippedFile

__all__ = ["Growth", "ListedShard", "Listing", "display_name", "write_skipped"]

_BATCH = 2**15  # rows
_FIRST_ROW, _FIRST_SHARD = b"first_row", b"first_shard"


class ListedShard(NamedTuple):
    """A shard and its images.

    Attributes:
        number: Number of the shard.
        first_row: Row number of the first image.
        names: Names of the images in the source.
    """

    number: int
    first_row: int
    names: tuple[str, ...]


class Growth(NamedTuple):
    """Differences between the source and the listing.

    Attributes:
        new: Number of images not yet listed.
        changed: Number of images listed with a different size or modification time, which are also added as new rows.
        missing: Number of listed images missing from the source; their rows are kept.
    """

    new: int
    changed: int
    missing: int


class Listing:
    """Listing of images in a folder.

    Attributes:
        rows: Number of rows.
        shards: Number of shards.
    """

    def __init__(self, folder: Path) -> None:
        """Read the footers of the listing files.

        Raises:
            ArchiveError: A file is missing or damaged.
        """
        self._folder = folder
        self._files: list[_ListingFile] = []
        self.rows = self.shards = 0
        for number, path in enumerate(sorted(folder.glob("rows-*.parquet"))):
            file = _ListingFile(path)
            if path != self._path(number) or (file.first_row, file.first_shard) != (self.rows, self.shards):
                raise ArchiveError(
                    f"the listing of the archive has no file before {str(path)!r}",
                    hint="Restore the folder from a backup: row numbers depend on it",
                )
            self._add(file)

    def _path(self, number: int) -> Path:
        return self._folder / f"rows-{number:06d}.parquet"

    def _add(self, file: _ListingFile) -> None:
        self._files.append(file)
        self.rows += file.rows
        self.shards += file.shards

    def shard(self, number: int) -> ListedShard:
        """Return a shard with its images."""
        file = next(each for each in self._files if each.first_shard <= number < each.first_shard + each.shards)
        rows = file.read_shard(number)
        names = tuple(map(_name, rows["source"].to_pylist(), rows["source_bytes"].to_pylist()))
        return ListedShard(number, rows["row"][0].as_py(), names)

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """Yield the number, first row and row count of each shard."""
        for file in self._files:
            yield from file.ranges()

    def grow(self, images: Iterable[SourceImage], shard_size: int) -> Growth:
        """Add the unlisted images in one file, atomically.

        Args:
            images: All images of the source.
            shard_size: Images per shard.

        Raises:
            StorageError: The file cannot be written; the listing is unchanged.
        """
        known = _KnownImages(self._listed())
        new = known.new_images(images)
        first = next(new, None)
        if first is not None:
            path = self._path(len(self._files))
            write_atomically(path, lambda file: self._write(file, chain([first], new), shard_size))
            self._add(_ListingFile(path))
        return Growth(known.new, known.changed, known.missing())

    def _listed(self) -> Iterator[SourceImage]:
        for file in self._files:
            yield from file.images()

    def _write(self, file: BinaryIO, images: Iterable[SourceImage], shard_size: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = _schema().with_metadata({_FIRST_ROW: str(self.rows), _FIRST_SHARD: str(self.shards)})
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            row, shard = self.rows, self.shards
            for part in batched(images, shard_size):
                names = [image.name for image in part]
                columns = {
                    "row": range(row, row + len(part)),
                    "shard": [shard] * len(part),
                    "source": list(map(display_name, names)),
                    "source_bytes": [None if _is_text(name) else os.fsencode(name) for name in names],
                    "size": [image.size for image in part],
                    "modified": [image.modified for image in part],
                }
                writer.write_table(pa.table(columns, schema=schema), row_group_size=shard_size)
                row, shard = row + len(part), shard + 1


class _ListingFile:
    """One file of the listing, with one row group per shard."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            self._file = pq.ParquetFile(path)
            metadata = self._file.schema_arrow.metadata
            self.first_row, self.first_shard = int(metadata[_FIRST_ROW]), int(metadata[_FIRST_SHARD])
        except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise ArchiveError(
                f"the listing {str(path)!r} is damaged: {error}",
                hint="Restore the file from a backup: row numbers depend on it",
            ) from error
        self.rows, self.shards = self._file.metadata.num_rows, self._file.metadata.num_row_groups

    def read_shard(self, number: int) -> pa.Table:
        return self._file.read_row_group(
            number - self.first_shard, columns=["row", "source", "source_bytes"], use_threads=False
        )

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        row = self.first_row
        for group in range(self.shards):
            rows = self._file.metadata.row_group(group).num_rows
            yield self.first_shard + group, row, rows
            row += rows

    def images(self) -> Iterator[SourceImage]:
        columns = ["source", "source_bytes", "size", "modified"]
        for batch in self._file.iter_batches(_BATCH, columns=columns, use_threads=False):
            for source, source_bytes, size, modified in zip(*(each.to_pylist() for each in batch), strict=True):
                yield SourceImage(_name(source, source_bytes), size, modified)


class _KnownImages:
    """Listed images as hashes of 24 bytes each, so that archives of any size fit into memory."""

    def __init__(self, listed: Iterable[SourceImage]) -> None:
        parts = [_hashes(part) for part in batched(listed, _BATCH)] or [_hashes(())]
        table = np.concatenate(parts)
        # If a name is listed repeatedly because the file changed, keep the last version.
        order = np.argsort(table[:, 0], kind="stable")
        table = table[order]
        is_last = np.append(table[1:, 0] != table[:-1, 0], True) if len(table) else np.zeros(0, np.bool_)
        self._table = table[is_last]
        self._found = np.zeros(len(self._table), np.bool_)
        self.new = self.changed = 0

    def new_images(self, images: Iterable[SourceImage]) -> Iterator[SourceImage]:
        """Yield the images not listed in this version, and count them."""
        for part in batched(images, _BATCH):
            hashes = _hashes(part)
            at = np.searchsorted(self._table[:, 0], hashes[:, 0])
            at[at == len(self._table)] = 0
            is_known = np.zeros(len(part), np.bool_)
            if len(self._table):
                is_known = (self._table[at, :2] == hashes[:, :2]).all(axis=1)
            is_same = is_known.copy()
            is_same[is_known] = self._table[at[is_known], 2] == hashes[is_known, 2]
            self._found[at[is_known]] = True
            self.new += int((~is_known).sum())
            self.changed += int((is_known & ~is_same).sum())
            yield from (image for image, same in zip(part, is_same.tolist(), strict=True) if not same)

    def missing(self) -> int:
        """Return the number of listed images that the source did not contain."""
        return int((~self._found).sum())


def _hashes(images: Iterable[SourceImage]) -> npt.NDArray[np.uint64]:
    """Return 128 bits of each image's name and 64 bits of its size and modification time, uint64, shape (n, 3)."""
    digests = b"".join(
        hashlib.blake2b(os.fsencode(name), digest_size=16).digest()
        + hashlib.blake2b(f"{size} {modified}".encode(), digest_size=8).digest()
        for name, size, modified in images
    )
    return np.frombuffer(digests, np.uint64).reshape(-1, 3)


def display_name(name: str) -> str:
    """Return a name as valid text, with bytes that are not UTF-8 escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def write_skipped(folder: Path, skipped: Iterable[SkippedFile]) -> None:
    """Write the files skipped by the last run, with the reasons, to `skipped.parquet`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(skipped)
    columns = {"source": [display_name(path) for path, _ in rows], "reason": [reason for _, reason in rows]}
    table = pa.table(columns, schema=pa.schema([("source", pa.string()), ("reason", pa.string())]))
    write_atomically(folder / "skipped.parquet", lambda file: pq.write_table(table, file))


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("row", pa.int64()),
            ("shard", pa.int32()),
            ("source", pa.string()),
            ("source_bytes", pa.binary()),  # only for names that are not valid UTF-8
            ("size", pa.int64()),
            ("modified", pa.int64()),
        ]
    )


def _is_text(name: str) -> bool:
    return display_name(name) == name


def _name(source: str, source_bytes: bytes | None) -> str:
    return source if source_bytes is None else os.fsdecode(source_bytes)

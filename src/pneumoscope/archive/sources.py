"""Where the images of an archive are: list them once, and read them by name."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pneumoscope.core.errors import ManifestError, UsageError
from pneumoscope.core.files import read_error_reason
from pneumoscope.imaging.decode import read_file
from pneumoscope.imaging.file_type import identify_file
from pneumoscope.inference.discovery import SkippedFile, discover_images

__all__ = ["LocalReader", "Source", "SourceImage", "open_source"]

_LISTED_TWICE = "listed twice"


class SourceImage(NamedTuple):
    """An image of a source, as it was when the source was listed.

    Attributes:
        name: Path relative to the root of the source, or as the list has it.
        size: Size of the file, bytes; -1 if it could not be accessed.
        modified: Time of the last modification, nanoseconds since 1970; 0 if unknown.
    """

    name: str
    size: int
    modified: int


@dataclasses.dataclass(frozen=True, slots=True)
class LocalReader:
    """Reads images below a folder.

    Attributes:
        root: Folder that relative names refer to.
    """

    root: str

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            UnreadableImageError: The file is missing or cannot be read; see `imaging.decode.read_file`.
        """
        return read_file(Path(self.root, name), name)

    def stat(self, name: str) -> SourceImage:
        """Return an image with its size and its time of modification."""
        try:
            status = Path(self.root, name).stat()
        except (OSError, ValueError):
            return SourceImage(name, -1, 0)
        return SourceImage(name, status.st_size, status.st_mtime_ns)

    def is_available(self) -> bool:
        """Return False if the root is missing or empty, as the folder of a drive that is no longer mounted."""
        try:
            with os.scandir(self.root) as entries:
                return any(True for _ in entries)
        except OSError:
            return False


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """The images of an archive.

    Attributes:
        location: The folder or file, absolute.
        kind: "folder", "list", "manifest" or "parquet".
        reader: Reads the images.
        skipped: Files that are no images, links and hidden files, with the reason; filled by `images`.
    """

    location: str
    kind: str
    reader: LocalReader
    path_column: str = "path"
    skipped: list[SkippedFile] = dataclasses.field(default_factory=list)

    def images(self) -> Iterator[SourceImage]:
        """Yield the images: of a folder sorted by path, of a list in its order. A name that is listed again is skipped.

        Raises:
            ManifestError: The list cannot be read, or has no such column.
        """
        self.skipped.clear()
        if self.kind == "folder":
            found = discover_images([self.location])
            self.skipped.extend(found.skipped)
            for path in found.paths:
                yield self.reader.stat(os.path.relpath(path, self.location))
            return
        seen: set[str] = set()
        for name in self._listed():
            if name in seen:
                self.skipped.append(SkippedFile(name, _LISTED_TWICE))
                continue
            seen.add(name)
            yield self.reader.stat(name)

    def _listed(self) -> Iterable[str]:
        path = Path(self.location)
        if self.kind == "parquet":
            return _parquet_names(path, self.path_column)
        return _csv_names(path, self.path_column) if self.kind == "manifest" else _list_names(path)


def open_source(location: str, *, path_column: str = "path") -> Source:
    """Return the source at a location.

    Args:
        location: A folder, a manifest or another CSV file, a Parquet file, or a text file with one path per line. Paths in a file
            are relative to its folder.
        path_column: Column of a CSV or Parquet file with the paths.

    Raises:
        UsageError: The location does not exist, or is an image.
    """
    path = Path(os.path.abspath(location))  # noqa: PTH100  links are kept, as the user wrote them
    if path.is_dir():
        return Source(str(path), "folder", LocalReader(str(path)))
    if not path.exists():
        raise UsageError(f"{location!r} does not exist", hint="Pass a folder of images, or a list of their paths")
    kind = {".csv": "manifest", ".parquet": "parquet"}.get(path.suffix.lower(), "list")
    if kind == "list" and identify_file(path).role != "other":
        raise UsageError(
            f"{location!r} is an image or a DICOMDIR, not an archive",
            hint="Pass its folder, or score one image with: pneumoscope predict",
        )
    return Source(str(path), kind, LocalReader(str(path.parent)), path_column)


def _list_names(path: Path) -> Iterator[str]:
    with path.open("rb") as file:  # bytes, because file names may not be valid text
        for line in file:
            if name := line.rstrip(b"\r\n"):
                yield os.fsdecode(name)


def _csv_names(path: Path, column: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            _require_column(column, reader.fieldnames or (), path)
            for row in reader:
                if name := row[column].strip():
                    yield name
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"cannot read {str(path)!r}: {read_error_reason(error)}") from error
    except csv.Error as error:
        raise ManifestError(f"{str(path)!r} is not a CSV file: {error}") from error


def _parquet_names(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _require_column(column, file.schema_arrow.names, path)
            for batch in file.iter_batches(columns=[column], use_threads=False):
                for name in batch.column(0).to_pylist():
                    if name:
                        yield os.fsdecode(name)
    except (OSError, pa.ArrowInvalid) as error:
        raise ManifestError(f"cannot read {str(path)!r}: {error}") from error


def _require_column(column: str, columns: Iterable[str], path: Path) -> None:
    names = list(columns)
    if column not in names:
        raise ManifestError(
            f"{str(path)!r} has no column {column!r} (its columns: {', '.join(names) or 'none'})",
            hint="Name the column with the paths with --path-column",
        )

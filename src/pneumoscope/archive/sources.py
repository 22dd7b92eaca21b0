"""Sources of an archive's images, which list them once and read them by name."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pneumoscope.archive.readers import DICOMWEB_PREFIX, LocalReader, Reader, RemoteReader, SourceImage, is_remote
from pneumoscope.core.errors import ManifestError, UsageError
from pneumoscope.core.files import read_error_reason
from pneumoscope.imaging.file_type import identify_file
from pneumoscope.inference.discovery import SkippedFile, iter_folder

__all__ = ["Source", "open_reader", "open_source"]

_LISTED_TWICE = "listed twice"


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Source of an archive's images.

    Attributes:
        location: Absolute path of the folder or file, or the address.
        kind: "folder", "objects", "dicomweb", "list", "manifest" or "parquet".
        reader: Reader of the images.
        path_column: Column with the paths in a manifest or Parquet file.
        skipped: Files that are not images, links and hidden files, with the reason; filled by `images`.
    """

    location: str
    kind: str
    reader: Reader
    path_column: str = "path"
    skipped: list[SkippedFile] = dataclasses.field(default_factory=list)

    def images(self) -> Iterator[SourceImage]:
        """Yield the images of a folder sorted by path, or of a list in its order, skipping repeated names.

        Raises:
            ManifestError: The list cannot be read or lacks the column.
        """
        self.skipped.clear()
        reader = self.reader
        if not isinstance(reader, LocalReader):
            for image, reason in self._remote_images():
                if reason:
                    self.skipped.append(SkippedFile(image.name, reason))
                else:
                    yield image
            return
        if self.kind == "folder":
            for path, reason in iter_folder(self.location):
                if reason:
                    self.skipped.append(SkippedFile(path, reason))
                else:
                    yield reader.stat(os.path.relpath(path, self.location))
            return
        seen: set[str] = set()
        for name in self._listed():
            if name in seen:
                self.skipped.append(SkippedFile(name, _LISTED_TWICE))
                continue
            seen.add(name)
            yield reader.stat(name)

    def _remote_images(self) -> Iterator[tuple[SourceImage, str]]:
        if isinstance(self.reader, RemoteReader):
            return self.reader.images()
        from pneumoscope.archive.web_reader import WebReader

        assert isinstance(self.reader, WebReader)
        return self.reader.images()

    def _listed(self) -> Iterable[str]:
        path = Path(self.location)
        if self.kind == "parquet":
            return _parquet_names(path, self.path_column)
        return _csv_names(path, self.path_column) if self.kind == "manifest" else _list_names(path)


def open_source(location: str, *, path_column: str = "path") -> Source:
    """Return the source at a location.

    Args:
        location: Folder, address such as s3://bucket/prefix, search of a DICOMweb server (see `web_reader`), manifest or other
            CSV file, Parquet file, or text file with one path per line. Paths in a file are relative to its folder.
        path_column: Column with the paths in a CSV or Parquet file.

    Raises:
        UsageError: The location does not exist or is an image; or an address lacks a bucket or server, or contains credentials.
    """
    if location.startswith(DICOMWEB_PREFIX):
        return Source(location, "dicomweb", open_reader(location, "dicomweb"))
    if is_remote(location):
        _check_address(location)
        location = location.rstrip("/")
        return Source(location, "objects", open_reader(location, "objects"))
    path = Path(os.path.abspath(location))  # noqa: PTH100  keeps links as the user wrote them
    if path.is_dir():
        return Source(str(path), "folder", open_reader(str(path), "folder"))
    if not path.exists():
        raise UsageError(f"{location!r} does not exist", hint="Pass a folder of images, or a list of their paths")
    kind = {".csv": "manifest", ".parquet": "parquet"}.get(path.suffix.lower(), "list")
    if kind == "list" and identify_file(path).role != "other":
        raise UsageError(
            f"{location!r} is an image or a DICOMDIR, not an archive",
            hint="Pass its folder, or score one image with: pneumoscope predict",
        )
    return Source(str(path), kind, open_reader(str(path), kind), path_column)


def open_reader(location: str, kind: str) -> Reader:
    """Return the reader of a source; see `Source`.

    Raises:
        UsageError: A DICOMweb address is not a valid search, or a package is not installed.
    """
    if kind == "objects":
        return RemoteReader(location)
    if kind == "dicomweb":
        try:
            from pneumoscope.archive.web_reader import WebReader, parse_query
        except ModuleNotFoundError as error:
            raise UsageError(
                f"a DICOMweb server needs the package {error.name}",
                hint="Install it: pip install 'pneumoscope[archive]'",
            ) from error
        return WebReader(parse_query(location))
    return LocalReader(location if kind == "folder" else str(Path(location).parent))


def _check_address(location: str) -> None:
    host = location.partition("://")[2].partition("/")[0]
    if not host:
        raise UsageError(f"the address {location!r} has no bucket or server", hint="Give it as in s3://bucket/prefix")
    if "@" in host:  # do not quote the location, which contains a secret
        raise UsageError(
            "the address of the source has a user name or password",
            hint="Leave them out, and give them in the environment or the files of the client",
        )


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

"""Store images unchanged, each under the SHA-256 of its content.

An image is first written to the staging area, and moved into the store after the transaction that records its
prediction. Thus every file in the store has a database row. `recovery` completes or discards files that a killed
process left in the staging area.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from pneumoscope.core.errors import StorageError
from pneumoscope.core.files import fsync_directory

__all__ = [
    "BLOBS",
    "STAGING",
    "BlobStore",
    "FolderBlobStore",
    "MemoryBlobStore",
    "StageResult",
    "content_hash",
    "is_content_hash",
]

BLOBS = "blobs"  # both are in the data directory, on the same file system
STAGING = "staging"
_PROBE = ".probe"
_PARTIAL = ".part"
_NAME = re.compile(r"[0-9a-f]{64}")


def content_hash(content: bytes) -> str:
    """Return the SHA-256 of an image, which is its name in the store."""
    return hashlib.sha256(content).hexdigest()


def is_content_hash(name: str) -> bool:
    """Return whether a file name has the form of a content hash."""
    return _NAME.fullmatch(name) is not None


class StageResult(NamedTuple):
    """Hashes of staged blobs, and errors of blobs that could not be staged."""

    staged: list[str]
    failed: dict[str, StorageError]


class BlobStore(Protocol):
    """A content-addressed store with a staging area."""

    def stage(self, blobs: Mapping[str, bytes]) -> StageResult:
        """Write blobs to the staging area, and return once they are on disk.

        Blobs that are already stored undamaged are not staged again.
        """

    def publish(self, sha256: str) -> None:
        """Move a staged blob into the store, if it is staged. Raise StorageError if it cannot be moved."""

    def discard(self, sha256: str) -> None:
        """Remove a staged blob, if any. Raise StorageError if it cannot be removed."""

    def staging_files(self) -> list[str]:
        """Return the file names in the staging area: hashes, and partially written files."""

    def empty_staging(self, keep: Collection[str] = ()) -> None:
        """Remove all files from the staging area except those in `keep`. Raise StorageError if one cannot be removed."""

    def check_writable(self) -> None:
        """Raise StorageError if not even an empty blob can be staged and published."""

    def has(self, sha256: str) -> bool:
        """Return whether a blob is stored or staged, without reading it."""

    def get(self, sha256: str) -> bytes | None:
        """Return a stored or staged blob; None if missing. Raise StorageError if it is unreadable or damaged."""

    def open(self, sha256: str, *, check: bool = True) -> BinaryIO | None:
        """Return a stored or staged blob as an open file, which the caller must close; None if missing.

        The file remains readable even if the blob is removed in the meantime. Raise StorageError if it is unreadable
        or, with `check`, if it is damaged.
        """

    def remove(self, sha256: str) -> None:
        """Remove a stored or staged blob, if any. Raise StorageError if it cannot be removed."""

    def stored(self) -> Iterator[tuple[str, datetime]]:
        """Yield the hash and the time of writing of each stored blob."""


class FolderBlobStore:
    """Blobs as files in 256 subdirectories of a data directory.

    Args:
        folder: The data directory. Subdirectories are created when the first blob is staged.
    """

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / BLOBS
        self._staging = folder / STAGING

    def stage(self, blobs: Mapping[str, bytes]) -> StageResult:
        """See `BlobStore`; the staging directory is synchronized once for all blobs."""
        result = StageResult([], {})
        for sha256, content in blobs.items():
            path = self._path(sha256)
            try:
                if path.is_file() and path.read_bytes() == content:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)  # publishing then only needs space for a name
                self._write(sha256, content)
            except OSError as error:
                result.failed[sha256] = _error("write", path, error)
            else:
                result.staged.append(sha256)
        if result.staged:
            fsync_directory(self._staging)
        return result

    def _write(self, sha256: str, content: bytes) -> None:
        """Write a staged file under a temporary name, and rename it when complete."""
        self._staging.mkdir(parents=True, exist_ok=True)
        partial = self._staging / f"{sha256}{_PARTIAL}"
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._staging / sha256)
        except OSError:
            with contextlib.suppress(OSError):  # the next start empties the staging area
                partial.unlink()
            raise

    def publish(self, sha256: str) -> None:
        """See `BlobStore`.

        Synchronizing directories is unnecessary: after a power failure, the file has either its old or its new name.
        """
        path, staged = self._path(sha256), self._staging / sha256
        try:
            if staged.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                staged.replace(path)
        except OSError as error:
            raise _error("write", path, error) from error

    def discard(self, sha256: str) -> None:
        """See `BlobStore`."""
        self._path(sha256)
        _unlink(self._staging / sha256)

    def staging_files(self) -> list[str]:
        """See `BlobStore`."""
        try:
            return sorted(entry.name for entry in os.scandir(self._staging) if not entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _error("list", self._staging, error) from error

    def empty_staging(self, keep: Collection[str] = ()) -> None:
        """See `BlobStore`."""
        for name in set(self.staging_files()).difference(keep):
            _unlink(self._staging / name)

    def check_writable(self) -> None:
        """See `BlobStore`."""
        staged, path = self._staging / _PROBE, self._blobs / _PROBE
        try:
            for folder in (self._staging, self._blobs):
                folder.mkdir(parents=True, exist_ok=True)
            staged.write_bytes(b"")
            staged.replace(path)
        except OSError as error:
            raise _error("write", path, error) from error
        _unlink(path)

    def has(self, sha256: str) -> bool:
        """See `BlobStore`."""
        return os.path.isfile(self._path(sha256)) or os.path.isfile(self._staging / sha256)  # noqa: PTH113  no error if unreadable

    def get(self, sha256: str) -> bytes | None:
        """See `BlobStore`."""
        path = self._path(sha256)
        # The blob may be published between the first two attempts.
        for candidate in (path, self._staging / sha256, path):
            try:
                content = candidate.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _error("read", candidate, error) from error
            if content_hash(content) != sha256:
                raise _damage(candidate)
            return content
        return None

    def open(self, sha256: str, *, check: bool = True) -> BinaryIO | None:
        """See `BlobStore`."""
        path = self._path(sha256)
        for candidate in (path, self._staging / sha256, path):  # as in `get`
            try:
                with contextlib.ExitStack() as stack:
                    file = stack.enter_context(candidate.open("rb"))
                    if check and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                        raise _damage(candidate)
                    file.seek(0)
                    stack.pop_all()
                    return file
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _error("read", candidate, error) from error
        return None

    def remove(self, sha256: str) -> None:
        """See `BlobStore`."""
        path = self._path(sha256)
        _unlink(self._staging / sha256)
        _unlink(path)

    def stored(self) -> Iterator[tuple[str, datetime]]:
        """See `BlobStore`."""
        for path in self._blobs.glob("??/*"):
            if self._is_blob(path):
                with contextlib.suppress(FileNotFoundError):  # removed after it was listed
                    yield path.name, datetime.fromtimestamp(path.stat().st_mtime, UTC)

    def unexpected_files(self) -> list[str]:
        """Return the paths of misplaced or misnamed files below `BLOBS`, relative to the data directory.

        Raises:
            StorageError: A directory cannot be listed.
        """
        found = []
        for folder, _, names in os.walk(self._blobs, onerror=_raise_unlisted):
            paths = [Path(folder, name) for name in names]
            found += [path for path in paths if not self._is_blob(path) and path != self._blobs / _PROBE]
        return sorted(path.relative_to(self._blobs.parent).as_posix() for path in found)

    def _is_blob(self, path: Path) -> bool:
        """Return whether a path is that of a blob."""
        return is_content_hash(path.name) and path == self._path(path.name)

    def _path(self, sha256: str) -> Path:
        if not is_content_hash(sha256):
            raise ValueError(f"{sha256!r} is not a SHA-256")
        return self._blobs / sha256[:2] / sha256


class MemoryBlobStore:
    """Blobs in memory, for a service without a data directory."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._staged: dict[str, bytes] = {}

    def stage(self, blobs: Mapping[str, bytes]) -> StageResult:
        """See `BlobStore`."""
        new = {sha256: content for sha256, content in blobs.items() if sha256 not in self._blobs}
        self._staged.update(new)
        return StageResult(list(new), {})

    def publish(self, sha256: str) -> None:
        """See `BlobStore`."""
        if sha256 in self._staged:
            self._blobs[sha256] = self._staged.pop(sha256)

    def discard(self, sha256: str) -> None:
        """See `BlobStore`."""
        self._staged.pop(sha256, None)

    def staging_files(self) -> list[str]:
        """See `BlobStore`."""
        return sorted(self._staged)

    def empty_staging(self, keep: Collection[str] = ()) -> None:
        """See `BlobStore`."""
        self._staged = {sha256: content for sha256, content in self._staged.items() if sha256 in keep}

    def check_writable(self) -> None:
        """See `BlobStore`; memory is always writable."""

    def has(self, sha256: str) -> bool:
        """See `BlobStore`."""
        return sha256 in self._blobs or sha256 in self._staged

    def get(self, sha256: str) -> bytes | None:
        """See `BlobStore`."""
        return self._blobs.get(sha256, self._staged.get(sha256))

    def open(self, sha256: str, *, check: bool = True) -> BinaryIO | None:
        """See `BlobStore`; blobs in memory cannot be damaged."""
        content = self.get(sha256)
        return None if content is None else io.BytesIO(content)

    def remove(self, sha256: str) -> None:
        """See `BlobStore`."""
        self._staged.pop(sha256, None)
        self._blobs.pop(sha256, None)

    def stored(self) -> Iterator[tuple[str, datetime]]:
        """See `BlobStore`; always empty, because nothing outlives the process."""
        return iter(())


def _raise_unlisted(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # nothing is stored yet
        raise _error("list", Path(error.filename), error) from error


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _error("remove", path, error) from error


def _damage(path: Path) -> StorageError:
    return StorageError(
        f"{str(path)!r} is damaged: its hash differs from its name",
        hint="The file was changed or the disk is failing. Restore it from a backup",
    )


def _error(verb: str, path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot {verb} {str(path)!r}: {error.strerror or error}", hint="Check the disk and its permissions"
    )

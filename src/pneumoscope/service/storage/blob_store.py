"""Images as they were posted, each under the hash of its content: the same image is kept once, and no client's name is a path."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from pneumoscope.core.errors import StorageError
from pneumoscope.core.files import is_temporary, write_atomically

__all__ = ["IMAGES", "BlobStore", "FolderBlobStore", "Kept", "MemoryBlobStore", "content_hash"]

IMAGES = "images"  # the folder below that of the data
_TRIAL = ".trial"  # a file that is made and removed to see whether that can be done
_NAME = re.compile(r"[0-9a-f]{64}")


def content_hash(content: bytes) -> str:
    """The SHA-256 of an image's bytes, which it is kept under."""
    return hashlib.sha256(content).hexdigest()


class Kept(NamedTuple):
    """What became of images: the hashes of those that are new on the disk, and why others are not there."""

    written: list[str]
    failed: dict[str, StorageError]


class BlobStore(Protocol):
    """Where images are kept."""

    def keep(self, images: Mapping[str, bytes]) -> Kept:
        """Keep images, each under its hash; they are on the disk when this returns."""

    def try_to_keep(self) -> None:
        """Raise StorageError where no image could be kept, for another reason than its size."""

    def has(self, sha256: str) -> bool:
        """Whether an image is there, without looking at its bytes."""

    def get(self, sha256: str) -> bytes | None:
        """An image's bytes; None where it is not kept. Raises StorageError where it cannot be read, or is another image."""

    def remove(self, sha256: str) -> None:
        """Remove an image; nothing happens where it is not kept. Raises StorageError where it cannot be removed."""

    def kept(self) -> Iterator[tuple[str, datetime]]:
        """The hash of each image, and since when it is kept."""

    def tidy(self) -> None:
        """Remove what a killed process left half-way; nobody may be keeping images meanwhile."""


class FolderBlobStore:
    """Images in a folder, spread over 256 below it.

    Args:
        folder: made where missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, images: Mapping[str, bytes]) -> Kept:
        """See `BlobStore`; a file that is there and damaged is written anew."""
        kept = Kept([], {})
        for sha256, content in images.items():
            path = self._path(sha256)
            try:
                if not self.has(sha256) or path.read_bytes() != content:
                    write_atomically(path, content)
                    kept.written.append(sha256)
            except StorageError as error:
                kept.failed[sha256] = error
            except OSError as error:
                kept.failed[sha256] = _failed("look at", path, error)
        return kept

    def try_to_keep(self) -> None:
        """See `BlobStore`."""
        path = write_atomically(self._folder / _TRIAL, b"")
        try:
            path.unlink()
        except OSError as error:
            raise _failed("remove", path, error) from error

    def has(self, sha256: str) -> bool:
        """See `BlobStore`."""
        return os.path.isfile(self._path(sha256))  # noqa: PTH113  what may not be looked at is not there, and no error

    def get(self, sha256: str) -> bytes | None:
        """See `BlobStore`."""
        path = self._path(sha256)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed("read", path, error) from error
        if content_hash(content) != sha256:
            raise StorageError(
                f"{str(path)!r} is not the image that was kept there",
                hint="It was altered or the disk is failing: restore it from a backup",
            )
        return content

    def remove(self, sha256: str) -> None:
        """See `BlobStore`."""
        path = self._path(sha256)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _failed("remove", path, error) from error

    def kept(self) -> Iterator[tuple[str, datetime]]:
        """See `BlobStore`."""
        for path in self._folder.glob("??/*"):
            if _NAME.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    yield path.name, datetime.fromtimestamp(path.stat().st_mtime, UTC)

    def tidy(self) -> None:
        """See `BlobStore`."""
        for path in self._folder.glob("??/.*"):
            if is_temporary(path.name, path.name[1:65]):
                with contextlib.suppress(OSError):  # the next start tries again
                    path.unlink()

    def _path(self, sha256: str) -> Path:
        if not _NAME.fullmatch(sha256):
            raise ValueError(f"{sha256!r} is no hash of an image")
        return self._folder / sha256[:2] / sha256


class MemoryBlobStore:
    """Images in memory, for a service that keeps nothing."""

    def __init__(self) -> None:
        self._images: dict[str, bytes] = {}

    def keep(self, images: Mapping[str, bytes]) -> Kept:
        """See `BlobStore`."""
        written = [sha256 for sha256 in images if sha256 not in self._images]
        self._images.update(images)
        return Kept(written, {})

    def try_to_keep(self) -> None:
        """See `BlobStore`; there is always room."""

    def has(self, sha256: str) -> bool:
        """See `BlobStore`."""
        return sha256 in self._images

    def get(self, sha256: str) -> bytes | None:
        """See `BlobStore`."""
        return self._images.get(sha256)

    def remove(self, sha256: str) -> None:
        """See `BlobStore`."""
        self._images.pop(sha256, None)

    def kept(self) -> Iterator[tuple[str, datetime]]:
        """See `BlobStore`; a process that is killed leaves none."""
        return iter(())

    def tidy(self) -> None:
        """See `BlobStore`; there is nothing to do."""


def _failed(what: str, path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot {what} {str(path)!r}: {error.strerror or error}", hint="Look at the disk and its rights"
    )

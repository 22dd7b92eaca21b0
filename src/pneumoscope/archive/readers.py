"""Read the images of a source by name: from folders, or from object stores and web servers through fsspec.

Readers are sent to other machines, so they contain only names.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from pneumoscope.core.errors import PneumoscopeError, StorageError, UnreadableImageError, UsageError
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.imaging.decode import MAX_BYTES, read_file, require_max_bytes
from pneumoscope.imaging.file_type import PREFIX_BYTES, identify, skip_reason_by_type

__all__ = [
    "DICOMWEB_PREFIX",
    "LocalReader",
    "Reader",
    "RemoteReader",
    "SourceImage",
    "file_system",
    "is_remote",
    "repeat_request",
]

DICOMWEB_PREFIX = "dicomweb+"  # prefix of a search address; see `web_reader`
_PROTOCOLS = ("s3", "gs", "http", "https")
_WEB_PROTOCOLS = ("http", "https", ("http", "https"))  # values of `protocol` in fsspec's clients
_CHUNK_BYTES = 2**20
_DELAYS = (0.5, 2.0, 8.0)  # seconds between attempts, in addition to the client's own retries
_Result = TypeVar("_Result")


class SourceImage(NamedTuple):
    """An image of a source at the time of listing.

    Attributes:
        name: Path relative to the root of the source, or as written in the list.
        size: File size in bytes; -1 if unknown or inaccessible.
        modified: Modification time in nanoseconds since 1970; 0 if unknown.
    """

    name: str
    size: int
    modified: int


class Reader(Protocol):
    """Reader of images by name."""

    @property
    def root(self) -> str:
        """Folder or address that relative names refer to."""
        ...

    def read(self, name: str) -> bytes:
        """Return the content of an image.

        Raises:
            UnreadableImageError: The image is missing or cannot be read.
            StorageError: The source does not respond.
        """
        ...

    def is_available(self) -> bool:
        """Return False if the whole source is missing or empty."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class LocalReader:
    """Reader of images below a folder.

    Attributes:
        root: See `Reader`.
    """

    root: str

    def read(self, name: str) -> bytes:
        """Return the content of a file; see `Reader` and `imaging.decode.read_file`."""
        return read_file(Path(self.root, name), name)

    def stat(self, name: str) -> SourceImage:
        """Return an image with its size and modification time."""
        try:
            status = Path(self.root, name).stat()
        except (OSError, ValueError):
            return SourceImage(name, -1, 0)
        return SourceImage(name, status.st_size, status.st_mtime_ns)

    def is_available(self) -> bool:
        """Return False if the root is missing or empty, such as the mount point of an unmounted drive."""
        try:
            with os.scandir(self.root) as entries:
                return any(True for _ in entries)
        except OSError:
            return False


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteReader:
    """Reader of objects below a prefix.

    Attributes:
        root: Address of the prefix, such as "s3://bucket/images".
    """

    root: str

    def read(self, name: str) -> bytes:
        """Return the content of an object; see `Reader`."""
        system, prefix = file_system(self.root)
        path = f"{prefix}/{name}"
        try:
            size = self._repeat(lambda: system.info(path).get("size"))
            require_max_bytes(name, size or 0)
            # Some stores reject range requests for empty objects.
            content = b"" if size == 0 else self._repeat(lambda: _read(system, path, MAX_BYTES + 1))
        except FileNotFoundError as error:
            raise UnreadableImageError(name, UnreadableReason("file_not_found")) from error
        except PermissionError as error:
            raise UnreadableImageError(name, UnreadableReason("permission_denied")) from error
        require_max_bytes(name, len(content))
        return content

    def images(self) -> Iterator[tuple[SourceImage, str]]:
        """Yield all objects sorted by path, each with the reason to skip it, or "".

        Objects whose names claim to be images are not read; of other objects, only the beginning is read.
        """
        system, prefix = file_system(self.root)
        try:
            found: dict[str, Any] = self._repeat(lambda: system.find(prefix, detail=True))
        except (FileNotFoundError, PermissionError) as error:
            raise StorageError(
                f"cannot list {self.root!r}: {error}", hint="Check the address, and the credentials of the client"
            ) from error
        for path, info in sorted(found.items(), key=lambda item: item[0].split("/")):
            name = path.removeprefix(f"{prefix}/")
            size = info.get("size")
            image = SourceImage(name, -1 if size is None else size, _modified(info))
            yield image, self._skip_reason(system, path, image)

    def is_available(self) -> bool:
        """Return False if the prefix is empty or cannot be listed."""
        system, prefix = file_system(self.root)
        try:
            return bool(system.ls(prefix, detail=False, refresh=True))
        except Exception:  # noqa: BLE001  each client raises its own errors
            return False

    def _repeat(self, request: Callable[[], _Result]) -> _Result:
        return repeat_request(self.root, request)

    def _skip_reason(self, system: Any, path: str, image: SourceImage) -> str:
        name = image.name
        if any(part.startswith(".") for part in name.split("/")):
            return "hidden"
        reason = skip_reason_by_type(name, None)
        if reason and image.size:
            beginning = self._repeat(lambda: _read(system, path, PREFIX_BYTES))
            reason = skip_reason_by_type(name, identify(beginning))
        return reason


def _type_name(error: Exception) -> str:
    return type(error).__name__


def repeat_request(
    root: str, request: Callable[[], _Result], describe: Callable[[Exception], str] = _type_name
) -> _Result:
    """Return the result of a request, retrying if the source does not respond.

    Args:
        root: Address of the source.
        request: Function that performs the request.
        describe: Function that describes the final error; by default its type, because messages may name an image.

    Raises:
        FileNotFoundError, PermissionError, PneumoscopeError: Raised by the request and not retried.
        StorageError: The source does not respond.
    """
    for delay in (*_DELAYS, None):
        try:
            return request()
        except (FileNotFoundError, PermissionError, PneumoscopeError):
            raise
        except Exception as error:  # each client raises its own errors
            if delay is None:
                raise StorageError(
                    f"the source {root!r} does not answer: {describe(error)}",
                    hint="Run the same `pneumoscope archive score` again later. Finished shards are kept",
                ) from error
            time.sleep(delay)
    raise AssertionError("unreachable")


def is_remote(location: str) -> bool:
    """Return whether a location is the address of an object store or web server."""
    return location.partition("://")[0] in _PROTOCOLS and "://" in location


@functools.lru_cache(maxsize=8)
def file_system(root: str) -> tuple[Any, str]:
    """Return the client of a prefix and its path within the client.

    Raises:
        UsageError: The package of the client is not installed.
    """
    import fsspec

    try:
        system, prefix = fsspec.core.url_to_fs(root)
    except ImportError as error:
        raise UsageError(
            f"{root!r} cannot be read: {error}", hint="Install the package that the message names"
        ) from error
    return system, str(prefix).rstrip("/")


def _read(system: Any, path: str, size: int) -> bytes:
    """Return the content of an object, up to a maximum size."""
    if system.protocol not in _WEB_PROTOCOLS:
        return bytes(system.cat_file(path, start=0, end=size))
    # Web servers may omit the size, send more than announced, or not support ranges.
    content = bytearray()
    with system.open(path, "rb", block_size=0) as file:
        while len(content) < size and (chunk := file.read(min(_CHUNK_BYTES, size - len(content)))):
            content += chunk
    return bytes(content)


def _modified(info: dict[str, Any]) -> int:
    """Return the modification time in nanoseconds since 1970, or 0 if unknown."""
    stated = info.get("LastModified") or info.get("mtime") or info.get("updated")
    if isinstance(stated, str):
        try:
            stated = datetime.fromisoformat(stated)
        except ValueError:
            return 0
    return round(stated.timestamp() * 1_000_000) * 1000 if isinstance(stated, datetime) else 0

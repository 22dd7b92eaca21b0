"""The data directory: accessible only to its owner, locked by one process, and checked before every write.

If the directory is moved while in use, an open database file moves with it, but images would go to the old path.
Therefore a moved, removed or replaced directory is detected, and nothing is written.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from pneumoscope.core.errors import StorageError, UsageError
from pneumoscope.core.files import locked

__all__ = ["DataDirectory", "create_data_directory", "data_directory_lock", "is_in_use"]

_LOCK_FILE = ".serving"
_LOCK_SECONDS = 1.0  # `is_in_use` holds the lock briefly
_MIN_FREE = 2**20  # bytes
_RESERVE_FILE = "reserve"
_RESERVE_BYTES = 2**20  # for the journal of a deleting transaction


class DataDirectory:
    """The identity of a data directory when it was opened.

    Args:
        folder: Created if missing; None for storage in memory, which never changes.
        names: Files in it whose identity is also checked, if they exist.

    Raises:
        StorageError: The directory cannot be created.
    """

    def __init__(self, folder: Path | None, *names: str) -> None:
        self._known: dict[Path, tuple[int, int] | None] = {}
        self._reserve = folder / _RESERVE_FILE if folder else None
        if folder is None:
            return
        create_data_directory(folder)
        watched = (folder, *(folder / name for name in names))
        self._known = {path: _identity(path) for path in watched if path.exists()}
        self.fill_reserve()

    def check(self) -> None:
        """Raise StorageError if the directory or one of its files was moved, removed or replaced."""
        for path, known in self._known.items():
            if _identity(path) != known:
                raise StorageError(
                    f"{str(path)!r} was moved, removed or replaced while in use",
                    hint="Nothing was changed. Put the original back, or restart the service",
                )

    def check_room(self) -> None:
        """Raise StorageError if `check` does or the disk is full."""
        self.check()
        for path in self._known:
            try:
                free = shutil.disk_usage(path).free
            except OSError as error:
                raise StorageError(f"cannot access {str(path)!r}: {error.strerror or error}") from error
            if free < _MIN_FREE:
                raise StorageError(f"no space left on the disk of {str(path)!r}", hint="Free some space")

    def fill_reserve(self) -> None:
        """Reserve disk space for `release_reserve`, or as much as is left."""
        with contextlib.suppress(OSError):
            size = self._reserve.stat().st_size if self._reserve and self._reserve.exists() else 0
            if self._reserve and size < _RESERVE_BYTES:
                self._reserve.write_bytes(bytes(min(_RESERVE_BYTES, size + self._free())))

    def release_reserve(self) -> bool:
        """Free the reserved space if the disk is full; return whether it was freed."""
        try:
            if self._reserve is None or self._free() >= _MIN_FREE:
                return False
            self._reserve.unlink()
            return True
        except OSError:
            return False

    def _free(self) -> int:
        assert self._reserve
        return shutil.disk_usage(self._reserve.parent).free


@contextlib.contextmanager
def data_directory_lock(folder: Path) -> Iterator[None]:
    """Hold the lock that restricts a data directory to one serving process; create the directory if missing.

    Raises:
        UsageError: Another process holds the lock.
        StorageError: The directory or the lock file cannot be created.
    """
    create_data_directory(folder)
    in_use = UsageError(f"another process serves {str(folder)!r}", hint="Stop it, or choose another directory")
    with locked(folder / _LOCK_FILE, in_use, timeout=_LOCK_SECONDS):
        yield


def is_in_use(folder: Path) -> bool:
    """Return whether a process is serving a data directory."""
    if not (folder / _LOCK_FILE).exists():  # do not create a file that the service might not be allowed to open
        return False
    try:
        with locked(folder / _LOCK_FILE, UsageError("in use")):
            return False
    except UsageError:
        return True


def create_data_directory(folder: Path) -> None:
    """Create a data directory if it is missing, accessible only to its owner.

    Raises:
        StorageError: The directory cannot be created.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot create {str(folder)!r}: {error.strerror or error}", hint="Choose another directory with --data-dir"
        ) from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino

"""Write files atomically, lock them between processes, and explain read errors."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from pneumoscope.core.errors import PneumoscopeError, StorageError

__all__ = [
    "append_line",
    "fsync_directory",
    "is_temporary",
    "locked",
    "read_error_reason",
    "remove_temporary_files",
    "write_atomically",
]

_SUFFIX_BYTES = 8
_POLL_SECONDS = 0.01


def write_atomically(path: Path, content: str | bytes | Callable[[BinaryIO], None]) -> Path:
    """Write a file atomically and return its path.

    Readers see the old file or the complete new one, even after a crash or with a full disk. Symbolic links are
    followed.

    Args:
        path: The file; missing parent folders are created.
        content: Text (written as UTF-8), bytes, or a function that writes to an open binary file.

    Raises:
        StorageError: The file cannot be written. An existing file is unchanged.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        raise StorageError(f"cannot write {str(path)!r}: it is a pipe or a device", hint="Choose a regular file")
    # open() applies the umask; reading the umask to set it explicitly would change it for other threads.
    temporary = target.parent / f".{target.name}-{secrets.token_hex(_SUFFIX_BYTES)}"
    try:
        _make_folder(target.parent)
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        fsync_directory(target.parent)
    except OSError as error:
        raise StorageError(
            f"cannot write {str(path)!r}: {error.strerror or error}",
            hint="Free some space or choose another folder. An existing file is unchanged",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def _make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, and flush their directory entries to disk."""
    missing = list(takewhile(lambda each: not each.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        fsync_directory(each.parent)


def fsync_directory(folder: Path) -> None:
    """Flush a folder's entries to disk, so that new names survive a power failure."""
    with contextlib.suppress(OSError):  # not supported on every system; only a power failure could lose the name
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_temporary(name: str, target: str = "") -> bool:
    """Return whether a file name is one of `write_atomically`'s temporary files.

    Args:
        name: The file name.
        target: Name of the file being written; any file if empty.
    """
    written = re.escape(target) or ".+"
    return re.fullmatch(rf"\.{written}-[0-9a-f]{{{2 * _SUFFIX_BYTES}}}", name) is not None


def remove_temporary_files(path: Path) -> None:
    """Remove the temporary files that killed processes left next to a file.

    Files that cannot be removed are skipped. Call it only while no other process writes the file.

    Args:
        path: The file; neither it nor its folder needs to exist.
    """
    with contextlib.suppress(OSError):
        for entry in path.parent.iterdir():
            if is_temporary(entry.name, path.name):
                entry.unlink()


def append_line(handle: int, line: bytes, *, size: int) -> None:
    """Append a line to an open file and flush it to disk.

    Args:
        handle: File descriptor, opened for appending.
        line: The line, including its line feed.
        size: Size of the file before the call, bytes.

    Raises:
        OSError: The line cannot be written. The file is truncated to `size`, because a partial line would make it
            unreadable.
    """
    try:
        written = os.write(handle, line)
        os.fsync(handle)
        if written < len(line):
            raise OSError(f"{written} of {len(line)} bytes written")
    except OSError:
        os.ftruncate(handle, size)
        raise


@contextlib.contextmanager
def locked(path: Path, error: PneumoscopeError, *, timeout: float = 0) -> Iterator[int]:
    """Hold an exclusive lock between processes; the operating system releases it if the process is killed.

    Yields the file descriptor. A process that inherits it keeps the lock until it exits or the block ends.

    Args:
        path: The lock file, created if missing. It is never removed, because removing it while processes wait could let
            two of them in.
        error: Raised if another process holds the lock.
        timeout: Time to wait for the lock, seconds.

    Raises:
        PneumoscopeError: `error`, after `timeout`.
        StorageError: The file cannot be created, or its file system does not support locks (some network drives).
    """
    from filelock import FileLock, Timeout  # deferred: prediction needs no lock

    class InheritableLock(FileLock):
        """A lock that exposes its file descriptor, which filelock keeps private."""

        def descriptor(self) -> int:
            assert self._context.lock_file_fd is not None
            return self._context.lock_file_fd

    # A soft lock is a regular file and would outlive a killed process.
    lock = InheritableLock(path, timeout=timeout, poll_interval=_POLL_SECONDS, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as timed_out:
        raise error from timed_out
    except OSError as os_error:
        raise StorageError(
            f"cannot lock {str(path)!r}: {os_error.strerror or os_error}",
            hint="Choose a writable folder on a drive that supports locks; some network drives do not",
        ) from os_error
    try:
        yield lock.descriptor()
    finally:
        lock.release()


def read_error_reason(error: OSError | UnicodeDecodeError) -> str:
    """Return why a text file cannot be read, for messages that name the file."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"

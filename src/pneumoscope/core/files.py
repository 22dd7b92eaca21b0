"""Files that are whole or absent, written beside their place and moved there in one step; and locks between processes."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from pneumoscope.core.errors import PneumoscopeError, StorageError

__all__ = ["fsync_directory", "is_temporary", "locked", "sweep", "write_atomically"]

_RANDOM = 8  # bytes


def write_atomically(path: Path, content: str | bytes | Callable[[BinaryIO], None]) -> Path:
    """Write a file so that whoever looks sees the old one or the new one, also after a crash or a full disk.

    Args:
        path: its folder is made where missing.
        content: text (written as UTF-8), bytes, or a function that writes to an open binary file.
    Returns:
        The path.
    Raises:
        StorageError: the disk is full or cannot be written; what was there before is kept.
    """
    target = Path(os.path.realpath(path))  # a link stays one, and what it points to is written
    if target.exists() and not target.is_file() and not target.is_dir():
        raise StorageError(f"cannot write {str(path)!r}: it is a pipe or a device", hint="Name a file")
    # Opened like any new file, so that the umask holds: reading it to apply it later would change it for other threads.
    temporary = target.parent / f".{target.name}-{secrets.token_hex(_RANDOM)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
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
            hint="Free some space or choose another folder; what was there before is kept",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be made there is none
            temporary.unlink()
    return path


def fsync_directory(folder: Path) -> None:
    """Write a directory's entries to the disk, so that new names survive a power cut."""
    with contextlib.suppress(OSError):  # some systems cannot; a crash of the process alone loses no name
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_temporary(name: str, of: str) -> bool:
    """True for the name of what `write_atomically` leaves when it is killed while it writes a file called `of`."""
    return re.fullmatch(rf"\.{re.escape(of)}-[0-9a-f]{{{2 * _RANDOM}}}", name) is not None


def sweep(path: Path) -> None:
    """Remove what killed writes of one file have left beside it. Nobody else may be writing that file.

    Args:
        path: of the file; it, or its folder, need not be there.
    """
    # What cannot be listed or removed now is in nobody's way, and the next call tries again.
    with contextlib.suppress(OSError):
        for found in path.parent.iterdir():
            if is_temporary(found.name, path.name):
                found.unlink()


@contextlib.contextmanager
def locked(path: Path, held: PneumoscopeError, *, wait: float = 0) -> Iterator[None]:
    """Hold a lock that one process at a time can have. It is the operating system's: it goes when its holder is killed.

    Args:
        path: an empty file of its own; made where missing, with its folder, and left there: whoever removes it while others
            wait for it would let two of them in.
        held: raised when another holds it for longer than `wait`.
        wait: seconds.
    Raises:
        PneumoscopeError: `held`.
        StorageError: the file cannot be made, or its file system has no locks (some network drives).
    """
    # Without the soft lock, a mere file, which outlives a killed process.
    lock = FileLock(path, timeout=wait, poll_interval=0.01, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise held from error
    except OSError as error:
        raise StorageError(
            f"cannot lock {str(path)!r}: {error.strerror or error}",
            hint="Choose a folder that can be written, on a drive that has locks; some network drives have none",
        ) from error
    try:
        yield
    finally:
        lock.release()

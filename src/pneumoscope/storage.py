"""Files that are whole or absent: written beside their place and moved there in one step."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from pneumoscope.errors import StorageError

__all__ = ["write_atomically"]


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
    # Opened like any new file, so that the umask holds: reading it to apply it later would change it for other threads.
    temporary = path.parent / f".{path.name}-{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"cannot write {str(path)!r}: {error.strerror or error}",
            advice="Free some space or choose another folder; what was there before is kept",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be made there is none
            temporary.unlink()
    return path

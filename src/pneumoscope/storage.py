"""Files that are whole or absent: written beside their place and moved there in one step."""

from __future__ import annotations

import os
import tempfile
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
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"cannot write {str(path)!r}: {error.strerror or error}",
            advice="Free some space or choose another folder; what was there before is kept",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def _umask() -> int:
    # There is no way to read it without setting it.
    current = os.umask(0)
    os.umask(current)
    return current

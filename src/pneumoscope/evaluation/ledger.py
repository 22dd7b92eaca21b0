"""The test ledger: every look at test images is written down before its result can be seen.

A test set that is looked at until a figure pleases is no test set. The ledger does not forbid a second look; it makes
sure that nobody can have had one unseen. One JSON object a line, only ever added to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumoscope.core.errors import StorageError
from pneumoscope.core.files import locked

__all__ = ["ENVIRONMENT", "default_ledger", "record_evaluation"]

ENVIRONMENT = "PNEUMOSCOPE_LEDGER"
# Seconds; a look is written in far less than one.
_WAIT = 60.0


def default_ledger() -> Path:
    """The ledger where none is named: PNEUMOSCOPE_LEDGER, else `results/test-ledger.jsonl` below the current folder."""
    return Path(os.environ.get(ENVIRONMENT) or Path("results") / "test-ledger.jsonl")


def record_evaluation(ledger: Path, entry: Mapping[str, Any]) -> int:
    """Add one look, and say which look at these images it is.

    Processes that write at once wait for each other (a lock, on a hidden file beside the ledger), and the line is on the
    disk when this returns.

    Args:
        ledger: the file; made where it is missing.
        entry: what is known of the evaluation, with `images_sha256`; `look` is added.
    Returns:
        How many looks at the same images the ledger holds, this one included.
    Raises:
        StorageError: the ledger cannot be written, or a line in it is malformed (it is named, and nothing is added).
    """
    held = StorageError(
        f"the test ledger {str(ledger)!r} has been locked by another process for {_WAIT:.0f} s",
        hint="Try again when that process has ended",
    )
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(ledger, error) from error
    with locked(ledger.parent / f".{ledger.name}.lock", held, timeout=_WAIT):
        return _add(ledger, entry)


def _add(ledger: Path, entry: Mapping[str, Any]) -> int:
    try:
        handle = os.open(ledger, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    except OSError as error:
        raise _unwritable(ledger, error) from error
    try:
        before = _read(handle)
        look = 1 + _looks(before, entry["images_sha256"], ledger)
        line = json.dumps({**entry, "look": look}, allow_nan=False, ensure_ascii=False) + "\n"
        _append(handle, line.encode(), size=len(before))
    except OSError as error:
        raise _unwritable(ledger, error) from error
    finally:
        os.close(handle)
    return look


def _read(handle: int) -> bytes:
    with os.fdopen(os.dup(handle), "rb") as file:
        file.seek(0)
        return file.read()


def _append(handle: int, line: bytes, *, size: int) -> None:
    try:
        written = os.write(handle, line)
        os.fsync(handle)
        if written < len(line):
            raise OSError(f"{written} of {len(line)} bytes written")
    except OSError:
        os.ftruncate(handle, size)  # half a line would make the whole ledger unreadable
        raise


def _looks(text: bytes, images_sha256: str, ledger: Path) -> int:
    """Lines of the same images; every line is checked."""
    count = 0
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        try:
            data = json.loads(line) if line.endswith(b"\n") else None
            count += data["images_sha256"] == images_sha256  # type: ignore[index]
        except (ValueError, TypeError, KeyError) as error:
            raise StorageError(
                f"{str(ledger)!r}, line {number} is malformed: {line[:60].decode(errors='replace')!r}",
                hint="Restore the ledger from version control, or mend the line by hand; nothing was added",
            ) from error
    return count


def _unwritable(ledger: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write the test ledger {str(ledger)!r}: {error.strerror or error}",
        hint=f"An evaluation on test images must be written down: name another with --ledger FILE or {ENVIRONMENT}",
    )

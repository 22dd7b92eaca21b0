"""Reading what a run left as text, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.core.errors import RunError

__all__ = ["read_text"]


def read_text(path: Path) -> str:
    """A text file of a run.

    Raises:
        RunError: it is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RunError(
            f"cannot read {str(path)!r}: {why}", hint="Is it a run folder? Train one: pneumoscope train RECIPE"
        ) from error

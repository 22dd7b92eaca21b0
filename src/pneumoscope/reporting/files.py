"""Text files of a run folder."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.core.errors import RunError

__all__ = ["read_text"]


def read_text(path: Path) -> str:
    """Return the text of a file of a run folder.

    Raises:
        RunError: The file is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RunError(
            f"cannot read {str(path)!r}: {reason}", hint="Is it a run folder? Train one: pneumoscope train RECIPE"
        ) from error

"""Read the text and JSON files of a run folder with errors that name the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pneumoscope.core.errors import RunError
from pneumoscope.core.results import SCHEMA

__all__ = ["TRAIN_ADVICE", "read_document", "read_text"]

TRAIN_ADVICE = "Is it a run folder? Train one: pneumoscope train RECIPE"
_Document = TypeVar("_Document")


class _Header(msgspec.Struct):
    schema: Any = None


def read_text(path: Path, hint: str = TRAIN_ADVICE) -> str:
    """Return the text of a file.

    Raises:
        RunError: The file is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RunError(f"cannot read {str(path)!r}: {why}", hint=hint) from error


def read_document(path: Path, kind: type[_Document], hint: str = TRAIN_ADVICE) -> _Document:
    """Return a JSON file as `kind`. Types must match exactly; unknown keys are ignored.

    Raises:
        RunError: The file is missing, not JSON, malformed, or of another schema.
    """
    text = read_text(path, hint)
    try:
        schema = msgspec.json.decode(text, type=_Header).schema
        if schema != SCHEMA:
            raise RunError(f"{str(path)!r} has schema {schema!r}; this version reads {SCHEMA}", hint=hint)
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise RunError(f"{str(path)!r} is malformed: {error}", hint=hint) from error
    except msgspec.DecodeError as error:
        raise RunError(f"{str(path)!r} is not JSON: {error}", hint=hint) from error

"""Explain column errors in a compared file by comparing its columns with those of the other files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pneumoscope.core.errors import LayoutError, UnknownNameError
from pneumoscope.data.predictions_file import column_names

__all__ = ["explain_columns"]

_COLUMN = "COLUMN"


@contextlib.contextmanager
def explain_columns(file: Path, files: Sequence[Path], data: Path, name: str = _COLUMN) -> Iterator[None]:
    """Extend the hint of a column error: how the columns differ from another file's, and how to compare both.

    Args:
        file: The file being read.
        files: All compared files.
        data: The labeled images.
        name: Placeholder for a column name in the suggested options; multiclass comparisons use a different one.
    """
    try:
        yield
    except (LayoutError, UnknownNameError) as error:
        found = column_names(file)
        is_other_kind = name != _COLUMN and not {"probability", "logit"}.isdisjoint(found)
        for other in () if is_other_kind else files:
            columns = column_names(other)
            if found and columns and {*columns} != {*found}:
                error.hint += (
                    f"{'' if error.hint.endswith('?') else '.'} The columns of the files differ: only {file.name} has"
                    f" {_listed(found, columns)}, and only {other.name} has {_listed(columns, found)}. --probability-column and"
                    " --logit-column name those of all files; if each needs its own, evaluate them first: pneumoscope evaluate"
                    f" --predictions {file} --data {data} --probability-column {name} --out FOLDER; then compare the folders"
                )
                break
        raise


def _listed(columns: Sequence[str], others: Sequence[str]) -> str:
    """Return the columns that are not among the others, comma-separated."""
    return ", ".join(column for column in columns if column not in others) or "none"

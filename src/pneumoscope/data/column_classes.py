"""Check the classes that `--probability-column CLASS=COLUMN` and `--logit-column CLASS=COLUMN` name."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pneumoscope.core.errors import UnknownNameError, UsageError
from pneumoscope.data.classes import LABELS

if TYPE_CHECKING:
    from pneumoscope.data.predictions_file import PredictionColumns

__all__ = ["check_column_classes", "check_single_class"]


def check_column_classes(columns: PredictionColumns, classes: Iterable[str]) -> None:
    """Raise if a column is named for a class that does not exist.

    Args:
        columns: Names of the columns; those without a class are not checked.
        classes: The classes that exist, whose names may differ in case.

    Raises:
        UnknownNameError: With the first such class, and the existing ones.
    """
    known = list(classes)
    existing = {label.casefold() for label in known}
    for flag, named in _options(columns).items():
        if isinstance(named, Mapping):
            for label, column in named.items():
                if label.casefold() not in existing:
                    raise _unknown_class(flag, label, column, known)


def check_single_class(columns: PredictionColumns, header: Sequence[str], classes: Sequence[str], name: str) -> None:
    """Raise if the only column that is named is that of a class, CLASS=COLUMN.

    Args:
        columns: Names of the columns.
        header: Columns of the file; one of them may have such a name.
        classes: The classes that exist.
        name: Name of the file.

    Raises:
        UnknownNameError: The class does not exist.
        UsageError: It is only one of the classes.
    """
    for flag, named in _options(columns).items():
        if not isinstance(named, str) or "=" not in named or named in header:
            continue
        label, _, column = (part.strip() for part in named.partition("="))
        if label.casefold() not in {each.casefold() for each in classes}:
            raise _unknown_class(flag, label, column, classes)
        if tuple(classes) == LABELS:
            hint = f"Name the column of PNEUMONIA without its class: {flag} COLUMN"
            if label.upper() == "PNEUMONIA":
                hint = f"Name it without the class: {flag} {shlex.quote(column)}"
        else:
            hint = f"Give {flag} once for each class, CLASS=COLUMN"
        raise UsageError(
            f"{flag} {shlex.quote(named)} names the column of one class only, and {name} has no column of this name; the classes"
            f" are {', '.join(classes)}",
            hint=hint,
        )


def _options(columns: PredictionColumns) -> dict[str, str | Mapping[str, str]]:
    return {"--probability-column": columns.probability, "--logit-column": columns.logit}


def _unknown_class(flag: str, label: str, column: str, classes: Sequence[str]) -> UnknownNameError:
    """Return the error for a column of a class that does not exist."""
    hint = f"Give {flag} once for each of these classes, CLASS=COLUMN"
    if tuple(classes) == LABELS:
        hint = f"If {column!r} is the column of PNEUMONIA, name it without a class: {flag} {shlex.quote(column)}"
    return UnknownNameError(
        "class",
        label,
        classes,
        message=f"{flag} {shlex.quote(f'{label}={column}')}: there is no class {label!r}; the classes are {', '.join(classes)}",
        hint=hint,
    )

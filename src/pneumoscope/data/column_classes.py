"""Check the classes of prediction columns, named by `--probability-column CLASS=COLUMN` or found in a file."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pneumoscope.core.errors import DatasetError, UnknownNameError, UsageError
from pneumoscope.data.classes import LABELS

if TYPE_CHECKING:
    from pneumoscope.data.predictions_file import PredictionColumns

__all__ = [
    "check_column_classes",
    "check_column_labels",
    "check_single_class",
    "columns_by_class",
    "match_class_names",
    "single_class_error",
]


def check_column_classes(columns: PredictionColumns, classes: Iterable[str]) -> None:
    """Raise if a column is specified for a nonexistent class.

    Args:
        columns: Column names; those without a class are not checked.
        classes: Existing classes; case is ignored.

    Raises:
        UnknownNameError: Contains the first such class and the existing ones.
    """
    known = list(classes)
    existing = {label.casefold() for label in known}
    for flag, named in _options(columns).items():
        if isinstance(named, Mapping):
            for label, column in named.items():
                if label.casefold() not in existing:
                    raise _unknown_class(flag, label, column, known)


def match_class_names(classes: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return class names in the spelling of the existing classes, ignoring case; unknown names are unchanged.

    Args:
        classes: Existing classes.
        names: Names to convert.
    """
    by_case = {label.casefold(): label for label in classes}
    return [by_case.get(name.casefold(), name) for name in names]


def columns_by_class(classes: Sequence[str], names: Sequence[str], columns: Sequence[str], file: str) -> dict[str, str]:
    """Return the column of each class, with names converted by `match_class_names`.

    Args:
        classes: Existing classes.
        names: Class of each column.
        columns: Column names.
        file: Name of the file.

    Raises:
        DatasetError: Two columns belong to the same class.
    """
    spelled = match_class_names(classes, names)
    for label in dict.fromkeys(spelled):
        same = [column for each, column in zip(spelled, columns, strict=True) if each == label]
        if len(same) > 1:
            raise DatasetError(
                f"{file} has {len(same)} columns for the class {label!r}: {', '.join(map(repr, same))}",
                hint="Keep one of them; names of classes that differ only in case are one class",
            )
    return dict(zip(spelled, columns, strict=True))


def check_column_labels(columns: PredictionColumns, labels: Sequence[str]) -> None:
    """Raise if a column is specified for a class without images, while a label of the data has no column.

    Args:
        columns: Column names; those without a class are not checked.
        labels: All labels of the data, at least one of which has no column; case is ignored.

    Raises:
        UnknownNameError: Contains the first such class and the labels without a column.
    """
    existing = {label.casefold() for label in labels}
    for flag, named in _options(columns).items():
        if not isinstance(named, Mapping):
            continue
        given = {label.casefold() for label in named}
        missing = [label for label in labels if label.casefold() not in given]
        for label, column in named.items():
            if label.casefold() not in existing:
                raise UnknownNameError(
                    "class",
                    label,
                    missing,
                    message=f"{flag} {shlex.quote(f'{label}={column}')}: the data have no images of {label!r}; their labels are"
                    f" {', '.join(labels)}, and there is no column for {', '.join(map(repr, missing))}",
                    hint=f"Give {flag} once for each class, CLASS=COLUMN",
                )


def check_single_class(columns: PredictionColumns, header: Sequence[str], classes: Sequence[str], name: str) -> None:
    """Raise if the only specified column is CLASS=COLUMN.

    Args:
        columns: Column names.
        header: Columns of the file; a column name may itself contain "=".
        classes: Existing classes.
        name: Name of the file.

    Raises:
        UnknownNameError: The class does not exist.
        UsageError: Only one of the classes is specified.
    """
    for flag, named in _options(columns).items():
        if not isinstance(named, str) or "=" not in named or named in header:
            continue
        label, _, column = (part.strip() for part in named.partition("="))
        if label.casefold() not in {each.casefold() for each in classes}:
            raise _unknown_class(flag, label, column, classes)
        error = single_class_error(flag, named, classes)
        if column not in header:
            error.hint = f"Name a column of {name} without a class; its columns are {', '.join(header)}"
        raise error


def single_class_error(flag: str, named: str, classes: Sequence[str] = ()) -> UsageError:
    """Return the error for a column specified for a single class.

    Args:
        flag: Option.
        named: Value of the option, CLASS=COLUMN.
        classes: Existing classes; empty if unknown.
    """
    label, _, column = (part.strip() for part in named.partition("="))
    hint = f"Give {flag} once for each class, CLASS=COLUMN"
    if tuple(classes) == LABELS:
        hint = f"Name the column of PNEUMONIA without its class: {flag} COLUMN"
        if label.upper() == "PNEUMONIA":
            hint = f"Name it without the class: {flag} {shlex.quote(column)}"
    return UsageError(
        f"{flag} {shlex.quote(named)} names the column of one class only"
        + (f"; the classes are {', '.join(classes)}" if classes else ""),
        hint=hint,
    )


def _options(columns: PredictionColumns) -> dict[str, str | Mapping[str, str]]:
    return {"--probability-column": columns.probability, "--logit-column": columns.logit}


def _unknown_class(flag: str, label: str, column: str, classes: Sequence[str]) -> UnknownNameError:
    """Return the error for a column of a nonexistent class."""
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

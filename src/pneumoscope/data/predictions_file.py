"""Read a CSV file with the predictions of another tool: one probability or logit per image, or one per class."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pneumoscope.core.errors import DatasetError, LayoutError, UnknownNameError, UsageError
from pneumoscope.core.messages import counted
from pneumoscope.data.classes import LABELS, sort_classes
from pneumoscope.data.column_classes import check_column_classes, columns_by_class, single_class_error
from pneumoscope.data.csv_table import CsvTable
from pneumoscope.data.layouts import SPLIT_FOLDERS
from pneumoscope.data.prediction_values import check_probabilities, parse_numbers

__all__ = [
    "PredictionColumns",
    "PredictionRow",
    "PredictionsFile",
    "check_sums",
    "column_names",
    "has_class_columns",
    "missing_class_error",
    "read_class_predictions_file",
    "read_column_names",
    "read_predictions_file",
]

_HINT = "Expected a CSV file with a header line, a column path or id, and a column probability or logit"
_Scale = Literal["probability", "logit"]
_SCALES: tuple[_Scale, _Scale] = ("probability", "logit")
# Maximum deviation from 1 of the sum of an image's probabilities, which may be rounded.
_SUM_TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True, slots=True)
class PredictionColumns:
    """Column names of a predictions file.

    Attributes:
        path: Path or name of the image; "path" if empty.
        id: Identifier of the image, used instead of the path: its file name without extension, its SHA-256, or the value in the
            manifest column of the same name. If empty, "id" is used if there is no column "path".
        probability: Probability of pneumonia, 0 to 1; "probability" if empty. For several classes, the column of each class;
            "probability_CLASS" if empty.
        logit: Logit, used instead of the probability. If empty, "logit" is used if there is no column "probability". For
            several classes, the column of each class; "logit_CLASS" if empty.
        split: Split of the row; empty if all rows belong to the same split.
    """

    path: str = ""
    id: str = ""
    probability: str | Mapping[str, str] = ""
    logit: str | Mapping[str, str] = ""
    split: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class PredictionRow:
    """One row of a predictions file.

    Attributes:
        line: Line number in the file, starting at 1.
        image: Path or identifier of the image.
        values: Probability or logit; one per class for several classes.
        split: "train", "validation" or "test"; "" if missing.
    """

    line: int
    image: str
    values: tuple[float, ...]
    split: str

    @property
    def value(self) -> float:
        """The single value in a binary predictions file."""
        (value,) = self.values
        return value


@dataclasses.dataclass(frozen=True)
class PredictionsFile:
    """Content of a predictions file.

    Attributes:
        path: Path of the file.
        sha256: SHA-256 of the file.
        scale: Whether the values are probabilities or logits.
        id_column: Column with identifiers; "" if images are identified by path.
        rows: Rows of the file, at least one.
        classes: Class names in the order of the values; empty for NORMAL and PNEUMONIA.
        columns: Columns of the values.
    """

    path: Path
    sha256: str
    scale: _Scale
    id_column: str
    rows: tuple[PredictionRow, ...]
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def read_predictions_file(file: Path, columns: PredictionColumns) -> PredictionsFile:
    """Read a CSV file with predictions for NORMAL and PNEUMONIA, which may start with a byte order mark.

    Raises:
        UsageError: Mutually exclusive columns, or columns of several classes, are specified.
        LayoutError: The file cannot be read, is empty, lacks the columns, has a row of a different length, uses a separator
            other than commas, or has comment lines.
        UnknownNameError: A specified column does not exist.
        DatasetError: A value is missing or not a finite number, a probability is not within 0 to 1, or a split is unknown.
    """
    table, image = _read_table(file, columns)
    column, scale = _choose_value_column(table.header, columns, table.name)
    return _predictions(table, image, columns, {"": column}, scale)


def read_class_predictions_file(file: Path, columns: PredictionColumns, order: Sequence[str] = ()) -> PredictionsFile:
    """Read a CSV file with a probability or logit for each of several classes.

    Args:
        file: Path of the file.
        columns: Column names.
        order: All classes in the order of the values; sorted if empty.

    Returns:
        The predictions. NORMAL and PNEUMONIA are in upper case, as in labeled data, if there are no other classes.

    Raises:
        UsageError, LayoutError, UnknownNameError: See `read_predictions_file`; or a column is specified for a class that is not
            in `order`.
        DatasetError: See `read_predictions_file`; or the classes differ from `order`, or two columns belong to the same class.
    """
    table, image = _read_table(file, columns)
    named, scale = _choose_class_columns(table.header, columns, table.name, order)
    order = _names_in_data(order)
    by_class = columns_by_class(order, _names_in_data([*named]), [*named.values()], table.name)
    if order:
        check_column_classes(columns, order)
    if missing := [label for label in order if label not in by_class and {*by_class} < {*order}]:
        raise missing_class_error(table.name, missing[0], by_class.values(), scale)
    if order and set(order) != set(by_class):
        raise DatasetError(
            f"{table.name} has predictions for the classes {', '.join(sort_classes(by_class))}; expected {', '.join(order)}",
            hint=f"Name the column of each class with --{scale}-column CLASS=COLUMN",
        )
    ordered = {label: by_class[label] for label in order or sort_classes(by_class)}
    return _predictions(table, image, columns, ordered, scale)


def check_sums(file: PredictionsFile, missing: str = "") -> None:
    """Raise unless the class probabilities of each image sum to 1, up to rounding.

    Args:
        file: Predictions to check.
        missing: Label in the data without a column in the file; "" if there is none.

    Raises:
        DatasetError: Contains the missing column, or the first such sum.
    """
    bad = [row for row in file.rows if abs(sum(row.values) - 1) > _SUM_TOLERANCE]
    if file.scale != "probability" or not bad:
        return
    if missing:
        raise missing_class_error(str(file.path), missing, file.columns, file.scale)
    raise DatasetError(
        f"{file.path}, line {bad[0].line}: the probabilities of the classes {', '.join(file.classes)} sum to"
        f" {sum(bad[0].values):.4g}, not to 1 ({len(bad)} of {counted(len(file.rows), 'row')})",
        hint="Give a probability of each class, as a softmax makes it; independent probabilities of several findings are not"
        " those of classes",
    )


def missing_class_error(name: str, missing: str, columns: Iterable[str], scale: _Scale) -> DatasetError:
    """Return the error for a file that lacks the column of a class.

    Args:
        name: Name of the file.
        missing: Class without a column.
        columns: Columns of the other classes.
        scale: Whether the values are probabilities or logits.
    """
    return DatasetError(
        f"{name} has no column {f'{scale}_{missing}'!r} for the class {missing!r} (columns of classes: {', '.join(columns)})",
        hint=f"Add it; or if it has another name, name the column of each class with --{scale}-column CLASS=COLUMN",
    )


def has_class_columns(file: Path, columns: PredictionColumns) -> bool:
    """Return whether a file has predictions for several classes; False if it cannot be read.

    Columns for exactly NORMAL and PNEUMONIA do not count, because a binary model has a single probability.
    """
    named = (columns.probability, columns.logit)
    if any(isinstance(each, Mapping) for each in named) or any(named):
        return any(isinstance(each, Mapping) for each in named)
    header = column_names(file)
    found = [{label.upper() for label in _default_columns(header, scale)} for scale in _SCALES]
    return not {*_SCALES} & {*header} and any(len(each) > 1 and each != {*LABELS} for each in found)


def column_names(file: Path) -> list[str]:
    """Return the column names of a CSV file, or an empty list if it cannot be read."""
    try:
        return read_column_names(file)
    except LayoutError:
        return []


def read_column_names(file: Path) -> list[str]:
    """Return the column names of a CSV file.

    Raises:
        LayoutError: The file cannot be read; see `read_predictions_file`.
    """
    return CsvTable.read(file, hint=_HINT).header


def _names_in_data(classes: Sequence[str]) -> list[str]:
    """Return class names as in labeled data: in upper case if they are exactly NORMAL and PNEUMONIA."""
    upper = [label.upper() for label in classes]
    return upper if sorted(upper) == [*LABELS] else [*classes]


def _read_table(file: Path, columns: PredictionColumns) -> tuple[CsvTable, tuple[str, bool]]:
    """Return the table, the column that identifies the images, and whether that column contains identifiers."""
    for a, b in (_SCALES, ("path", "id")):
        if getattr(columns, a) and getattr(columns, b):
            raise UsageError(f"both --{a}-column and --{b}-column are given", hint="Give one of the two")
    table = CsvTable.read(file, hint=_HINT)
    return table, _choose_image_column(table.header, columns, table.name)


def _predictions(
    table: CsvTable,
    image: tuple[str, bool],
    columns: PredictionColumns,
    by_class: Mapping[str, str],
    scale: _Scale,
) -> PredictionsFile:
    """Return the predictions in a table.

    Args:
        table, image: See `_read_table`.
        columns: Column names, here of the split.
        by_class: Column of each class; the key is "" for NORMAL and PNEUMONIA.
        scale: Whether the values are probabilities or logits.
    """
    name = table.name
    image_column, is_id = image
    split_column = _named_column(table.header, columns.split, name) if columns.split else ""
    index = {column: i for i, column in enumerate(table.header)}
    numbers = []
    for column in by_class.values():
        values = [(line, cells[index[column]].strip()) for line, cells in table.lines]
        numbers.append(parse_numbers(values, column, name))
        if scale == "probability":
            check_probabilities(numbers[-1], values, column, name)
    rows = []
    for (line, cells), values_of_row in zip(table.lines, zip(*numbers, strict=True), strict=True):
        named = cells[index[image_column]].strip()
        if not named:
            raise DatasetError(f"{name}, line {line}: there is no value in the column {image_column!r}")
        split = _parse_split(cells[index[split_column]].strip(), f"{name}, line {line}") if split_column else ""
        rows.append(PredictionRow(line, named, values_of_row, split))
    classes = tuple(each for each in by_class if each)
    id_column = image_column if is_id else ""
    return PredictionsFile(
        table.path, table.sha256, scale, id_column, tuple(rows), classes, columns=tuple(by_class.values())
    )


def _choose_image_column(header: Sequence[str], columns: PredictionColumns, name: str) -> tuple[str, bool]:
    """Return the column that identifies the image, and whether it contains identifiers."""
    if columns.path or columns.id:
        return _named_column(header, columns.path or columns.id, name), bool(columns.id)
    if "path" in header:
        return "path", False
    if "id" in header:
        return "id", True
    raise _no_column(header, ("path", "id"), ("image", "file", "name", "path", "id", "uid"), name)


def _choose_value_column(header: Sequence[str], columns: PredictionColumns, name: str) -> tuple[str, _Scale]:
    """Return the column of the predictions and its scale."""
    for scale in _SCALES:
        column = getattr(columns, scale)
        if isinstance(column, Mapping):
            raise UsageError(
                f"columns of several classes are given for {name}",
                hint="In Python, use evaluate_multiclass_predictions",
            )
        if column:
            if column not in header and "=" in column:
                raise single_class_error(f"--{scale}-column", column)
            return _named_column(header, column, name), scale
    if "probability" in header and "logit" in header:
        raise UsageError(
            f"{name} has both columns probability and logit",
            hint="Choose one with --probability-column probability or --logit-column logit",
        )
    if "probability" in header:
        return "probability", "probability"
    if "logit" in header:
        return "logit", "logit"
    raise _no_column(
        header, ("probability", "logit"), ("prob", "pneumonia", "score", "logit", "pred", "output", "p"), name
    )


def _choose_class_columns(
    header: Sequence[str], columns: PredictionColumns, name: str, order: Sequence[str]
) -> tuple[Mapping[str, str], _Scale]:
    """Return the column of each class and their scale; `order` contains the classes if known."""
    for scale in _SCALES:
        named = getattr(columns, scale)
        if isinstance(named, Mapping):
            _check_class_columns(named, scale)
            return {label: _named_column(header, column, name) for label, column in named.items()}, scale
        if named:
            raise UsageError(
                f"the column {named!r} is given for several classes",
                hint=f"Name the column of each class: --{scale}-column CLASS={named}",
            )
    found = {scale: _default_columns(header, scale) for scale in _SCALES}
    several = [scale for scale in _SCALES if len(found[scale]) > 1]
    if len(several) > 1:
        raise UsageError(
            f"{name} has both probabilities and logits of several classes",
            hint="Choose the columns with --probability-column CLASS=COLUMN or --logit-column CLASS=COLUMN",
        )
    if not several:
        example = order[0] if order else "CLASS"
        raise LayoutError(
            f"{name} has no columns of several classes, named probability_{example} or logit_{example} (its columns:"
            f" {', '.join(header)})",
            hint="Name the column of each class: --probability-column CLASS=COLUMN, or --logit-column CLASS=COLUMN",
        )
    return found[several[0]], several[0]


def _check_class_columns(named: Mapping[str, str], scale: _Scale) -> None:
    """Raise unless there are two or more classes with different columns."""
    if len(named) < 2 or not all(named) or len(set(named.values())) < len(named):
        listed = ", ".join(f"{label}={column}" for label, column in named.items())
        raise UsageError(
            f"the columns {listed!r} are not those of two or more classes",
            hint=f"Give each class its own column: --{scale}-column CLASS=COLUMN",
        )


def _default_columns(header: Iterable[str], scale: _Scale) -> dict[str, str]:
    """Return the columns named after a class, such as probability_virus."""
    prefix = f"{scale}_"
    return {column.removeprefix(prefix): column for column in header if column.startswith(prefix) and column != prefix}


def _named_column(header: Sequence[str], column: str, name: str) -> str:
    if column not in header:
        raise UnknownNameError("column", column, header, message=f"{name} has no column {column!r}")
    return column


def _no_column(header: Sequence[str], wanted: tuple[str, str], similar: Sequence[str], name: str) -> LayoutError:
    """Return the error for a missing column, suggesting the option for a column with a similar name."""
    near = [column for column in header if set(re.findall(r"[a-z]+", column.lower())) & set(similar)] or [
        column
        for column in header
        if any(len(word) > 3 and word in column.lower() for word in similar)
        or difflib.get_close_matches(column.lower(), wanted, n=1)
    ]
    near.sort(key=lambda column: "pneumonia" not in column.lower())  # prefer it to the column of NORMAL
    a, b = wanted
    flag = f"--{b if b in re.findall(r'[a-z]+', near[0].lower()) else a}-column" if near else ""
    several = "; or that of each of several classes, with CLASS=COLUMN" if a == "probability" else ""
    hint = (
        f"If {near[0]!r} is meant, give {flag} {near[0]!r}"
        if near
        else f"Name a column with --{a}-column or --{b}-column{several}"
    )
    return LayoutError(f"{name} has no column {a!r} or {b!r} (its columns: {', '.join(header)})", hint=hint)


def _parse_split(text: str, place: str) -> str:
    if not text:
        return ""
    if text.lower() not in SPLIT_FOLDERS:
        raise DatasetError(
            f"{place}: the split is {text!r}", hint=f"Known: {', '.join(sorted(SPLIT_FOLDERS))}, or no value"
        )
    return SPLIT_FOLDERS[text.lower()]

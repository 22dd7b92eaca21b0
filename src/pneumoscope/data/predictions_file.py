"""Read a CSV file with the predictions of another tool: one probability or logit per image."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import hashlib
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pneumoscope.core.errors import DatasetError, LayoutError, UnknownNameError, UsageError
from pneumoscope.core.messages import counted
from pneumoscope.data.layouts import SPLIT_FOLDERS

__all__ = ["PredictionColumns", "PredictionRow", "PredictionsFile", "read_predictions_file"]

_HINT = "Expected a CSV file with a header line, a column path or id, and a column probability or logit"
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


@dataclasses.dataclass(frozen=True, slots=True)
class PredictionColumns:
    """Names of the columns of a file of predictions.

    Attributes:
        path: Path or name of the image; "path" if empty.
        id: Identifier of the image, used instead of the path: its file name without extension, its SHA-256, or the value of
            the column of the same name in the manifest. "id" if empty, without a column "path".
        probability: Probability of pneumonia, 0 to 1; "probability" if empty.
        logit: Logit, used instead of the probability; "logit" if empty, without a column "probability".
        split: Split of the row; empty if all rows are of one split.
    """

    path: str = ""
    id: str = ""
    probability: str = ""
    logit: str = ""
    split: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class PredictionRow:
    """One row of a file of predictions.

    Attributes:
        line: Line of the file, from 1.
        image: Path or identifier of the image.
        value: Probability or logit.
        split: "train", "validation" or "test"; "" if the file states none.
    """

    line: int
    image: str
    value: float
    split: str


@dataclasses.dataclass(frozen=True)
class PredictionsFile:
    """The rows of a file of predictions.

    Attributes:
        path: The file.
        sha256: SHA-256 of the file.
        scale: What the values are.
        id_column: Name of the column with identifiers; "" if images are named by their paths.
        rows: The rows, at least one.
    """

    path: Path
    sha256: str
    scale: Literal["probability", "logit"]
    id_column: str
    rows: tuple[PredictionRow, ...]


def read_predictions_file(file: Path, columns: PredictionColumns) -> PredictionsFile:
    """Return the rows of a CSV file, which may start with a byte order mark.

    Raises:
        UsageError: Columns are named that exclude each other.
        LayoutError: The file cannot be read, is empty, has no such columns or a row of another length, is separated by other
            characters than commas, or has comment lines.
        UnknownNameError: A column that is named does not exist.
        DatasetError: A value is missing or no finite number, a probability is not within 0 to 1, or a split is unknown.
    """
    for a, b in (("probability", "logit"), ("path", "id")):
        if getattr(columns, a) and getattr(columns, b):
            raise UsageError(f"both --{a}-column and --{b}-column are given", hint="Give one of the two")
    content = _read(file)
    name = str(file)
    header, lines = _parse(content.decode("utf-8-sig"), name)
    image_column, is_id = _choose_image_column(header, columns, name)
    value_column, scale = _choose_value_column(header, columns, name)
    split_column = _named_column(header, columns.split, name) if columns.split else ""
    index = {column: i for i, column in enumerate(header)}
    values = [(line, cells[index[value_column]].strip()) for line, cells in lines]
    numbers = _parse_numbers(values, value_column, name)
    if scale == "probability":
        _check_probabilities(numbers, values, value_column, name)
    rows = []
    for (line, cells), number in zip(lines, numbers, strict=True):
        image = cells[index[image_column]].strip()
        if not image:
            raise DatasetError(f"{name}, line {line}: there is no value in the column {image_column!r}")
        split = _parse_split(cells[index[split_column]].strip(), f"{name}, line {line}") if split_column else ""
        rows.append(PredictionRow(line, image, number, split))
    return PredictionsFile(file, hashlib.sha256(content).hexdigest(), scale, image_column if is_id else "", tuple(rows))


def _read(file: Path) -> bytes:
    try:
        content = file.read_bytes()
        content.decode("utf-8-sig")
    except OSError as error:
        raise LayoutError(f"cannot read {str(file)!r}: {error.strerror or error}", hint=_HINT) from error
    except UnicodeDecodeError as error:
        raise LayoutError(
            f"{str(file)!r} is not UTF-8 text (byte {error.start})", hint="Save it as a CSV file in UTF-8"
        ) from error
    return content


def _parse(text: str, name: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header, and the rows with their lines. Blank lines are skipped."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise LayoutError(f"{name}, line {reader.line_num}: {error}", hint=_HINT) from error
    if not lines:
        raise LayoutError(f"{name} is empty", hint=_HINT)
    comments = [line for line, cells in lines if cells[0].lstrip().startswith("#")]
    if comments:
        raise LayoutError(
            f"{name}, line {comments[0]} is a comment ({counted(len(comments), 'such line')})",
            hint="Remove the lines that start with '#'",
        )
    header = [cell.strip() for cell in lines[0][1]]
    if len(header) == 1:
        for separator, what in _SEPARATORS.items():
            if separator in header[0]:
                raise LayoutError(
                    f"{name} is separated by {what}, not by commas",
                    hint="Save it with commas, and with a point in decimal numbers",
                )
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise LayoutError(f"{name} has two columns {repeated[0]!r}", hint="Remove or rename one of them")
    if len(lines) == 1:
        raise LayoutError(f"{name} has a header and no rows", hint=_HINT)
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise LayoutError(
                f"{name}, line {line} has {counted(len(cells), 'value')}; the header has {counted(len(header), 'column')}",
                hint="Quote values that contain commas",
            )
    return header, lines[1:]


def _choose_image_column(header: Sequence[str], columns: PredictionColumns, name: str) -> tuple[str, bool]:
    """Return the column that names the image, and True if it has identifiers."""
    if columns.path or columns.id:
        return _named_column(header, columns.path or columns.id, name), bool(columns.id)
    if "path" in header:
        return "path", False
    if "id" in header:
        return "id", True
    raise _no_column(header, ("path", "id"), ("image", "file", "name", "path", "id", "uid"), name)


def _choose_value_column(
    header: Sequence[str], columns: PredictionColumns, name: str
) -> tuple[str, Literal["probability", "logit"]]:
    """Return the column of the predictions, and what its values are."""
    if columns.probability:
        return _named_column(header, columns.probability, name), "probability"
    if columns.logit:
        return _named_column(header, columns.logit, name), "logit"
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


def _named_column(header: Sequence[str], column: str, name: str) -> str:
    if column not in header:
        raise UnknownNameError("column", column, header, message=f"{name} has no column {column!r}")
    return column


def _no_column(header: Sequence[str], wanted: tuple[str, str], similar: Sequence[str], name: str) -> LayoutError:
    """Return the error for a missing column, which names the flag for a column with a similar name."""
    near = [column for column in header if set(re.findall(r"[a-z]+", column.lower())) & set(similar)] or [
        column
        for column in header
        if any(len(word) > 3 and word in column.lower() for word in similar)
        or difflib.get_close_matches(column.lower(), wanted, n=1)
    ]
    a, b = wanted
    flag = f"--{b if b in re.findall(r'[a-z]+', near[0].lower()) else a}-column" if near else ""
    hint = (
        f"If {near[0]!r} is meant, give {flag} {near[0]!r}"
        if near
        else f"Name a column with --{a}-column or --{b}-column"
    )
    return LayoutError(f"{name} has no column {a!r} or {b!r} (its columns: {', '.join(header)})", hint=hint)


def _parse_numbers(values: Sequence[tuple[int, str]], column: str, name: str) -> list[float]:
    numbers: list[float] = []
    for _, text in values:
        try:
            numbers.append(float(text))
        except ValueError:
            numbers.append(math.nan)
        if "_" in text:  # Python reads 1_0 as a number
            numbers[-1] = math.nan
    bad = [i for i, number in enumerate(numbers) if not math.isfinite(number)]
    if bad:
        line, text = values[bad[0]]
        what = f"{text!r} is not a finite number" if text else "there is no value"
        if len(bad) == len(values) and re.match(r"[^\W\d_]", text):
            raise DatasetError(
                f"{name}: the column {column!r} holds labels or other text, such as {text!r}, and no numbers",
                hint="Name the column with numbers with --probability-column or --logit-column",
            )
        decimal = "Use a point in decimal numbers. " if re.fullmatch(r"-?\d+,\d+", text) else ""
        raise DatasetError(
            f"{name}, line {line}: {what} in the column {column!r} ({len(bad)} of {counted(len(values), 'row')})",
            hint=f"{decimal}Images without a prediction are never skipped; give --data without them, or predict them",
        )
    return numbers


def _check_probabilities(numbers: Sequence[float], values: Sequence[tuple[int, str]], column: str, name: str) -> None:
    bad = [i for i, number in enumerate(numbers) if not 0 <= number <= 1]
    if not bad:
        return
    line, text = values[bad[0]]
    if min(numbers) >= 0 and max(numbers) <= 100:
        hint = "Divide percentages by 100"
    else:
        hint = f"If these are logits, give --logit-column {column!r}"
    raise DatasetError(
        f"{name}, line {line}: {text} in the column {column!r} is not a probability, 0 to 1 ({len(bad)} of"
        f" {counted(len(values), 'row')})",
        hint=hint,
    )


def _parse_split(text: str, place: str) -> str:
    if not text:
        return ""
    if text.lower() not in SPLIT_FOLDERS:
        raise DatasetError(
            f"{place}: the split is {text!r}", hint=f"Known: {', '.join(sorted(SPLIT_FOLDERS))}, or no value"
        )
    return SPLIT_FOLDERS[text.lower()]

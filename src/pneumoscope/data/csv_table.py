"""Strict reader for CSV files of other programs: errors give the line, and files are never repaired silently."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from pathlib import Path

from pneumoscope.core.errors import LayoutError
from pneumoscope.core.messages import counted

__all__ = ["CsvTable"]

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


@dataclasses.dataclass(frozen=True)
class CsvTable:
    """Content of a CSV file.

    Attributes:
        path: Path of the file.
        sha256: SHA-256 of the file.
        header: Distinct column names.
        lines: Line number and cells of each row; at least one row.
    """

    path: Path
    sha256: str
    header: list[str]
    lines: list[tuple[int, list[str]]]

    @classmethod
    def read(cls, file: Path, *, hint: str) -> CsvTable:
        """Read a UTF-8 file, which may start with a byte order mark.

        Args:
            file: Path of the file.
            hint: Description of the expected file, for error messages.

        Raises:
            LayoutError: The file cannot be read, is empty, has a row of a different length or duplicate column names, uses a
                separator other than commas, or has comment lines.
        """
        content = _read(file, hint)
        return cls(file, hashlib.sha256(content).hexdigest(), *_parse(content.decode("utf-8-sig"), str(file), hint))

    @property
    def name(self) -> str:
        """Path as text, for messages."""
        return str(self.path)


def _read(file: Path, hint: str) -> bytes:
    try:
        content = file.read_bytes()
        content.decode("utf-8-sig")
    except OSError as error:
        raise LayoutError(f"cannot read {str(file)!r}: {error.strerror or error}", hint=hint) from error
    except UnicodeDecodeError as error:
        raise LayoutError(
            f"{str(file)!r} is not UTF-8 text (byte {error.start})", hint="Save it as a CSV file in UTF-8"
        ) from error
    return content


def _parse(text: str, name: str, hint: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header, and the rows with their line numbers, skipping blank lines."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise LayoutError(f"{name}, line {reader.line_num}: {error}", hint=hint) from error
    if not lines:
        raise LayoutError(f"{name} is empty", hint=hint)
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
        raise LayoutError(f"{name} has a header and no rows", hint=hint)
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise LayoutError(
                f"{name}, line {line} has {counted(len(cells), 'value')}; the header has {counted(len(header), 'column')}",
                hint="Quote values that contain commas",
            )
    return header, lines[1:]

"""Report tables and their CSV, Markdown and data-frame forms; see also `latex_table`.

CSV files contain every number in full precision, with its interval in separate columns; LaTeX and Markdown contain
formatted text for a manuscript.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pneumoscope.core.comparison import SeedSpread
from pneumoscope.core.interval import Interval
from pneumoscope.core.result_forms import format_decimals, format_limit, rows_dataframe, with_minus_signs

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Cell", "Table", "cell_text", "to_csv", "to_markdown"]

Cell = Interval | SeedSpread | float | int | str | None
_PARTS = ("low", "high", "method", "n", "reason")  # fields of an interval besides its value
_SD = "standard deviation"  # of a mean


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Name of the files.
        caption: Caption, a sentence.
        columns: Headings.
        rows: Rows, each with one cell per column.
        note: Sentence on the interval methods; may be empty.
        decimals: Displayed decimals of numbers without an interval.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    decimals: int = 3

    def _repr_markdown_(self) -> str:
        return to_markdown(self)

    def wide(self) -> tuple[list[str], list[list[Any]]]:
        """Return headings and rows with separate columns for value, limits, method, n and reason of each interval.

        A mean also has a column for its standard deviation.
        """
        parts = [_parts([row[index] for row in self.rows]) for index in range(len(self.columns))]
        headings: list[str] = []
        for name, of_column in zip(self.columns, parts, strict=True):
            headings += [name, *(f"{name}, {part}" for part in of_column)]
        rows = []
        for row in self.rows:
            cells: list[Any] = []
            for cell, of_column in zip(row, parts, strict=True):
                interval = cell.mean if isinstance(cell, SeedSpread) else cell
                values = {_SD: cell.sd if isinstance(cell, SeedSpread) else None}
                if isinstance(interval, Interval):
                    values |= {part: getattr(interval, part) for part in _PARTS}
                cells += [interval.value if isinstance(interval, Interval) else interval, *map(values.get, of_column)]
            rows.append(cells)
        return headings, rows

    def to_dataframe(self) -> pd.DataFrame:
        """Return `wide` as a pandas DataFrame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        headings, rows = self.wide()
        return rows_dataframe(rows, "Table.to_dataframe()", headings)


def _parts(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return the parts of a column besides its values."""
    if any(isinstance(cell, SeedSpread) for cell in cells):
        return (*_PARTS, _SD)
    return _PARTS if any(isinstance(cell, Interval) for cell in cells) else ()


def to_csv(table: Table) -> str:
    """Return a table as CSV text, with the columns of `Table.wide`."""
    headings, rows = table.wide()
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)
    return out.getvalue()


def to_markdown(table: Table) -> str:
    """Return a table as Markdown, with its caption and note."""
    rows = [
        table.columns,
        ["---"] * len(table.columns),
        *([cell_text(cell, table.decimals) for cell in row] for row in table.rows),
    ]
    lines = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows]
    parts = [f"**{table.caption}**", "\n".join(lines), table.note]
    return "\n\n".join(part for part in parts if part) + "\n"


def cell_text(cell: Cell, decimals: int) -> str:
    """Return the displayed text of a cell.

    Args:
        cell: The cell.
        decimals: Decimals of a number without an interval.
    """
    if isinstance(cell, SeedSpread):
        if cell.mean.low is not None:
            return cell_text(cell.mean, decimals)
        reason = "" if cell.lacks_method else f"; no interval: {cell.mean.reason}"
        return with_minus_signs(f"{cell.mean.value:.3f} (SD {cell.sd:.3f}{reason})")
    if isinstance(cell, Interval):
        if cell.value is None:
            return f"undefined: {cell.reason}"
        if cell.low is None or cell.high is None:
            return with_minus_signs(f"{cell.value:.3f}") + (f" (no interval: {cell.reason})" if cell.reason else "")
        low, high = (format_limit(limit, ".3f") for limit in (cell.low, cell.high))
        return with_minus_signs(f"{cell.value:.3f} ({low} to {high})")
    if isinstance(cell, float):
        return with_minus_signs(format_decimals(cell, decimals))
    return "" if cell is None else str(cell)

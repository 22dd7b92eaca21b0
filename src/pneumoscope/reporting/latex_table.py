"""Format a report table as LaTeX, for the packages booktabs and longtable.

A narrow table floats, with columns as wide as their cells. A table that is wider than the text, or contains sentences, is set in
footnote size as wide as the text: its columns of text have fixed widths, its lines and pages break, and each page repeats the
heading. If its numbers do not fit either, it is divided into parts, which repeat the leading columns of text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from pneumoscope.reporting.table_forms import Table, cell_text

__all__ = ["to_latex"]

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "\N{MINUS SIGN}": "$-$",
    **{character: f"${character}$" for character in "<>|"},
}
_SPECIAL = re.compile("[" + re.escape("".join(_LATEX)) + "]")
_SENTENCE = 60  # characters of a cell; longer ones are broken into lines
_SHORT = 12  # characters of the longest cell of a text column without a width
_NUMBER = 36  # likewise of a number with its interval; a longer cell has the reason why the number is undefined
_CHARACTER = 0.012  # width of one, as a fraction of the text, in footnotes of the class article
_NORMAL_CHARACTER = 0.0145  # the same in the normal size
_SEPARATION = 0.036  # white space of a column, likewise
_LONGEST_WORD = 16  # characters that a column has room for
_LEAST_OF_SENTENCES = 0.2  # smallest width of a column of sentences
_CODE = re.compile("`([^`]+)`")
_HASH = re.compile(r"[0-9a-f]{16,}")


def to_latex(table: Table) -> str:
    """Return a table as LaTeX; a table that is too wide for a page becomes several."""
    parts = _parts(table)
    if len(parts) == 1:
        return _part_to_latex(table)
    return "\n".join(
        _long_table(part, [[cell_text(cell, part.decimals) for cell in row] for row in part.rows]) for part in parts
    )


def _parts(table: Table) -> list[Table]:
    """Return the table as one or more parts that are not wider than the text, each with the leading columns of short text.

    A table without numbers is one part, because its columns can be narrower.
    """
    least = _least_widths(table)
    columns = range(len(table.columns))
    if all(_is_text(table, index) for index in columns):
        return [table]
    keys: list[int] = []
    for index in columns:
        longest = max((len(str(row[index])) for row in table.rows), default=0)
        if not _is_text(table, index) or longest > _NUMBER or sum(least[each] for each in (*keys, index)) > 1 / 2:
            break
        keys.append(index)
    parts: list[list[int]] = [[]]
    for index in columns[len(keys) :]:
        if parts[-1] and sum(least[each] for each in (*keys, *parts[-1], index)) > 1:
            parts.append([])
        parts[-1].append(index)
    if len(parts) == 1:
        return [table]
    return [
        dataclasses.replace(
            table,
            name=f"{table.name}-{number}" if number > 1 else table.name,
            caption=f"{table.caption.removesuffix('.')} (part {number} of {len(parts)}).",
            columns=tuple(table.columns[index] for index in (*keys, *part)),
            rows=tuple(tuple(row[index] for index in (*keys, *part)) for row in table.rows),
            note=table.note if number == len(parts) else "",
        )
        for number, part in enumerate(parts, 1)
    ]


def _part_to_latex(table: Table) -> str:
    rows = [[cell_text(cell, table.decimals) for cell in row] for row in table.rows]
    lengths = _lengths(table, rows)
    natural = sum(length * _NORMAL_CHARACTER + _SEPARATION for length in lengths)
    if natural > 1 or any(len(text) > _SENTENCE for row in rows for text in row):
        return _long_table(table, rows)
    align = "".join("l" if _is_text(table, index) else "r" for index in range(len(table.columns)))
    lines = [
        r"\begin{table}",
        rf"\caption{{{_escape(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        f"{' & '.join(map(_cell, table.columns))} \\\\",
        r"\midrule",
        *(f"{' & '.join(map(_cell, row))} \\\\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        *([rf"\par\smallskip\footnotesize {_escape(table.note)}"] if table.note else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _long_table(table: Table, rows: Sequence[Sequence[str]]) -> str:
    """Return a table with fixed-width text columns that continues on the next page; `rows` are its cells as text."""
    widths = _widths(table, rows)
    align = "".join(
        ("l" if _is_text(table, index) else "r")
        if width is None
        else rf"p{{\dimexpr {width:.3f}\linewidth-2\tabcolsep\relax}}"
        for index, width in enumerate(widths)
    )

    def line(cells: Sequence[str]) -> str:
        # \raggedright redefines \\, so rows end in \tabularnewline.
        parts = [
            _cell(text) if width is None else rf"\raggedright {_breakable(text)}"
            for text, width in zip(cells, widths, strict=True)
        ]
        return f"{' & '.join(parts)} \\tabularnewline"

    heading = [r"\toprule", line(table.columns), r"\midrule"]
    lines = [
        r"\begingroup\footnotesize",
        rf"\begin{{longtable}}{{{align}}}",
        rf"\caption{{{_escape(table.caption)}}}\label{{tab:{table.name}}} \tabularnewline",
        *heading,
        r"\endfirsthead",
        *heading,
        r"\endhead",
        r"\bottomrule",
        r"\endfoot",
        *map(line, rows),
        r"\end{longtable}",
        *([rf"\noindent {_escape(table.note)}\par"] if table.note else []),
        r"\endgroup",
    ]
    return "\n".join(lines) + "\n"


def _widths(table: Table, rows: Sequence[Sequence[str]]) -> list[float | None]:
    """Return the width of each column as a fraction of that of the text; None for one that is as wide as its cells.

    Columns of numbers and short ones are as wide as their cells. The others share the rest by the square root of their longest
    cells, and each has room for its longest word.
    """
    lengths, least = _lengths(table, rows), _least_widths(table)
    long = [index for index in range(len(lengths)) if not _is_natural(table, index, rows)]
    used = sum(width for index, width in enumerate(least) if index not in long)
    weights = {index: min(lengths[index], 400) ** 0.5 for index in long}
    shares = _share(1 - used, weights, {index: least[index] for index in long}) if long else {}
    return [shares.get(index) for index in range(len(lengths))]


def _least_widths(table: Table) -> list[float]:
    """Return the smallest width of each column in footnote size, as a fraction of that of the text."""
    rows = [[cell_text(cell, table.decimals) for cell in row] for row in table.rows]
    cells = list(zip(table.columns, *rows, strict=True))
    widths = []
    for index, length in enumerate(_lengths(table, rows)):
        if _is_natural(table, index, rows):
            widths.append(length * _CHARACTER + _SEPARATION)
        else:
            word = min(_longest_word(cells[index]), _LONGEST_WORD) * _CHARACTER + _SEPARATION
            widths.append(max(word, _LEAST_OF_SENTENCES) if length > _SENTENCE else word)
    return widths


def _lengths(table: Table, rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the number of characters of the longest cell of each column."""
    return [max(len(text) for text in cells) for cells in zip(table.columns, *rows, strict=True)]


def _is_natural(table: Table, index: int, rows: Sequence[Sequence[str]]) -> bool:
    """Return whether a column is as wide as its cells. In other columns, lines break; so do long headings of short numbers."""
    length, heading = max((len(row[index]) for row in rows), default=0), len(table.columns[index])
    if _is_text(table, index):
        return max(length, heading) <= _SHORT
    return length <= _NUMBER and heading <= max(length, _SHORT)


def _share(width: float, weights: Mapping[int, float], least: Mapping[int, float]) -> dict[int, float]:
    """Return parts of a width by weight, each at least its minimum; scaled down if the minima do not fit."""
    fixed: dict[int, float] = {}
    while narrow := {
        index
        for index in weights.keys() - fixed.keys()
        if (width - sum(fixed.values())) * weights[index] / sum(weights[each] for each in weights.keys() - fixed.keys())
        < least[index]
    }:
        fixed |= {index: least[index] for index in narrow}
    if len(fixed) == len(weights):
        return {index: width * each / sum(fixed.values()) for index, each in fixed.items()}
    rest = weights.keys() - fixed.keys()
    total = sum(weights[index] for index in rest)
    return fixed | {index: (width - sum(fixed.values())) * weights[index] / total for index in rest}


def _longest_word(cells: Sequence[str]) -> int:
    return max((len(word) for cell in cells for word in re.split(r"[\s/_-]+", cell)), default=0)


def _is_text(table: Table, index: int) -> bool:
    return any(isinstance(row[index], str) for row in table.rows)


def _cell(text: str) -> str:
    """Return an escaped cell.

    "{}" prevents a leading bracket or asterisk from being parsed as an option of the preceding row end.
    """
    return "{}" * text.startswith(("[", "*")) + _escape(text)


def _breakable(text: str) -> str:
    """Return the text of a cell with allowed line breaks in paths, names and hashes."""
    text = re.sub(r"(/|\\_|=)(?=\w)", r"\1\\allowbreak{}", _cell(text))
    return _HASH.sub(lambda match: r"\allowbreak{}".join(re.findall(".{1,8}", match[0])), text)


def _escape(text: str) -> str:
    """Return escaped text with the parts between backticks as code."""
    parts = _CODE.split(text)  # text and code alternate
    return "".join(
        rf"\texttt{{{_escape_part(part)}}}" if index % 2 else _escape_part(part) for index, part in enumerate(parts)
    )


def _escape_part(text: str) -> str:
    escaped = _SPECIAL.sub(lambda match: _LATEX[match[0]], text)
    return re.sub("-(?=-)", "-{}", escaped)  # prevent ligatures to dashes

"""Format a report table as LaTeX, for the packages booktabs and longtable.

A table of numbers floats, with columns as wide as their cells. A table with sentences, such as a checklist, spans the
text width: its text columns have fixed widths, lines and pages break, and the header is repeated on each page.
"""

from __future__ import annotations

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
_SENTENCE = 60  # characters; longer cells are wrapped
_SHORT = 12  # characters of the longest cell in a column without a fixed width
_CHARACTER = 0.012  # character width as a fraction of the text width, at footnotesize in the article class
_SEPARATION = 0.036  # white space per column, likewise
_LONGEST_WORD = 16  # characters; columns need not fit longer words
_HASH = re.compile(r"[0-9a-f]{16,}")
_MOST_COLUMNS = 8  # on a portrait page; more need a landscape page
_WIDTH = 0.25  # width of a sentence column on a landscape page
_MOST_SHORT = 0.5  # largest fraction of the text width for all columns without a fixed width


def to_latex(table: Table) -> str:
    """Return a table as LaTeX."""
    rows = [[cell_text(cell, table.decimals) for cell in row] for row in table.rows]
    if any(len(text) > _SENTENCE for row in rows for text in row):
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
    """Return each column's width as a fraction of the text width; None for short columns, as wide as their cells.

    Long columns share the width in proportion to the square root of their longest cell, and each fits its longest word.
    Tables with very many columns are wider than the text.
    """
    lengths = [max(len(text) for text in (name, *cells)) for name, *cells in zip(table.columns, *rows, strict=True)]
    if len(lengths) > _MOST_COLUMNS:
        return [_WIDTH if length > _SENTENCE else None for length in lengths]
    short = [length <= _SHORT for length in lengths]
    used = sum(length * _CHARACTER + _SEPARATION for length, is_short in zip(lengths, short, strict=True) if is_short)
    if used > _MOST_SHORT:  # give all columns a width
        short, used = [False] * len(lengths), 0.0
    long = [index for index, is_short in enumerate(short) if not is_short]
    cells = list(zip(table.columns, *rows, strict=True))
    words = {index: min(_longest_word(cells[index]), _LONGEST_WORD) * _CHARACTER + _SEPARATION for index in long}
    shares = _share(1 - used, {index: min(lengths[index], 400) ** 0.5 for index in long}, words)
    return [shares.get(index) for index in range(len(lengths))]


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
    escaped = _SPECIAL.sub(lambda match: _LATEX[match[0]], text)
    return re.sub("-(?=-)", "-{}", escaped)  # prevent ligatures to dashes

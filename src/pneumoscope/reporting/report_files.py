"""The report of a comparison with its figures, tables and checklists as files."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.lines import Line2D

from pneumoscope.core.comparison import Comparison
from pneumoscope.core.files import write_atomically
from pneumoscope.reporting.checklists import Checklist, checklist_table, fill_checklist
from pneumoscope.reporting.comparison_figures import NamedFigure, draw_figures
from pneumoscope.reporting.comparison_page import comparison_page
from pneumoscope.reporting.run_data import RunData, load_run_data
from pneumoscope.reporting.style import COLORS, drawing, short
from pneumoscope.reporting.svg import standalone_svg
from pneumoscope.reporting.tables import Table, comparison_tables, to_csv, to_latex, to_markdown

__all__ = ["FIGURES_FOLDER", "PAGE", "TABLES_FOLDER", "ReportFiles", "write_report"]

PAGE = "report.html"
FIGURES_FOLDER, TABLES_FOLDER = "figures", "tables"
_PNG_RESOLUTION = 300  # dots per inch
# Without a time, so that the same input gives the same bytes.
_METADATA = {
    "pdf": {"CreationDate": None, "Creator": "pneumoscope", "Producer": None},
    "png": {"Software": "pneumoscope"},
}


@dataclasses.dataclass(frozen=True)
class ReportFiles:
    """The files of a report.

    Attributes:
        page: The page.
        figures, tables: Figures and tables; a checklist is among the tables.
        checklists: The filled checklists.
    """

    page: Path
    figures: tuple[Path, ...]
    tables: tuple[Path, ...]
    checklists: tuple[Checklist, ...]


def write_report(
    comparison: Comparison, runs: Sequence[Path], out: Path, checklists: Sequence[str] = ()
) -> ReportFiles:
    """Write report.html, figures/ (SVG, PDF, PNG) and tables/ (CSV, LaTeX, Markdown), with a table for each checklist.

    Args:
        comparison: Comparison of these runs, or of one.
        runs: See `comparison_page.write_comparison_page`.
        out: Folder to write to.
        checklists: Names of checklists in `checklists.CHECKLISTS`.

    Raises:
        UnknownNameError: There is no such checklist.
        RunError: See `write_comparison_page`.
        StorageError: A file cannot be written.
    """
    data = load_run_data(comparison, runs)
    filled = [fill_checklist(name, comparison, data) for name in checklists]
    figures = draw_figures(comparison, data)
    page = write_atomically(out / PAGE, comparison_page(comparison, data, figures, filled))
    with drawing():
        drawn = [file for figure in figures.all() for file in _write_figure(figure, data, out / FIGURES_FOLDER)]
    tables = (*comparison_tables(comparison, data), *map(checklist_table, filled))
    written = [file for table in tables for file in _write_table(table, out / TABLES_FOLDER)]
    return ReportFiles(page, tuple(drawn), tuple(written), tuple(filled))


def _write_figure(named: NamedFigure, runs: Sequence[RunData], folder: Path) -> list[Path]:
    if named.legend:
        lines = [Line2D([], [], color=run.style.color, linestyle=run.style.line) for run in runs]
        names = [short(run.summary.name) for run in runs]
        if named.key == "decision-curves":
            lines.append(Line2D([], [], color=COLORS["muted"][0], linestyle=(0, (2, 3))))
            names.append("treat everybody")
        named.figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    svg = folder / f"{named.key}.svg"
    write_atomically(svg, standalone_svg(named.figure, label=named.label))
    files = [svg]
    for form in ("pdf", "png"):
        buffer = io.BytesIO()
        named.figure.savefig(
            buffer, format=form, dpi=_PNG_RESOLUTION, facecolor=COLORS["surface"][0], metadata=_METADATA[form]
        )
        files.append(folder / f"{named.key}.{form}")
        write_atomically(files[-1], buffer.getvalue())
    return files


def _write_table(table: Table, folder: Path) -> list[Path]:
    files = []
    for suffix, text in (("csv", to_csv(table)), ("tex", to_latex(table)), ("md", to_markdown(table))):
        files.append(folder / f"{table.name}.{suffix}")
        write_atomically(files[-1], text)
    return files

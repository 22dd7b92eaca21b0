"""Report of evaluated runs for a manuscript: page, figures, tables and checklists, as objects and as files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pneumoscope.core.comparison import Comparison
from pneumoscope.core.files import write_atomically
from pneumoscope.evaluation.comparison.compare import compare
from pneumoscope.evaluation.comparison.default_point import default_operating_point
from pneumoscope.evaluation.comparison.inputs import check_evaluated, expand_runs
from pneumoscope.inference.decision import DEFAULT_OPERATING_POINT
from pneumoscope.reporting.binary_checklist_facts import BINARY_FACTS
from pneumoscope.reporting.checklists import Checklist, checklist_table, fill_checklist
from pneumoscope.reporting.comparison_figures import draw_figures, figures_with_legends
from pneumoscope.reporting.comparison_page import comparison_page
from pneumoscope.reporting.latex_table import to_latex
from pneumoscope.reporting.named_figure import FILE_FORMATS, NamedFigure
from pneumoscope.reporting.run_data import RunData, load_run_data
from pneumoscope.reporting.table_forms import Table, to_csv, to_markdown
from pneumoscope.reporting.tables import comparison_tables

__all__ = [
    "Report",
    "ReportFiles",
    "make_report",
    "report",
    "write_report",
]

_PAGE = "report.html"
_FIGURES_FOLDER, _TABLES_FOLDER = "figures", "tables"


@dataclasses.dataclass(frozen=True)
class ReportFiles:
    """The files of a report.

    Attributes:
        page: The page.
        figures, tables: Figures and tables, including checklists.
    """

    page: Path
    figures: tuple[Path, ...]
    tables: tuple[Path, ...]


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """A report.

    Attributes:
        comparison: The comparison of the runs; for a single run, its results.
        runs: Data of the runs.
        figures: Figures by name, such as "roc", each with a legend. Notebooks display a figure; its `figure` is the
            matplotlib figure.
        tables: Tables by name, such as "metrics"; `Table.to_dataframe()` returns a pandas DataFrame.
        checklists: Filled checklists by name.
    """

    comparison: Comparison
    runs: tuple[RunData, ...]
    figures: Mapping[str, NamedFigure]
    tables: Mapping[str, Table]
    checklists: Mapping[str, Checklist]

    def __repr__(self) -> str:
        """Return the comparison and the names of figures and tables."""
        return f"Report({self.comparison!r}, figures={list(self.figures)}, tables={list(self.tables)})"

    def _repr_html_(self) -> str:
        return self.comparison._repr_html_()

    def page(self) -> str:
        """Return the HTML page."""
        figures = draw_figures(self.comparison, self.runs)  # without legends, which are part of the page
        return comparison_page(self.comparison, self.runs, figures, tuple(self.checklists.values()))

    def write(self, out: str | Path) -> ReportFiles:
        """Write report.html, figures/ (SVG, PDF, PNG) and tables/ (CSV, LaTeX, Markdown).

        The same input gives the same bytes.

        Args:
            out: Folder to write to.

        Raises:
            StorageError: A file cannot be written.
        """
        return write_report(self.page(), self.figures.values(), self.tables.values(), Path(out))


def report(
    runs: Sequence[str | Path],
    *,
    operating_point: str = "",
    evaluation: str = "test",
    checklists: Sequence[str] = (),
    command: str = "",
) -> Report:
    """Return the report of evaluated runs, without evaluating or writing; see `Report.write`.

    Args:
        runs: Run folders, folders of runs with several seeds, or folders that `evaluate` wrote.
        operating_point: Operating point of the threshold metrics and tests. If empty: "balanced" if all evaluations
            have it, else "half", else the only one that they share; see `compare`, which prefers "half".
        evaluation: Name of the evaluation of each run.
        checklists: Reporting guidelines to fill: "claim", "tripod-ai", "stard-ai".
        command: The command line, for the record.

    Raises:
        UnknownNameError: There is no such checklist; or see `compare` for the operating point.
        RunError, UsageError: See `evaluation.comparison.compare.compare`.
        BundleError: A measurement in the evidence of a bundle is malformed.
    """
    targets = [Path(run) for run in runs]
    check_evaluated(targets)
    operating_point = operating_point or default_operating_point(targets, evaluation, first=DEFAULT_OPERATING_POINT)
    comparison = compare(runs, operating_point=operating_point, evaluation=evaluation, command=command)
    return make_report(comparison, expand_runs(targets), checklists)


def make_report(comparison: Comparison, folders: Sequence[Path], checklists: Sequence[str] = ()) -> Report:
    """Return the report of a comparison.

    Args:
        comparison: The comparison.
        folders: Its runs; see `comparison_page.write_comparison_page`.
        checklists: See `report`.

    Raises:
        UnknownNameError: There is no such checklist.
        RunError, BundleError: See `run_data.load_run_data`.
    """
    data = load_run_data(comparison, folders)
    filled = {name: fill_checklist(name, comparison, data, BINARY_FACTS) for name in checklists}
    figures = figures_with_legends(comparison, data)
    tables = (*comparison_tables(comparison, data), *map(checklist_table, filled.values()))
    return Report(comparison, data, figures, {table.name: table for table in tables}, filled)


def write_report(page: str, figures: Iterable[NamedFigure], tables: Iterable[Table], folder: Path) -> ReportFiles:
    """Write the files of a report.

    Args:
        page: The HTML page.
        figures, tables: Figures and tables.
        folder: Folder to write to.

    Raises:
        StorageError: A file cannot be written.
    """
    path = write_atomically(folder / _PAGE, page)
    drawn = [each.save(folder / _FIGURES_FOLDER / f"{each.key}.{form}") for each in figures for form in FILE_FORMATS]
    written = [file for table in tables for file in _write_table(table, folder / _TABLES_FOLDER)]
    return ReportFiles(path, tuple(drawn), tuple(written))


def _write_table(table: Table, folder: Path) -> list[Path]:
    """Write a table as CSV, LaTeX and Markdown, and return the files."""
    forms = {"csv": to_csv(table), "tex": to_latex(table), "md": to_markdown(table)}
    return [write_atomically(folder / f"{table.name}.{suffix}", text) for suffix, text in forms.items()]

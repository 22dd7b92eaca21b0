"""Report of multiclass models: page, figures, tables and checklists, as objects and as files; see `report_files`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pneumoscope.core.files import write_atomically
from pneumoscope.core.multiclass_results import MulticlassComparison
from pneumoscope.evaluation.comparison.cross_validation import is_cross_validation
from pneumoscope.evaluation.comparison.inputs import check_evaluated
from pneumoscope.evaluation.multiclass.compare import multiclass_comparison
from pneumoscope.evaluation.multiclass.cross_validation import compare_class_folds, read_class_folds
from pneumoscope.evaluation.multiclass.inputs import ComparedClasses, compared_classes
from pneumoscope.reporting import labels
from pneumoscope.reporting.checklist_facts import PLACES
from pneumoscope.reporting.checklists import Checklist, checklist_table, fill_checklist
from pneumoscope.reporting.multiclass_checklist_facts import CLASS_FACTS
from pneumoscope.reporting.multiclass_figures import class_figures_by_name, draw_class_figures
from pneumoscope.reporting.multiclass_tables import class_tables
from pneumoscope.reporting.named_figure import NamedFigure
from pneumoscope.reporting.report_files import ReportFiles, write_report
from pneumoscope.reporting.run_data import record_rows
from pneumoscope.reporting.style import drawing
from pneumoscope.reporting.table_forms import Table
from pneumoscope.reporting.templating import environment, theme
from pneumoscope.runs.run_folder import RECIPE_FILE, read_text

__all__ = ["MulticlassReport", "report_multiclass", "write_multiclass_page"]


@dataclasses.dataclass(frozen=True, repr=False)
class MulticlassReport:
    """A report of multiclass models.

    Attributes:
        comparison: The comparison of the runs; for a single run, its results.
        runs: The evaluations of the runs with their images.
        figures: Figures by name, such as "confusion-0", "roc-0" and "reliability-0-2", with the indices of run and
            class. Notebooks display a figure; its `figure` is the matplotlib figure.
        tables: Tables by name, such as "classes"; `Table.to_dataframe()` returns a pandas DataFrame.
        checklists: Filled checklists by name.
        recipes: Text of each run's recipe file; "" for a bundle or file.
    """

    comparison: MulticlassComparison
    runs: tuple[ComparedClasses, ...]
    figures: Mapping[str, NamedFigure]
    tables: Mapping[str, Table]
    checklists: Mapping[str, Checklist]
    recipes: tuple[str, ...]

    def __repr__(self) -> str:
        """Return the comparison and the names of figures and tables."""
        return f"MulticlassReport({self.comparison!r}, figures={list(self.figures)}, tables={list(self.tables)})"

    def _repr_html_(self) -> str:
        return self.comparison._repr_html_()

    def page(self) -> str:
        """Return the HTML page."""
        return _page(self.comparison, self.runs, self.tables, self.recipes, tuple(self.checklists.values()))

    def write(self, out: str | Path) -> ReportFiles:
        """Write report.html, figures/ (SVG, PDF, PNG) and tables/ (CSV, LaTeX, Markdown).

        The same input gives the same bytes.

        Args:
            out: Folder to write to.

        Raises:
            StorageError: A file cannot be written.
        """
        return write_report(self.page(), self.figures.values(), self.tables.values(), Path(out))


def report_multiclass(
    runs: Sequence[str | Path], *, evaluation: str = "test", checklists: Sequence[str] = (), command: str = ""
) -> MulticlassReport:
    """Return the report of evaluated multiclass models, without evaluating or writing; see `MulticlassReport.write`.

    Args:
        runs: Run folders, folders of runs, or folders that `evaluate` wrote.
        evaluation: Name of the evaluation of each run.
        checklists: Reporting guidelines to fill: "claim", "tripod-ai", "stard-ai".
        command: The command line, for the record.

    Raises:
        UnknownNameError: There is no such checklist.
        RunError, UsageError: See `evaluation.multiclass.compare.compare_multiclass`.
    """
    targets = [Path(run) for run in runs]
    check_evaluated(targets)
    if any(map(is_cross_validation, targets)):
        comparison, compared = compare_class_folds(targets, command), read_class_folds(targets)
    else:
        compared = compared_classes(targets, evaluation=evaluation)
        comparison = multiclass_comparison(compared, evaluation=evaluation, command=command)
    filled = {name: fill_checklist(name, comparison, compared, CLASS_FACTS) for name in checklists}
    tables = (*class_tables(comparison, compared), *map(checklist_table, filled.values()))
    return MulticlassReport(
        comparison,
        tuple(compared),
        class_figures_by_name(comparison, compared),
        {table.name: table for table in tables},
        filled,
        _read_recipes(compared),
    )


def write_multiclass_page(comparison: MulticlassComparison, folders: Sequence[Path], out: Path) -> Path:
    """Write the page of a comparison and return its path.

    Args:
        comparison: The comparison.
        folders: Folders with the evaluations of its runs, in order; see `comparison.inputs.result_folders`. For
            cross-validations, the folders of the folds.
        out: HTML file to write.

    Raises:
        RunError: See `report_multiclass`.
        StorageError: The file cannot be written.
    """
    if comparison.is_cross_validation:
        compared = read_class_folds(folders)
    else:
        compared = compared_classes(folders, evaluation=comparison.evaluation)
    tables = {table.name: table for table in class_tables(comparison, compared)}
    write_atomically(out, _page(comparison, compared, tables, _read_recipes(compared)))
    return out


def _read_recipes(runs: Sequence[ComparedClasses]) -> tuple[str, ...]:
    return tuple(read_text(run.path / RECIPE_FILE) if run.record else "" for run in runs)


def _page(
    comparison: MulticlassComparison,
    runs: Sequence[ComparedClasses],
    tables: Mapping[str, Table],
    recipes: Sequence[str],
    checklists: Sequence[Checklist] = (),
) -> str:
    with drawing():
        return (
            environment()
            .get_template("multiclass.html")
            .render(
                c=comparison,
                runs=runs,
                figures=draw_class_figures(comparison, runs),
                tables=tables,
                theme=theme(),
                labels=labels,
                checklists=checklists,
                places=PLACES,
                recipes=recipes,
                record_rows=record_rows,
            )
        )

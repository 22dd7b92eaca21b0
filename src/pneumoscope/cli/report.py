"""`pneumoscope report`: write a report with figures, tables and checklists for a manuscript."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.multiclass import is_multiclass_target, reject_options
from pneumoscope.cli.options import (
    evaluation_name_option,
    recorded_command,
    reject_for_folds,
    require_result_folder,
)

if TYPE_CHECKING:
    from pneumoscope.reporting.multiclass_report import MulticlassReport
    from pneumoscope.reporting.report_files import Report

__all__ = ["command"]


@click.command("report", short_help="Write figures, tables and checklists for a manuscript.")
@click.argument("runs", metavar="RUN|FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--operating-point",
    default="",
    metavar="NAME|NUMBER",
    help="Operating point of the threshold metrics, also a custom one of the evaluations, such as 0.3 or sens=0.95.  [default:"
    " balanced, as for `predict`; half if an evaluation lacks it; or else the only one that all have]",
)
@evaluation_name_option
@click.option(
    "--checklist",
    "checklists",
    multiple=True,
    type=click.Choice(["claim", "tripod-ai", "stard-ai"]),
    help="Fill a checklist: CLAIM 2024, TRIPOD+AI or STARD-AI. Repeat for several.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the report, new or empty.")
def command(
    runs: tuple[Path, ...], operating_point: str, evaluation: str, checklists: tuple[str, ...], out: Path
) -> None:
    """Write the report of evaluated runs, or of folders written by `evaluate --out`, for a manuscript.

    Writes report.html, the figures in figures/ (SVG, PDF, PNG) and the tables in tables/ (CSV, LaTeX, Markdown) to --out.
    The command does not evaluate. Several runs are compared, as by `compare`.

    Models of several classes have no operating points.

    A checklist is filled in from the records, with the place in the report. Items that the authors have to provide are marked
    open.

    Example:  pneumoscope report runs/quick --checklist claim --out report
    """
    from pneumoscope.reporting.multiclass_report import report_multiclass
    from pneumoscope.reporting.report_files import report

    require_result_folder(out)
    if any(is_multiclass_target(run, evaluation) for run in runs):
        reject_options({"--operating-point": operating_point})
        reject_for_folds(runs, {"runs", "checklists", "out"})
        made: MulticlassReport | Report = report_multiclass(
            runs, evaluation=evaluation, checklists=checklists, command=recorded_command()
        )
    else:
        reject_for_folds(runs, {"runs", "operating_point", "checklists", "out"})
        made = report(
            runs,
            operating_point=operating_point,
            evaluation=evaluation,
            checklists=checklists,
            command=recorded_command(),
        )
        if not operating_point:
            point = made.comparison.operating_point
            click.echo(f"note: the operating point is {point}; --operating-point chooses another", err=True)
    files = made.write(out)
    for checklist in made.checklists.values():
        click.echo(f"{checklist.title}: {checklist.counts()}")
    click.echo(f"{len(files.figures)} files of figures, {len(files.tables)} of tables", err=True)
    click.echo(str(files.page))

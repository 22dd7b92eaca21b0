"""`pneumoscope compare`: paired tests of runs, bundles and predictions of other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pneumoscope.cli.data_options import label_options, prediction_column_options, prediction_columns
from pneumoscope.cli.multiclass import is_multiclass_target, reject_options
from pneumoscope.cli.options import (
    compared_point_option,
    evaluation_name_option,
    json_option,
    ledger_option,
    recorded_command,
    reject_for_folds,
    require_result_folder,
)
from pneumoscope.cli.progress import image_progress

if TYPE_CHECKING:
    from pneumoscope.core.comparison import Comparison
    from pneumoscope.core.multiclass_results import MulticlassComparison
    from pneumoscope.data.label_mapping import LabelMapping

__all__ = ["command"]


@click.command("compare", short_help="Compare runs, bundles and predictions on the same images.")
@click.argument("runs", metavar="RUN|BUNDLE|FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@compared_point_option
@evaluation_name_option
@click.option(
    "--data",
    metavar="DATA",
    type=click.Path(path_type=Path),
    help="Labeled data set for bundles and CSV files, which are evaluated on it: folder, manifest CSV or MedMNIST archive.",
)
@click.option(
    "--split",
    type=click.Choice(["validation", "test", "all"]),
    default="test",
    show_default=True,
    help="Images of --data for bundles and CSV files.",
)
@label_options(path_column=False)
@prediction_column_options
@click.option(
    "--prevalence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Prevalence of pneumonia that predictive values are stated for, besides that of the images.",
)
@ledger_option
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the results.")
@json_option
def command(
    runs: tuple[Path, ...],
    operating_point: str,
    evaluation: str,
    data: Path | None,
    labels: LabelMapping | None,
    split: str,
    prevalence: float | None,
    ledger: Path | None,
    out: Path,
    as_json: bool,
    **column_names: Any,
) -> None:
    """Compare runs that were evaluated on the same images, bundles, and predictions of other tools.

    A BUNDLE ("default" is the model in the package) and a CSV FILE are evaluated on --data first, as by `evaluate`, and
    recorded in the test ledger. A folder with the results of `evaluate --out` is compared as it is.

    Writes comparison.json, comparison.csv and report.html to --out. Weights of runs are not needed: run.json, epochs.csv,
    recipe.toml and evaluation/ of each run are enough. Runs of one recipe are named after their folders; with different seeds
    they are compared by their mean, and the tests account for the seeds. A folder of runs adds all of its runs. Folders of
    `train --folds` are compared with each other, on their validation images and fold by fold.

    Models of several classes are compared by accuracy and macro AUROC, and have no operating points.

    Example:  pneumoscope compare runs/alexnet-adam runs/quick default scores.csv --data images.csv --out comparison
    """
    require_result_folder(out, "comparison.json")
    from pneumoscope.data.predictions_file import has_class_columns
    from pneumoscope.evaluation.comparison.compare import compare
    from pneumoscope.evaluation.comparison.inputs import result_folders
    from pneumoscope.evaluation.custom_points import FIXED_POINT
    from pneumoscope.reporting.comparison_page import write_comparison_page

    columns = prediction_columns(column_names)
    if any(has_class_columns(run, columns) if run.is_file() else is_multiclass_target(run, evaluation) for run in runs):
        reject_for_folds(runs, {"runs", "out", "as_json"})
        reject_options({"--operating-point": operating_point, "--prevalence": prevalence})
        options: dict[str, Any] = {"data": data, "labels": labels, "split": split, "columns": columns, "ledger": ledger}
        _compare_classes(runs, out, evaluation=evaluation, as_json=as_json, **options)
        return
    reject_for_folds(runs, {"runs", "operating_point", "prevalence", "out", "as_json"})
    with image_progress("scoring images") as progress:
        comparison = compare(
            runs,
            operating_point=operating_point,
            evaluation=evaluation,
            data=data,
            labels=labels,
            split=split,
            columns=columns,
            prevalence=prevalence,
            ledger=ledger,
            out=out,
            command=recorded_command(),
            progress=progress,
            note=lambda text: click.echo(f"note: {text}", err=True),
        )
    if not operating_point and comparison.operating_point != FIXED_POINT:
        point = comparison.operating_point
        click.echo(f"note: the operating point is {point}; --operating-point chooses another", err=True)
    page = write_comparison_page(comparison, result_folders(runs, out), out / "report.html")
    _print_comparison(comparison, page, as_json=as_json)


def _compare_classes(runs: Sequence[Path], out: Path, *, as_json: bool, **options: Any) -> None:
    """Compare multiclass models."""
    from pneumoscope.evaluation.comparison.inputs import result_folders
    from pneumoscope.evaluation.multiclass.compare import compare_multiclass
    from pneumoscope.reporting.multiclass_report import write_multiclass_page

    with image_progress("scoring images") as progress:
        comparison = compare_multiclass(
            runs,
            out=out,
            command=recorded_command(),
            progress=progress,
            note=lambda text: click.echo(f"note: {text}", err=True),
            **options,
        )
    folders = runs if comparison.is_cross_validation else result_folders(runs, out)
    page = write_multiclass_page(comparison, folders, out / "report.html")
    _print_comparison(comparison, page, as_json=as_json)


def _print_comparison(comparison: Comparison | MulticlassComparison, page: Path, *, as_json: bool) -> None:
    """Print the findings and the path of the report; with JSON output, print the path to standard error."""
    from pneumoscope.core.result_forms import to_json

    if as_json:
        click.echo(to_json(comparison), nl=False)
        click.echo(str(page), err=True)
        return
    for sentence in comparison.sentences:
        click.echo(sentence)
    click.echo(str(page))

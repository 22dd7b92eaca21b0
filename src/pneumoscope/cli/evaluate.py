"""`pneumoscope evaluate`: evaluate a run, bundle or predictions on labeled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pneumoscope.cli.data_options import data_option, label_options, prediction_column_options, prediction_columns
from pneumoscope.cli.evaluated_runs import print_runs
from pneumoscope.cli.evaluation_tables import print_evaluation
from pneumoscope.cli.evaluation_targets import EvaluationTargets
from pneumoscope.cli.multiclass import (
    is_multiclass_target,
    print_multiclass_evaluation,
    reject_options,
)
from pneumoscope.cli.options import json_option, ledger_option, site_option

if TYPE_CHECKING:
    from pneumoscope.core.multiclass_results import MulticlassEvaluation
    from pneumoscope.core.results import Evaluation
    from pneumoscope.data.label_mapping import LabelMapping

__all__ = ["command"]


@click.command("evaluate", short_help="Evaluate a run, bundle or predictions on labeled images.")
@click.argument("target", metavar="[RUN|BUNDLE]", required=False, type=click.Path(path_type=Path))
@data_option
@label_options(path_column=False)
@click.option(
    "--predictions",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="CSV file with the predictions of another tool, instead of RUN or BUNDLE.",
)
@prediction_column_options
@click.option(
    "--validation-predictions",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="CSV file of the same columns with predictions for validation images, which choose the thresholds.",
)
@click.option(
    "--validation-data",
    metavar="DATA",
    type=click.Path(path_type=Path),
    help="Labeled validation images, for --validation-predictions, and for --operating-point sens=... or spec=... of a run or"
    " bundle.  [default: those in --data]",
)
@click.option(
    "--split-column",
    default="",
    metavar="NAME",
    help="Column with the split of each prediction: rows of the split validation choose the thresholds.",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="Calibrate predictions of another tool on those for validation images (Platt; for several classes a temperature).",
)
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test", "all"]),
    help="Images to evaluate; all for a data set without splits that the model has not seen.  [default: test; validation for the"
    " folds of a cross-validation, which have no other]",
)
@click.option(
    "--operating-point",
    "operating_points",
    multiple=True,
    metavar="NAME|NUMBER",
    help="Operating point on the card, or a custom one: a probability (0.3), or a sensitivity or specificity that the threshold"
    " reaches on validation images (sens=0.95, spec=0.9). Repeat for several.  [default: half, balanced, rule_out, rule_in; half"
    " for predictions without validation images]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the results.  [default: RUN/evaluation/NAME; nothing is written for a bundle or predictions]",
)
@click.option(
    "--name",
    help="Name of the evaluation of a run, or of the model of --predictions, which identifies it.  [default: the split, for"
    " images of other data also the name of the data; the name of the file]",
)
@click.option(
    "--force", is_flag=True, help="Replace an evaluation of other images, or of another model, seed or profile."
)
@click.option(
    "--by",
    metavar="COLUMN,...",
    help="Columns of the manifest CSV whose values form subgroups, such as sex,site; with tests of whether they differ. They"
    " replace those of an earlier --by.",
)
@click.option(
    "--reference",
    metavar="NAME|FOLDER",
    help="Evaluation of the same model on other images, whose difference is reported: name in RUN/evaluation/, or folder.",
)
@click.option(
    "--prevalence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Prevalence of pneumonia that predictive values are stated for, besides that of the images.",
)
@click.option(
    "--source",
    default="",
    metavar="TEXT",
    help="Name of the images, for the report, such as 'Kermany 2018, Mendeley Data V2'.  [default: the name of --data]",
)
@site_option
@ledger_option
@click.option("--seed", default=0, show_default=True, help="Random seed of the bootstrap.")
@json_option
def command(
    target: Path | None,
    data: Path,
    labels: LabelMapping | None,
    predictions: Path | None,
    validation_predictions: Path | None,
    validation_data: Path | None,
    split_column: str,
    calibrate: bool,
    split: str | None,
    operating_points: tuple[str, ...],
    out: Path | None,
    name: str | None,
    force: bool,
    by: str | None,
    reference: str | None,
    prevalence: float | None,
    source: str,
    site: Path | None,
    ledger: Path | None,
    seed: int,
    as_json: bool,
    **column_names: Any,
) -> None:
    """Evaluate RUN, BUNDLE or the predictions of another tool on labeled images.

    Each metric is reported with a 95% interval, or the reason why there is none.

    Thresholds come from the bundle, or from predictions for validation images, and are never chosen on the evaluated images.
    Each test-set evaluation is recorded in the test ledger before its result is shown.

    Evaluations of a run are kept side by side in RUN/evaluation/. Evaluating the same images again adds the operating points.
    For a folder of runs, as written by `train --seeds`, each run is evaluated. For the folds of `train --folds`, each is
    evaluated on its validation images, at the fixed threshold, and the mean over folds is printed.

    Example:  pneumoscope evaluate --predictions scores.csv --data images.csv --probability-column Pneumonia
    """
    options: dict[str, Any] = {
        "labels": labels,
        "out": out,
        "name": name,
        "replace": force,
        "source_name": source,
        "by": _parse_columns(by),
        "reference": reference,
        "ledger": ledger,
        "seed": seed,
        "note": _print_note,
    }
    binary_options: dict[str, Any] = {"operating_points": operating_points, "prevalence": prevalence}
    if predictions is not None:
        _check_options(target, site)
        options |= {
            "split": split or "test",
            "columns": prediction_columns(column_names, split_column),
            "name": name or "",
            "validation": validation_predictions,
            "validation_data": validation_data,
            "fit_probabilities": calibrate,
        }
        _evaluate_predictions(predictions, data, options, binary_options, as_json=as_json)
        return
    options["labels"] = _with_path_column(labels, column_names.pop("path_column"))
    given = {
        "--validation-predictions": validation_predictions,
        "--split-column": split_column,
        "--calibrate": calibrate,
        **{f"--{name.replace('_', '-')}": value for name, value in column_names.items()},
    }
    targets = EvaluationTargets.find(_require_target(target, given), split, out)
    if any(map(is_multiclass_target, targets.members)):
        reject_options(
            {
                "--operating-point": operating_points,
                "--prevalence": prevalence,
                "--validation-data": validation_data,
                "--site": site,
            }
        )
        _evaluate_classes(targets, data, options, as_json=as_json)
    else:
        binary_options |= {"validation_data": validation_data, "site": site}
        _evaluate_runs(targets, data, options | binary_options, as_json=as_json)


def _parse_columns(by: str | None) -> tuple[str, ...]:
    from pneumoscope.core.errors import UsageError

    columns = tuple(filter(None, (column.strip() for column in (by or "").split(","))))
    if by is not None and not columns:
        raise UsageError(f"--by {by!r} names no column", hint="Name columns of the manifest CSV, such as --by sex,site")
    return columns


def _print_note(text: str) -> None:
    click.echo(f"note: {text}", err=True)


def _print_folder(folder: Path | None, *, as_json: bool) -> None:
    """Print the path of the results; with JSON output, to standard error."""
    if folder is None:
        _print_note("the results are not written; --out FOLDER keeps them")
    else:
        click.echo(f"results {folder}", err=as_json)


def _print_result(evaluation: Evaluation, folder: Path | None, *, as_json: bool) -> None:
    from rich.console import Console

    from pneumoscope.core.result_forms import to_json

    if as_json:
        click.echo(to_json(evaluation), nl=False)
    else:
        print_evaluation(evaluation, Console(markup=False))
    _print_folder(folder, as_json=as_json)


def _evaluate_predictions(
    file: Path, data: Path, options: Mapping[str, Any], binary_options: Mapping[str, Any], *, as_json: bool
) -> None:
    """Evaluate and print the predictions of another tool.

    Args:
        file: CSV file of the predictions.
        data: Labeled images.
        options: Options of binary and multiclass predictions.
        binary_options: Options of binary predictions only.
        as_json: Whether to print one JSON document.
    """
    from pneumoscope.core.with_figures import written_folder
    from pneumoscope.data.predictions_file import has_class_columns
    from pneumoscope.evaluation.external_predictions import evaluate_predictions
    from pneumoscope.evaluation.multiclass.external_predictions import evaluate_multiclass_predictions

    if has_class_columns(file, options["columns"]):
        points, prevalence = binary_options["operating_points"], binary_options["prevalence"]
        reject_options({"--operating-point": points, "--prevalence": prevalence})
        evaluation, _ = evaluate_multiclass_predictions(file, data, **options)
        _print_classes(evaluation, written_folder(evaluation), as_json=as_json)
        return
    points = binary_options["operating_points"] or None
    found, _ = evaluate_predictions(file, data, **options, **{**binary_options, "operating_points": points})
    _print_result(found, written_folder(found), as_json=as_json)


def _evaluate_runs(targets: EvaluationTargets, data: Path, options: Mapping[str, Any], *, as_json: bool) -> None:
    """Evaluate and print binary models."""
    from pneumoscope.core.with_figures import written_folder
    from pneumoscope.evaluation.evaluate import OPERATING_POINTS, evaluate
    from pneumoscope.evaluation.external_predictions import FIXED_POINT

    default_points = (FIXED_POINT,) if targets.is_folds else OPERATING_POINTS
    options = {**options, "operating_points": options["operating_points"] or default_points}
    evaluations = []
    for each in targets.members:
        with targets.progress(each) as progress:
            evaluation, _ = evaluate(each, data, split=targets.split, progress=progress, **options)
        evaluations.append(evaluation)
    folders = [*map(written_folder, evaluations)]
    if targets.runs:
        print_runs(targets, evaluations, folders, as_json=as_json)
    else:
        _print_result(evaluations[0], folders[0], as_json=as_json)


def _evaluate_classes(targets: EvaluationTargets, data: Path, options: Mapping[str, Any], *, as_json: bool) -> None:
    """Evaluate and print multiclass models."""
    from pneumoscope.core.with_figures import written_folder
    from pneumoscope.evaluation.multiclass.evaluate import evaluate_multiclass

    evaluations = []
    for each in targets.members:
        with targets.progress(each) as progress:
            evaluation, _ = evaluate_multiclass(each, data, split=targets.split, progress=progress, **options)
        evaluations.append(evaluation)
    folders = [*map(written_folder, evaluations)]
    if targets.runs:
        print_runs(targets, evaluations, folders, as_json=as_json)
    else:
        _print_classes(evaluations[0], folders[0], as_json=as_json)


def _print_classes(evaluation: MulticlassEvaluation, folder: Path | None, *, as_json: bool) -> None:
    from rich.console import Console

    from pneumoscope.core.result_forms import to_json

    if as_json:
        click.echo(to_json(evaluation), nl=False)
    else:
        print_multiclass_evaluation(evaluation, Console(markup=False))
    _print_folder(folder, as_json=as_json)


def _with_path_column(labels: LabelMapping | None, column: str) -> LabelMapping | None:
    from pneumoscope.data.label_mapping import LabelMapping

    return dataclasses.replace(labels or LabelMapping(), path_column=column) if column else labels


def _check_options(target: Path | None, site: Path | None) -> None:
    """Raise if a model or one of its options is given together with --predictions."""
    from pneumoscope.core.errors import UsageError

    for name, value in (("RUN or BUNDLE", target), ("--site", site)):
        if value is not None:
            raise UsageError(f"both {name} ({str(value)!r}) and --predictions are given", hint="Give one of the two")


def _require_target(target: Path | None, given: Mapping[str, object]) -> Path:
    """Return the run or bundle; raise if it is missing or if options of --predictions are given."""
    from pneumoscope.core.errors import UsageError

    if target is None:
        raise UsageError(
            "there is nothing to evaluate", hint="Give RUN or BUNDLE, or a CSV file of another tool with --predictions"
        )
    if target.is_file():
        raise UsageError(
            f"{str(target)!r} is a file, not a run or bundle",
            hint=f"If it has predictions, give --predictions {target}",
        )
    for flag, value in given.items():
        if value:
            raise UsageError(f"{flag} is given without --predictions", hint=f"Remove {flag}, or give --predictions")
    return target

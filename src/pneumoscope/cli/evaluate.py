"""`pneumoscope evaluate`: measure a run or bundle on labeled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pneumoscope.cli.evaluation_tables import interval_table, ledger_sentence
from pneumoscope.cli.multiclass import (
    has_several_classes,
    print_multiclass_evaluation,
    refuse_options,
)
from pneumoscope.cli.options import (
    PREDICTION_COLUMNS,
    data_option,
    json_option,
    label_options,
    ledger_option,
    prediction_column_options,
    site_option,
)
from pneumoscope.cli.progress import image_progress

if TYPE_CHECKING:
    from rich.console import Console

    from pneumoscope.core.results import Evaluation, Interval
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
    "--calibrate", is_flag=True, help="Calibrate predictions of another tool on those for validation images (Platt)."
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
    default="",
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
    by: str,
    reference: str | None,
    prevalence: float | None,
    source: str,
    site: Path | None,
    ledger: Path | None,
    seed: int,
    as_json: bool,
    **column_names: str,
) -> None:
    """Evaluate RUN, BUNDLE or the predictions of another tool on labeled images.

    Each metric has a 95% interval, or the reason why there is none.

    Thresholds come from the bundle, or from predictions for validation images, and are never chosen on the evaluated images.
    Each test-set evaluation is recorded in the test ledger before its result is shown.

    Evaluations of a run are kept side by side in RUN/evaluation/. Evaluating the same images again adds the operating points.
    A folder of runs, as `train --seeds` makes it, has each of its runs evaluated. The folds of `train --folds` are evaluated each
    on its own validation images, at the fixed threshold, and the mean over folds is printed.

    Example:  pneumoscope evaluate --predictions scores.csv --data images.csv --probability-column Pneumonia
    """
    from rich.console import Console

    from pneumoscope.core.result_forms import to_json

    def note(text: str) -> None:
        click.echo(f"note: {text}", err=True)

    columns_by = tuple(filter(None, (name.strip() for name in by.split(","))))
    if predictions is not None:
        _check_options(target, site)
        evaluation = _evaluate_predictions(
            predictions,
            data,
            split=split or "test",
            labels=labels,
            columns={field: column_names[name] for name, field in PREDICTION_COLUMNS.items()} | {"split": split_column},
            validation=validation_predictions,
            validation_data=validation_data,
            fit_probabilities=calibrate,
            operating_points=operating_points or None,
            name=name or "",
            by=columns_by,
            reference=reference,
            out=out,
            replace=force,
            prevalence=prevalence,
            source_name=source,
            ledger=ledger,
            seed=seed,
            note=note,
        )
    else:
        from pneumoscope.bundle.site_profile import read_site_profile
        from pneumoscope.evaluation.cross_validation import OUT_OF_FOLD, find_folds, is_cross_validation
        from pneumoscope.evaluation.evaluate import OPERATING_POINTS, evaluate
        from pneumoscope.evaluation.evaluation_names import default_name
        from pneumoscope.evaluation.external_predictions import FIXED_POINT
        from pneumoscope.runs.run_folder import run_folders

        labels = _with_path_column(labels, column_names.pop("path_column"))
        given = {
            "--validation-predictions": validation_predictions,
            "--split-column": split_column,
            "--calibrate": calibrate,
            **{f"--{name.replace('_', '-')}": value for name, value in column_names.items()},
        }
        required = _require_target(target, given)
        is_folds = is_cross_validation(required)
        if is_folds:
            _check_split_of_folds(required, split)
        runs = find_folds(required) if is_folds else run_folders(required)
        split = split or (OUT_OF_FOLD if is_folds else "test")
        default_points = (FIXED_POINT,) if is_folds else OPERATING_POINTS
        _check_folder_of_runs(required, runs, out)
        several = [has_several_classes(each) for each in runs or [required]]
        if any(several):
            refuse_options(
                {
                    "--operating-point": operating_points,
                    "--by": by,
                    "--reference": reference,
                    "--prevalence": prevalence,
                    "--validation-data": validation_data,
                    "--site": site,
                }
            )
            options: dict[str, Any] = {
                "split": split,
                "labels": labels,
                "out": out,
                "name": name,
                "replace": force,
                "source_name": source,
            }
            _evaluate_classes(
                runs or [required], data, options | {"ledger": ledger, "seed": seed, "note": note}, as_json=as_json
            )
            return
        evaluations, names = [], []
        for each in runs or [required]:
            with image_progress(f"scoring images of {each.name}" if runs else "scoring images") as progress:
                evaluation, images = evaluate(
                    each,
                    data,
                    split=split,
                    labels=labels,
                    operating_points=operating_points or default_points,
                    out=out,
                    name=name,
                    by=columns_by,
                    reference=reference,
                    replace=force,
                    prevalence=prevalence,
                    source_name=source,
                    validation_data=validation_data,
                    ledger=ledger,
                    seed=seed,
                    site=site,
                    progress=progress,
                    note=note,
                )
            evaluations.append(evaluation)
            if runs:
                site_sha256 = "" if site is None else read_site_profile(site).sha256
                names.append(name or default_name(each, data, split, images, site_sha256))
        if runs:
            _print_runs(required, runs, evaluations, names, is_folds=is_folds, as_json=as_json)
            return
    if as_json:
        click.echo(to_json(evaluation), nl=False)
    else:
        _print_evaluation(evaluation, Console())


def _evaluate_classes(runs: Sequence[Path], data: Path, options: Mapping[str, Any], *, as_json: bool) -> None:
    """Evaluate and print models of several classes."""
    from rich.console import Console

    from pneumoscope.core.result_forms import to_json
    from pneumoscope.evaluation.multiclass_evaluate import evaluate_multiclass

    evaluations = []
    for each in runs:
        with image_progress(f"scoring images of {each.name}" if len(runs) > 1 else "scoring images") as progress:
            evaluation, _ = evaluate_multiclass(each, data, progress=progress, **options)
        evaluations.append(evaluation)
        if not as_json:
            print_multiclass_evaluation(evaluation, Console())
    if as_json:
        documents = list(map(dataclasses.asdict, evaluations))
        click.echo(to_json(documents if len(runs) > 1 else documents[0]), nl=False)


def _with_path_column(labels: LabelMapping | None, column: str) -> LabelMapping | None:
    from pneumoscope.data.label_mapping import LabelMapping

    return dataclasses.replace(labels or LabelMapping(), path_column=column) if column else labels


def _check_folder_of_runs(folder: Path, runs: Sequence[Path], out: Path | None) -> None:
    """Raise before any of the runs is evaluated, which the test ledger would record."""
    from pneumoscope.core.errors import UsageError
    from pneumoscope.runs.run_folder import find_bundle

    if runs and out is not None:
        raise UsageError(
            f"--out is given for a folder of runs, {str(folder)!r}",
            hint="Leave it out: each run keeps its own evaluation",
        )
    for run in runs:
        find_bundle(run)


def _check_split_of_folds(folder: Path, split: str | None) -> None:
    from pneumoscope.core.errors import UsageError

    if split not in (None, "validation"):
        raise UsageError(
            f"the folds in {str(folder)!r} are evaluated on their validation images, not on the split {split!r}",
            hint="For test images, train the recipe once on all training images and evaluate that run; or give one fold as RUN",
        )


def _print_runs(
    folder: Path,
    runs: Sequence[Path],
    evaluations: Sequence[Evaluation],
    names: Sequence[str],
    *,
    is_folds: bool,
    as_json: bool,
) -> None:
    """Print the accuracy and AUROC of each run in a folder of runs, and the mean of folds; that of seeds is in `compare`.

    Args:
        folder: The folder of runs.
        runs, evaluations: The runs and their evaluations.
        names: Name of the evaluation of each run.
        is_folds: Whether the runs are the folds of a cross-validation.
        as_json: Print one JSON document.
    """
    from pneumoscope.core.result_forms import to_json
    from pneumoscope.evaluation.cross_validation import OUT_OF_FOLD, summarize_folds
    from pneumoscope.evaluation.run_groups import group_sentences

    point = next(iter(evaluations[0].operating_points))
    groups = [summarize_folds(folder, names[0], point)] if is_folds else []
    if as_json:
        listed = list(map(dataclasses.asdict, evaluations))
        document = {"evaluations": listed, "mean": dataclasses.asdict(groups[0])} if groups else listed
        click.echo(to_json(document), nl=False)
        return
    for run, evaluation in zip(runs, evaluations, strict=True):
        accuracy, label = evaluation.operating_points[point].metrics["accuracy"], run.relative_to(folder)
        click.echo(f"{label}: accuracy {accuracy} at {point}, AUROC {evaluation.metrics['auroc']}, n = {evaluation.n}")
    counts = [each.test_evaluation for each in evaluations if each.test_evaluation is not None]
    if counts:
        click.echo(ledger_sentence(max(counts)))
    for sentence in group_sentences(groups):
        click.echo(sentence)
    click.secho(evaluations[0].notice, dim=True)
    # `compare` takes one name for all runs, and for folds that of their validation images only.
    if {*names} == {OUT_OF_FOLD} if is_folds else len({*names}) == 1:
        chosen = "" if is_folds or names[0] == "test" else f" --evaluation {names[0]}"
        click.echo(f"next    pneumoscope compare {folder}{chosen} --out DIR")


def _evaluate_predictions(file: Path, data: Path, *, columns: Mapping[str, str], **options: Any) -> Evaluation:
    from pneumoscope.data.predictions_file import PredictionColumns
    from pneumoscope.evaluation.external_predictions import evaluate_predictions

    evaluation, _ = evaluate_predictions(file, data, columns=PredictionColumns(**columns), **options)
    return evaluation


def _check_options(target: Path | None, site: Path | None) -> None:
    """Raise if an option of a model is given together with --predictions."""
    from pneumoscope.core.errors import UsageError

    for name, value in (("RUN or BUNDLE", target), ("--site", site)):
        if value is not None:
            raise UsageError(f"both {name} ({str(value)!r}) and --predictions are given", hint="Give one of the two")


def _require_target(target: Path | None, given: Mapping[str, object]) -> Path:
    """Return the run or bundle; raise if there is none, or if options of --predictions are given."""
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


def _print_evaluation(evaluation: Evaluation, console: Console) -> None:
    from pneumoscope.core.messages import patients_text

    labels = ", ".join(f"{n} {label}" for label, n in evaluation.counts.items())
    images = "images" if evaluation.split == "all" else f"{evaluation.split} images"
    patients = patients_text(evaluation.patients, evaluation.unknown_patients, evaluation.n)
    click.echo(f"{evaluation.name} on {evaluation.n} {images} ({labels}; {patients})")
    if evaluation.site:
        click.echo(f"Site profile: {evaluation.site}")
    for remark in evaluation.remarks:
        click.echo(remark)
    if evaluation.rejected and evaluation.rejected.reasons:
        click.echo(evaluation.rejected.sentence())
    console.print(
        interval_table("independent of a threshold", evaluation.metrics, evaluation.auroc_by_etiology, "AUROC")
    )
    for name, point in evaluation.operating_points.items():
        title = f"{name}: threshold at {point.threshold_text()}"
        console.print(interval_table(title, point.metrics, point.by_etiology, "correct"))
        counts = point.confusion
        click.echo(
            f"  {point.rule}; predicted as pneumonia: {counts.tp} of {counts.tp + counts.fn} PNEUMONIA,"
            f" {counts.fp} of {counts.fp + counts.tn} NORMAL"
        )
        if at := point.predictive_values:
            console.print(interval_table(f"{name}, at a prevalence of {at.prevalence:g}", at.named_intervals()))
        for label, shares in (point.uncertainty_band or {}).items():
            click.echo(
                f"  uncertain: {_percentages(shares['uncertain'])} of {label} images; correct or uncertain:"
                f" {_percentages(shares['covered'])}"
            )
    _print_decision_curve(evaluation, console)
    _print_breakdown(evaluation, console)
    if evaluation.test_evaluation is not None:
        click.echo(ledger_sentence(evaluation.test_evaluation))
    click.secho(evaluation.notice, dim=True)


def _print_decision_curve(evaluation: Evaluation, console: Console) -> None:
    """Print the net benefit at every other threshold probability; JSON and report have all."""
    from rich.table import Table

    table = Table(title="net benefit (0 is to treat no one)", title_justify="left")
    for heading in ("threshold probability", "model", "treat all", "gain over the better of all and no one"):
        table.add_column(heading)
    for step in evaluation.decision_curve[1::2]:
        cells = (str(interval) for interval in (step.net_benefit, step.treat_all, step.gain))
        table.add_row(f"{step.threshold_probability:g}", *cells)
    console.print(table)


def _print_breakdown(evaluation: Evaluation, console: Console) -> None:
    from rich.table import Table

    if evaluation.subgroups:
        point = evaluation.subgroups[0].operating_point
        table = Table(title=f"subgroups, at the operating point {point}", title_justify="left")
        metrics = ("auroc", "sensitivity", "specificity")
        for heading in ("", "n", "PNEUMONIA", *metrics):
            table.add_column(heading)
        for group in evaluation.subgroups:
            cells = (str(group.metrics[metric]) for metric in metrics)
            table.add_row(f"{group.column}: {group.value}", str(group.n), str(group.counts.get("PNEUMONIA", 0)), *cells)
        console.print(table)
    for test in evaluation.interactions:
        click.echo(f"  {test.sentence}")
    if difference := evaluation.difference:
        title = f"these images minus {difference.reference} ({difference.reference_n} images)"
        console.print(interval_table(title, difference.named_intervals()))
        if difference.remark:
            click.echo(f"  {difference.remark}")


def _percentages(share: Interval) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%}, n = {share.n})"

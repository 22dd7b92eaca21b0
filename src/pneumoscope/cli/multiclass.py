"""Options and output of commands for multiclass models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.evaluation_tables import interval_table, ledger_sentence, print_difference
from pneumoscope.cli.progress import printable

if TYPE_CHECKING:
    from rich.console import Console

    from pneumoscope.core.multiclass_results import MulticlassEvaluation

__all__ = [
    "is_multiclass_target",
    "print_class_breakdown",
    "print_multiclass_evaluation",
    "reject_options",
]


def is_multiclass_target(target: Path | None, evaluation: str = "") -> bool:
    """Return whether a run, bundle or evaluation folder, or any run in a folder of runs, has several classes.

    Args:
        target: Folder to check; None for the packaged model.
        evaluation: Name of the evaluation of a run, whose bundle may be missing.
    """
    from pneumoscope.bundle.bundle_folder import is_multiclass
    from pneumoscope.runs.multiclass_evaluations import has_multiclass_evaluation
    from pneumoscope.runs.run_folder import BUNDLE_FOLDER, EVALUATION_FILE, evaluation_folder, run_folders

    if target is None:
        return False
    if runs := run_folders(target):
        return any(is_multiclass_target(run, evaluation) for run in runs)
    for folder in (target, evaluation_folder(target, evaluation)) if evaluation else ():
        if (folder / EVALUATION_FILE).is_file():
            return has_multiclass_evaluation(folder)
    bundle = target / BUNDLE_FOLDER
    return is_multiclass(bundle if bundle.is_dir() else target)


def reject_options(given: Mapping[str, object]) -> None:
    """Raise if an option is given that multiclass models do not support.

    Args:
        given: Value of each option; None, "", () or False if not given.

    Raises:
        UsageError: Contains the option.
    """
    from pneumoscope.core.errors import UsageError

    for option, value in given.items():
        if value not in (None, "", (), False):
            raise UsageError(
                f"{option} does not work with a model of several classes",
                hint=f"Leave {option} out, or choose a model for NORMAL and PNEUMONIA",
            )


def print_multiclass_evaluation(evaluation: MulticlassEvaluation, console: Console) -> None:
    """Print the tables of a multiclass evaluation."""
    from rich.table import Table

    from pneumoscope.core.messages import patients_text

    labels = ", ".join(f"{n} {label}" for label, n in evaluation.counts.items())
    images = "images" if evaluation.split == "all" else f"{evaluation.split} images"
    patients = patients_text(evaluation.patients, evaluation.unknown_patients, evaluation.n)
    click.echo(printable(f"{evaluation.name} on {evaluation.n} {images} ({labels}; {patients})"))
    for remark in evaluation.remarks:
        click.echo(printable(remark))
    if evaluation.rejected and evaluation.rejected.reasons:
        click.echo(evaluation.rejected.sentence())
    console.print(interval_table("all classes", evaluation.metrics))
    matrix = Table(title="confusion matrix: images by class (rows) and predicted class", title_justify="left")
    for heading in ("", *map(printable, evaluation.classes)):
        matrix.add_column(heading)
    for name, counts in zip(evaluation.classes, evaluation.confusion, strict=True):
        matrix.add_row(printable(name), *map(str, counts))
    console.print(matrix)
    for name, result in evaluation.by_class.items():
        console.print(interval_table(f"{printable(name)} against the rest", result.metrics))
    for pair in evaluation.pairs:
        title = f"{printable(pair.first)} against {printable(pair.second)}, among images of these two"
        metrics = {printable(metric): interval for metric, interval in pair.named_metrics().items()}
        console.print(interval_table(title, metrics))
    if evaluation.coverage is not None:
        title = f"prediction sets for a coverage of {evaluation.coverage:.0%} of each class"
        by_class = {
            f"{metric}, {printable(name)}": value
            for name, result in evaluation.by_class.items()
            for metric, value in result.sets.items()
        }
        console.print(interval_table(title, {**evaluation.sets, **by_class}))
    print_class_breakdown(evaluation, console)
    if evaluation.test_evaluation is not None:
        click.echo(ledger_sentence(evaluation.test_evaluation))
    click.secho(printable(evaluation.notice), dim=True)


def print_class_breakdown(evaluation: MulticlassEvaluation, console: Console) -> None:
    """Print the subgroups, their tests and the differences from other images, if any."""
    for group in evaluation.subgroups:
        images = ", ".join(f"{group.counts.get(label, 0)} {label}" for label in evaluation.classes)
        console.print(interval_table(printable(f"subgroup {group.column}: {group.value} ({images})"), group.metrics))
    for test in evaluation.interactions:
        click.echo(printable(f"  {test.sentence}"))
    if evaluation.difference:
        print_difference(evaluation.difference, console)

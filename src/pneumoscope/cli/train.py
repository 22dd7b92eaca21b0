"""`pneumoscope train`: train a recipe."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pneumoscope.cli.data_options import data_option, label_options, outliers_option
from pneumoscope.cli.options import (
    accelerator_option,
    devices_option,
    loggers_option,
    overrides_option,
    recorded_command,
)
from pneumoscope.cli.process import garbage_collection_paused

if TYPE_CHECKING:
    from pneumoscope.data.label_mapping import LabelMapping
    from pneumoscope.runs.record import RunRecord
    from pneumoscope.runs.run_folder import LoggerName

__all__ = ["command", "run_summary"]


@click.command("train", short_help="Train a network by a recipe.")
@click.argument("recipe")
@data_option
@label_options()
@outliers_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The run folder; with --seeds or --folds that of the runs.",
)
@overrides_option
@click.option(
    "--init",
    metavar="BUNDLE|RUN|FILE",
    help="Start from the weights of a bundle (default: the model in the package), a run, or a file with a state dict of timm,"
    " torchvision or Hugging Face; the same as --set network.weights=...",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train N runs with consecutive seeds, from training.seed, in OUT/seed-N.",
)
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    metavar="K",
    help="Cross-validation: divide the training images by patient into K folds, and train K runs in OUT/fold-N, each of which"
    " validates on one fold. Not together with --seeds.",
)
@click.option("--resume", is_flag=True, help="Resume in --out after the last complete epoch.")
@click.option(
    "--evidence",
    is_flag=True,
    help="Then measure the runs for their model cards: check the data and, except for several classes, run robustness, shortcuts"
    " and saliency-check on validation images. With --resume, measure finished runs.",
)
@accelerator_option
@devices_option
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of machines with a shared disk; start the command on each with torchrun.",
)
@loggers_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the record of the run (run.json) as one JSON document; with --seeds or --folds a list.",
)
def command(
    recipe: str,
    data: Path,
    labels: LabelMapping | None,
    outliers: Path | None,
    out: Path,
    overrides: tuple[str, ...],
    init: str | None,
    seeds: int | None,
    folds: int | None,
    resume: bool,
    evidence: bool,
    accelerator: Literal["auto", "cpu", "gpu"],
    devices: int,
    nodes: int,
    loggers: tuple[LoggerName, ...],
    as_json: bool,
) -> None:
    """Train a network by a recipe, and write its bundle.

    RECIPE is a name (see `pneumoscope recipes`) or a TOML file. Images without splits are split as the recipe specifies. An
    interrupted run continues with --resume, and ends with the same weights. With --seeds or --folds, `evaluate` and `compare`
    accept the folder of the runs, and report means and spreads.

    Example:  pneumoscope train alexnet-adam --data chest_xray --out runs/alexnet-adam
    """
    from pneumoscope.cli.progress import image_progress
    from pneumoscope.core.errors import UsageError
    from pneumoscope.runs.recipe_files import read_recipe
    from pneumoscope.runs.record import records_json
    from pneumoscope.runs.run_folder import fold_folder, seed_folder

    with garbage_collection_paused():
        from pneumoscope.training.run_series import train_folds, train_seeds
        from pneumoscope.training.train import train_run
        from pneumoscope.training.trainer import Devices

    if seeds is not None and folds is not None:
        raise UsageError(
            "both --seeds and --folds are given",
            hint="Repeat a cross-validation with another seed, which divides the images differently, in another folder:"
            " --set training.seed=1",
        )
    with image_progress("preparing images") as progress, _resume_hint(out):
        options: dict[str, Any] = {
            "outliers": outliers,
            "labels": labels,
            "resume": resume,
            "devices": Devices(accelerator, devices, nodes),
            "loggers": loggers,
            "progress": progress,
            "log": lambda message: click.echo(message, err=True),
        }
        if init is not None:
            overrides += (f"network.weights={json.dumps(init, ensure_ascii=False)}",)
        settings = read_recipe(recipe, overrides)
        if seeds is not None:
            records = train_seeds(settings, data, out, seeds, **options)
        elif folds is not None:
            records = train_folds(settings, data, out, folds, **options)
        else:
            records = [train_run(settings, data, out, **options)]
    is_single = seeds is None and folds is None
    if any(record.state != "finished" for record in records):
        return  # a process on another node; the first node prints
    if as_json:
        click.echo(records[0].to_json() if is_single else records_json(records), nl=False)
    else:
        _print_summary(records, out, data, series="" if is_single else "fold" if folds else "seed")
    if evidence and Devices(accelerator, devices, nodes).is_first_node:
        if is_single:
            runs = [out]
        else:
            runs = [seed_folder(out, each.seed) if seeds else fold_folder(out, each.fold or 0) for each in records]
        _measure(runs, data, labels)


def _print_summary(records: Sequence[RunRecord], out: Path, data: Path, *, series: str) -> None:
    """Print the results of runs and the next command.

    Args:
        records: Records of the finished runs.
        out, data: Folder of the runs, and their images.
        series: Kind of the series, "seed" or "fold"; "" for a single run.
    """
    from pneumoscope.runs.run_folder import BUNDLE_FOLDER, CURVES_FILE

    for record in records:
        click.echo(run_summary(record, f", {series} {getattr(record, series)}" if series else ""))
    if not series:
        click.echo(f"bundle  {out / BUNDLE_FOLDER}")
        click.echo(f"curves  {out / CURVES_FILE}")
    elif len(records) > 1:
        accuracies = [record.best_validation_accuracy or 0.0 for record in records]
        spread = f"{statistics.mean(accuracies):.4f}, standard deviation {statistics.stdev(accuracies):.4f}"
        click.echo(f"mean validation accuracy {spread}, n = {len(records)} {series}s")
    click.echo(f"next    pneumoscope evaluate {out} --data {data}")


def _measure(runs: Sequence[Path], data: Path, labels: LabelMapping | None) -> None:
    """Measure runs for their model cards."""
    from pneumoscope.cli.progress import staged_progress
    from pneumoscope.core.errors import PneumoscopeError
    from pneumoscope.evaluation.evidence import measure_evidence

    repeat = "The training is finished. To measure again, repeat the command with --resume --evidence."
    try:
        with staged_progress() as progress:
            measure_evidence(
                runs,
                data,
                labels=labels,
                command=recorded_command(),
                log=lambda message: click.echo(message, err=True),
                progress=progress,
            )
    except (KeyboardInterrupt, PneumoscopeError):
        click.echo(repeat, err=True)
        raise


def run_summary(record: RunRecord, series: str) -> str:
    """Return the line that is printed about a finished run; `series` states its place among others."""
    select = record.recipe.get("training", {}).get("select", "accuracy")
    kept = "last epoch," if select == "last" else "best epoch"
    return (
        f"{record.name}{series}: {kept} {record.best_epoch} of {record.epochs} (training.select = {select}),"
        f" validation accuracy {record.best_validation_accuracy:.4f}, {(record.seconds or 0) / 60:.1f} min"
    )


@contextlib.contextmanager
def _resume_hint(out: Path) -> Iterator[None]:
    """Print how to resume if the user interrupts a started run."""
    from pneumoscope.runs.run_folder import is_run_folder, run_folders

    try:
        yield
    except KeyboardInterrupt:
        if is_run_folder(out) or run_folders(out):
            click.echo("Complete epochs are saved. To continue, repeat the command with --resume.", err=True)
        raise

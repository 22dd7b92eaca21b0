"""`pneumoscope sweep`: train a recipe with several settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from pneumoscope.cli.data_options import data_option, label_options, outliers_option
from pneumoscope.cli.options import accelerator_option, devices_option, loggers_option, overrides_option
from pneumoscope.cli.process import garbage_collection_paused

if TYPE_CHECKING:
    from pneumoscope.data.label_mapping import LabelMapping
    from pneumoscope.runs.run_folder import LoggerName
    from pneumoscope.training.sweep import SweepRow

__all__ = ["command", "print_rows"]


@click.command("sweep", short_help="Train a recipe with several settings.")
@click.argument("recipe")
@data_option
@label_options()
@outliers_option
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the runs.")
@overrides_option
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs of each combination, each with another seed.",
)
@click.option("--resume", is_flag=True, help="Keep finished runs in --out, and train the others.")
@accelerator_option
@devices_option
@loggers_option
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON document.")
def command(
    recipe: str,
    data: Path,
    labels: LabelMapping | None,
    outliers: Path | None,
    out: Path,
    overrides: tuple[str, ...],
    seeds: int,
    resume: bool,
    accelerator: Literal["auto", "cpu", "gpu"],
    devices: int,
    loggers: tuple[LoggerName, ...],
    as_json: bool,
) -> None:
    """Train a recipe with every combination of settings, and compare them on the validation images.

    Give several values with commas: --set training.batch=32,64. Commas within quotes or brackets belong to a value. The results
    are in OUT/sweep.csv, and the runs in OUT/SETTINGS/seed-N. Test images are not used. The best of many settings is optimistic
    on the validation images, so evaluate only the chosen one on test images, once.

    Example:  pneumoscope sweep baseline --data images --out sweep --set optimizer.learning_rate=0.001,0.0003 --seeds 3
    """
    from pneumoscope.cli.progress import image_progress

    with garbage_collection_paused():
        from pneumoscope.training.sweep import SWEEP_TABLE, read_combinations, run_sweep
        from pneumoscope.training.trainer import Devices

    combinations = read_combinations(recipe, overrides)
    with image_progress("preparing images") as progress:
        rows = run_sweep(
            combinations,
            data,
            out,
            seeds=seeds,
            resume=resume,
            outliers=outliers,
            labels=labels,
            devices=Devices(accelerator, devices),
            loggers=loggers,
            progress=progress,
            log=lambda message: click.echo(message, err=True),
        )
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows], indent=2))
        return
    print_rows(rows)
    click.echo(f"table   {out / SWEEP_TABLE}")


def print_rows(rows: Sequence[SweepRow]) -> None:
    """Print the runs of a sweep as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"validation images, mean of {rows[0].seeds} seeds" if rows[0].seeds > 1 else "validation images"
    )
    for heading in (*rows[0].settings, "accuracy", rows[0].auroc_name, "loss"):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            *row.settings.values(),
            _text(row.accuracy, row.accuracy_sd),
            _text(row.auroc, row.auroc_sd),
            _text(row.loss, row.loss_sd),
        )
    Console(markup=False).print(table)


def _text(mean: float, sd: float | None) -> str:
    return f"{mean:.4f}" if sd is None else f"{mean:.4f} (SD {sd:.4f})"

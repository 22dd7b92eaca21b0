"""`pneumoscope train`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import click

__all__ = ["command"]


@click.command("train", short_help="Train a network by a recipe.")
@click.argument("recipe")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder, CSV, manifest or .npz archive of labeled images.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run folder.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a field of the recipe, such as training.epochs=3.",
)
@click.option("--resume", is_flag=True, help="Resume the run in --out after its last complete epoch.")
@click.option(
    "--accelerator",
    type=click.Choice(["auto", "cpu", "gpu"]),
    default="auto",
    show_default=True,
    help="Device type; auto uses GPUs if there are any.",
)
@click.option(
    "--devices", type=click.IntRange(min=0), default=0, help="Devices per node.  [default: 1 CPU process or all GPUs]"
)
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of machines with a shared disk; start the command on each with torchrun.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the record of the run (run.json) as one JSON document.")
def command(
    recipe: str,
    data: Path,
    out: Path,
    overrides: tuple[str, ...],
    resume: bool,
    accelerator: Literal["auto", "cpu", "gpu"],
    devices: int,
    nodes: int,
    as_json: bool,
) -> None:
    """Train a network by a recipe, and write its bundle.

    RECIPE is a name (see `pneumoscope recipes`) or a TOML file. Images without splits are split as the recipe states. An
    interrupted run continues with --resume, and ends with the same weights.

    Example:  pneumoscope train alexnet-adam --data chest_xray --out runs/alexnet-adam
    """
    from pneumoscope.cli.progress import image_progress
    from pneumoscope.reproduction.recipes import report_recipes
    from pneumoscope.runs.recipe import packaged_recipes, read_recipe
    from pneumoscope.runs.run_folder import BUNDLE_FOLDER, CURVES_FILE
    from pneumoscope.training.train import train
    from pneumoscope.training.trainer import Devices

    with image_progress("preparing images") as progress, _resume_hint(out):
        record = train(
            read_recipe(recipe, overrides, packaged_recipes() | report_recipes()),
            data,
            out,
            resume=resume,
            devices=Devices(accelerator, devices, nodes),
            progress=progress,
            log=lambda message: click.echo(message, err=True),
        )
    if record.state != "finished":
        return  # a process on another node; the first one prints
    if as_json:
        click.echo(record.to_json(), nl=False)
        return
    click.echo(
        f"{record.name}: best epoch {record.best_epoch} of {record.epochs},"
        f" validation accuracy {record.best_validation_accuracy:.4f}, {(record.seconds or 0) / 60:.1f} min"
    )
    click.echo(f"bundle  {out / BUNDLE_FOLDER}")
    click.echo(f"curves  {out / CURVES_FILE}")
    click.echo(f"next    pneumoscope evaluate {out} --data {data}")


@contextlib.contextmanager
def _resume_hint(out: Path) -> Iterator[None]:
    """Print how to resume if the user interrupts a run that was started."""
    from pneumoscope.runs.run_folder import is_run_folder

    try:
        yield
    except KeyboardInterrupt:
        if is_run_folder(out):
            click.echo("Complete epochs are saved. To continue, repeat the command with --resume.", err=True)
        raise

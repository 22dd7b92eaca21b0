"""`pneumoscope train`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import click


@click.command("train", short_help="Train a network by a recipe.")
@click.argument("recipe")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder, CSV or .npz of labelled images, or a manifest.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a field: --set training.epochs=3")
@click.option("--resume", is_flag=True, help="Go on with the run in --out from its last whole epoch.")
@click.option("--accelerator", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True)
@click.option("--devices", type=click.IntRange(min=0), default=0, help="On each node; by default one CPU or every GPU.")
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Machines sharing a disk, each started by torchrun.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the run's record (run.json) as one JSON document.")
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

    RECIPE is a name (see `pneumoscope recipes`) or a TOML file. Images that are not split yet are split as the recipe says.
    A run that was killed goes on with --resume and ends with the same weights.

    Example:  pneumoscope train alexnet-adam --data chest_xray --out runs/alexnet-adam
    """
    from pneumoscope.cli.progress import image_progress
    from pneumoscope.reproduction.recipes import report_recipes
    from pneumoscope.runs.recipe import read_recipe, shipped
    from pneumoscope.runs.run_folder import BUNDLE_FOLDER, CURVES_FILE
    from pneumoscope.training.devices import Devices
    from pneumoscope.training.train import train

    with image_progress("preparing images") as progress, _told_how_to_go_on(out):
        record = train(
            read_recipe(recipe, overrides, shipped() | report_recipes()),
            data,
            out,
            resume=resume,
            devices=Devices(accelerator, devices, nodes),
            progress=progress,
            tell=lambda words: click.echo(words, err=True),
        )
    if record.state != "finished":
        return  # another process of several nodes; the first one prints
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
def _told_how_to_go_on(out: Path) -> Iterator[None]:
    from pneumoscope.runs.run_folder import is_run_folder

    try:
        yield
    except KeyboardInterrupt:
        if is_run_folder(out):
            click.echo("what was done is kept: the same command with --resume goes on", err=True)
        raise

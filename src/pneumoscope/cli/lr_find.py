"""`pneumoscope lr-find`: search for a learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from pneumoscope.cli.data_options import data_option, label_options
from pneumoscope.cli.options import accelerator_option, json_option, overrides_option
from pneumoscope.cli.process import garbage_collection_paused

if TYPE_CHECKING:
    from pneumoscope.data.label_mapping import LabelMapping

__all__ = ["command"]


@click.command("lr-find", short_help="Search for the learning rate of a recipe.")
@click.argument("recipe")
@data_option
@label_options()
@overrides_option
@click.option("--steps", type=click.IntRange(min=20), default=100, show_default=True, help="Number of training steps.")
@click.option("--lowest", type=float, default=1e-7, show_default=True, help="Learning rate of the first step.")
@click.option("--highest", type=float, default=1.0, show_default=True, help="Learning rate of the last step.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for learning-rate.csv and learning-rate.svg.",
)
@accelerator_option
@json_option
def command(
    recipe: str,
    data: Path,
    labels: LabelMapping | None,
    overrides: tuple[str, ...],
    steps: int,
    lowest: float,
    highest: float,
    out: Path | None,
    accelerator: Literal["auto", "cpu", "gpu"],
    as_json: bool,
) -> None:
    """Raise the learning rate over some training steps, and suggest the one at which the loss falls most steeply.

    The weights are discarded, and no run is created. The suggestion is a starting point; compare rates around it with `sweep`.
    The search stops when the loss exceeds four times its minimum.

    Example:  pneumoscope lr-find baseline --data images --out lr
    """
    from pneumoscope.cli.progress import image_progress
    from pneumoscope.core.result_forms import to_json
    from pneumoscope.runs.recipe_files import read_recipe

    with garbage_collection_paused():
        from pneumoscope.training.learning_rate import find_learning_rate
        from pneumoscope.training.trainer import Devices

    settings = read_recipe(recipe, overrides)
    with image_progress("preparing images") as progress:
        search = find_learning_rate(
            settings,
            data,
            labels=labels,
            lowest=lowest,
            highest=highest,
            steps=steps,
            devices=Devices(accelerator),
            progress=progress,
            log=lambda message: click.echo(message, err=True),
        )
    files = search.write(out, settings.name) if out is not None else ()
    if as_json:
        click.echo(to_json({"recipe": settings.name, **search._asdict()}), nl=False)
        return
    tried = f"{search.rates[0]:.3g} to {search.rates[-1]:.3g} in {len(search.rates)} steps" if search.rates else "none"
    if search.suggestion is None:
        click.echo(
            f"no suggestion: the loss falls nowhere or was not finite, or there were too few steps (tried: {tried})"
        )
    else:
        click.echo(
            f"learning rate {search.suggestion:.2g} (tried: {tried}; the recipe has {settings.optimizer.learning_rate:g})"
        )
        click.echo(f"next    --set optimizer.learning_rate={search.suggestion:.2g}")
    for file in files:
        click.echo(str(file))

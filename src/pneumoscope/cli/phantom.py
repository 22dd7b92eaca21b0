"""`pneumoscope phantom`: write a folder of synthetic films."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command("phantom", short_help="Draw synthetic films to try everything on.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--train", default=200, show_default=True, help="Films to train on.")
@click.option("--test", default=100, show_default=True, help="Films to test on.")
@click.option("--seed", default=0, show_default=True, help="The same seed draws the same films.")
@click.option("--size", default=224, show_default=True, help="Width and height of a film, pixels.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(folder: Path, train: int, test: int, seed: int, size: int, as_json: bool) -> None:
    """Draw synthetic films with and without synthetic pneumonia into DIR.

    The films have the layout and the names of the public data set and can be audited, split and trained on like it.
    They are drawings: DIR/PHANTOMS.txt says so.
    """
    from pneumoscope.cli.progress import film_progress
    from pneumoscope.radiograph.phantom import phantom
    from pneumoscope.results import to_json

    with film_progress("drawing films") as progress:
        summary = phantom(folder, train=train, test=test, seed=seed, size=size, progress=progress)
    if as_json:
        click.echo(to_json(summary), nl=False)
        return
    for split, counts in summary.films.items():
        parts = ", ".join(f"{count} {label}" for label, count in counts.items())
        click.echo(f"{split}: {parts}, {summary.patients[split]} patients")
    click.echo(f"synthetic films written to {summary.folder}")

"""`pneumoscope phantom`: draw a folder of synthetic images."""

from __future__ import annotations

from pathlib import Path

import click

from pneumoscope.cli.options import json_option, seed_option

__all__ = ["command"]


@click.command("phantom", short_help="Draw synthetic chest images for trying things out.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--train", default=200, show_default=True, help="Number of training images.")
@click.option("--test", default=100, show_default=True, help="Number of test images.")
@seed_option
@click.option("--size", default=224, show_default=True, help="Width and height in pixels.")
@click.option(
    "--masks",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Also write masks of the opacities, to DIR.",
)
@json_option
def command(folder: Path, train: int, test: int, seed: int, size: int, masks: Path | None, as_json: bool) -> None:
    """Draw synthetic chest images with and without synthetic pneumonia into DIR.

    Layout and file names are those of the public data set, so every command works on them. They are drawings, not
    radiographs; DIR/PHANTOMS.txt contains this note.
    """
    from pneumoscope.cli.progress import image_progress
    from pneumoscope.core.result_forms import to_json
    from pneumoscope.data.phantoms import write_phantoms

    with image_progress("drawing images") as progress:
        summary = write_phantoms(folder, train=train, test=test, seed=seed, size=size, masks=masks, progress=progress)
    if as_json:
        click.echo(to_json(summary), nl=False)
        return
    for split, counts in summary.images.items():
        parts = ", ".join(f"{count} {label}" for label, count in counts.items())
        click.echo(f"{split}: {parts}, {summary.patients[split]} patients")
    click.echo(f"Wrote synthetic images to {summary.folder}")
    if summary.masks:
        click.echo(f"Wrote masks of the opacities to {summary.masks}")

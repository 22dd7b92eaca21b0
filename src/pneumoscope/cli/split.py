"""`pneumoscope split`: write who trains, who validates and who tests."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command("split", short_help="Divide images into train, validation and test.")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The manifest to write, a CSV."
)
@click.option(
    "--by",
    type=click.Choice(["patient", "block", "image"]),
    default="patient",
    show_default=True,
    help="What stays together: a patient, a block of patient numbers, or nothing but the image.",
)
@click.option("--validation", default=0.15, show_default=True, help="Share of the training images that validate.")
@click.option("--test", type=float, help="Share that tests, where DATA has no test split.  [default: 0.15]")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same split everywhere.")
def command(data: Path, out: Path, by: str, validation: float, test: float | None, seed: int) -> None:
    """Divide the images of DATA into train, validation and test.

    A test split that comes with DATA is kept. Validation images are drawn by patient unless told otherwise; `--by image`
    reproduces the report's split, in which training sees other images of the patients that it is validated on.
    """
    from rich.console import Console
    from rich.table import Table

    from pneumoscope.data.layouts import load_manifest
    from pneumoscope.data.split import split

    manifest = split(load_manifest(data), by=by, validation=validation, test=test, seed=seed)
    manifest.save(out)
    for note in manifest.notes:
        click.echo(f"note: {note}", err=True)
    if manifest.unreadable:
        click.echo(
            f"note: {len(manifest.unreadable)} files were left out; list them: pneumoscope check-data DATA", err=True
        )
    table = Table("split", "NORMAL", "PNEUMONIA", "patients", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, counts in manifest.counts().items():
        patients = {image.patient for image in manifest.split(name)} - {""}
        table.add_row(name, f"{counts['NORMAL']:,}", f"{counts['PNEUMONIA']:,}", f"{len(patients):,}")
    Console().print(table)
    click.echo(f"split by {by}, seed {seed}: {out}")

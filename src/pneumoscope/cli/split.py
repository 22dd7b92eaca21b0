"""`pneumoscope split`: assign images to train, validation and test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.data_options import label_options

if TYPE_CHECKING:
    from pneumoscope.data.label_mapping import LabelMapping

__all__ = ["command"]


@click.command("split", short_help="Split images into train, validation and test.")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Manifest to write (CSV).")
@label_options()
@click.option(
    "--by",
    type=click.Choice(["patient", "block", "image"]),
    default="patient",
    show_default=True,
    help="Unit that is never divided: a patient, a block of patient numbers, or an image.",
)
@click.option("--validation", default=0.15, show_default=True, help="Fraction of the training images for validation.")
@click.option("--test", type=float, help="Fraction for testing if DATA has no test split.  [default: 0.15]")
@click.option("--seed", default=0, show_default=True, help="Random seed; the split is the same on every machine.")
@click.option("--force", is_flag=True, help="Replace a manifest that differs.")
def command(
    data: Path,
    out: Path,
    labels: LabelMapping | None,
    by: str,
    validation: float,
    test: float | None,
    seed: int,
    force: bool,
) -> None:
    """Split the images of DATA into train, validation and test.

    An existing test split in DATA is kept. By default, all images of a patient stay in one split. With `--by image`, training
    and validation share patients, as in many published experiments. A manifest that differs from the new one is replaced only
    with --force. The manifest contains the classes and patients given by the options, so other commands do not need these
    options for it. Other columns of a CSV file, such as sex or site, are copied.
    """
    from rich.console import Console
    from rich.table import Table

    from pneumoscope.core.messages import counted
    from pneumoscope.data.layouts import load_manifest
    from pneumoscope.data.other_columns import OtherColumns
    from pneumoscope.data.split import split_manifest

    manifest = split_manifest(load_manifest(data, labels=labels), by=by, validation=validation, test=test, seed=seed)
    others = OtherColumns.read(data, manifest, labels)
    manifest.save(out, replace=force, other=others.values)
    for note in manifest.notes:
        click.echo(f"note: {note}", err=True)
    if others.dropped:
        names = ", ".join(map(repr, others.dropped))
        click.echo(
            f"note: columns of {data} that were not copied, because the manifest has its own for labels and patients: {names}",
            err=True,
        )
    if manifest.unreadable:
        unreadable = counted(len(manifest.unreadable), "image")
        click.echo(f"note: {unreadable} cannot be read; for details: pneumoscope check-data DATA", err=True)
    table = Table("split", *manifest.classes, "patients", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, counts in manifest.counts().items():
        patients = {image.patient for image in manifest.split(name)} - {""}
        table.add_row(name, *(f"{n:,}" for n in counts.values()), f"{len(patients):,}")
    Console(markup=False).print(table)
    click.echo(f"split by {by}, seed {seed}: {out}")

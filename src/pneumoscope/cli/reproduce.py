"""`pneumoscope reproduce`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import click

__all__ = ["command"]


@click.command("reproduce", short_help="Make the report's six runs and compare them.")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The public data set.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs and the comparison.")
@click.option("--only", default="", metavar="RUN,...", help="Make these runs now.  [default: all six]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a field: --set training.epochs=1")
@click.option("--accelerator", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True)
@click.option("--devices", type=click.IntRange(min=0), default=0, help="By default one CPU or every GPU.")
@click.option("--ledger", type=click.Path(path_type=Path), help="Where looks at test images are written down.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as one JSON document.")
def command(
    data: Path,
    out: Path,
    only: str,
    overrides: tuple[str, ...],
    accelerator: Literal["auto", "cpu", "gpu"],
    devices: int,
    ledger: Path | None,
    as_json: bool,
) -> None:
    """Make the report's six runs, evaluate them, and compare them with each other and with the published table.

    Finished runs are not made again, so an interrupted command can be repeated. VGG19 starts from ImageNet weights where its
    public file is found, and uses images of 64 pixels without a GPU; the results say which.
    """
    from pneumoscope.core.results import to_json
    from pneumoscope.reproduction.experiment import reproduce
    from pneumoscope.reproduction.recipes import RUNS
    from pneumoscope.training.devices import Devices

    names = tuple(filter(None, only.split(","))) or RUNS
    options = [
        *(["--only", only] if only else []),
        *(word for pair in overrides for word in ("--set", pair)),
        *(["--accelerator", accelerator] if accelerator != "auto" else []),
        *(["--devices", str(devices)] if devices else []),
        *(["--ledger", str(ledger)] if ledger else []),
    ]
    made = reproduce(
        data,
        out,
        only=names,
        overrides=overrides,
        devices=Devices(accelerator, devices),
        ledger=ledger,
        command=shlex.join(["pneumoscope", "reproduce", "--data", str(data), "--out", str(out), *options]),
        tell=lambda words: click.echo(words, err=True),
    )
    if as_json:
        click.echo(to_json(made.comparison), nl=False)
        return
    for sentence in made.comparison.sentences:
        click.echo(sentence)
    if made.comparison.reference:
        for row in made.comparison.reference.rows:
            click.echo(row.sentence)
        click.echo(f"Erratum: {made.comparison.reference.note}")
    click.echo(str(made.page))

"""`pneumoscope reproduce`: repeat the published experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from pneumoscope.cli.options import (
    accelerator_option,
    devices_option,
    ledger_option,
    overrides_option,
    recorded_command,
)
from pneumoscope.cli.process import garbage_collection_paused

__all__ = ["command"]


@click.command("reproduce", short_help="Repeat a published experiment and compare with its table.")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The public data set.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs and the comparison.")
@click.option("--only", default="", metavar="RUN,...", help="Runs to train now.  [default: all six]")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train each run with N consecutive seeds, all runs with the first seed first, in OUT/RUN/seed-N, and compare means.",
)
@overrides_option
@accelerator_option
@devices_option
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as one JSON document.")
def command(
    data: Path,
    out: Path,
    only: str,
    seeds: int | None,
    overrides: tuple[str, ...],
    accelerator: Literal["auto", "cpu", "gpu"],
    devices: int,
    ledger: Path | None,
    as_json: bool,
) -> None:
    """Train and evaluate the six runs of the published experiment, and compare them with each other and with the published table.

    Finished runs are skipped, so an interrupted command can be repeated. VGG19 starts from ImageNet weights if its public file
    is found, and uses images of 64 pixels without a GPU; the results report this.

    With --seeds, the results contain the mean and spread of each run, tests that account for seeds and patients, and whether
    the ranking of the published table holds across seeds. They are written after each seed.
    """
    from pneumoscope.core.result_forms import to_json
    from pneumoscope.reproduction.recipes import RUNS

    with garbage_collection_paused():
        from pneumoscope.reproduction.experiment import reproduce
        from pneumoscope.training.trainer import Devices

    names = tuple(filter(None, only.split(","))) or RUNS
    result = reproduce(
        data,
        out,
        only=names,
        seeds=seeds,
        overrides=overrides,
        devices=Devices(accelerator, devices),
        ledger=ledger,
        command=recorded_command(),
        log=lambda message: click.echo(message, err=True),
    )
    if as_json:
        click.echo(to_json(result.comparison), nl=False)
        return
    for sentence in result.comparison.sentences:
        click.echo(sentence)
    if result.comparison.reference:
        for row in result.comparison.reference.rows:
            click.echo(row.sentence)
        click.echo(f"Erratum: {result.comparison.reference.note}")
    click.echo(str(result.page))

"""`pneumoscope compare`."""

from __future__ import annotations

from pathlib import Path

import click

from pneumoscope.cli.options import json_option, recorded_command

__all__ = ["command"]


@click.command("compare", short_help="Compare runs on the same test images.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--operating-point", default="half", show_default=True, help="Operating point of the threshold metrics.")
@click.option(
    "--evaluation",
    default="test",
    metavar="NAME",
    show_default=True,
    help="Name of the evaluation of each run, a folder in RUN/evaluation/.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the results.")
@json_option
def command(runs: tuple[Path, ...], operating_point: str, evaluation: str, out: Path, as_json: bool) -> None:
    """Compare runs that were evaluated on the same images.

    Writes comparison.json, comparison.csv and report.html to --out. Weights are not needed: run.json, epochs.csv,
    recipe.toml and evaluation/ of each run are enough. Runs of one recipe are named after their folders.

    Example:  pneumoscope compare runs/alexnet-adam runs/quick --out comparison
    """
    from pneumoscope.core.results import to_json
    from pneumoscope.evaluation.compare import compare
    from pneumoscope.reporting.comparison_page import write_comparison_page

    comparison = compare(
        runs, operating_point=operating_point, evaluation=evaluation, out=out, command=recorded_command()
    )
    page = write_comparison_page(comparison, runs, out / "report.html")
    if as_json:
        click.echo(to_json(comparison), nl=False)
        click.echo(str(page), err=True)
        return
    for sentence in comparison.sentences:
        click.echo(sentence)
    click.echo(str(page))

"""`pneumoscope evaluate`: measure a run or bundle on labeled images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.options import data_option, json_option, ledger_option, site_option, target_argument
from pneumoscope.cli.progress import image_progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pneumoscope.core.results import Evaluation, Interval

__all__ = ["command"]


@click.command("evaluate", short_help="Evaluate a run or bundle on labeled images.")
@target_argument
@data_option
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test", "all"]),
    default="test",
    show_default=True,
    help="Images to evaluate; all for a data set without splits that the model has not seen.",
)
@click.option(
    "--operating-point",
    "operating_points",
    multiple=True,
    default=("half", "balanced", "rule_out", "rule_in"),
    show_default=True,
    help="Operating point on the card; repeat for several.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the results.  [default: RUN/evaluation/NAME; nothing is written for a bundle]",
)
@click.option(
    "--name",
    help="Name of the evaluation of a run.  [default: the split; for images of other data also the name of the data]",
)
@click.option(
    "--force", is_flag=True, help="Replace an evaluation of other images, or of another model, seed or profile."
)
@site_option
@ledger_option
@click.option("--seed", default=0, show_default=True, help="Random seed of the bootstrap.")
@json_option
def command(
    target: Path,
    data: Path,
    split: str,
    operating_points: tuple[str, ...],
    out: Path | None,
    name: str | None,
    force: bool,
    site: Path | None,
    ledger: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Evaluate RUN or BUNDLE on labeled images; every number has an interval.

    Thresholds come from the bundle and are never chosen on the evaluated images. Each test-set evaluation is recorded in
    the test ledger before its result is shown.

    Evaluations of a run are kept side by side in RUN/evaluation/. Evaluating the same images again adds the operating points.
    """
    from rich.console import Console

    from pneumoscope.core.results import to_json
    from pneumoscope.evaluation.evaluate import evaluate

    with image_progress("scoring images") as progress:
        evaluation, _ = evaluate(
            target,
            data,
            split=split,
            operating_points=operating_points,
            out=out,
            name=name,
            replace=force,
            ledger=ledger,
            seed=seed,
            site=site,
            progress=progress,
            note=lambda text: click.echo(f"note: {text}", err=True),
        )
    if as_json:
        click.echo(to_json(evaluation), nl=False)
    else:
        _print_evaluation(evaluation, Console())


def _print_evaluation(evaluation: Evaluation, console: Console) -> None:
    labels = ", ".join(f"{n} {label}" for label, n in evaluation.counts.items())
    images = "images" if evaluation.split == "all" else f"{evaluation.split} images"
    click.echo(f"{evaluation.name} on {evaluation.n} {images} ({labels}; {evaluation.patients} patients)")
    if evaluation.site:
        click.echo(f"Site profile: {evaluation.site}")
    rejected = evaluation.rejected
    if rejected and rejected.reasons:
        reasons = ", ".join(f"{count} {code}" for code, count in rejected.reasons.items())
        click.echo(
            f"`predict` rejects {_percentages(rejected.share)} of these images ({reasons}); they are evaluated all the same"
        )
    console.print(_table("independent of a threshold", evaluation.metrics, evaluation.auroc_by_etiology, "AUROC"))
    for name, point in evaluation.operating_points.items():
        title = f"{name}: threshold at {point.threshold_text()}"
        console.print(_table(title, point.metrics, point.by_etiology, "correct"))
        counts = point.confusion
        click.echo(
            f"  {point.rule}; predicted as pneumonia: {counts.tp} of {counts.tp + counts.fn} PNEUMONIA,"
            f" {counts.fp} of {counts.fp + counts.tn} NORMAL"
        )
        for label, shares in (point.uncertainty_band or {}).items():
            click.echo(
                f"  uncertain: {_percentages(shares['uncertain'])} of {label} images; correct or uncertain:"
                f" {_percentages(shares['covered'])}"
            )
    if evaluation.test_evaluation is not None:
        click.echo(f"Test-set evaluation {evaluation.test_evaluation} of these images")
    click.secho(evaluation.notice, dim=True)


def _table(title: str, metrics: Mapping[str, Interval], by_etiology: Mapping[str, Interval], noun: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("", "value", "95% interval", "n", "method"):
        table.add_column(heading)
    for name, interval in metrics.items():
        table.add_row(name.replace("_", " "), *_cells(interval))
    for name, interval in by_etiology.items():
        table.add_row(f"{noun}, {name}", *_cells(interval))
    return table


def _percentages(share: Interval) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%}, n = {share.n})"


def _cells(interval: Interval) -> tuple[str, str, str, str]:
    if interval.value is None:
        return "-", interval.reason, str(interval.n), interval.method
    ends = interval.reason
    if interval.low is not None and interval.high is not None:
        ends = f"{interval.low:.3f} to {interval.high:.3f}"
    return f"{interval.value:.3f}", ends, str(interval.n), interval.method

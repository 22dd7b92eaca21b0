"""Tables and sentences printed by `evaluate` for binary models, and those shared with multiclass models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.progress import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pneumoscope.core.interval import Interval
    from pneumoscope.core.results import Evaluation, SetDifference

__all__ = ["interval_table", "ledger_sentence", "print_breakdown", "print_difference", "print_evaluation"]


def interval_table(
    title: str, metrics: Mapping[str, Interval], by_etiology: Mapping[str, Interval] | None = None, noun: str = ""
) -> Table:
    """Return a table of metrics with their intervals.

    Args:
        title: Title of the table.
        metrics: Metrics by name.
        by_etiology: A further metric by etiology.
        noun: Name of the further metric.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("", "value", "95% interval", "n", "method"):
        table.add_column(heading)
    for name, interval in metrics.items():
        metric, comma, label = name.partition(", ")
        table.add_row(metric.replace("_", " ") + comma + label, *_cells(interval))
    for name, interval in (by_etiology or {}).items():
        table.add_row(f"{noun}, {name}", *_cells(interval))
    return table


def _cells(interval: Interval) -> tuple[str, str, str, str]:
    """Return value, limits, n and method as text, with the reason in place of undefined limits."""
    from pneumoscope.core.result_forms import format_limit, method_name, with_minus_signs

    if interval.value is None:
        return "-", interval.reason, str(interval.n), method_name(interval.method)
    ends = interval.reason
    if interval.low is not None and interval.high is not None:
        low, high = (format_limit(limit, ".3f") for limit in (interval.low, interval.high))
        ends = with_minus_signs(f"{low} to {high}")
    return with_minus_signs(f"{interval.value:.3f}"), ends, str(interval.n), method_name(interval.method)


def ledger_sentence(count: int) -> str:
    """Return a sentence on how often the test images have been evaluated.

    Args:
        count: Number of evaluations in the test ledger.
    """
    times = "once" if count == 1 else f"{count} times"
    return f"These test images have been evaluated {times} so far (test ledger)"


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the tables of a binary evaluation.

    Args:
        evaluation: Evaluation to print.
        console: Console for the tables.
    """
    from pneumoscope.core.messages import patients_text

    labels = ", ".join(f"{n} {label}" for label, n in evaluation.counts.items())
    images = "images" if evaluation.split == "all" else f"{evaluation.split} images"
    patients = patients_text(evaluation.patients, evaluation.unknown_patients, evaluation.n)
    click.echo(f"{evaluation.name} on {evaluation.n} {images} ({labels}; {patients})")
    if evaluation.site:
        click.echo(f"Site profile: {evaluation.site}")
    for remark in evaluation.remarks:
        click.echo(remark)
    if evaluation.rejected and evaluation.rejected.reasons:
        click.echo(evaluation.rejected.sentence())
    console.print(
        interval_table("independent of a threshold", evaluation.metrics, evaluation.auroc_by_etiology, "AUROC")
    )
    for name, point in evaluation.operating_points.items():
        title = f"{name}: threshold at {point.threshold_text()}"
        console.print(interval_table(title, point.metrics, point.by_etiology, "correct"))
        counts = point.confusion
        click.echo(
            f"  {point.rule}; predicted as pneumonia: {counts.tp} of {counts.tp + counts.fn} PNEUMONIA,"
            f" {counts.fp} of {counts.fp + counts.tn} NORMAL"
        )
        if at := point.predictive_values:
            console.print(interval_table(f"{name}, at a prevalence of {at.prevalence:g}", at.named_intervals()))
        for label, shares in (point.uncertainty_band or {}).items():
            click.echo(
                f"  uncertain: {_percentages(shares['uncertain'])} of {label} images; correct or uncertain:"
                f" {_percentages(shares['covered'])}"
            )
    _print_decision_curve(evaluation, console)
    print_breakdown(evaluation, console)
    if evaluation.test_evaluation is not None:
        click.echo(ledger_sentence(evaluation.test_evaluation))
    click.secho(evaluation.notice, dim=True)


def _print_decision_curve(evaluation: Evaluation, console: Console) -> None:
    """Print the net benefit at every second threshold probability; JSON and the report contain all of them."""
    from rich.table import Table

    table = Table(title="net benefit (0 is to treat no one)", title_justify="left")
    for heading in ("threshold probability", "model", "treat all", "gain over the better of all and no one"):
        table.add_column(heading)
    for step in evaluation.decision_curve[1::2]:
        cells = (str(interval) for interval in (step.net_benefit, step.treat_all, step.gain))
        table.add_row(f"{step.threshold_probability:g}", *cells)
    console.print(table)


def print_breakdown(evaluation: Evaluation, console: Console) -> None:
    """Print the subgroups, their tests and the differences from other images, if any."""
    from rich.table import Table

    if evaluation.subgroups:
        point = evaluation.subgroups[0].operating_point
        table = Table(title=f"subgroups, at the operating point {point}", title_justify="left")
        metrics = ("auroc", "sensitivity", "specificity")
        for heading in ("", "n", "PNEUMONIA", *metrics):
            table.add_column(heading)
        for group in evaluation.subgroups:
            cells = (str(group.metrics[metric]) for metric in metrics)
            table.add_row(f"{group.column}: {group.value}", str(group.n), str(group.counts.get("PNEUMONIA", 0)), *cells)
        overall = {**evaluation.metrics, **evaluation.operating_points[point].metrics}
        cells = (str(overall[metric]) for metric in metrics)
        table.add_row("all images", str(evaluation.n), str(evaluation.counts.get("PNEUMONIA", 0)), *cells)
        console.print(table)
    for test in evaluation.interactions:
        click.echo(f"  {test.sentence}")
    if evaluation.difference:
        print_difference(evaluation.difference, console)


def print_difference(difference: SetDifference, console: Console) -> None:
    """Print the differences from other images."""
    title = f"these images minus {difference.reference} ({difference.reference_n} images)"
    named = {printable(name): interval for name, interval in difference.named_intervals().items()}
    console.print(interval_table(printable(title), named))
    if difference.remark:
        click.echo(f"  {difference.remark}")


def _percentages(share: Interval) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%}, n = {share.n})"

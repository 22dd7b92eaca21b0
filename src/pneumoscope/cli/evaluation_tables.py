"""Printed output that the evaluations of all models have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.progress import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pneumoscope.core.results import InteractionTest, Interval, Subgroup

__all__ = ["interval_table", "ledger_sentence", "print_subgroups"]


def interval_table(
    title: str, metrics: Mapping[str, Interval], by_etiology: Mapping[str, Interval] | None = None, noun: str = ""
) -> Table:
    """Return a table of metrics with their intervals.

    Args:
        title: Title of the table.
        metrics: The metrics by name.
        by_etiology: One metric by etiology.
        noun: Name of that metric.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("", "value", "95% interval", "n", "method"):
        table.add_column(heading)
    for name, interval in metrics.items():
        table.add_row(name.replace("_", " "), *_cells(interval))
    for name, interval in (by_etiology or {}).items():
        table.add_row(f"{noun}, {name}", *_cells(interval))
    return table


def ledger_sentence(count: int) -> str:
    """Return how often test images have been evaluated.

    Args:
        count: Number of evaluations in the test ledger.
    """
    times = "once" if count == 1 else f"{count} times"
    return f"These test images have been evaluated {times} so far (test ledger)"


def print_subgroups(
    groups: Sequence[Subgroup],
    tests: Sequence[InteractionTest],
    console: Console,
    *,
    labels: Sequence[str],
    metrics: Sequence[str],
) -> None:
    """Print the metrics of subgroups, if there are any, and the tests of whether they differ.

    Args:
        groups: The subgroups.
        tests: The tests.
        console: Console for the table.
        labels: Labels whose images are counted.
        metrics: Metrics to print.
    """
    from rich.table import Table

    if groups:
        point = groups[0].operating_point
        title = f"subgroups, at the operating point {point}" if point else "subgroups"
        table = Table(title=title, title_justify="left")
        for heading in ("", "n", *labels, *metrics):
            table.add_column(printable(heading).replace("_", " "))
        for group in groups:
            counts = (str(group.counts.get(label, 0)) for label in labels)
            cells = (str(group.metrics[metric]) for metric in metrics)
            table.add_row(printable(f"{group.column}: {group.value}"), str(group.n), *counts, *cells)
        console.print(table)
    for test in tests:
        click.echo(printable(f"  {test.sentence}"))


def _cells(interval: Interval) -> tuple[str, str, str, str]:
    """Return value, ends, n and method as text; the reason in place of ends that are undefined."""
    from pneumoscope.core.result_forms import method_name

    if interval.value is None:
        return "-", interval.reason, str(interval.n), method_name(interval.method)
    ends = interval.reason
    if interval.low is not None and interval.high is not None:
        ends = f"{interval.low:.3f} to {interval.high:.3f}"
    return f"{interval.value:.3f}", ends, str(interval.n), method_name(interval.method)

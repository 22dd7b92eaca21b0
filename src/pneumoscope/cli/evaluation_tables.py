"""Printed output that the evaluations of all models have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from pneumoscope.core.results import Interval

__all__ = ["interval_table", "ledger_sentence"]


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


def _cells(interval: Interval) -> tuple[str, str, str, str]:
    """Return value, ends, n and method as text; the reason in place of ends that are undefined."""
    from pneumoscope.core.result_forms import method_name, with_minus_signs

    if interval.value is None:
        return "-", interval.reason, str(interval.n), method_name(interval.method)
    ends = interval.reason
    if interval.low is not None and interval.high is not None:
        ends = with_minus_signs(f"{interval.low:.3f} to {interval.high:.3f}")
    return with_minus_signs(f"{interval.value:.3f}"), ends, str(interval.n), method_name(interval.method)

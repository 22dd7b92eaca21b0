"""Columns of a table of metrics: one for each single run, and one for the mean of each group of seeds or folds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from pneumoscope.core.comparison import RunGroup, SeedSpread
from pneumoscope.core.interval import Interval
from pneumoscope.reporting import labels

__all__ = ["MetricColumn", "columns_note", "metric_columns"]


@dataclasses.dataclass(frozen=True)
class MetricColumn:
    """A column of a table of metrics.

    Attributes:
        name: Name of the run or group.
        title: Heading: the name, with the number of runs of a group.
        runs: Indices of its runs in the comparison.
        cells: Each metric: an interval, or of a group the mean with its spread; an undefined interval with the reason if the
            metric is undefined for some of its runs.
        members: Metrics of each of its runs; empty for a single run.
    """

    name: str
    title: str
    runs: tuple[int, ...]
    cells: Mapping[str, Interval | SeedSpread]
    members: tuple[Mapping[str, Interval], ...] = ()

    @property
    def is_group(self) -> bool:
        """Whether it is a group of seeds or folds."""
        return bool(self.members)

    def value(self, metric: str) -> Interval:
        """Return the metric, of a group its mean."""
        cell = self.cells[metric]
        return cell.mean if isinstance(cell, SeedSpread) else cell


def metric_columns(
    groups: Sequence[RunGroup], runs: Sequence[tuple[str, Mapping[str, Interval]]]
) -> tuple[MetricColumn, ...]:
    """Return the columns, in the order of their first run.

    Args:
        groups: Seeds or folds.
        runs: Name and metrics of each run of the comparison.
    """
    group_of = {name: group for group in groups for name in group.runs}
    columns = []
    for index, (name, metrics) in enumerate(runs):
        group = group_of.get(name)
        if group is None:
            columns.append(MetricColumn(name, name, (index,), metrics))
        elif name == group.runs[0]:
            columns.append(_group_column(group, runs))
    return tuple(columns)


def _group_column(group: RunGroup, runs: Sequence[tuple[str, Mapping[str, Interval]]]) -> MetricColumn:
    members = {index: metrics for index, (name, metrics) in enumerate(runs) if name in group.runs}
    cells: dict[str, Interval | SeedSpread] = {}
    for metric, first in next(iter(members.values())).items():
        if metric in group.metrics:
            cells[metric] = group.metrics[metric]
            continue
        missing = [runs[index][0] for index, each in members.items() if metric in each and each[metric].value is None]
        reason = f"no value for {', '.join(missing)}" if missing else f"there is no mean of {group.unit}"
        cells[metric] = Interval(None, None, None, f"mean of {group.unit}", first.n, reason=reason)
    return MetricColumn(group.name, group.title, tuple(members), cells, tuple(members.values()))


def columns_note(columns: Sequence[MetricColumn], names: Mapping[str, str]) -> str:
    """Return sentences on the intervals and standard deviations of the named metrics.

    Args:
        columns: The columns.
        names: Label of each metric in the table.
    """
    found = [(label, column.cells[key]) for column in columns for key, label in names.items() if key in column.cells]
    spreads = [cell for _, cell in found if isinstance(cell, SeedSpread)]
    intervals = labels.interval_note(
        (label, cell.mean if isinstance(cell, SeedSpread) else cell) for label, cell in found
    )
    sd = any(spread.mean.low is None for spread in spreads)
    notes = (intervals, labels.means_note(spreads), "SD: standard deviation over the runs of a group." if sd else "")
    return " ".join(filter(None, notes))

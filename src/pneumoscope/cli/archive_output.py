"""Output of `pneumoscope archive`: totals, query tables and shard problems."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.progress import printable
from pneumoscope.core.errors import ArchiveError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.messages import counted

if TYPE_CHECKING:
    from pneumoscope.archive.query import QueryResult
    from pneumoscope.archive.score import Listed, Scored
    from pneumoscope.archive.verify import Problem, Verification

__all__ = [
    "outcomes_text",
    "print_listed",
    "print_notices",
    "print_query_json",
    "print_query_rows",
    "print_runtimes",
    "print_scored",
    "problem_line",
    "verification_error",
]


def print_listed(listed: Listed) -> None:
    """Print the numbers of listed and finished images on standard error."""
    growth = listed.growth
    if listed.skipped:
        click.echo(printable(listed.skipped), err=True)
    changes = [f"{growth.new:,} new"]
    changes += [f"{growth.changed:,} changed, which are new rows"] if growth.changed else []
    changes += [f"{growth.missing:,} no longer in the source"] if growth.missing else []
    click.echo(
        f"Listed {counted(listed.rows, 'image')} in {counted(listed.shards, 'shard')}: {'; '.join(changes)}."
        f" Finished before: {counted(listed.finished, 'shard')}",
        err=True,
    )
    if listed.others:
        click.echo(
            f"Other software scored {counted(sum(listed.others.values()), 'finished shard')}:"
            f" {', '.join(listed.others)}. Its numbers may have other digits; to score them again, delete their files",
            err=True,
        )


def print_scored(scored: Scored, out: Path) -> None:
    """Print the totals of a run."""
    click.echo(f"Scored {scored.done:,} of {counted(scored.rows, 'image')} in {out}, set {scored.key}")
    if scored.done:
        click.echo(f"Total: {outcomes_text(scored.decisions, scored.failed)}")
    print_runtimes(scored.runtimes)
    print_notices([scored.notice])


def print_runtimes(runtimes: Mapping[str, int]) -> None:
    """Print the software versions if there are several, because the last digits of the numbers may then differ."""
    if len(runtimes) > 1:
        parts = "; ".join(f"{name}: {counted(count, 'shard')}" for name, count in runtimes.items())
        click.echo(f"Scored by different software: {parts}")


def print_notices(notices: Iterable[str]) -> None:
    """Print each notice once."""
    for notice in dict.fromkeys(notices):
        click.secho(printable(notice), dim=True)


def outcomes_text(decisions: Mapping[str, int], failed: int) -> str:
    """Return the number of images for each decision, and of unreadable images, as text."""
    parts = [f"{count:,} {decision}" for decision, count in decisions.items()]
    return ", ".join([*parts, f"{failed:,} failed"] if failed else parts)


def print_query_json(result: QueryResult) -> None:
    """Print one document row by row, so that the rows need not fit into memory."""
    click.echo(f'{{\n  "notice": {json.dumps(NOTICE)},\n  "rows": [', nl=False)
    separator = "\n    "
    for row in result.rows:
        click.echo(separator + json.dumps(dict(zip(result.columns, row, strict=True)), default=str), nl=False)
        separator = ",\n    "
    click.echo("\n  ]\n}")


def print_query_rows(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table with numbers aligned to the right."""
    texts = [[printable("" if cell is None else str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    for line, cells in ((columns, rows[0] if rows else columns), *zip(texts, rows, strict=True)):
        parts = (
            text.rjust(width) if isinstance(cell, int | float) else text.ljust(width)
            for text, cell, width in zip(line, cells, widths, strict=True)
        )
        click.echo("  ".join(parts).rstrip())


def verification_error(result: Verification) -> ArchiveError:
    """Return the error for the problems found: an unfinished archive, or lost or altered images."""
    unfinished = [problem for problem in result.problems if problem.is_unfinished]
    damaged = [problem for problem in result.problems if not problem.is_unfinished]
    scored = f"{result.shards - len(unfinished):,} of {counted(result.shards, 'shard')} are scored"
    if not damaged:
        return ArchiveError(
            f"the archive is not finished: {scored}", hint="Run the same `pneumoscope archive score` again to continue"
        )
    wrong = result.rows - result.found - sum(problem.missing for problem in unfinished)
    images = f"{wrong:,} of {counted(result.rows, 'image')} are missing, doubled or altered" if wrong else ""
    n_heatmaps = sum(problem.code.startswith("heatmaps") for problem in damaged)
    heatmaps = (
        f"the heatmaps of {counted(n_heatmaps, 'shard')} are missing, altered or not entered" if n_heatmaps else ""
    )
    text = "; ".join(filter(None, (images, heatmaps))) or "there are files of no listed image"
    rest = f"; besides, the archive is not finished: {scored}" if unfinished else ""
    return ArchiveError(
        f"{text} ({counted(len(damaged), 'shard')}){rest}",
        hint="Run the same `pneumoscope archive score` again; delete the files of altered shards first",
    )


def problem_line(problem: Problem) -> str:
    """Return a one-line description of a shard's problem."""
    rows = "" if problem.first_row < 0 else f", rows {problem.first_row} to {problem.last_row}"
    counts = f": {problem.missing:,} missing, {problem.doubled:,} doubled" if problem.code == "wrong_rows" else ""
    path = f", {printable(problem.path)}" if problem.path else ""
    return f"shard {problem.shard}{rows}: {problem.code}{counts}{path}"

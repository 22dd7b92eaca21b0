"""`pneumoscope archive`: score archives of any size and resume interrupted runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pneumoscope.cli.archive_output import (
    outcomes_text,
    print_listed,
    print_notices,
    print_query_json,
    print_query_rows,
    print_runtimes,
    print_scored,
    problem_line,
    verification_error,
)
from pneumoscope.cli.options import json_option, model_options
from pneumoscope.cli.process import catch_interrupt
from pneumoscope.cli.progress import archive_progress, image_progress, printable
from pneumoscope.core.errors import PartialFailureError, UsageError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.messages import counted, unread_text

if TYPE_CHECKING:
    from pneumoscope.archive.progress import Progress
    from pneumoscope.archive.score import Engine
    from pneumoscope.inference.providers import Provider

__all__ = ["command"]

_MAX_PRINTED = 20  # listed problems

_archive_argument = click.argument("archive", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
_set_option = click.option(
    "--set", "key", default="", metavar="NAME", help="Set of predictions, if there are several; see `archive status`."
)


@click.group("archive", short_help="Score archives of any size.")
def command() -> None:
    """Score archives of any size, in shards that are either complete or absent.

    An interrupted run continues where it stopped; images added later are scored by the next run.

    Example:  pneumoscope archive score images --out archive
    """


@command.command("score", short_help="Score the images that are not scored yet.")
@click.argument("source", metavar="SOURCE")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the results: new, or of an earlier run.",
)  # fmt: skip
@model_options("never")
@click.option(
    "--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
    help="Processor that runs the network; cuda needs a GPU and onnxruntime-gpu.",
)  # fmt: skip
@click.option(
    "--heatmaps", is_flag=True, help="Also write heatmaps: one ZIP file of PNG images for each shard."
)  # fmt: skip
@click.option(
    "--no-identifiers", is_flag=True,
    help="Leave out of the table: path, study date, UIDs and station. The listing keeps the paths.",
)  # fmt: skip
@click.option(
    "--path-column", default="path", show_default=True, metavar="NAME",
    help="Column of a CSV or Parquet file with the paths.",
)  # fmt: skip
@click.option(
    "--shard-size", type=click.IntRange(min=1), help="Images per shard of a new archive.  [default: 256]"
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=0), default=0,
    help="Shards that are scored at the same time.  [default: one per core, and one more; with Ray two per core, or two per GPU]",
)  # fmt: skip
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="Score in this process, or on Ray.",
)  # fmt: skip
@click.option(
    "--address", default="", metavar="ADDRESS",
    help="Address of a Ray cluster, such as 10.0.0.5:6379 or ray://10.0.0.5:10001.  [default: Ray on this machine]",
)  # fmt: skip
@click.option(
    "--metrics-port", type=click.IntRange(1, 65535), metavar="PORT",
    help="Serve the progress to Prometheus at http://127.0.0.1:PORT/metrics.",
)  # fmt: skip
def score_command(
    source: str,
    out: Path,
    model: dict[str, Any],
    provider: Provider,
    heatmaps: bool,
    no_identifiers: bool,
    path_column: str,
    shard_size: int | None,
    workers: int,
    engine: Engine,
    address: str,
    metrics_port: int | None,
) -> None:
    """Score the images of SOURCE that are not scored yet, and write the results to Parquet files.

    SOURCE is a folder, which is searched as by `predict`, an address such as s3://bucket/prefix, gs://bucket/prefix or
    https://host/folder, a search of a PACS such as dicomweb+https://host/dicom-web/studies?StudyDate=20190101-20191231, a text
    file with one path per line, a manifest or another CSV file, or a Parquet file. Paths in a file are relative to its folder.

    Ctrl-C finishes the shards in flight; a second one stops at once. Run the same command again to continue. Unreadable images
    become rows with the reason, and the exit status is 3. DIR/archive.log has a line for each shard.

    Example:  pneumoscope archive score images --out archive
    """
    from pneumoscope.archive.score import score_archive
    from pneumoscope.archive.sources import open_source

    opened = open_source(source, path_column=path_column)
    watchers: list[Callable[[Progress], None]] = []
    if metrics_port:
        from pneumoscope.archive.metrics import serve_metrics

        watchers.append(serve_metrics(metrics_port))
    with (
        catch_interrupt("Finishing the shards in flight; press Ctrl-C again to stop at once") as interrupted,
        archive_progress() as bar,
    ):
        watchers += [bar] if bar else []
        scored = score_archive(
            opened,
            out,
            model={**model, "provider": provider},
            identifiers=not no_identifiers,
            heatmaps=heatmaps,
            shard_size=shard_size or 0,
            workers=workers,
            engine=engine,
            address=address,
            stopping=interrupted,
            on_listed=print_listed,
            watchers=watchers,
        )
    print_scored(scored, out)
    if interrupted.is_set():
        raise click.Abort("Interrupted. Run the same command again to continue")
    if scored.failed:
        raise PartialFailureError(
            unread_text(scored.failed, scored.rows),
            hint="See failure_code and failure_reason in the table",
        )


@command.command("status", short_help="Show how far an archive is scored.")
@_archive_argument
@json_option
def status_command(archive: Path, as_json: bool) -> None:
    """Show how many images of an archive are scored, by model. Works while a run is in progress.

    Example:  pneumoscope archive status archive
    """
    from pneumoscope.archive.status import archive_status
    from pneumoscope.core.prediction_messages import site_note

    status = archive_status(archive)
    if as_json:
        sets = [each._asdict() for each in status.sets]
        click.echo(json.dumps(status._asdict() | {"sets": sets}, indent=2))
        return
    click.echo(f"{printable(status.source)}: {counted(status.rows, 'image')} in {counted(status.shards, 'shard')}")
    for each in status.sets:
        settings = ", ".join(filter(None, (each.model, site_note(each), each.operating_point)))
        line = f"{each.key} ({printable(settings)}): {each.done:,} of {counted(status.rows, 'image')} scored"
        if each.done:
            heatmaps = f"; heatmaps of {counted(each.heatmaps, 'shard')}" if each.heatmaps else ""
            line += f": {outcomes_text(each.decisions, each.failed)}{heatmaps}. Last shard: {each.last}"
        click.echo(line)
        print_runtimes(each.runtimes)
    print_notices(each.notice for each in status.sets)


@command.command("query", short_help="Query an archive with SQL.")
@_archive_argument
@click.argument("sql", metavar="SQL")
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=100, show_default=True, help="Rows of the table; 0 for all."
)  # fmt: skip
def query_command(archive: Path, sql: str, as_json: bool, as_csv: bool, limit: int) -> None:
    """Run a DuckDB query. The views are `images`, one row per listed image, and `predictions`, one per image and set.

    JSON and CSV output contains all rows.

    Example:  pneumoscope archive query archive "SELECT decision, count(*) FROM predictions GROUP BY decision"
    """
    from pneumoscope.archive.query import query_archive
    from pneumoscope.inference.writers import csv_line

    if as_json and as_csv:
        raise UsageError("--json and --csv cannot be combined", hint="Choose one of them")
    with query_archive(archive, sql) as result:
        if as_json:
            print_query_json(result)
        elif as_csv:
            for line in chain([result.columns], result.rows):
                click.echo(csv_line(line), nl=False)
        else:
            shown = list(islice(result.rows, limit or None))
            print_query_rows(result.columns, shown)
            if next(result.rows, None) is not None:
                click.echo(f"Only the first {limit:,} rows are shown; see --limit, --csv and --json", err=True)
            click.secho(NOTICE, dim=True, err=True)


@command.command("report", short_help="Write the report of an archive.")
@_archive_argument
@_set_option
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="HTML file to write.")
@click.option(
    "--thumbnails", type=click.IntRange(min=0), default=0, show_default=True,
    help="Example images in the report; they are images of patients.",
)  # fmt: skip
def report_command(archive: Path, key: str, out: Path, thumbnails: int) -> None:
    """Write an HTML page: decisions, rejections by reason and device, scores by year, and drift against the card.

    Example:  pneumoscope archive report archive --out report.html
    """
    from pneumoscope.archive.report import write_report

    click.echo(f"Wrote {write_report(archive, out, key, thumbnails=thumbnails)}", err=True)


@command.command("compare", short_help="Compare two models on an archive.")
@_archive_argument
@click.argument("a", metavar="SET")
@click.argument("b", metavar="SET")
@json_option
def compare_command(archive: Path, a: str, b: str, as_json: bool) -> None:
    """Compare two sets of predictions image by image: agreement, changed decisions, and drift. See `archive status` for the sets.

    Example:  pneumoscope archive compare archive b321a106-e3953e16 0f1e2d3c-a1b2c3d4
    """
    from pneumoscope.archive.summary import compare_sets
    from pneumoscope.core.prediction_messages import site_note
    from pneumoscope.core.result_forms import with_minus_signs

    result = compare_sets(archive, a, b)
    if as_json:
        document = {name: _plain(value) for name, value in result._asdict().items()}
        click.echo(json.dumps(document, indent=2))
        return
    for name, key, settings in (("A", result.a, result.settings_a), ("B", result.b, result.settings_b)):
        parts = (key, settings.model, site_note(settings), settings.operating_point)
        click.echo(printable(f"{name}: {', '.join(filter(None, parts))}"))
    share = result.agree / result.images if result.images else 0.0
    click.echo(f"{counted(result.images, 'image')} in both; the same decision: {result.agree:,} ({share:.1%})")
    click.echo(
        f"Changed decisions: {result.changed[0]:,} from no_pneumonia to pneumonia,"
        f" {result.changed[1]:,} from pneumonia to no_pneumonia"
    )
    click.echo(f"Cohen's kappa of decided images: {result.kappa}")
    if result.difference:
        mean = with_minus_signs(f"{result.difference[0]:+.3f}")
        click.echo(f"Probability, B minus A: mean {mean}, mean absolute {result.difference[1]:.3f}")
    for name, drift in (("A", result.drift_a), ("B", result.drift_b)):
        text = "undefined" if drift is None else f"{drift.difference:.3f}, by chance up to {drift.chance:.3f}"
        click.echo(f"Drift of {name} against its card: {text}")
    print_query_rows(("A", "B", "images"), result.decisions)
    print_notices([result.settings_a.notice, result.settings_b.notice])


def _plain(value: object) -> object:
    """Return a value as built-in types for JSON."""
    import msgspec
    from msgspec import Struct

    if isinstance(value, Struct):
        return msgspec.to_builtins(value)
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


@command.command("verify", short_help="Check that every image is scored exactly once.")
@_archive_argument
@_set_option
@json_option
def verify_command(archive: Path, key: str, as_json: bool) -> None:
    """Check that every listed image has exactly one row, and that no file was altered since it was written.

    Shards with problems are listed with their files, and the exit status is 1. To score them again, delete their remaining
    files and run the same `archive score` again. If shards are merely not scored yet, as after Ctrl-C, the message says that
    the archive is not finished; the exit status is 1 as well, and the same `archive score` continues.

    Example:  pneumoscope archive verify archive
    """
    from pneumoscope.archive.verify import verify_archive

    with image_progress("verifying shards") as progress:
        result = verify_archive(archive, key, progress=progress)
    if as_json:
        problems = [each._asdict() for each in result.problems]
        click.echo(json.dumps(result._asdict() | {"problems": problems}, indent=2))
    else:
        waiting = [problem for problem in result.problems if problem.code == "not_scored"]
        others = [problem for problem in result.problems if problem.code != "not_scored"]
        for problem in others[:_MAX_PRINTED]:
            click.echo(problem_line(problem))
        if (more := len(others) - _MAX_PRINTED) > 0:
            click.echo(f"and {counted(more, 'other shard')}")
        if waiting:  # summarized, because a half-scored archive has thousands
            rows = sum(problem.missing for problem in waiting)
            click.echo(f"not_scored: {counted(len(waiting), 'shard')}, {counted(rows, 'image')}")
        click.echo(f"{result.found:,} of {counted(result.rows, 'image')} in exactly one row, set {result.key}")
        print_runtimes(result.runtimes)
    if result.problems:
        raise verification_error(result)

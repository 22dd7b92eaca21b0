"""`pneumoscope audit-log`: verify and print the audit log of the service."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pneumoscope.cli.options import json_option
from pneumoscope.cli.service_database import open_service_database, service_database_options
from pneumoscope.core.errors import UsageError
from pneumoscope.core.messages import counted

if TYPE_CHECKING:
    from sqlalchemy import Row

__all__ = ["command"]


@click.group("audit-log", short_help="Verify or print the audit log of the service.")
def command() -> None:
    """Verify or print the audit log of the service: who did what, when, with which model."""


@command.command("verify")
@service_database_options
@click.option(
    "--expect-hash",
    metavar="HASH",
    help="Hash printed by an earlier verification; the log must still contain it.",
)
@json_option
def verify_command(data_dir: Path | None, database: str, expect_hash: str | None, as_json: bool) -> None:
    """Recompute every row's hash, compare predictions and images with the log, and print the last hash.

    Keep that hash where people who can change the log cannot. All images are read; with --database, only if --data-dir
    is given. The service may be running.

    Example:  pneumoscope audit-log verify --data-dir records
    """
    from pneumoscope.service.audit.verification import verify
    from pneumoscope.service.storage.blob_store import FolderBlobStore

    if expect_hash is not None and not re.fullmatch(r"[0-9a-f]{64}", expect_hash):
        raise UsageError(f"--expect-hash {expect_hash[:80]!r} is not a SHA-256 hash", hint="Pass 64 hexadecimal digits")
    with open_service_database(data_dir, database) as (folder, engine):
        result = verify(engine, expected=expect_hash or "", images=FolderBlobStore(folder) if folder else None)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(result), indent=2))
        return
    click.echo(f"{counted(result.rows, 'row')}, none altered. Last hash: {result.last_hash}")
    predictions = counted(result.predictions, "prediction")
    if result.images is None:
        click.echo(f"Matched the log: {predictions}. Images were not checked; pass --data-dir to check them")
    else:
        click.echo(f"Matched the log: {predictions} and {counted(result.images, 'image')}")


@command.command("show")
@service_database_options
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Print only the newest N rows.  [default: all]")
@json_option
def show_command(data_dir: Path | None, database: str, limit: int | None, as_json: bool) -> None:
    """Print the rows: time, user, event, prediction and details; the newest last.

    Hashes are not checked; use `audit-log verify` for that.

    Example:  pneumoscope audit-log show --data-dir records --limit 20
    """
    from pneumoscope.service.audit.log import read_rows

    with open_service_database(data_dir, database) as (_, engine):
        rows = read_rows(engine, last=limit or 0)
        if not as_json:
            for row in rows:
                click.echo(_line(row))
            return
        # Row by row, because the log may not fit into memory.
        separator = '{"rows": [\n'
        for row in rows:
            click.echo(separator + json.dumps({**row._mapping, "details": _details(row)}), nl=False)
            separator = ",\n"
        click.echo("\n]}" if separator == ",\n" else '{"rows": []}')


def _line(row: Row[Any]) -> str:
    details = _details(row)
    text = row.details
    if isinstance(details, dict):
        text = " ".join(
            f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in details.items()
        )
    line = f"{row.time}  {row.user:12}  {row.event:13}  {row.prediction_id:32}  {text}"
    # Escape control characters, which anyone with access to the database could have inserted.
    return line.rstrip().encode("unicode_escape").decode()


def _details(row: Row[Any]) -> object:
    try:
        return json.loads(row.details)
    except ValueError:  # not written by the service; reported by `verify`
        return row.details

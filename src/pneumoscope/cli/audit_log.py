"""`pneumoscope audit-log`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pneumoscope.core.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy import Engine, Row


def _where(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which trail."""
    for option in (
        click.option("--database", default="", metavar="ADDRESS", help="postgresql://user@host/name, where it is kept there."),
        click.option("--data-dir", type=click.Path(path_type=Path), help="Folder that was served.  [default: pneumoscope-data]"),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group("audit-log", short_help="Check that a service's audit log holds, or print it.")
def command() -> None:
    """Look at the audit log of a service: who did what, when, with which model."""


@command.command("verify")
@_where
@click.option(
    "--expect-hash", default="", metavar="HASH", help="That an earlier check printed: what stood then must stand now."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify_command(data_dir: Path | None, database: str, expect_hash: str, as_json: bool) -> None:
    """Work out every row's hash anew, compare records and images with what the rows tell, and print the last hash.

    Write it down where nobody who can change the trail can. Every image is read; with --database only where --data-dir names their
    folder. The service may be running.

    Example:  pneumoscope audit-log verify --data-dir records
    """
    from pneumoscope.service.audit.log import verify
    from pneumoscope.service.storage.blob_store import IMAGES, FolderBlobStore

    if expect_hash and not re.fullmatch(r"[0-9a-f]{64}", expect_hash):
        raise UsageError(f"--expect-hash {expect_hash[:80]!r} is no hash: 64 digits of 0 to 9 and a to f")
    folder, engine = _opened(data_dir, database)
    found = verify(engine, expected=expect_hash, images=FolderBlobStore(folder / IMAGES) if folder else None)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
        return
    click.echo(f"{found.rows} rows, none altered; the last has the hash {found.last}")
    if found.images is None:
        click.echo(
            f"{found.records} records are as they tell; images were not looked at: name their folder with --data-dir"
        )
    else:
        click.echo(f"{found.records} records and {found.images} images are as they tell")


@command.command("show")
@_where
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="The newest N rows.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show_command(data_dir: Path | None, database: str, limit: int | None, as_json: bool) -> None:
    """Print the rows: when, who, what, the id of the prediction, and what more is told; the newest last.

    It looks at none of their hashes: that is what verify is for.

    Example:  pneumoscope audit-log show --data-dir records --limit 20
    """
    from pneumoscope.service.audit.log import read_trail

    _, engine = _opened(data_dir, database)
    if not as_json:
        for row in read_trail(engine, last=limit or 0):
            click.echo(_line(row))
        return
    # A row at a time: a trail may be longer than memory.
    before = '{"rows": [\n'
    for row in read_trail(engine, last=limit or 0):
        click.echo(before + json.dumps({**row._mapping, "details": _details(row)}), nl=False)
        before = ",\n"
    click.echo("\n]}" if before == ",\n" else '{"rows": []}')


def _opened(data_dir: Path | None, database: str) -> tuple[Path | None, Engine]:
    """The folder of the images, where it is known, and the database."""
    from pneumoscope.service.storage.database import DATABASE_FILE, open_database

    folder = data_dir if database else data_dir or Path("pneumoscope-data")
    if folder and not (folder.is_dir() if database else (folder / DATABASE_FILE).is_file()):
        raise UsageError(
            f"there are no records in {str(folder)!r}", hint="Name the folder that was served with --data-dir"
        )
    return folder, open_database(folder, database)


def _line(row: Row[Any]) -> str:
    details = _details(row)
    told = row.details
    if isinstance(details, dict):
        told = " ".join(
            f"{name}={each if isinstance(each, str) else json.dumps(each)}" for name, each in details.items()
        )
    line = f"{row.at}  {row.who:12}  {row.what:12}  {row.prediction:32}  {told}"
    # Whoever can write to the database can have put there what moves a cursor.
    return line.rstrip().encode("unicode_escape").decode()


def _details(row: Row[Any]) -> object:
    try:
        return json.loads(row.details)
    except ValueError:  # not written by us; verify tells
        return row.details

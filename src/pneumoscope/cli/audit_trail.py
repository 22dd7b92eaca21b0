"""`pneumoscope audit-trail`."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import click

from pneumoscope.errors import UsageError


@click.group("audit-trail", short_help="Check that no row of a service's audit trail was changed.")
def command() -> None:
    """Look at the audit trail of a service: who did what, when, with which model."""


@command.command("verify")
@click.option("--data", type=click.Path(path_type=Path), help="Folder that was served.  [default: pneumoscope-data]")
@click.option("--database", default="", metavar="ADDRESS", help="postgresql://user@host/name, where it is kept there.")
@click.option(
    "--last", default="", metavar="HASH", help="That an earlier check printed: what stood then must stand now."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify_command(data: Path | None, database: str, last: str, as_json: bool) -> None:
    """Work out every row's hash anew, and print the last one: write it down where nobody who can change the trail can.

    Example:  pneumoscope audit-trail verify --data records
    """
    from pneumoscope.service.database import DATABASE_FILE, open_database
    from pneumoscope.service.trail import verify

    if last and not re.fullmatch(r"[0-9a-f]{64}", last):
        raise UsageError(f"--last {last[:80]!r} is no hash: 64 digits of 0 to 9 and a to f")
    folder = data or Path("pneumoscope-data")
    if not database and not (folder / DATABASE_FILE).is_file():
        raise UsageError(
            f"there are no records in {str(folder)!r}", advice="Name the folder that was served with --data"
        )
    found = verify(open_database(folder, database), expected=last)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        click.echo(f"{found.rows} rows, none altered; the last has the hash {found.last}")

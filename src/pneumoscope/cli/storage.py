"""`pneumoscope storage`: check the stored images of the service."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.options import database_option, json_option
from pneumoscope.core.errors import PartialFailureError, UsageError
from pneumoscope.core.messages import counted

if TYPE_CHECKING:
    from pneumoscope.service.storage.check import StorageReport

__all__ = ["command"]

_HINTS = {
    "orphaned_files": "They have no database record. The database may be another one, or restored from an older backup",
    "missing_blobs": "Restore them from a backup, or post the images again",
    "damaged_blobs": "Restore them from a backup, or post the images again, and check the disk",
    "unexpected_files": "The service does not use them. Move them out of blobs/",
    "staging_files": "The next start of the service completes or removes them",
    "missing_instances": "Restore them from a backup, or send the DICOM images again",
}


@click.group("storage", short_help="Check the stored images of a service.")
def command() -> None:
    """Check the stored images of a service."""


@command.command("check")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=Path("pneumoscope-data"),
    show_default=True,
    help="Data directory of the service.",
)
@database_option
@json_option
def check_command(data_dir: Path, database: str, as_json: bool) -> None:
    """Compare the stored images with the database, and report every difference.

    Reports orphaned files (no database record), missing blobs, damaged blobs (their hash differs), unexpected files (the service
    does not use them), files left in the staging area, and missing files of received DICOM images. Every image is read; nothing
    is changed. The service may be running; then the staging area and received images are not checked.

    The exit status is 0 if everything is consistent and 3 if not.

    Example:  pneumoscope storage check --data-dir records
    """
    from pneumoscope.service.storage.check import check_storage
    from pneumoscope.service.storage.database import DATABASE_FILE, open_database

    if not (data_dir if database else data_dir / DATABASE_FILE).exists():
        raise UsageError(
            f"{str(data_dir)!r} is not a data directory of the service",
            hint="Pass the data directory of the service with --data-dir",
        )
    engine = open_database(data_dir, database)
    try:
        report = check_storage(data_dir, engine)
    finally:
        engine.dispose()
    if as_json:
        click.echo(json.dumps({"consistent": not report.problems} | dataclasses.asdict(report), indent=2))
    else:
        _print_report(report)
    if report.problems:
        raise PartialFailureError(
            f"the storage in {str(data_dir)!r} is not consistent: {counted(report.problems, 'problem')}"
        )


def _print_report(report: StorageReport) -> None:
    for kind, hint in _HINTS.items():
        paths = getattr(report, kind)
        if paths:
            click.echo(f"{kind.replace('_', ' ').capitalize()}: {len(paths)}. {hint}.")
            for path in paths:
                click.echo(f"  {path.encode('unicode_escape').decode()}")
    if report.staging_files is None:
        click.echo("The service is running: the staging area and received images were not checked.")
    click.echo(f"{counted(report.blobs, 'image')} checked, {counted(report.problems, 'problem')} found.")

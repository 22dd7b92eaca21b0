"""`pneumoscope pull`: pull images from a PACS into a running service."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path

import click

from pneumoscope.cli.options import json_option
from pneumoscope.cli.progress import image_progress
from pneumoscope.core.errors import PartialFailureError
from pneumoscope.core.messages import counted

__all__ = ["command"]


@click.command("pull", short_help="Pull images from a PACS into the running service.")
@click.option(
    "--from", "source", required=True, metavar="NAME", help="Peer, source or DICOMweb destination of the file."
)
@click.option("--study", "study_uid", default="", metavar="UID", help="Study Instance UID.")
@click.option("--accession", "accession_number", default="", metavar="NUMBER", help="Accession number.")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="DATE",
    help="All studies from this date on, such as 2026-01-31.",
)
@click.option(
    "--dicom-config",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML file with which the service was started.",
)
@click.option(
    "--service",
    "service_url",
    default="http://127.0.0.1:8000",
    show_default=True,
    metavar="URL",
    help="Address of the service, for images of a DICOMweb server.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with a token of the role sender, for images of a DICOMweb server.",
)
@json_option
def command(
    source: str,
    study_uid: str,
    accession_number: str,
    since: datetime | None,
    dicom_config: Path,
    service_url: str,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Pull the CR and DX series of studies into the running service, which predicts them.

    A peer is asked to send them to the AE title of the service (C-FIND, C-MOVE). From a DICOMweb server they are retrieved and
    stored in the service (QIDO-RS, WADO-RS, STOW-RS). Images that the service already has are not predicted again.

    Example:  pneumoscope pull --from PACS --since 2026-01-31 --dicom-config dicom.toml
    """  # fmt: skip
    from pneumoscope.service.dicom.configuration_file import read_configuration
    from pneumoscope.service.dicom.pull import pull
    from pneumoscope.service.dicom.selection import StudySelection

    selection = StudySelection(study_uid.strip(), accession_number.strip(), since.date() if since else None)
    configuration = read_configuration(dicom_config)
    with image_progress("pulling series") as progress:
        report = pull(
            configuration, source, selection, service_url=service_url, token_file=token_file, progress=progress
        )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        click.echo(
            f"{report.source}: studies {report.studies:,}, series of CR or DX {report.series:,},"
            f" images in the service {report.instances:,}",
            err=True,
        )
    failures = [
        *([counted(report.failed_instances, "image")] if report.failed_instances else []),
        *([f"{report.failed_series:,} series"] if report.failed_series else []),
    ]
    if failures:
        raise PartialFailureError(
            f"{' and '.join(failures)} could not be pulled from {source}{f': {report.error}' if report.error else ''}",
            hint="See the logs of the service and of the source, and run the command again",
        )
    if report.incomplete_searches:
        raise PartialFailureError(
            f"{source} did not return all results of {report.incomplete_searches:,} of the searches"
            " (HTTP header Warning 299, or pages that repeat results)",
            hint="Pull fewer studies at a time, with --study, --accession or a later date for --since",
        )

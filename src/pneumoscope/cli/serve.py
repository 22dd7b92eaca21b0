"""`pneumoscope serve`: run the web UI and the HTTP API."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import click

from pneumoscope.cli.options import (
    assume_option,
    database_option,
    model_option,
    operating_point_option,
    require_age_option,
    site_option,
)
from pneumoscope.core.errors import UsageError
from pneumoscope.core.prediction import AgeRequirement, Assumption

__all__ = ["command"]

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


class _Age(click.ParamType[timedelta]):
    name = "age"

    def convert(self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the duration of a text such as "30d"."""
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,3})([hdw])", value)
        if match is None:
            self.fail(f"{value!r} is not an age; write a number and h, d or w, such as 30d", param, ctx)
        return timedelta(**{_UNITS[match[2]]: int(match[1])})


@click.command("serve", short_help="Run the web UI and the HTTP API.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 picks a free one.",
)
@model_option
@operating_point_option
@site_option
@require_age_option("dicom")
@assume_option
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder for images and database.  [default: pneumoscope-data]"
)
@database_option
@click.option("--ephemeral", is_flag=True, help="In-memory storage; discarded on exit.")
@click.option(
    "--keep", type=_Age(), metavar="AGE", help="Remove images older than this (30d, 12h, 8w); predictions are kept."
)
@click.option(
    "--keep-identities",
    type=_Age(),
    metavar="AGE",
    help="Remove identities of patients, and names of files, that are older than this; predictions are kept.",
)
@click.option(
    "--pseudonymise",
    "pseudonym_key",
    type=click.Path(path_type=Path),
    metavar="KEYFILE",
    help="Store only pseudonyms of patients, computed with the secret key in this file, and images without their headers.",
)
@click.option(
    "--blind-first", is_flag=True, help="In the web UI, show a prediction only after the reader has labeled the image."
)
@click.option(
    "--no-auth",
    is_flag=True,
    help="Serve without authentication, even on a public address, and even if there are tokens.",
)
@click.option(
    "--openid-connect",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Let users sign in to the web UI at the identity provider that this file configures.",
)
@click.option(
    "--public-name", default="", metavar="HOST", help="Host name under which a reverse proxy publishes the service."
)
@click.option("--open", "open_browser", is_flag=True, help="Open the web UI in a browser.")
def command(
    host: str,
    port: int,
    bundle: Path | None,
    operating_point: str,
    site: Path | None,
    require_age: AgeRequirement,
    assume: tuple[Assumption, ...],
    data_dir: Path | None,
    database: str,
    ephemeral: bool,
    keep: timedelta | None,
    keep_identities: timedelta | None,
    pseudonym_key: Path | None,
    blind_first: bool,
    no_auth: bool,
    openid_connect: Path | None,
    public_name: str,
    open_browser: bool,
) -> None:
    """Run the web UI and the HTTP API; store images, predictions, reviews and an audit log.

    Open the printed address in a browser and drop images on it. With a token in the database, see `pneumoscope tokens`, every
    client must authenticate. Ctrl-C or SIGTERM finishes accepted requests, then stops.

    Example:  pneumoscope serve --data-dir records
    """
    from pneumoscope.service.server import serve

    if ephemeral and (data_dir or database):
        raise UsageError("--ephemeral cannot be combined with --data-dir or --database")
    serve(
        host=host,
        port=port,
        model=bundle,
        operating_point=operating_point,
        site=site,
        require_age=require_age,
        assume=assume,
        folder=None if ephemeral else data_dir or Path("pneumoscope-data"),
        database=database,
        keep=keep,
        keep_identities=keep_identities,
        pseudonym_key=pseudonym_key,
        blind_first=blind_first,
        no_auth=no_auth,
        openid_connect=openid_connect,
        public_name=public_name,
        open_browser=open_browser,
        echo=lambda text: click.echo(text, err=True),
    )

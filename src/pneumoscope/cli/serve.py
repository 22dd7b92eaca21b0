"""`pneumoscope serve`."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import click

from pneumoscope.core.errors import UsageError

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


class _Age(click.ParamType[timedelta]):
    name = "age"

    def convert(self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Turn "30d" into a time."""
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"([1-9][0-9]{0,3})([hdw])", value)
        if found is None:
            self.fail(f"{value!r} is no age: a number and h, d or w, such as 30d", param, ctx)
        return timedelta(**{_UNITS[found[2]]: int(found[1])})


@click.command("serve", short_help="A page and an API that judge images, and keep what was said.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--model", type=click.Path(path_type=Path), help="Bundle or run.  [default: what comes with the package]")
@click.option("--operating-point", default="", metavar="NAME", help="On the card.  [default: balanced]")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder of images and records.  [default: pneumoscope-data]"
)
@click.option("--database", default="", metavar="ADDRESS", help="postgresql://user@host/name, for the records.")
@click.option("--ephemeral", is_flag=True, help="Keep everything in memory, and nothing at the end.")
@click.option("--keep", type=_Age(), metavar="AGE", help="Remove images older than this (30d, 12h, 8w); numbers stay.")
@click.option("--token-file", type=click.Path(path_type=Path), help='Lines "name token"; who has none is refused.')
@click.option("--no-auth", is_flag=True, help="Let all who can reach the address in.")
@click.option(
    "--public-name", default="", metavar="HOST", help="By which a proxy on this machine lets others reach it."
)
@click.option("--open", "show", is_flag=True, help="Open the page in this machine's browser.")
def command(
    host: str,
    port: int,
    model: Path | None,
    operating_point: str,
    data_dir: Path | None,
    database: str,
    ephemeral: bool,
    keep: timedelta | None,
    token_file: Path | None,
    no_auth: bool,
    public_name: str,
    show: bool,
) -> None:
    """Serve a page for people and an API for programs, and keep images, predictions and an audit log.

    Open the address that it prints, and drop images on the page.

    It stops on Ctrl-C or SIGTERM when all that it took in is answered.

    Example:  pneumoscope serve --data-dir records
    """
    from pneumoscope.service.server import serve

    if ephemeral and (data_dir or database):
        raise UsageError("--ephemeral keeps nothing, so it goes with neither --data-dir nor --database")
    serve(
        host=host,
        port=port,
        model=model,
        operating_point=operating_point,
        folder=None if ephemeral else data_dir or Path("pneumoscope-data"),
        database=database,
        keep=keep,
        token_file=token_file,
        no_auth=no_auth,
        public_name=public_name,
        show=show,
        tell=lambda text: click.echo(text, err=True),
    )

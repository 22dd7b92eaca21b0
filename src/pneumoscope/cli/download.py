"""`pneumoscope download`: download and verify the public data set."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command("download", short_help="Download the public data set (1.2 GB).")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--from", "url", help="URL of another ZIP archive of images, of unknown size and hash.")
@click.option("--sha256", help="Expected SHA-256 of the archive, instead of the built-in one.")
def command(folder: Path, url: str | None, sha256: str | None) -> None:
    """Download the public images of Kermany 2018 (1.2 GB, CC BY 4.0) into DIR, verify and unpack them.

    Run the same command again to resume an interrupted download.
    """
    import dataclasses

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from pneumoscope.data.download import KERMANY_2018, download

    archive = KERMANY_2018
    if url:
        archive = dataclasses.replace(KERMANY_2018, name=_name(url), url=url, size=None, sha256=sha256)
    elif sha256:
        archive = dataclasses.replace(KERMANY_2018, sha256=sha256)
    terminal = Console(stderr=True)
    columns = (TextColumn("downloading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task("downloading", total=archive.size)
        images = download(folder, archive, progress=lambda done, total: bar.update(task, completed=done, total=total))
    click.echo(images)


def _name(url: str) -> str:
    """Return a safe archive name derived from a URL."""
    from urllib.parse import urlsplit

    stem = "".join(letter for letter in Path(urlsplit(url).path).stem if letter.isalnum() or letter in "-_")
    return f"{stem or 'images'}.zip"

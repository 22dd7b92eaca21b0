"""`pneumoscope download`: the public images, downloaded and checked."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command("download", short_help="Download the public images (1.2 GB).")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--from", "url", help="Another address of a zip of images; its size and hash are then not known.")
@click.option("--sha256", help="The hash that the zip must have, instead of the one that is known.")
def command(folder: Path, url: str | None, sha256: str | None) -> None:
    """Download the public images of Kermany 2018 (1.2 GB, CC BY 4.0) into DIR, check and unpack them.

    Interrupted at any moment, the same command goes on from there.
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
    """A plain file name for what an address leads to, made of harmless letters."""
    from urllib.parse import urlsplit

    stem = "".join(letter for letter in Path(urlsplit(url).path).stem if letter.isalnum() or letter in "-_")
    return f"{stem or 'images'}.zip"

"""`make demo`: run the main workflow in a few minutes, on phantoms or on a folder of labeled images.

Each command is printed before it runs.
"""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path

import click

from pneumoscope.cli import cli, run_and_exit
from pneumoscope.core.errors import UsageError
from pneumoscope.core.files import write_atomically

__all__ = ["RECIPES", "command", "lines"]

RECIPES = ("quick", "quick-scratch")
_PHANTOMS = ("--train", "360", "--test", "160", "--size", "96")
_MARKER, _MARKER_TEXT = "DEMO", "Made by `make demo`, which deletes this folder when it runs again.\n"


def lines(data: Path | None, out: Path) -> list[list[str]]:
    """Return the commands of the demo, without the word `pneumoscope`.

    Args:
        data: Labeled images; None to draw phantoms.
        out: Folder for all output of the demo.
    """
    images, manifest = data or out / "images", str(out / "manifest.csv")
    runs = [str(out / name) for name in RECIPES]
    return [
        *([] if data else [["phantom", str(images), *_PHANTOMS]]),
        ["split", str(images), "--out", manifest],
        *(["train", name, "--data", manifest, "--out", run] for name, run in zip(RECIPES, runs, strict=True)),
        *(["evaluate", run, "--data", manifest, "--ledger", str(out / "test-ledger.jsonl")] for run in runs),
        ["compare", *runs, "--out", str(out / "comparison")],
        # The model in the package rejects phantoms, which are not radiographs.
        *([] if data else [["predict", str(images / "test"), "--csv", str(out / "predictions.csv")]]),
    ]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Labeled images.  [default: phantoms]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
def command(data: Path | None, out: Path) -> None:
    """Train two small networks, evaluate and compare them, predict on the images, and print the path of the report."""
    _empty(data, out)
    started = time.monotonic()
    for line in lines(data, out):
        click.echo(f"\n$ pneumoscope {shlex.join(line)}", err=True)
        cli.main(args=line, prog_name="pneumoscope", standalone_mode=False)
    click.echo("\nNext, score your own images: pneumoscope predict IMAGE_OR_FOLDER", err=True)
    click.echo("Or open the web interface and drop images on it: make serve", err=True)
    click.echo(f"\nDone in {time.monotonic() - started:.0f} seconds. Open the report in a browser:", err=True)
    click.echo(str((out / "comparison" / "report.html").resolve()))


def _empty(data: Path | None, out: Path) -> None:
    marker = out / _MARKER
    if out.exists() and not (marker.is_file() and marker.read_bytes() == _MARKER_TEXT.encode()):
        raise UsageError(
            f"{str(out)!r} exists and was not made by an earlier demo", hint="Choose another folder with --out"
        )
    if data and data.resolve().is_relative_to(out.resolve()):
        raise UsageError(
            f"the images in {str(data)!r} lie inside {str(out)!r}, which the demo deletes",
            hint="Move them, or choose another folder with --out",
        )
    shutil.rmtree(out, ignore_errors=True)
    write_atomically(marker, _MARKER_TEXT)


if __name__ == "__main__":
    run_and_exit(command)

"""`make demo`: the whole way in a few minutes, on drawn images or on a folder of real ones.

It prints the commands that a person would type, and runs them one after the other.
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
_MARK, _SAYS = "DEMO", "Made by `make demo`, which removes this folder when it runs again.\n"


def lines(data: Path | None, out: Path) -> list[list[str]]:
    """The demo as command lines, without the word `pneumoscope`.

    Args:
        data: labelled images; phantoms are drawn where None.
        out: folder of everything that is made.
    """
    images, manifest = data or out / "images", str(out / "manifest.csv")
    runs = [str(out / name) for name in RECIPES]
    return [
        *([] if data else [["phantom", str(images), *_PHANTOMS]]),
        ["split", str(images), "--out", manifest],
        *(["train", name, "--data", manifest, "--out", run] for name, run in zip(RECIPES, runs, strict=True)),
        *(["evaluate", run, "--data", manifest, "--ledger", str(out / "test-ledger.jsonl")] for run in runs),
        ["compare", *runs, "--out", str(out / "comparison")],
        # The model that comes with the package knows that drawn images are none.
        *([] if data else [["predict", str(images / "test"), "--csv", str(out / "predictions.csv")]]),
    ]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Labelled images.  [default: phantoms]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
def command(data: Path | None, out: Path) -> None:
    """Train two small networks, evaluate and compare them, see phantoms refused, and print the path of the report."""
    _empty(data, out)
    started = time.monotonic()
    for line in lines(data, out):
        click.echo(f"\n$ pneumoscope {shlex.join(line)}", err=True)
        cli.main(args=line, prog_name="pneumoscope", standalone_mode=False)
    click.echo("\nThe model that comes with the package judges an image of yours: pneumoscope predict IMAGE", err=True)
    click.echo(f"\nDone in {time.monotonic() - started:.0f} seconds. Open the report in a browser:", err=True)
    click.echo(str((out / "comparison" / "report.html").resolve()))


def _empty(data: Path | None, out: Path) -> None:
    mark = out / _MARK
    if out.exists() and not (mark.is_file() and mark.read_bytes() == _SAYS.encode()):
        raise UsageError(f"{str(out)!r} exists and is no earlier demo", hint="Choose another folder with --out")
    if data and data.resolve().is_relative_to(out.resolve()):
        raise UsageError(
            f"the images in {str(data)!r} lie inside {str(out)!r}, which the demo empties",
            hint="Move them, or choose another folder with --out",
        )
    shutil.rmtree(out, ignore_errors=True)
    write_atomically(mark, _SAYS)


if __name__ == "__main__":
    run_and_exit(command)

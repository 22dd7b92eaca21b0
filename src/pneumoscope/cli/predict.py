"""`pneumoscope predict`: what a model says of images."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.progress import image_progress
from pneumoscope.core.errors import PartialFailureError, UsageError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.messages import prediction_message

if TYPE_CHECKING:
    from pneumoscope.core.prediction import Prediction
    from pneumoscope.inference.model import Model

__all__ = ["command"]

_FEW = 8  # images that are done before anyone looks for a progress bar
_BAR, _NAME = 20, 60  # characters
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
_FAILED = "failed"
_COLOURS = {
    "pneumonia": "red",
    "no_pneumonia": "green",
    "uncertain": "yellow",
    "rejected": "magenta",
    _FAILED: "bright_red",
}


@click.command("predict", short_help="Say of images how likely pneumonia is.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option(
    "--model",
    "bundle",
    metavar="BUNDLE|RUN",
    type=click.Path(path_type=Path),
    help="What scores.  [default: the model that comes with the package]",
)
@click.option(
    "--operating-point", default="", metavar="NAME", help="A threshold on the model's card.  [default: balanced]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--csv", "table", type=click.Path(dir_okay=False, path_type=Path), help="Write a CSV file instead of printing."
)
@click.option(
    "--heatmaps",
    type=click.Path(file_okay=False, path_type=Path),
    help="Draw what each place of an image contributed; one numbered PNG an image, in the order of the results.",
)
def command(
    paths: tuple[str, ...],
    bundle: Path | None,
    operating_point: str,
    as_json: bool,
    table: Path | None,
    heatmaps: Path | None,
) -> None:
    """Say of each image how likely pneumonia is, and decide at an operating point of the model.

    PATH is an image (JPEG, PNG, TIFF, BMP, WebP or DICOM), a folder of images, or - for a list of them on standard input, one a
    line. Of a folder's files, those are left out that are hidden or no images by name or content. An image that cannot be read is an
    error of its own: the others are done, and the exit status is 3. Ctrl-C keeps what is done.
    """
    from pneumoscope.inference.discovery import discover_images
    from pneumoscope.inference.model import load_model
    from pneumoscope.inference.writers import iter_csv, iter_json

    if as_json and table:
        raise UsageError("--json prints and --csv writes: they do not go together", hint="Leave one of them out")
    images, skipped = discover_images(_named(paths))
    if skipped:
        were = "file was" if skipped == 1 else "files were"
        click.echo(f"{skipped} {were} left out: hidden, or no images by name or content", err=True)
    if not images:
        raise UsageError("there is no image to score", hint="Name images, or folders that hold some")
    # One image is done soonest on all cores; of many, each core takes some of its own.
    model = load_model(bundle, operating_point=operating_point, threads=0 if len(images) == 1 else 1)
    counts: Counter[str] = Counter()
    watched = as_json or table or not sys.stdout.isatty()  # otherwise the images themselves are seen to go by
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(_interruptible())
        scored = stack.enter_context(
            contextlib.closing(_drawn(model, images, heatmaps) if heatmaps else model.predict_many(images))
        )
        progress = stack.enter_context(image_progress("scoring images")) if watched and len(images) > _FEW else None
        predictions = _counted(scored, counts, len(images), progress, interrupted)
        if as_json:
            for part in iter_json(model.facts, predictions):
                click.echo(part, nl=False)
        elif table:
            from pneumoscope.core.files import write_atomically

            failed: list[Exception] = []
            write_atomically(table, lambda file: file.writelines(iter_csv(predictions, failed)))
            for error in failed:  # what was done before is in the file
                raise error
        else:
            _show(model, predictions, counts)
    if interrupted.is_set():
        click.echo(f"{counts.total()} of {len(images)} images were done", err=True)
        raise click.Abort
    if counts["failed"]:
        raise PartialFailureError(
            f"{counts['failed']} of {len(images)} images could not be read; each has an error of its own"
        )


def _named(paths: Iterable[str]) -> Iterator[str]:
    """The paths, with a list from standard input where one is -."""
    for path in paths:
        if path != "-":
            yield path
            continue
        for line in sys.stdin.buffer:  # as bytes: a file's name need not be text
            if name := line.rstrip(b"\r\n"):
                yield os.fsdecode(name)


def _drawn(model: Model, images: Sequence[str], folder: Path) -> Generator[Prediction]:
    """The predictions, each once its heatmap is in the folder."""
    from pneumoscope.core.files import write_atomically

    digits = len(str(len(images)))
    with contextlib.closing(model.explain_many(images)) as explained:
        for number, (prediction, picture) in enumerate(explained, start=1):
            if picture:
                # Numbered, since images of several folders may share a name; a stranger's name is cut to what is safe.
                name = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(prediction.path).stem)[:_NAME]
                write_atomically(folder / f"{number:0{digits}d}-{name}.png", picture)
            yield prediction


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that what is being written is ended and not broken off; a second Ctrl-C breaks it off."""
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _counted(
    predictions: Iterable[Prediction],
    counts: Counter[str],
    total: int,
    progress: Callable[[int, int], None] | None,
    interrupted: threading.Event,
) -> Iterator[Prediction]:
    """The predictions, counted by decision, until there is an interrupt."""
    for prediction in predictions:
        counts[prediction.decision or _FAILED] += 1
        if progress:
            progress(counts.total(), total)
        yield prediction
        if interrupted.is_set():
            return


def _show(model: Model, predictions: Iterable[Prediction], counts: Counter[str]) -> None:
    """A line an image, as soon as it is done, and what they came to."""
    click.secho(f"{'decision':12}  {'probability of pneumonia':{_BAR + 7}}  image", bold=True)
    for prediction in predictions:
        decision = prediction.decision or _FAILED
        share = (
            "" if prediction.probability is None else f"{prediction.probability:.3f}  {_bar(prediction.probability)}"
        )
        why = prediction_message(prediction)
        image = _printable(prediction.path) + (f"  ({_printable(why)})" if why else "")
        click.echo(f"{click.style(f'{decision:12}', fg=_COLOURS[decision])}  {share:{_BAR + 7}}  {image}")
    found = ", ".join(f"{count} {decision}" for decision, count in counts.most_common())
    click.echo(f"in all: {found}")
    click.echo(
        f"model {model.card.name}, version {model.card.version}; pneumonia is called from a probability of"
        f" {model.threshold:.3f} ({model.point.rule_text()})"
    )
    click.secho(NOTICE, dim=True)


def _bar(share: float) -> str:
    """A bar as long as the share, in the blocks that the output can show."""
    eighths = round(8 * _BAR * share)
    blocks = "█" * (eighths // 8) + _EIGHTHS[eighths % 8]
    try:
        blocks.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#" * round(_BAR * share)
    return blocks


def _printable(text: str) -> str:
    """The text with what would move the cursor, or cannot be shown, spelt out: a stranger may have named the file."""
    encoding = sys.stdout.encoding or "ascii"
    text = "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape", "surrogatepass").decode() for mark in text
    )
    return text.encode(encoding, "backslashreplace").decode(encoding)

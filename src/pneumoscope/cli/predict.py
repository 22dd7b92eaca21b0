"""`pneumoscope predict`: score images and print decisions."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pneumoscope.cli.multiclass import is_multiclass_target, reject_options
from pneumoscope.cli.options import json_option, model_options
from pneumoscope.cli.process import catch_interrupt
from pneumoscope.cli.progress import image_progress, printable
from pneumoscope.core.errors import PartialFailureError, UsageError
from pneumoscope.core.messages import counted, join_sentences, unread_text, warning_message
from pneumoscope.core.prediction_codes import OVERRIDES
from pneumoscope.core.prediction_messages import (
    age_conflict_message,
    decision_message,
    prevalence_message,
    scope_message,
    site_note,
    warning_note,
)

if TYPE_CHECKING:
    from pneumoscope.core.prediction import Prediction
    from pneumoscope.core.prediction_codes import Assumption, WarningCode
    from pneumoscope.inference.model import Model
    from pneumoscope.inference.multiclass_model import MulticlassModel

__all__ = ["command"]

_MIN_FOR_PROGRESS = 8  # images; fewer finish too fast for a progress bar
_BAR_WIDTH, _MAX_STEM = 20, 60  # characters
_MAX_NAMED = 3  # paths listed in an error
_STDOUT = Path("-")
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
_FAILED = "failed"
_HINT = "Pass image files, or folders that contain images"
_PNEUMONIA_OPTIONS = ("operating_point", "site", "prevalence")  # unsupported by multiclass models
_COLORS = {
    "pneumonia": "red",
    "no_pneumonia": "green",
    "uncertain": "yellow",
    "rejected": "magenta",
    "classified": "blue",
    _FAILED: "bright_red",
}


@click.command("predict", short_help="Estimate the probability of pneumonia.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@model_options("never")
@click.option(
    "--age",
    type=float,
    metavar="YEARS",
    help="Age of the patient, for images whose file states none.",
)
@click.option("--no-identifiers", is_flag=True, help="Leave patient, study and image identifiers of DICOM headers out.")
@json_option
@click.option(
    "--csv",
    "table",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Write a CSV file instead of a table; - writes to standard output.",
)
@click.option("--force", is_flag=True, help="Replace an existing file of --csv.")
@click.option(
    "--heatmaps",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a heatmap (PNG) for each image into this new or empty folder, numbered in the order of the results.",
)
def command(
    paths: tuple[str, ...],
    model: dict[str, Any],
    age: float | None,
    no_identifiers: bool,
    as_json: bool,
    table: Path | None,
    force: bool,
    heatmaps: Path | None,
) -> None:
    """Estimate the probability of pneumonia for each image.

    PATH is an image (JPEG, PNG, TIFF, BMP, WebP or DICOM), a folder of images, or - to read paths from standard input,
    one per line. Folders are searched for images by name and content; hidden files are skipped.

    Unreadable and missing files are reported; the rest are processed, and the exit status is 3. If no PATH exists, it is 2.
    Ctrl-C keeps finished results. An existing CSV file is replaced only with --force.

    Example:  pneumoscope predict image.jpg
    """
    from pneumoscope.inference.image_loader import MIN_IMAGES_FOR_POOL
    from pneumoscope.inference.model import load_model
    from pneumoscope.inference.multiclass_model import MulticlassModel, load_multiclass_model

    _check_outputs(paths, as_json, table, heatmaps, force=force)
    several_classes = is_multiclass_target(model["bundle"])
    if several_classes:
        reject_options({f"--{name.replace('_', '-')}": model[name] for name in _PNEUMONIA_OPTIONS})
    images = _discover(paths)
    # One image is fastest on all cores; many are fastest on one core each.
    options = model | {
        "threads": 0 if len(images) == 1 else 1,
        "isolated": len(images) > MIN_IMAGES_FOR_POOL and os.name == "posix",
    }
    loaded: Model | MulticlassModel
    if several_classes:
        loaded = load_multiclass_model(
            **{name: value for name, value in options.items() if name not in _PNEUMONIA_OPTIONS}
        )
    else:
        loaded = load_model(**options)
    tally = _Tally(len(images))
    show_progress = as_json or table or not sys.stdout.isatty()  # a table on a terminal already shows the progress
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(catch_interrupt())
        scored = stack.enter_context(contextlib.closing(_predict(loaded, images, heatmaps, age)))
        progress = None
        if show_progress and len(images) > _MIN_FOR_PROGRESS:
            progress = stack.enter_context(image_progress("scoring images"))
        if no_identifiers:
            scored = (dataclasses.replace(prediction, identity=None) for prediction in scored)
        predictions = tally.count(scored, progress, interrupted)
        if as_json:
            _write_json(loaded, predictions)
        elif table:
            _write_csv(loaded, predictions, table, tally)
        elif isinstance(loaded, MulticlassModel):
            _print_classes(loaded, predictions, tally.decisions)
        else:
            _print_table(loaded, predictions, tally.decisions)
    tally.print_warnings()
    if interrupted.is_set():
        raise click.Abort(f"Interrupted after {tally.done:,} of {counted(len(images), 'image')}")
    if failed := tally.decisions[_FAILED]:
        raise PartialFailureError(
            unread_text(failed, len(images)),
            hint="See failure_message in the CSV file"
            if table
            else "Its message states the reason"
            if failed == 1
            else "Their messages state the reasons",
        )


def _predict(
    model: Model | MulticlassModel, images: Sequence[str], heatmaps: Path | None, age: float | None
) -> Generator[Prediction]:
    """Yield the predictions, writing heatmaps if a folder is given."""
    if heatmaps:
        yield from _write_heatmaps(model, images, heatmaps, age)
    else:
        yield from model.predict_many(images, age=age)


def _check_outputs(
    paths: Iterable[str], as_json: bool, table: Path | None, heatmaps: Path | None, *, force: bool
) -> None:
    """Raise UsageError if the outputs cannot be combined, the heatmap folder is not empty, or the CSV file exists."""
    if as_json and table:
        raise UsageError("--json and --csv cannot be combined", hint="Choose one of them")
    if force and table in {None, _STDOUT}:
        raise UsageError("--force replaces an existing CSV file, and no file is named", hint="Name it with --csv FILE")
    for path in paths:
        if as_json and path.lower().endswith(".json"):
            hint = f"--json writes to standard output. Redirect it: pneumoscope predict PATH --json > {path}"
            raise UsageError(f"{path!r} is not an image, and --json takes no file name", hint=hint)
    if table and table != _STDOUT and table.is_file() and not force:
        raise UsageError(
            f"{str(table)!r} exists", hint="Choose another file with --csv, or replace this one with --force"
        )
    if heatmaps and heatmaps.exists() and any(heatmaps.iterdir()):
        raise UsageError(
            f"{str(heatmaps)!r} is not empty; its files would be mixed with the new heatmaps",
            hint="Choose a new or empty folder with --heatmaps",
        )


def _discover(paths: Iterable[str]) -> Sequence[str]:
    """Return the images below the paths and print what was skipped; raise UsageError if there are none or no path exists."""
    from pneumoscope.inference.discovery import discover_images

    named = tuple(paths)
    _check_existence(named)
    discovered = discover_images(_expand_stdin(named))
    if discovered.skipped:
        click.echo(printable(discovered.skipped_summary()), err=True)
    if not discovered.paths:
        raise UsageError(f"no images found in {_listed(named)}", hint=_HINT)
    return discovered.paths


def _check_existence(named: Sequence[str]) -> None:
    """Raise UsageError if none of the paths exists; paths from standard input are not checked."""
    if "-" in named or any(map(os.path.lexists, named)):
        return
    does = "does not exist" if len(named) == 1 else "do not exist"
    raise UsageError(f"{_listed(named)} {does}", hint=_HINT)


def _listed(named: Sequence[str]) -> str:
    """Return the first paths for a message."""
    places = ", ".join("standard input" if path == "-" else repr(path) for path in named[:_MAX_NAMED])
    return printable(places) + (", …" if len(named) > _MAX_NAMED else "")


def _expand_stdin(paths: Iterable[str]) -> Iterator[str]:
    """Yield the paths, replacing - with the lines of standard input."""
    for path in paths:
        if path != "-":
            yield path
            continue
        for line in sys.stdin.buffer:  # bytes, because file names may not be valid text
            if name := line.rstrip(b"\r\n"):
                yield os.fsdecode(name)


def _write_heatmaps(
    model: Model | MulticlassModel, images: Sequence[str], folder: Path, age: float | None
) -> Generator[Prediction]:
    """Yield the predictions, each after writing its heatmap to the folder."""
    from pneumoscope.core.files import write_atomically

    digits = len(str(len(images)))
    with contextlib.closing(model.explain_many(images, age=age)) as explained:
        for number, (prediction, picture) in enumerate(explained, start=1):
            if picture:
                # Numbered, because images in different folders may share a name; limited to safe characters.
                stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(prediction.path).stem)[:_MAX_STEM]
                write_atomically(folder / f"{number:0{digits}d}-{stem}.png", picture)
            yield prediction


@dataclasses.dataclass(frozen=True, slots=True)
class _Tally:
    """Counts of predictions by decision, of warnings, and of rejections that an assumption could override."""

    total: int
    decisions: Counter[str] = dataclasses.field(default_factory=Counter)
    warnings: Counter[WarningCode] = dataclasses.field(default_factory=Counter)
    overridable: Counter[Assumption] = dataclasses.field(default_factory=Counter)

    @property
    def done(self) -> int:
        """Number of predictions."""
        return self.decisions.total()

    def count(
        self,
        predictions: Iterable[Prediction],
        progress: Callable[[int, int], None] | None,
        interrupted: threading.Event,
    ) -> Iterator[Prediction]:
        """Yield predictions and count their outcomes; stop after an interrupt."""
        for prediction in predictions:
            self.decisions[prediction.decision or _FAILED] += 1
            self.warnings.update(prediction.warnings)
            if prediction.rejection and (assumption := OVERRIDES.get(prediction.rejection.code)):
                self.overridable[assumption] += 1
            if progress:
                progress(self.done, self.total)
            yield prediction
            if interrupted.is_set():
                return

    def print_warnings(self) -> None:
        """Print the number of images with each warning, and how to override rejections."""
        for warning, count in self.warnings.items():
            click.secho(f"Warning: {counted(count, 'image')}: {warning_message(warning)}", fg="yellow", err=True)
        for assumption, count in self.overridable.items():
            click.echo(
                f"Hint: {counted(count, 'image')} rejected because of the DICOM header; "
                f"--assume {assumption} overrides it, see `pneumoscope predict --help`",
                err=True,
            )


def _classes(model: Model | MulticlassModel) -> tuple[str, ...]:
    from pneumoscope.inference.multiclass_model import MulticlassModel

    return model.card.classes if isinstance(model, MulticlassModel) else ()


def _write_json(model: Model | MulticlassModel, predictions: Iterable[Prediction]) -> None:
    from pneumoscope.inference.writers import iter_json

    for part in iter_json(model.facts, predictions, model.notice, _classes(model)):
        click.echo(part, nl=False)


def _write_csv(model: Model | MulticlassModel, predictions: Iterable[Prediction], table: Path, tally: _Tally) -> None:
    """Write a CSV file, or to standard output if the path is -."""
    from pneumoscope.core.files import write_atomically
    from pneumoscope.inference.writers import iter_csv

    failed: list[Exception] = []
    lines = iter_csv(predictions, model.notice, failed, _classes(model))
    if table == _STDOUT:
        for line in lines:
            sys.stdout.buffer.write(line)
    else:
        write_atomically(table, lambda file: file.writelines(lines))
        click.echo(f"Wrote {table}: {counted(tally.done, 'image')}", err=True)
    click.echo(_total(tally.decisions), err=True)
    for error in failed:  # the file contains the results before the error
        raise error


def _total(counts: Counter[str]) -> str:
    return "Total: " + ", ".join(f"{count:,} {decision}" for decision, count in counts.most_common())


def _print_classes(model: MulticlassModel, predictions: Iterable[Prediction], counts: Counter[str]) -> None:
    """Print one line per image of a multiclass model as results arrive, then the totals and the notice."""
    from pneumoscope.core.multiclass_prediction import MulticlassPrediction

    width = max(len("most probable"), *map(len, model.card.classes))
    click.secho(f"{'decision':12}  {'most probable':{width}}  {'probability':{_BAR_WIDTH + 7}}  image", bold=True)
    for prediction in predictions:
        assert isinstance(prediction, MulticlassPrediction)  # multiclass models return no other type
        decision = prediction.decision or _FAILED
        name, probability = prediction.predicted_class or "", ""
        if prediction.class_probabilities is not None:
            value = prediction.class_probabilities[name]
            probability = f"{value:.3f}  {_bar(value)}"
        label = click.style(f"{decision:12}", fg=_COLORS[decision])
        click.echo(f"{label}  {printable(name):{width}}  {probability:{_BAR_WIDTH + 7}}  {_image_cell(prediction)}")
    click.echo(_total(counts))
    sets = model.card.prediction_sets
    rule = (
        f"no prediction sets ({printable(model.card.reason_without_sets())})"
        if sets is None
        else f"classified: one class is possible at a coverage of {sets.coverage:.0%}"
    )
    click.echo(
        f"Model: {model.card.name}, version {model.card.version}. Classes: {printable(', '.join(model.card.classes))};"
        f" {rule}. --json and --csv have the probability of each class."
    )
    if remark := model.card.calibration.remark():
        click.secho(remark, fg="yellow")
    click.secho(printable(model.notice), dim=True)


def _print_table(model: Model, predictions: Iterable[Prediction], counts: Counter[str]) -> None:
    """Print one line per image as results arrive, then the totals and the notice."""
    click.secho(f"{'decision':12}  {'probability of pneumonia':{_BAR_WIDTH + 7}}  image", bold=True)
    for prediction in predictions:
        decision = prediction.decision or _FAILED
        probability = ""
        if prediction.probability is not None:
            probability = f"{prediction.probability:.3f}  {_bar(prediction.probability)}"
        label = click.style(f"{decision:12}", fg=_COLORS[decision])
        click.echo(f"{label}  {probability:{_BAR_WIDTH + 7}}  {_image_cell(prediction)}")
    click.echo(_total(counts))
    click.echo(
        f"Model: {model.card.name}, version {model.card.version}. Operating point: {model.operating_point_name}, pneumonia"
        f" at a probability of {model.threshold:.3f} or more ({model.point.rule_text()})."
    )
    if model.profile:
        click.echo(f"{printable(site_note(model.facts))}.")
    if counts["no_pneumonia"]:
        click.echo(f"no_pneumonia: no pneumonia detected. {scope_message()}.")
    if counts.keys() - {"rejected", _FAILED}:
        click.echo(f"{prevalence_message(model.card.calibration.prevalence, stated=model.facts.is_site_specific)}.")
    click.secho(printable(model.notice), dim=True)


def _image_cell(prediction: Prediction) -> str:
    """Return the path with the explanation of the decision and the warnings."""
    parts = (each(prediction) for each in (age_conflict_message, decision_message, warning_note))
    message = join_sentences(parts)
    return printable(prediction.path) + (f"  ({printable(message)})" if message else "")


def _bar(fraction: float) -> str:
    """Return a bar of the given fraction of the maximum length, in characters that the output encoding supports."""
    eighths = round(8 * _BAR_WIDTH * fraction)
    blocks = "█" * (eighths // 8) + _EIGHTHS[eighths % 8]
    try:
        blocks.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#" * round(_BAR_WIDTH * fraction)
    return blocks

"""Read and write the files of an evaluation: evaluation.json and predictions.csv."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from pneumoscope.core.errors import RunError
from pneumoscope.core.results import Evaluation, ScoredImage
from pneumoscope.data.manifest import LABELS, images_sha256
from pneumoscope.runs.multiclass_evaluations import has_multiclass_evaluation
from pneumoscope.runs.run_folder import EVALUATION_FILE, PREDICTIONS_FILE, read_json, read_text

__all__ = ["predictions_csv", "read_evaluation", "read_evaluation_folder", "read_predictions"]

_COLUMNS = tuple(field.name for field in dataclasses.fields(ScoredImage))
_NUMBERS = ("logit", "score", "probability")
_EVALUATE_HINT = "Repeat the evaluation, which wrote both files: pneumoscope evaluate"


def read_evaluation(path: Path) -> Evaluation:
    """Return the evaluation in an `evaluation.json`.

    Raises:
        RunError: The file is missing, malformed, of another schema, or a multiclass evaluation.
    """
    if has_multiclass_evaluation(path.parent):
        raise RunError(
            f"{str(path)!r} is an evaluation of several classes, not of NORMAL and PNEUMONIA",
            hint="Compare and report models of the same classes only",
        )
    return read_json(path, Evaluation, _EVALUATE_HINT)


def read_evaluation_folder(folder: Path) -> tuple[Evaluation, tuple[ScoredImage, ...]]:
    """Return the evaluation in a folder, and its images.

    Raises:
        RunError: A file is missing or malformed, or the two are from different evaluations.
    """
    evaluation = read_evaluation(folder / EVALUATION_FILE)
    images = read_predictions(folder / PREDICTIONS_FILE)
    different = images_sha256([image.sha256 for image in images]) != evaluation.images_sha256 or any(
        sum((image.score >= point.threshold) == (image.label == "PNEUMONIA") for image in images)
        != point.confusion.tp + point.confusion.tn
        for point in evaluation.operating_points.values()
    )
    if different:
        raise RunError(
            f"{EVALUATION_FILE} and {PREDICTIONS_FILE} in {str(folder)!r} are from different evaluations",
            hint=_EVALUATE_HINT,
        )
    return evaluation, images


def predictions_csv(images: Iterable[ScoredImage]) -> str:
    """Return scored images as CSV text, with numbers in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(dataclasses.astuple(image) for image in images)
    return out.getvalue()


def read_predictions(path: Path) -> tuple[ScoredImage, ...]:
    """Return the images in a `predictions.csv`.

    Raises:
        RunError: The file or a column is missing, a label is unknown, or a number is not finite.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, _EVALUATE_HINT)))
    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise RunError(f"{str(path)!r} has no column {missing[0]!r}", hint=_EVALUATE_HINT)
    return tuple(_parse_row(row, f"{str(path)!r}, row {number}") for number, row in enumerate(reader, start=1))


def _parse_row(row: Mapping[str, str], place: str) -> ScoredImage:
    if row["label"] not in LABELS:
        raise RunError(f"{place}: label is {row['label']!r}, not one of {', '.join(LABELS)}", hint=_EVALUATE_HINT)
    try:
        logit, score, probability = (float(row[name]) for name in _NUMBERS)
    except (TypeError, ValueError) as error:
        raise RunError(f"{place}: {error}", hint=_EVALUATE_HINT) from error
    if not all(map(math.isfinite, (logit, score, probability))):
        raise RunError(f"{place}: a number is not finite", hint=_EVALUATE_HINT)
    text = (row["path"], row["sha256"], row["patient"], row["label"], row["etiology"])
    return ScoredImage(*text, logit, score, probability)

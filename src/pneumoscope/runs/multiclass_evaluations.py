"""Read and write the files of a multiclass evaluation: evaluation.json and predictions.csv (a column per class)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pneumoscope.core.errors import RunError
from pneumoscope.core.multiclass_results import MulticlassEvaluation, MulticlassScoredImage
from pneumoscope.data.manifest import images_sha256
from pneumoscope.runs.run_folder import EVALUATION_FILE, PREDICTIONS_FILE, read_json, read_text

__all__ = [
    "has_multiclass_evaluation",
    "multiclass_predictions_csv",
    "read_multiclass_evaluation",
    "read_multiclass_evaluation_folder",
]

_COLUMNS = ("path", "sha256", "patient", "label", "etiology", "predicted", "prediction_set")
_PROBABILITY = "probability_"  # followed by the class name
_EVALUATE_HINT = "Repeat the evaluation, which wrote both files: pneumoscope evaluate"


class _Classes(msgspec.Struct):
    classes: tuple[str, ...] = ()


def has_multiclass_evaluation(folder: Path) -> bool:
    """Return whether the folder contains a multiclass evaluation."""
    try:
        return bool(msgspec.json.decode((folder / EVALUATION_FILE).read_bytes(), type=_Classes).classes)
    except (OSError, msgspec.DecodeError):
        return False


def read_multiclass_evaluation(path: Path) -> MulticlassEvaluation:
    """Return the evaluation in an `evaluation.json`.

    Raises:
        RunError: The file is missing, malformed, of another schema, or a binary evaluation (NORMAL and PNEUMONIA).
    """
    if path.is_file() and not has_multiclass_evaluation(path.parent):
        raise RunError(
            f"{str(path)!r} is an evaluation of NORMAL and PNEUMONIA, not of several classes",
            hint="Compare and report models of the same classes only",
        )
    return read_json(path, MulticlassEvaluation, _EVALUATE_HINT)


def read_multiclass_evaluation_folder(
    folder: Path,
) -> tuple[MulticlassEvaluation, tuple[MulticlassScoredImage, ...]]:
    """Return the evaluation in a folder, and its images.

    Raises:
        RunError: A file is missing or malformed, or the two are from different evaluations.
    """
    evaluation = read_multiclass_evaluation(folder / EVALUATION_FILE)
    images = _read_predictions(folder / PREDICTIONS_FILE, evaluation)
    correct = sum(evaluation.confusion[index][index] for index in range(len(evaluation.classes)))
    if (
        images_sha256([image.sha256 for image in images]) != evaluation.images_sha256
        or sum(image.predicted == image.label for image in images) != correct
    ):
        raise RunError(
            f"{EVALUATION_FILE} and {PREDICTIONS_FILE} in {str(folder)!r} are from different evaluations",
            hint=_EVALUATE_HINT,
        )
    return evaluation, images


def multiclass_predictions_csv(images: Iterable[MulticlassScoredImage], classes: Sequence[str]) -> str:
    """Return scored images as CSV text, with probabilities in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*_COLUMNS, *(_PROBABILITY + name for name in classes)))
    writer.writerows((*(getattr(image, name) for name in _COLUMNS), *image.probabilities) for image in images)
    return out.getvalue()


def _read_predictions(path: Path, evaluation: MulticlassEvaluation) -> tuple[MulticlassScoredImage, ...]:
    """Return the images in a `predictions.csv`; raise `RunError` for missing columns and invalid values."""
    reader = csv.DictReader(io.StringIO(read_text(path, _EVALUATE_HINT)))
    needed = (*_COLUMNS, *(_PROBABILITY + name for name in evaluation.classes))
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise RunError(f"{str(path)!r} has no column {missing[0]!r}", hint=_EVALUATE_HINT)
    return tuple(_parse_row(row, evaluation, f"{str(path)!r}, row {i}") for i, row in enumerate(reader, start=1))


def _parse_row(row: Mapping[str, str], evaluation: MulticlassEvaluation, place: str) -> MulticlassScoredImage:
    classes = evaluation.classes
    for column in ("label", "predicted"):
        if row[column] not in classes:
            raise RunError(
                f"{place}: {column} is {row[column]!r}, not one of {', '.join(classes)}", hint=_EVALUATE_HINT
            )
    try:
        values = tuple(float(row[_PROBABILITY + name]) for name in classes)
    except (TypeError, ValueError) as error:
        raise RunError(f"{place}: {error}", hint=_EVALUATE_HINT) from error
    if not all(math.isfinite(value) and 0 <= value <= 1 for value in values):
        raise RunError(f"{place}: a probability is not within 0 to 1", hint=_EVALUATE_HINT)
    text: dict[str, Any] = {name: row[name] for name in _COLUMNS}
    if evaluation.coverage is None:
        text["prediction_set"] = None  # with sets, an empty cell is an empty set
    return MulticlassScoredImage(**text, probabilities=values)

"""The files that an evaluation leaves in a run folder: evaluation.json and predictions.csv."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from pneumoscope.core.errors import RunError
from pneumoscope.core.results import Evaluation, ScoredImage
from pneumoscope.data.manifest import LABELS
from pneumoscope.runs.files import read_document, read_text

__all__ = ["predictions_csv", "read_evaluation", "read_predictions"]

_COLUMNS = tuple(field.name for field in dataclasses.fields(ScoredImage))
_NUMBERS = ("logit", "score", "probability")
_ADVICE = "Write it again: pneumoscope evaluate RUN --data DATA"


def read_evaluation(path: Path) -> Evaluation:
    """Return an `evaluation.json`.

    Raises:
        RunError: The file is missing, malformed, or of another schema.
    """
    return read_document(path, Evaluation, _ADVICE)


def predictions_csv(images: Iterable[ScoredImage]) -> str:
    """Return scored images as CSV text, numbers in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(dataclasses.astuple(image) for image in images)
    return out.getvalue()


def read_predictions(path: Path) -> tuple[ScoredImage, ...]:
    """Return the images of a `predictions.csv`.

    Raises:
        RunError: The file or a column is missing, a label is unknown, or a number is not finite (the row is named).
    """
    reader = csv.DictReader(io.StringIO(read_text(path, _ADVICE)))
    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise RunError(f"{str(path)!r} has no column {missing[0]!r}", hint=_ADVICE)
    return tuple(_image(row, f"{str(path)!r}, row {number}") for number, row in enumerate(reader, start=1))


def _image(row: Mapping[str, str], where: str) -> ScoredImage:
    if row["label"] not in LABELS:
        raise RunError(f"{where}: label is {row['label']!r}, not one of {', '.join(LABELS)}", hint=_ADVICE)
    try:
        logit, score, probability = (float(row[name]) for name in _NUMBERS)
    except (TypeError, ValueError) as error:
        raise RunError(f"{where}: {error}", hint=_ADVICE) from error
    if not all(map(math.isfinite, (logit, score, probability))):
        raise RunError(f"{where}: a number is not finite", hint=_ADVICE)
    texts = (row["path"], row["sha256"], row["patient"], row["label"], row["etiology"])
    return ScoredImage(*texts, logit, score, probability)

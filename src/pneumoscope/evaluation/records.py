"""The files that an evaluation and a comparison leave, and their strict readers.

A results folder outlives the weights: `compare` needs `run.json` and these files, and nothing else of a run.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pneumoscope.core.errors import RunError
from pneumoscope.core.results import SCHEMA, Evaluation, ScoredImage
from pneumoscope.data.manifest import LABELS

__all__ = [
    "COMPARISON_FILE",
    "EVALUATION_FILE",
    "PREDICTIONS_FILE",
    "RUN_FILE",
    "RunRecord",
    "predictions_csv",
    "read_evaluation",
    "read_predictions",
    "read_run",
]

EVALUATION_FILE = "evaluation.json"
PREDICTIONS_FILE = "predictions.csv"
COMPARISON_FILE = "comparison.json"
RUN_FILE = "run.json"
_IMAGE_COLUMNS = tuple(field.name for field in dataclasses.fields(ScoredImage))
_NUMBERS = ("logit", "score", "probability")
_Read = TypeVar("_Read")


class RunRecord(BaseModel):
    """What a comparison takes from `run.json`; the rest of that file is for readers."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    name: str
    state: str
    network: str
    optimizer: str
    batch: int
    image_size: int
    epochs: int
    seed: int
    device: str
    weights: str
    average_train_accuracy: float | None
    average_validation_accuracy: float | None
    best_epoch: int | None
    seconds: float


def predictions_csv(images: Iterable[ScoredImage]) -> str:
    """Scored images as CSV, numbers in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_IMAGE_COLUMNS)
    writer.writerows(dataclasses.astuple(image) for image in images)
    return out.getvalue()


def read_predictions(path: Path) -> tuple[ScoredImage, ...]:
    """Read what `predictions_csv` wrote.

    Raises:
        RunError: the file or a column is missing, a label is unknown, or a number is none; the row is named.
    """
    reader = csv.DictReader(io.StringIO(_text(path)))
    missing = [name for name in _IMAGE_COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise RunError(f"{str(path)!r} has no column {missing[0]!r}", hint=_AGAIN)
    return tuple(_image(row, f"{str(path)!r}, row {number}") for number, row in enumerate(reader, start=1))


def _image(row: Mapping[str, str], where: str) -> ScoredImage:
    if row["label"] not in LABELS:
        raise RunError(f"{where}: label is {row['label']!r}, not one of {', '.join(LABELS)}", hint=_AGAIN)
    try:
        logit, score, probability = (float(row[name]) for name in _NUMBERS)
    except (TypeError, ValueError) as error:
        raise RunError(f"{where}: {error}", hint=_AGAIN) from error
    if not all(map(math.isfinite, (logit, score, probability))):
        raise RunError(f"{where}: a number is not finite", hint=_AGAIN)
    texts = (row["path"], row["sha256"], row["patient"], row["label"], row["etiology"])
    return ScoredImage(*texts, logit, score, probability)


def read_evaluation(path: Path) -> Evaluation:
    """Read an `evaluation.json`.

    Raises:
        RunError: it is missing, malformed, or of another schema.
    """
    return _checked(TypeAdapter(Evaluation), path, _AGAIN)


def read_run(path: Path) -> RunRecord:
    """Read a `run.json`.

    Raises:
        RunError: it is missing, malformed, of another schema, or of a run that is not finished.
    """
    hint = "Is it a run folder? Train one: pneumoscope train RECIPE"
    data = _document(path, hint)
    # First, since a run that is not finished has not all that is read here.
    if data.get("state") not in {"finished", None}:
        raise RunError(
            f"run {data.get('name')!r} is {data['state']!r}, not finished ({str(path)!r})",
            hint="Finish it: pneumoscope train RECIPE --data DATA --out RUN --resume",
        )
    return _checked(TypeAdapter(RunRecord), path, hint)


_AGAIN = "Write it again: pneumoscope evaluate RUN --data DATA"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RunError(f"cannot read {str(path)!r}: {why}", hint=_AGAIN) from error


def _checked(kind: TypeAdapter[_Read], path: Path, hint: str) -> _Read:
    """A JSON document of our schema as `kind`; every type must be the right one, nothing is converted."""
    data = _document(path, hint)
    try:
        return kind.validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise RunError(f"{str(path)!r} is malformed: {_first(error)}", hint=hint) from error


def _document(path: Path, hint: str) -> dict[str, Any]:
    """A JSON object of our schema."""
    text = _text(path)
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise RunError(f"{str(path)!r} is not JSON: {error}", hint=hint) from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise RunError(f"{str(path)!r} has schema {schema!r}; this version reads {SCHEMA}", hint=hint)
    return dict(data)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"

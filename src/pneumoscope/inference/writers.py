"""Predictions as JSON and as CSV, a piece at a time: however many there are, none is kept, and what is cut short is whole."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from pneumoscope.core.results import NOTICE, SCHEMA, ModelInfo, Prediction

__all__ = ["COLUMNS", "csv_cells", "csv_line", "escape_formula", "iter_csv", "iter_json"]

COLUMNS = (
    "path",
    "decision",
    "probability",
    "interval_low",
    "interval_high",
    "threshold",
    "reason",
    "width",
    "height",
    "format",
    "error",
    "model",
    "version",
    "sha256",
    "notice",
)

_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def iter_json(model: ModelInfo, predictions: Iterable[Prediction]) -> Iterator[str]:
    """The pieces of one JSON document: `schema`, `model`, `notice` and `predictions`.

    It is closed also where `predictions` fail: the error comes after the last piece. Only ASCII is used, since a file's name
    need not be text, and whoever reads need not read UTF-8.
    """
    head = json.dumps({"schema": SCHEMA, "model": dataclasses.asdict(model), "notice": NOTICE}, indent=2)
    yield head.removesuffix("\n}") + ',\n  "predictions": ['
    failure: Exception | None = None
    separator = "\n"
    try:
        for prediction in predictions:
            yield separator + json.dumps(dataclasses.asdict(prediction), allow_nan=False)
            separator = ",\n"
    except Exception as error:  # noqa: BLE001  raised again below
        failure = error
    yield "\n  ]\n}\n"
    if failure:
        raise failure


def iter_csv(predictions: Iterable[Prediction], failed: list[Exception]) -> Iterator[bytes]:
    """The lines of a CSV file, RFC 4180, UTF-8: `COLUMNS`, then an image a line; what does not exist is empty.

    The bytes of a file's name that are no UTF-8 stay as they are.

    Args:
        predictions: an image each.
        failed: where `predictions` fail, the lines end, and the error is added here: what was done is a file of its own.
    """
    yield csv_line(COLUMNS)
    try:
        for prediction in predictions:
            yield csv_line(csv_cells(prediction))
    except Exception as error:  # noqa: BLE001  raised by whoever wrote the lines
        failed.append(error)


def escape_formula(text: str, mark: str) -> str:
    """A text that a spreadsheet does not take for a formula: where it would, with the mark before it."""
    return mark + text if text.startswith(_FORMULAS) else text


def csv_cells(prediction: Prediction) -> tuple[Any, ...]:
    """An image's cells under `COLUMNS`."""
    image, model = prediction.image, prediction.model
    return (
        escape_formula(prediction.path, "./"),  # the same as a path
        prediction.decision,
        prediction.probability,
        *(prediction.interval or (None, None)),
        prediction.threshold,
        prediction.reason,
        *((image.width, image.height, image.format) if image else (None, None, None)),
        prediction.error,
        model.name,
        model.version,
        model.sha256,
        prediction.notice,
    )


def csv_line(cells: Iterable[Any]) -> bytes:
    """A line of CSV (RFC 4180) in UTF-8; what is None is empty."""
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue().encode("utf-8", "surrogateescape")

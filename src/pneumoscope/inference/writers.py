"""Write predictions as JSON and CSV one at a time, so that memory use does not grow with their number.

See `core.prediction.Prediction.to_row` for the columns.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pneumoscope.core.identity import IDENTITY_FIELDS
from pneumoscope.core.multiclass_prediction import MulticlassPrediction
from pneumoscope.core.prediction import ModelInfo, Prediction
from pneumoscope.core.prediction_messages import prediction_message
from pneumoscope.core.result_forms import rows_dataframe
from pneumoscope.core.results import SCHEMA

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "csv_columns",
    "csv_line",
    "csv_row",
    "escape_formula",
    "iter_csv",
    "iter_json",
    "prediction_document",
    "to_dataframe",
]

_FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")


def prediction_document(prediction: Prediction, language: str = "en") -> dict[str, Any]:
    """Return a prediction as a JSON object: its fields, and `message`, which explains the decision and its warnings.

    Args:
        prediction: Prediction to convert.
        language: Language of the message, a key of `core.i18n.LANGUAGES`.
    """
    return dataclasses.asdict(prediction) | {"message": prediction_message(prediction, language)}


def iter_json(
    model: ModelInfo, predictions: Iterable[Prediction], notice: str, classes: Sequence[str] = ()
) -> Iterator[str]:
    """Yield one JSON document in pieces: `schema`, `model`, `notice`, `classes` for a multiclass model, and `predictions`.

    The document is completed even if `predictions` raises; the error is raised after the last piece. The text is ASCII, because
    file names may not be valid text and readers may not expect UTF-8.

    Args:
        model: Facts of the model.
        predictions: Predictions of the model.
        notice: Notice of the model.
        classes: Classes of the model; empty for NORMAL and PNEUMONIA.
    """
    facts: dict[str, Any] = {"schema": SCHEMA, "model": dataclasses.asdict(model), "notice": notice}
    head = json.dumps(facts | ({"classes": list(classes)} if classes else {}), indent=2)
    yield head.removesuffix("\n}") + ',\n  "predictions": ['
    failure: Exception | None = None
    separator = "\n"
    try:
        for prediction in predictions:
            yield separator + json.dumps(prediction_document(prediction), allow_nan=False)
            separator = ",\n"
    except Exception as error:  # noqa: BLE001  raised again below
        failure = error
    yield "\n  ]\n}\n"
    if failure:
        raise failure


def iter_csv(
    predictions: Iterable[Prediction], notice: str, failed: list[Exception], classes: Sequence[str] = ()
) -> Iterator[bytes]:
    """Yield the lines of a CSV file (RFC 4180, UTF-8): a header, then one line per image; missing values are empty.

    Bytes in file names that are not valid UTF-8 are preserved.

    Args:
        predictions: Predictions, one per image.
        notice: Notice of the model.
        failed: List that receives the error if `predictions` raises; the lines before it form a complete file.
        classes: Classes of the model; empty for NORMAL and PNEUMONIA.
    """
    yield csv_line(csv_columns(classes))
    try:
        for prediction in predictions:
            yield csv_line(csv_row(prediction, notice).values())
    except Exception as error:  # noqa: BLE001  raised by the caller, after the file is written
        failed.append(error)


def csv_columns(classes: Sequence[str] = ()) -> list[str]:
    """Return the header of a CSV file, the keys of `csv_row`, for a multiclass model or, without classes, a binary one."""
    fields: dict[str, Any] = {"path": "", "decision": None, "operating_point": "", "model": ModelInfo("", "", "")}
    return list(
        csv_row(MulticlassPrediction(**fields, classes=tuple(classes)) if classes else Prediction(**fields), "")
    )


def csv_row(prediction: Prediction, notice: str) -> dict[str, Any]:
    """Return the CSV row of a prediction: `Prediction.to_row`, `message` and `notice`."""
    row = prediction.to_row() | {"message": prediction_message(prediction), "notice": escape_formula(notice, "'")}
    row["path"] = escape_formula(prediction.path, "./")  # refers to the same file
    row |= {name: value and escape_formula(value, "'") for name in IDENTITY_FIELDS if (value := row[name]) is not None}
    return row


def escape_formula(text: str, prefix: str) -> str:
    """Return the text, prefixed if a spreadsheet would interpret it as a formula."""
    return prefix + text if text.startswith(_FORMULA_PREFIXES) else text


def csv_line(cells: Iterable[Any]) -> bytes:
    """Return one line of CSV (RFC 4180) in UTF-8; None becomes an empty cell."""
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue().encode("utf-8", "surrogateescape")


def to_dataframe(predictions: Iterable[Prediction]) -> pd.DataFrame:
    """Return predictions as a pandas DataFrame, one row per image, with the columns of `Prediction.to_row` and `message`.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    rows = (prediction.to_row() | {"message": prediction_message(prediction)} for prediction in predictions)
    frame = rows_dataframe(rows, "to_dataframe()")
    if len(frame):
        return frame
    return rows_dataframe([], "to_dataframe()", [name for name in csv_columns() if name != "notice"])

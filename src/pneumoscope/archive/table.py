"""The predictions table: one row per image, with the columns of `core.prediction.Prediction.to_row` and some additional ones.

The same images, model and library versions give the same bytes; prediction times are stored in the journal instead.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pneumoscope.archive.listing import display_name
from pneumoscope.core.identity import IDENTITY_FIELDS

if TYPE_CHECKING:
    import pyarrow as pa

    from pneumoscope.inference.model import ScoredImage

__all__ = ["COLUMNS", "IDENTIFIERS", "build_row", "schema", "write_table"]

# Columns of the table and their types. Columns of `Prediction.to_row` keep their names.
COLUMNS: Mapping[str, str] = {
    "row": "int64",
    "source": "string",
    "sha256": "string",
    "bytes": "int64",
    "decision": "string",
    "probability": "double",
    "interval_low": "double",
    "interval_high": "double",
    "logit": "double",
    "threshold": "double",
    "operating_point": "string",
    "rejection_code": "string",
    "rejection_parameters": "string",
    "failure_code": "string",
    "failure_reason": "string",
    "failure_parameters": "string",
    "uncertainty_low": "double",
    "uncertainty_high": "double",
    "warnings": "string",
    "age": "double",
    "age_source": "string",
    "patient_sex": "string",
    "view": "string",
    "manufacturer": "string",
    "station_name": "string",
    "study_year": "int16",
    "study_date": "string",
    "study_instance_uid": "string",
    "series_instance_uid": "string",
    "sop_instance_uid": "string",
    "width": "int32",
    "height": "int32",
    "format": "string",
    "pixel_sha256": "string",
    "image_brightness": "double",
    "image_contrast": "double",
    "image_sharpness": "double",
    "image_border": "double",
    "model_sha256": "string",
    "model_site": "string",
    "model_prevalence": "double",
}
# Empty with --no-identifiers. A path may contain a patient's name or number.
IDENTIFIERS = frozenset(
    {"source", "study_date", "study_instance_uid", "series_instance_uid", "sop_instance_uid", "station_name"}
)

_PARAMETERS = ("rejection_parameters", "failure_parameters")


def build_row(
    row: int, name: str, content: bytes | None, scored: ScoredImage, *, identifiers: bool = True
) -> dict[str, Any]:
    """Return the row of one image.

    The table never contains patient names, patient IDs or birth dates.

    Args:
        row: Row number of the image in the listing.
        name: Name in the source.
        content: Content of the file; None if it could not be read.
        scored: Prediction of the image.
        identifiers: Whether to fill the columns `IDENTIFIERS`, and keep texts in parameters, which may quote the header.
    """
    prediction, acquisition = scored.prediction, scored.acquisition
    stated = prediction.to_row()
    for field in IDENTITY_FIELDS:
        stated[field] = stated[field] or None
    found = stated | {
        "row": row,
        "source": display_name(name),
        "sha256": None if content is None else hashlib.sha256(content).hexdigest(),
        "bytes": None if content is None else len(content),
        "logit": scored.logit,
        "view": (acquisition and acquisition.view) or None,
        "manufacturer": (acquisition and acquisition.manufacturer) or None,
        "study_year": _year(stated["study_date"]),
        "pixel_sha256": stated["pixel_sha256"] or None,
    }
    if not identifiers:
        found |= dict.fromkeys(IDENTIFIERS) | {column: _numbers(found[column]) for column in _PARAMETERS}
    return {column: found[column] for column in COLUMNS}


def _numbers(parameters: str | None) -> str | None:
    """Return the parameters of a code without texts, which may quote the header."""
    if not parameters:
        return parameters
    return json.dumps({name: value for name, value in json.loads(parameters).items() if not isinstance(value, str)})


def _year(date: str | None) -> int | None:
    year = (date or "").partition("-")[0]
    return int(year) if len(year) == 4 and year.isascii() and year.isdecimal() else None


def schema() -> pa.Schema:
    """Return the schema of the Parquet files."""
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])


def write_table(rows: Iterable[Mapping[str, Any]], notice: str = "") -> bytes:
    """Return rows as a Parquet file, with the model's notice in the schema metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    table = pa.Table.from_pylist(list(rows), schema=schema().with_metadata({"notice": notice}))
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()

"""Columns of a CSV file that a manifest does not use, such as sex or site: `split` copies them to the new manifest."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path

from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.manifest import COLUMNS, CONSTANT_COLUMNS, Manifest
from pneumoscope.data.patients import is_patient_column

__all__ = ["OtherColumns"]


@dataclasses.dataclass(frozen=True)
class OtherColumns:
    """The other columns of a CSV file.

    Attributes:
        values: Value of each image of the manifest, by column.
        dropped: Names of the columns that a manifest cannot have, because its own columns would be overwritten, or because it
            would have several columns with patients.
    """

    values: Mapping[str, list[str]]
    dropped: tuple[str, ...] = ()

    @classmethod
    def read(cls, data: Path, manifest: Manifest, labels: LabelMapping | None = None) -> OtherColumns:
        """Return the other columns of labeled data; none if they are not a CSV file.

        Args:
            data: The labeled data.
            manifest: Its manifest, with the paths of the CSV file.
            labels: Names of its columns.
        """
        if data.suffix.lower() != ".csv" or not data.is_file():
            return cls({})
        reader = csv.DictReader(io.StringIO(data.read_text(encoding="utf-8-sig")), restval="")
        rows = {row[manifest.path_column].strip(): row for row in reader}
        mapping, names = labels or LabelMapping(), [*(reader.fieldnames or [])]
        dropped = [name for name in names if _is_overwritten(name, names, mapping)]
        values = {}
        for name in names:
            if name in (*COLUMNS, *CONSTANT_COLUMNS):
                continue
            column = [rows[image.path][name].strip() for image in manifest.images]
            if column in ([image.path for image in manifest.images], [image.patient for image in manifest.images]):
                continue  # the manifest has it under the name path or patient
            if is_patient_column(name):
                dropped.append(name)
            else:
                values[name] = column
        return cls(values, tuple(dropped))


def _is_overwritten(name: str, names: list[str], mapping: LabelMapping) -> bool:
    """Return whether a column of the manifest has the name, and not the values, of a column of the file."""
    if name in CONSTANT_COLUMNS:
        return CONSTANT_COLUMNS[0] not in names  # another program wrote the file
    has_other_patients = bool(mapping.patient_pattern or mapping.patients_from)
    return {
        "path": mapping.path_column not in ("", name),
        "label": mapping.label_column not in ("", name),
        "patient": has_other_patients or mapping.patient_column not in ("", name),
    }.get(name, False)

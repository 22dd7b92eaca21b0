"""CSV columns that a manifest does not use, such as sex or site, which `split` copies to the new manifest."""

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
    """Unused columns of a CSV file.

    Attributes:
        values: Value for each image of the manifest, by column.
        dropped: Columns that cannot be copied, because they would collide with the manifest's own columns or add further
            columns with patients.
    """

    values: Mapping[str, list[str]]
    dropped: tuple[str, ...] = ()

    @classmethod
    def read(cls, data: Path, manifest: Manifest, labels: LabelMapping | None = None) -> OtherColumns:
        """Read the unused columns of labeled data; there are none unless it is a CSV file.

        Args:
            data: Labeled data.
            manifest: Manifest of the data, with the paths of the CSV file.
            labels: Column names of the data.
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
                continue  # already in the manifest as path or patient
            if is_patient_column(name):
                dropped.append(name)
            else:
                values[name] = column
        return cls(values, tuple(dropped))


def _is_overwritten(name: str, names: list[str], mapping: LabelMapping) -> bool:
    """Return whether the manifest has a column of the same name with different values."""
    if name in CONSTANT_COLUMNS:
        return CONSTANT_COLUMNS[0] not in names  # another program wrote the file
    has_other_patients = bool(mapping.patient_pattern or mapping.patients_from)
    return {
        "path": mapping.path_column not in ("", name),
        "label": mapping.label_column not in ("", name),
        "patient": has_other_patients or mapping.patient_column not in ("", name),
    }.get(name, False)

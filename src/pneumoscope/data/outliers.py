"""Images of patients outside the model's population, used to train rejection (outlier exposure).

A CSV file needs a column path, relative to its folder, and may have the columns age in years, patient, source (data set or
hospital), split (train or validation) and sha256. Images without a split are assigned by a hash of their patient, or of their
path if the patient is unknown, independent of the seed: a fifth is for validation, so that rejection is measured on patients
not seen in any training.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pneumoscope.core.errors import DatasetError, ManifestError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.messages import counted
from pneumoscope.core.prediction import MAX_AGE
from pneumoscope.data.hashing import Progress, hash_images
from pneumoscope.data.patients import find_patient_column, parse_nih_patient
from pneumoscope.imaging.file_type import skip_reason

__all__ = ["OutlierImage", "Outliers", "load_outliers"]

_COLUMNS = ("path", "age", "patient", "source", "split", "sha256")
_SPLITS = ("train", "validation")
_PARTS = 5  # one part is for validation
_ADULT_AGE = 18  # years
_HINT = "Pass a folder of images, or a CSV with the column path and optional columns age, patient, source and split"


@dataclasses.dataclass(frozen=True, slots=True)
class OutlierImage:
    """Image of a patient outside the population.

    Attributes:
        path: Path relative to the root, with forward slashes.
        age: Age in years; None if unknown.
        patient: Patient identifier; the path if unknown.
        source: Data set or hospital; "" if unknown.
        split: "train" or "validation".
        sha256: SHA-256 of the file, hexadecimal.
    """

    path: str
    age: float | None
    patient: str
    source: str
    split: str
    sha256: str

    @property
    def group(self) -> str:
        """Source, with minors in a separate group because they differ less from the model's population than adults."""
        source = self.source or "unknown source"
        return f"{source}, minors" if self.age is not None and self.age < _ADULT_AGE else source


@dataclasses.dataclass(frozen=True, slots=True)
class Outliers:
    """Images of patients outside the population.

    Attributes:
        images: Images in the order of the file, or sorted by path.
        root: Folder that the paths are relative to.
    """

    images: tuple[OutlierImage, ...]
    root: Path

    def split(self, name: str) -> tuple[OutlierImage, ...]:
        """Return the images of one split."""
        return tuple(image for image in self.images if image.split == name)

    def outside(self, age_range: tuple[float, float]) -> Outliers:
        """Return the images whose age is unknown or outside a range.

        Args:
            age_range: Minimum and maximum age in years, inclusive, as on a model card.
        """
        low, high = age_range[0], age_range[1] + 1
        images = (image for image in self.images if image.age is None or not low <= image.age < high)
        return Outliers(tuple(images), self.root)

    def sha256(self) -> str:
        """Return a hash of the columns of all images; paths are included only where the patient is unknown."""
        rows = sorted((image.sha256, str(image.age), image.patient, image.source, image.split) for image in self.images)
        return hashlib.sha256("\n".join("\t".join(row) for row in rows).encode()).hexdigest()

    def save(self, file: Path) -> None:
        """Write a CSV file with absolute paths, which `load_outliers` can read, atomically.

        Raises:
            StorageError: The file cannot be written.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for image in self.images:
            age = "" if image.age is None else str(image.age)
            path = (self.root / image.path).as_posix()
            writer.writerow((path, age, image.patient, image.source, image.split, image.sha256))
        write_atomically(file, out.getvalue())


def load_outliers(data: Path, progress: Progress | None = None) -> Outliers:
    """Return the images of a folder or CSV file, hashed and split.

    In a folder, the top-level subfolder of an image is its source. Patients are parsed from ChestX-ray14 file names; otherwise
    each image counts as a separate patient.

    Args:
        data: Folder or CSV file; see the module.
        progress: Callback with the number of images hashed so far and the total.

    Raises:
        DatasetError: The path does not exist or contains no images, or an image cannot be read.
        ManifestError: The CSV file is malformed, an image does not match its SHA-256, or a patient or file is in both splits.
    """
    if data.is_dir():
        root, images = data, _list_folder(data)
    elif data.is_file() and data.suffix.lower() == ".csv":
        root, images = data.parent, _read_csv(data)
    else:
        raise DatasetError(f"{str(data)!r} is not a folder or a CSV file", hint=_HINT)
    if not images:
        raise DatasetError(f"{str(data)!r} has no images", hint=_HINT)
    hashed, unreadable = hash_images(root, images, progress, manifest_name=str(data))
    if unreadable:
        path, reason = unreadable[0]
        raise DatasetError(
            f"{str(data)!r}: cannot read {counted(len(unreadable), 'image')}; the first is {path!r}: {reason}",
            hint="Remove them, or correct their paths",
        )
    _check_splits(hashed, str(data))
    return Outliers(hashed, root.resolve())


def _check_splits(images: Sequence[OutlierImage], name: str) -> None:
    """Raise if a patient or file is in both splits, because rejection would be measured on training images."""
    splits: dict[tuple[str, str], str] = {}
    for image in images:
        for key in ((image.source, image.patient), ("", image.sha256)):
            if splits.setdefault(key, image.split) != image.split:
                raise ManifestError(
                    f"{name}: {image.path!r} is in the split {image.split}, but another image of its patient or with the same"
                    f" content is in {splits[key]}",
                    hint="Correct the columns patient and split, or remove one of the images",
                )


def _list_folder(folder: Path) -> list[OutlierImage]:
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and not skip_reason(path))
    return [
        _with_defaults(path.as_posix(), source=path.parts[0] if len(path.parts) > 1 else "")
        for path in paths
        if not any(part.startswith(".") for part in path.parts)
    ]


def _read_csv(file: Path) -> list[OutlierImage]:
    try:
        reader = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig")), restval="")
        columns = reader.fieldnames or []
        numbered = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"cannot read {str(file)!r}: {error}", hint=_HINT) from error
    if "path" not in columns:
        raise ManifestError(f"{str(file)!r} has no column 'path' (its columns: {', '.join(columns)})", hint=_HINT)
    lines, rows = [line for line, _ in numbered], [row for _, row in numbered]
    if column := find_patient_column(columns, rows, lines, repr(str(file))):
        rows = [{**row, "patient": row[column]} for row in rows]
    images = [_parse_row(row, f"{str(file)!r}, line {line}") for line, row in zip(lines, rows, strict=True)]
    listed = Counter(image.path for image in images)
    for line, image in zip(lines, images, strict=True):
        if listed[image.path] > 1:
            raise ManifestError(f"{str(file)!r}, line {line}: {image.path!r} is listed {listed[image.path]} times")
    return images


def _parse_row(row: Mapping[str, str], place: str) -> OutlierImage:
    values = {column: (row.get(column) or "").strip() for column in _COLUMNS}
    if not values["path"] or "\0" in values["path"]:
        raise ManifestError(f"{place}: {values['path']!r} is not a valid path")
    if values["split"] not in ("", *_SPLITS):
        raise ManifestError(f"{place}: split is {values['split']!r}, not one of {', '.join(_SPLITS)}")
    age = _parse_age(values.pop("age"), place)
    return _with_defaults(**values, age=age)


def _parse_age(text: str, place: str) -> float | None:
    if not text:
        return None
    try:
        age = float(text)
    except ValueError:
        age = math.nan
    if not 0 <= age <= MAX_AGE:
        raise ManifestError(f"{place}: age is {text!r}, not a number of years from 0 to {MAX_AGE}")
    return age


def _with_defaults(
    path: str, *, age: float | None = None, patient: str = "", source: str = "", split: str = "", sha256: str = ""
) -> OutlierImage:
    patient = patient or parse_nih_patient(path.rpartition("/")[2]) or path
    digest = hashlib.sha256(f"{source}\n{patient}".encode()).digest()
    split = split or ("validation" if digest[0] % _PARTS == 0 else "train")
    return OutlierImage(path, age, patient, source, split, sha256)

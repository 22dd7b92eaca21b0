"""Match the rows of a predictions file with labeled images."""

from __future__ import annotations

import csv
import difflib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from pneumoscope.core.errors import DatasetError, UnknownNameError, UsageError
from pneumoscope.core.messages import counted
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.data.predictions_file import PredictionRow

__all__ = ["manifest_columns", "match_images", "read_id_column", "read_manifest_column"]

_MAX_LISTED = 3
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_id_column(data: Path, column: str, path_column: str = "path") -> dict[str, str]:
    """Return a column of a manifest CSV as {path: value}; empty if the column or CSV file does not exist.

    Args:
        data: Data set that `load_manifest` can read.
        column: Name of the column.
        path_column: Column with the paths.
    """
    if data.suffix.lower() != ".csv" or column not in manifest_columns(data):
        return {}
    return read_manifest_column(data, column, path_column)


def read_manifest_column(data: Path, column: str, path_column: str = "path") -> dict[str, str]:
    """Return a column of a manifest CSV as {path: value}.

    Args:
        data: Manifest CSV.
        column: Name of the column.
        path_column: Column with the paths.

    Raises:
        UsageError: The data are not a CSV file.
        UnknownNameError: The column does not exist.
    """
    if data.suffix.lower() != ".csv":
        raise UsageError(
            f"{str(data)!r} is not a manifest CSV and has no column {column!r}",
            hint="Write a manifest with `pneumoscope split DATA --out FILE`, and add the column",
        )
    columns = manifest_columns(data)
    if column not in columns:
        raise UnknownNameError("column", column, columns, message=f"{str(data)!r} has no column {column!r}")
    with data.open(encoding="utf-8-sig", newline="") as file:
        return {row[path_column].strip(): row[column].strip() for row in csv.DictReader(file, restval="")}


def manifest_columns(data: Path) -> list[str]:
    """Return the column names of a manifest CSV."""
    with data.open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file), [])


def match_images(
    rows: Sequence[PredictionRow], images: Sequence[LabeledImage], name: str, ids: Mapping[str, str]
) -> dict[int, PredictionRow]:
    """Return the matching row of each image that has one, {index of the image: row}.

    A row identifies an image by its path, the end of its path, its file name with or without extension, or its SHA-256; or only
    by its identifier if the images have identifiers. If both the row and the image have folders, these must agree:
    `train/a.png` does not match `test/a.png`.

    Args:
        rows: Rows of the predictions file.
        images: All images of the data set.
        name: Name of the predictions file for messages.
        ids: Identifier of each image by path; empty if there are none.

    Raises:
        DatasetError: A row matches no image or several, or several rows match the same image.
    """
    index = _ImageIndex(images, ids)
    found: dict[int, list[PredictionRow]] = defaultdict(list)
    unknown: list[PredictionRow] = []
    ambiguous: list[PredictionRow] = []
    for row in rows:
        candidates = index.find(row.image)
        if len(candidates) == 1:
            found[candidates[0]].append(row)
        else:
            (ambiguous if candidates else unknown).append(row)
    if unknown:
        listed = ", ".join(f"{row.image!r} (line {row.line})" for row in unknown[:_MAX_LISTED])
        hint = index.hint(unknown[0].image)
        raise DatasetError(
            f"{counted(len(unknown), 'row')} of {len(rows)} in {name} {'matches' if len(unknown) == 1 else 'match'} no image"
            f" of the data: {listed}{', …' if len(unknown) > _MAX_LISTED else ''}",
            hint=f"{hint}Name images by their paths in the data, file names or SHA-256",
        )
    if ambiguous:
        row = ambiguous[0]
        several = [images[i].path for i in index.find(row.image)[:2]]
        raise DatasetError(
            f"{name}, line {row.line}: {row.image!r} names several images, such as {several[0]!r} and {several[1]!r}"
            f" ({counted(len(ambiguous), 'such row')})",
            hint="Name images by their paths in the data",
        )
    doubled = [same for same in found.values() if len(same) > 1]
    if doubled:
        first, second = doubled[0][:2]
        raise DatasetError(
            f"{name} lists {second.image!r} in line {first.line} and in line {second.line}"
            f" ({counted(len(doubled), 'image')} listed more than once)",
            hint="Keep one row for each image",
        )
    return {image: same[0] for image, same in found.items()}


class _ImageIndex:
    """Index of the images by all names that a row may use."""

    def __init__(self, images: Sequence[LabeledImage], ids: Mapping[str, str]) -> None:
        self._paths = [image.path for image in images]
        self._parts = [_parts(path) for path in self._paths]
        self._by_path = {image.path: i for i, image in enumerate(images)}
        self._by_name: dict[str, list[int]] = defaultdict(list)
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        self._by_sha256: dict[str, list[int]] = defaultdict(list)
        self._by_id: dict[str, list[int]] = defaultdict(list)
        for i, image in enumerate(images):
            self._by_name[self._parts[i][-1]].append(i)
            self._by_stem[PurePosixPath(self._parts[i][-1]).stem].append(i)
            self._by_sha256[image.sha256].append(i)
            if ids:
                self._by_id[ids.get(image.path, "")].append(i)

    def find(self, name: str) -> list[int]:
        """Return the indices of the images with this name."""
        if self._by_id:
            return self._by_id.get(name, [])
        if name in self._by_path:
            return [self._by_path[name]]
        if _SHA256.fullmatch(name.lower()):
            return self._by_sha256.get(name.lower(), [])
        parts = _parts(name)
        if not parts:
            return []
        # Compare full names first, because identifiers can contain dots.
        for indices in (self._by_name.get(parts[-1], []), self._by_stem.get(parts[-1], [])):
            agreeing = [i for i in indices if _agree(self._parts[i][:-1], parts[:-1])]
            if agreeing:
                return agreeing
        return []

    def hint(self, name: str) -> str:
        """Return a sentence, with a trailing space, on why no image has this name, or "" if no name is similar."""
        known = [*self._by_id] if self._by_id else [*self._by_name]
        last = (_parts(name) or [name])[-1]
        if not self._by_id and last in self._by_name:
            path = self._paths[self._by_name[last][0]]
            return f"The file names of {name!r} and of the image {path!r} agree, and their folders do not. "
        near = difflib.get_close_matches(last, known, n=1)
        return f"The image with the most similar name is {near[0]!r}. " if near else ""


def _parts(path: str) -> list[str]:
    """Return the folders and the name in a path, including paths in MedMNIST archives and paths with backslashes."""
    text = path.replace("\\", "/").replace("#", "/")
    return [part for part in text.split("/") if part not in {"", "."}]


def _agree(a: Sequence[str], b: Sequence[str]) -> bool:
    """Return whether the folders nearest to the file agree, as far as both are known."""
    return all(x == y for x, y in zip(reversed(a), reversed(b), strict=False))

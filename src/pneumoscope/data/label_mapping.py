"""Mapping of the labels, patients and paths of a data set whose names differ from the defaults.

A mapping is given with command-line options, or as `LabelMapping` in Python. A run records its mapping. A recorded mapping is
applied to other data as far as possible: names that do not occur in the data are ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal, Protocol, get_args

from pneumoscope.core.errors import DatasetError, ManifestError, UnknownNameError, UsageError
from pneumoscope.core.messages import counted
from pneumoscope.core.names import closest_name, differ_in_number
from pneumoscope.data.classes import LABELS, check_class_order
from pneumoscope.data.patients import find_patient_column, parse_file_name

__all__ = ["ETIOLOGY_COLUMN", "LabelMapping", "PatientSource", "map_labels", "map_patients", "map_rows"]

PatientSource = Literal["folder", "header"]
ETIOLOGY_COLUMN = "etiology"  # also without columns: bacteria, virus or normal in file names
_MAX_LISTED = 5
_SIMILAR = 0.8  # similarity above which a class name may be a typo of another; see `closest_name`
# Common names of label and path columns in tables of other programs, in lower case without other characters.
_LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "diagnosis",
    "target",
    "finding",
    "findinglabels",
    "category",
    "pneumonia",
    "y",
)
_PATH_NAMES = (
    *(
        "path",
        "file",
        "filename",
        "filepath",
        "image",
        "imagepath",
        "imageindex",
        "imageid",
        "imagename",
        "img",
        "dicom",
    ),
    *("dicompath", "patientid"),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelMapping:
    """Names used in a data set, and how to interpret them. The default changes nothing.

    Attributes:
        label_column: Column of a CSV file with the label; "label" if empty. "etiology" uses the cause of the pneumonia as the
            label, even in data without columns.
        path_column: Column with the path; "path" if empty.
        patient_column: Column with the patient; detected by its name if empty.
        patient_pattern: Regular expression searched in the path of each image; its group is the patient.
        patients_from: "folder": the patient is the name of the image's folder. "header": the patient comes from the DICOM
            header. Empty: the first source that provides patients, see `data.layouts`.
        positive: Label that counts as PNEUMONIA; all others count as NORMAL. For labels with several parts separated by "|",
            one matching part is enough.
        renamed: (SOURCE, CLASS) for each label to rename, applied before `positive`.
        classes: All classes in the order of their target index; sorted if empty.
    """

    label_column: str = ""
    path_column: str = ""
    patient_column: str = ""
    patient_pattern: str = ""
    patients_from: str = ""
    positive: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise UsageError if options conflict or a value is invalid."""
        sources = [name for name in ("patient_column", "patient_pattern", "patients_from") if getattr(self, name)]
        if len(sources) > 1:
            flags = [f"--{name.replace('_', '-')}" for name in sources]
            raise UsageError(f"both {flags[0]} and {flags[1]} are given", hint="Choose one source of patients")
        if self.patients_from and self.patients_from not in get_args(PatientSource):
            raise UsageError(
                f"patients cannot be read from {self.patients_from!r}",
                hint=f"Known: {', '.join(get_args(PatientSource))}; or name a column or a pattern",
            )
        if self.patient_pattern:
            try:
                groups = re.compile(self.patient_pattern).groups
            except re.error as error:
                raise UsageError(
                    f"the pattern {self.patient_pattern!r} is not a regular expression: {error}",
                    hint=r"Example: --patient-pattern '(P\d+)_'",
                ) from error
            if groups != 1:
                raise UsageError(
                    f"the pattern {self.patient_pattern!r} has {counted(groups, 'group')}, and needs one",
                    hint=r"Put the part that identifies the patient in parentheses, such as '(P\d+)_'",
                )
        doubled = [source for source, n in Counter(source for source, _ in self.renamed).items() if n > 1]
        if doubled or not all(all(pair) for pair in self.renamed):
            raise UsageError(
                f"the label {doubled[0]!r} is renamed twice" if doubled else "a label or class to rename is empty",
                hint="Give each label once: --map SOURCE=CLASS",
            )
        if self.classes:
            check_class_order(self.classes)

    def for_saved_manifest(self) -> LabelMapping:
        """Return the mapping still needed for a manifest saved with this mapping, whose columns have the default names.

        Etiologies are stored in a separate column, so labels must be derived from them again.
        """
        if self.label_column == ETIOLOGY_COLUMN:
            return dataclasses.replace(self, path_column="", patient_column="", patient_pattern="", patients_from="")
        return LabelMapping(classes=self.classes)


def map_rows(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    lines: Sequence[int],
    name: str,
    mapping: LabelMapping,
    *,
    recorded: bool,
) -> tuple[list[dict[str, str]], tuple[str, ...], str]:
    """Return the rows of a CSV file with the default column names, notes, and the name of the path column.

    Args:
        columns: Column names.
        rows: Rows of the file.
        lines: Line number of each row, for messages.
        name: Name of the file for messages.
        mapping: Names of the columns.
        recorded: Whether to ignore names in the mapping that the file lacks.

    Raises:
        ManifestError: A column is missing, or patients cannot be determined.
    """
    path = _column(columns, mapping.path_column, "path", _PATH_NAMES, name, recorded=recorded)
    label = _label_column(columns, rows, path, mapping, name, recorded=recorded)
    notes: list[str] = []
    patient = ""
    if mapping.patient_column:
        patient = _column(
            columns, mapping.patient_column, "patient", (), name, recorded=recorded, required=not recorded
        )
    if not patient and not mapping.patient_pattern and not mapping.patients_from:
        patient = find_patient_column(columns, rows, lines, name, option="--patient-column")
    if patient not in {"", "patient"}:
        notes.append(f"the patients are those of the column {patient!r}")
    mapped = [
        {
            **row,
            "path": row[path],
            "label": row[label] if label else "",
            "patient": row[patient] if patient else "",
        }
        for row in rows
    ]
    if label == ETIOLOGY_COLUMN:
        # The values are classes and need not be etiologies.
        mapped = [{**row, "etiology": ""} for row in mapped]
    return mapped, tuple(notes), path


def _label_column(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    path: str,
    mapping: LabelMapping,
    name: str,
    *,
    recorded: bool,
) -> str:
    """Return the column with the label, or "" if labels are etiologies read from file names."""
    if mapping.label_column == ETIOLOGY_COLUMN and ETIOLOGY_COLUMN not in columns:
        # Data other than those of the run may have the classes in the column label.
        names = (row[path].strip().rpartition("/")[2] for row in rows)
        is_given = recorded and "label" in columns and not all(parse_file_name(each).etiology for each in names)
        return "label" if is_given else ""
    return _column(columns, mapping.label_column, "label", _LABEL_NAMES, name, recorded=recorded)


def _column(
    columns: Sequence[str],
    given: str,
    default: str,
    similar: Sequence[str],
    name: str,
    *,
    recorded: bool,
    required: bool = True,
) -> str:
    """Return the given column or the one with the default name, or "" if there is none and it is not required.

    Raises:
        ManifestError: A required column is missing; the hint suggests a similar one.
    """
    wanted = given if given and (given in columns or not recorded) else default
    if wanted in columns:
        return wanted
    if not required:
        return ""
    flag = f"--{default}-column"
    hint = "Required columns: path, label. Optional columns: etiology, patient, split, sha256"
    if near := _nearest(wanted, columns, similar):
        hint = f"Did you mean {flag} {shlex.quote(near)}?"
    elif wanted == given:
        hint = f"Give {flag} one of these columns"
        if default == "patient":
            hint += ", or leave it out if none identifies patients"
    elif columns:
        hint = f"Name the column with {flag}. {hint}"
    raise ManifestError(f"{name} has no column {wanted!r} (its columns: {', '.join(columns) or 'none'})", hint=hint)


def _nearest(wanted: str, columns: Sequence[str], similar: Sequence[str]) -> str:
    """Return the column with a usual name or the most similar one, or "" if there is none."""

    def plain(text: str) -> str:
        return re.sub(r"[\W_]", "", text.lower())

    by_name = {plain(column): column for column in reversed(columns)}
    known = next((by_name[each] for each in (plain(wanted), *similar) if each in by_name), "")
    close = difflib.get_close_matches(plain(wanted), by_name, n=1)
    return known or (by_name[close[0]] if close else "")


def map_labels(
    labels: Sequence[str], name: str, mapping: LabelMapping, *, recorded: bool
) -> tuple[list[str], tuple[str, ...]]:
    """Return the renamed labels, and notes on what was renamed.

    Args:
        labels: Label of each image.
        name: Name of the data set for messages.
        mapping: Mapping of the labels.
        recorded: Whether to ignore labels in the mapping that the data lack.

    Raises:
        UnknownNameError: The mapping specifies a label that no image has.
        DatasetError: --positive is given for classes other than NORMAL and PNEUMONIA.
    """
    if mapping.positive and not recorded:
        _check_positive(name, mapping)
    known = Counter(labels)
    new = {label: label for label in known}
    notes = []
    for source, target in mapping.renamed:
        found = [label for label in known if label == source] or [
            label for label in known if label.casefold() == source.casefold()
        ]
        if not found and not recorded:
            raise UnknownNameError(
                "label", source, known, message=f"{name}: no image has the label {source!r} of --map"
            )
        for label in found:
            new[label] = target
            notes.append(f"the label {_as_given(label, source)} is {target} ({counted(known[label], 'image')})")
    if not recorded:
        notes += _check_targets(known, name, mapping)
    if mapping.positive:
        notes += _map_positive(new, known, name, mapping.positive, recorded=recorded)
    return [new[label] for label in labels], tuple(notes)


def _as_given(label: str, given: str) -> str:
    """Return a label of the data in quotes, with the given spelling if it differs."""
    return repr(label) if label == given else f"{label!r} (given as {given!r})"


def _check_targets(known: Mapping[str, int], name: str, mapping: LabelMapping) -> list[str]:
    """Return notes on new class names similar to a label that is kept; raise if they differ only in case."""
    if mapping.classes or mapping.positive:  # compared with the labels anyway
        return []
    sources = {source.casefold() for source, _ in mapping.renamed}
    kept = [label for label in known if label.casefold() not in sources]
    notes = []
    for source, target in mapping.renamed:
        similar = [label for label in kept if not differ_in_number(target, label)]
        if target in kept or target.upper() in LABELS or not (closest := closest_name(target, similar, _SIMILAR)):
            continue
        meant = "--map " + shlex.quote(f"{source}={closest}")
        if closest.casefold() == target.casefold():
            raise UnknownNameError(
                "class",
                target,
                [closest],
                message=f"{name}: --map {shlex.quote(f'{source}={target}')} makes a class {target!r} beside {closest!r}",
            )
        notes.append(f"{target!r} is a separate class beside {closest!r}; if that one is meant, give {meant}")
    return notes


def _check_positive(name: str, mapping: LabelMapping) -> None:
    """Raise if --positive contradicts the given classes."""
    classes = {each.casefold() for each in mapping.classes}
    if classes and not {label.casefold() for label in LABELS} <= classes:
        raise DatasetError(
            f"{name}: --positive {mapping.positive!r} makes {LABELS[0]} and {LABELS[1]} of all labels, and the classes are"
            f" {', '.join(mapping.classes)}",
            hint="Leave out --positive or --classes, or use a model for NORMAL and PNEUMONIA",
        )


def _map_positive(
    new: dict[str, str], known: Mapping[str, int], name: str, positive: str, *, recorded: bool
) -> list[str]:
    """Set each label to PNEUMONIA or NORMAL in `new`, and return notes."""
    wanted = positive.casefold()
    chosen = {label for label, mapped in new.items() if wanted in _parts(mapped.casefold())}
    if not chosen:
        if recorded:
            return []
        raise UnknownNameError(
            "label", positive, new.values(), message=f"{name}: no image has the label {positive!r} of --positive"
        )
    spellings = {part for label in chosen for part in _parts(new[label]) if part.casefold() == wanted}
    others = sorted({new[label] for label in new if label not in chosen})
    for label in new:
        new[label] = LABELS[label in chosen]
    positives, negatives = (sum(n for label, n in known.items() if (label in chosen) == side) for side in (True, False))
    listed = ", ".join(map(repr, others[:_MAX_LISTED])) + (", …" if len(others) > _MAX_LISTED else "")
    return [
        f"{_as_given(positive if positive in spellings else min(spellings), positive)} counts as PNEUMONIA"
        f" ({counted(positives, 'image')}), and all other labels count as NORMAL"
        f" ({counted(negatives, 'image')}{f': {listed}' if listed else ''})"
    ]


def _parts(label: str) -> list[str]:
    return [part.strip() for part in label.split("|")]


class _Labeled(Protocol):
    """Image with a path and label, such as `LabeledImage`."""

    @property
    def path(self) -> str: ...

    @property
    def label(self) -> str: ...


def map_patients(
    images: Sequence[_Labeled], name: str, mapping: LabelMapping, *, recorded: bool
) -> tuple[list[str], tuple[str, ...]]:
    """Return the patient of each image by the pattern or folder of the mapping, "" if unknown, and notes.

    Args:
        images: Images with their original labels.
        name: Name of the data set for messages.
        mapping: Source of patients: a pattern or "folder".
        recorded: Whether to return unknown patients instead of raising an error.

    Raises:
        ManifestError: No path matches the pattern, or the folders are classes.
    """
    if mapping.patient_pattern:
        pattern = re.compile(mapping.patient_pattern)
        patients = [(match[1] or "") if (match := pattern.search(image.path)) else "" for image in images]
        source, valid = "file names", any(patients)
        error = ManifestError(
            f"{name}: no path matches the pattern {mapping.patient_pattern!r} of patients; the first is {images[0].path!r}",
            hint=r"The pattern is searched in the whole path, with forward slashes. Example: --patient-pattern '(P\d+)_'",
        )
    else:
        patients = [PurePosixPath(image.path).parent.name for image in images]
        folders, classes = {*patients}, {image.label.casefold() for image in images}
        source = "folders"
        valid = len(folders) > 1 and not any(folder.casefold() in classes for folder in folders)
        error = ManifestError(
            f"{name}: the image {images[0].path!r} is not in a folder of its patient, but in {patients[0]!r}",
            hint="Use --patients-from folder if each patient has a folder of images, below that of the class",
        )
    if not valid:
        if recorded:
            return [""] * len(images), ()
        raise error
    known, different = sum(map(bool, patients)), len({*patients} - {""})
    return patients, (
        f"the patients of {counted(known, 'image')} are those of the {source} ({counted(different, 'patient')})",
    )

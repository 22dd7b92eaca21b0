"""The manifest of a labeled data set: one row per image, independent of the layout on disk."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from pneumoscope.core.errors import DatasetError, ManifestError, PatientLeakError, UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.messages import counted
from pneumoscope.data.classes import LABELS, misspelling_hint, resolve_classes, spelling_notes
from pneumoscope.data.label_mapping import ETIOLOGY_COLUMN, LabelMapping, map_labels, map_patients, map_rows
from pneumoscope.data.patients import parse_file_name

__all__ = [
    "COLUMNS",
    "CONSTANT_COLUMNS",
    "ETIOLOGIES",
    "LABELS",
    "SPLITS",
    "LabeledImage",
    "Manifest",
    "identical_images",
    "images_sha256",
]

ETIOLOGIES = ("normal", "bacteria", "virus", "")
SPLITS = ("train", "validation", "test", "unused", "")
COLUMNS = ("path", "label", "etiology", "patient", "split", "sha256")
_SPLIT_BY = "split_by"  # a column of a saved manifest, the same in all rows
_CLASSES = "classes"  # one more, unless the data set is binary: the names, in order, separated by "|"
CONSTANT_COLUMNS = (_SPLIT_BY, _CLASSES)
_USED_SPLITS = ("train", "validation", "test")
_SPLIT_ALIASES = {"val": "validation"}


@dataclasses.dataclass(frozen=True, slots=True)
class LabeledImage:
    """A labeled image.

    Attributes:
        path: Path relative to the manifest's root, with forward slashes; "file.npz#train/17" in a MedMNIST archive.
        label: Name of its class.
        etiology: One of `ETIOLOGIES`; "" if unknown.
        patient: Patient identifier, unique in the manifest, such as "bacteria-100"; "" if unknown.
        split: One of `SPLITS`: "unused" is set aside, "" is not assigned yet.
        sha256: SHA-256 of the file, hexadecimal.
    """

    path: str
    label: str
    etiology: str
    patient: str
    split: str
    sha256: str

    @property
    def positive(self) -> bool:
        """True if the label is PNEUMONIA; for images of a binary data set."""
        return self.label == "PNEUMONIA"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The labeled images of a data set.

    Attributes:
        images: The images, in the order of the file or sorted by path.
        root: Folder that the paths are relative to.
        split_by: How the splits were made: "patient", "block", "image", or "given" if they came with the data.
        unreadable: (path, reason) of images that cannot be used: they cannot be opened, or lie outside the folders of the layout.
        skipped: (path, reason) of other files and of folders that were skipped.
        notes: Remarks for the user, as sentences.
        classes: Names of the classes, in the order of their target index; `LABELS` for a binary data set.
        path_column: Column of the CSV file with the paths.
        unreadable_splits: Split of unreadable images by path, if a CSV file states it.
    """

    images: tuple[LabeledImage, ...]
    root: Path
    split_by: str = "given"
    unreadable: tuple[tuple[str, str], ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = LABELS
    path_column: str = "path"
    unreadable_splits: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[LabeledImage]:
        return iter(self.images)

    @property
    def binary(self) -> bool:
        """True if the classes are NORMAL and PNEUMONIA."""
        return self.classes == LABELS

    def target(self, image: LabeledImage) -> int:
        """Return the index of the class of an image."""
        return self.classes.index(image.label)

    def check_binary(self, task: str, *, hint: str = "") -> None:
        """Raise unless the classes are NORMAL and PNEUMONIA.

        Args:
            task: What needs these classes, such as "a site profile".
            hint: A sentence that follows the usual hint.

        Raises:
            DatasetError: With the classes.
        """
        if not self.binary:
            usual = "Choose the class that counts as PNEUMONIA with --positive CLASS, or rename classes with --map SOURCE=CLASS"
            raise DatasetError(
                f"{task} needs images of NORMAL and PNEUMONIA; the classes are {', '.join(self.classes)}",
                hint=misspelling_hint(self.classes) or f"{usual}{'. ' if hint else ''}{hint}",
            )

    def split(self, name: str) -> tuple[LabeledImage, ...]:
        """Return the images of one split, in manifest order."""
        return tuple(image for image in self.images if image.split == name)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images by split and class, {split: {class: n}}."""
        counts = Counter((image.split, image.label) for image in self.images)
        splits = [name for name in SPLITS if any(split == name for split, _ in counts)]
        return {name: {label: counts[name, label] for label in self.classes} for name in splits}

    def sha256(self) -> str:
        """Return a hash of the classes and of all columns of all images; the root and `split_by` do not change it."""
        rows = ["\t".join(dataclasses.astuple(image)) for image in self.images]
        if not self.binary:
            rows.insert(0, "\t".join(self.classes))
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def leaks(self) -> dict[str, list[str]]:
        """Return the patients that are in more than one of train, validation and test, {patient: [split, ...]}."""
        splits: dict[str, set[str]] = defaultdict(set)
        for image in self.images:
            if image.patient and image.split in _USED_SPLITS:
                splits[image.patient].add(image.split)
        return {patient: sorted(names) for patient, names in sorted(splits.items()) if len(names) > 1}

    def check_patient_leaks(self, name: str) -> None:
        """Raise if a patient is in more than one split.

        Args:
            name: Name of the manifest, for the message.

        Raises:
            PatientLeakError: With the first patient, its splits, and the number of such patients.
        """
        leaks = self.leaks()
        if leaks:
            patient, splits = next(iter(leaks.items()))
            raise PatientLeakError(
                f"patient {patient!r} is in both {' and '.join(splits)} ({counted(len(leaks), 'patient')} in total,"
                f" manifest {name})",
                hint='Re-split with: pneumoscope split DATA --by patient; or set data.by = "image" in the recipe to'
                " accept a split by image",
            )

    def contradictions(self) -> list[tuple[LabeledImage, LabeledImage]]:
        """Return the first two images of each group of byte-identical images that have different labels.

        Images with the split "unused" are ignored.
        """
        pairs = []
        for first, *others in identical_images([image for image in self.images if image.split != "unused"]):
            pairs += [(first, other) for other in others if other.label != first.label][:1]
        return pairs

    def check_labels(self) -> None:
        """Raise if byte-identical images have different labels.

        Raises:
            DatasetError: With the first two such images, and the number of such groups.
        """
        if pairs := self.contradictions():
            a, b = pairs[0]
            raise DatasetError(
                f"{a.path!r} is {a.label} and {b.path!r} is {b.label}, but the images are byte-identical"
                f" ({counted(len(pairs), 'such group')} in total)",
                hint="Correct the labels, or remove one of the images",
            )

    def check_identical_images(self, name: str, *, by_image: bool = False) -> None:
        """Raise if byte-identical images are in more than one split or have different labels.

        Args:
            name: Name of the manifest, for the message.
            by_image: Allow identical images of one patient in train and validation: the images of a patient are divided
                on purpose.

        Raises:
            ManifestError: With the first such images, and the number of such groups.
            DatasetError: Identical images have different labels.
        """
        self.check_labels()
        leaks = []
        for group in identical_images([image for image in self.images if image.split in _USED_SPLITS]):
            other = next((image for image in group if image.split != group[0].split), None)
            same_patient = group[0].patient != "" and len({image.patient for image in group}) == 1
            allowed = by_image and same_patient and all(image.split != "test" for image in group)
            if other and not allowed:
                leaks.append((group[0], other))
        if leaks:
            a, b = leaks[0]
            raise ManifestError(
                f"{a.path!r} in {a.split} and {b.path!r} in {b.split} are byte-identical"
                f" ({counted(len(leaks), 'such group')} in total, manifest {name})",
                hint="Re-split with: pneumoscope split DATA; or remove one of the images",
            )

    def to_csv(self, other: Mapping[str, Sequence[str]] = MappingProxyType({})) -> str:
        """Return the manifest as CSV text, with `split_by` in a column, and the classes unless they are `LABELS`.

        Args:
            other: Value of each image in other columns, which follow.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        constants = {_SPLIT_BY: self.split_by} | ({} if self.binary else {_CLASSES: "|".join(self.classes)})
        writer.writerow((*COLUMNS, *constants, *other))
        rows = zip(self.images, *other.values(), strict=True)
        writer.writerows((*dataclasses.astuple(image), *constants.values(), *rest) for image, *rest in rows)
        return out.getvalue()

    def save(
        self, file: Path, *, replace: bool = False, other: Mapping[str, Sequence[str]] = MappingProxyType({})
    ) -> None:
        """Write the manifest to a CSV file, atomically.

        Paths are relative to the file's folder if the images are below it, else absolute, so that `load_manifest` finds
        the images.

        Args:
            file: The CSV file; missing parent folders are created.
            replace: Replace a file with other content, which may be the record of an experiment.
            other: See `to_csv`.

        Raises:
            UsageError: The file exists with other content, and `replace` is false.
            StorageError: The file cannot be written; an existing file is unchanged.
        """
        folder, root = file.resolve().parent, self.root.resolve()
        prefix = root.relative_to(folder).as_posix() if root.is_relative_to(folder) else root.as_posix()
        images = (
            image if prefix == "." else dataclasses.replace(image, path=(PurePosixPath(prefix) / image.path).as_posix())
            for image in self.images
        )
        text = dataclasses.replace(self, images=tuple(images)).to_csv(other)
        if not replace and file.is_file() and file.read_bytes() != text.encode():
            raise UsageError(
                f"{str(file)!r} exists with other content, and runs may depend on it",
                hint="Choose another file with --out, or replace this one with --force",
            )
        write_atomically(file, text)

    @classmethod
    def from_csv(
        cls, text: str, root: Path, name: str, mapping: LabelMapping | None = None, *, recorded: bool = False
    ) -> Manifest:
        """Return the manifest of a CSV text with at least the columns path and label, or those that the mapping names.

        NORMAL and PNEUMONIA may have any case; for other labels see `classes.resolve_classes`. "val" is an alias of
        "validation". The patient may have another column, which is stated in the notes; see `patients.find_patient_column`.
        Other columns are ignored.

        Args:
            text: The CSV text.
            root: Folder that the paths are relative to.
            name: Name of the file, for messages.
            mapping: Names of columns and labels; the defaults if None.
            recorded: The mapping is that of a run: apply what fits. A saved manifest has its classes already.

        Raises:
            ManifestError: A column is missing or cannot be used, a value is unknown, or a path is empty or listed twice.
            UnknownNameError: No image has a label that the mapping renames.
            DatasetError: The labels cannot be classes.
        """
        columns, rows, lines = _read_rows(text, name)
        if columns and not rows:
            raise ManifestError(f"{name} has a header and no rows", hint="List one image per row")
        mapping = mapping or LabelMapping()
        is_saved = _SPLIT_BY in columns
        if is_saved and recorded:
            mapping = mapping.for_saved_manifest()
        mapped, notes, path_column = map_rows(columns, rows, lines, name, mapping, recorded=recorded)
        split_by = _constant(rows, _SPLIT_BY) or "given"
        places = [f"{name}, line {line}" for line in lines]
        images = [_parse_row(row, place, mapping) for row, place in zip(mapped, places, strict=True)]
        if mapping.patient_pattern or mapping.patients_from == "folder":
            patients, more = map_patients(images, name, mapping, recorded=recorded)
            images = [dataclasses.replace(image, patient=each) for image, each in zip(images, patients, strict=True)]
            notes += more
        labels, more = map_labels([image.label for image in images], name, mapping, recorded=recorded)
        # Without the column split_by, another program wrote the file.
        order = (_constant(rows, _CLASSES) if is_saved else "").split("|")
        classes, names = resolve_classes(
            labels, name, mapping.classes or (order if order != [""] and mapping == LabelMapping() else ())
        )
        images = [dataclasses.replace(image, label=names[each]) for image, each in zip(images, labels, strict=True)]
        _check_listed_once(images, lines, name)
        notes += more + spelling_notes(names)
        return cls(tuple(images), root, split_by, notes=notes, classes=classes, path_column=path_column)


def _read_rows(text: str, name: str) -> tuple[list[str], list[dict[str, str]], list[int]]:
    """Return the columns and rows of a CSV text, and the line of each row."""
    reader = csv.DictReader(io.StringIO(text), restval="")
    try:
        columns = list(reader.fieldnames or [])
        numbered = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ManifestError(f"{name}, after line {reader.line_num}: {error}") from error
    return columns, [row for _, row in numbered], [line for line, _ in numbered]


def _check_listed_once(images: Sequence[LabeledImage], lines: Sequence[int], name: str) -> None:
    listed = Counter(image.path for image in images)
    labels: dict[str, tuple[int, str]] = {}
    for line, image in zip(lines, images, strict=True):
        other, label = labels.setdefault(image.path, (line, image.label))
        if label != image.label:
            raise ManifestError(
                f"{name}: {image.path!r} is {label} in line {other} and {image.label} in line {line}",
                hint="Keep the line with the correct label",
            )
    for line, image in zip(lines, images, strict=True):
        if listed[image.path] > 1:
            raise ManifestError(f"{name}, line {line}: {image.path!r} is listed {listed[image.path]} times")


def _constant(rows: Sequence[Mapping[str, str]], column: str) -> str:
    """Return the value of a column that is the same in all rows; "" if there is none."""
    values = {row.get(column, "") for row in rows}
    return values.pop() if len(values) == 1 else ""


def _parse_row(row: Mapping[str, str], place: str, mapping: LabelMapping) -> LabeledImage:
    values = {column: (row.get(column) or "").strip() for column in COLUMNS}
    values["split"] = _SPLIT_ALIASES.get(values["split"], values["split"])
    if not values["path"] or "\0" in values["path"]:
        raise ManifestError(f"{place}: {row['path']!r} is not a valid path")
    if mapping.label_column == ETIOLOGY_COLUMN:
        values["label"] = values["label"] or parse_file_name(values["path"].rpartition("/")[2]).etiology
        values["etiology"] = values["label"] if values["label"] in ETIOLOGIES else ""
    if not values["label"]:
        raise ManifestError(f"{place}: the label is empty", hint="Enter a class, or remove the line")
    for column, allowed in (("etiology", ETIOLOGIES), ("split", SPLITS)):
        if values[column] not in allowed:
            raise ManifestError(f"{place}: {column} is {row[column]!r}, not one of {', '.join(filter(None, allowed))}")
    return LabeledImage(**values)


def identical_images(images: Iterable[LabeledImage]) -> list[tuple[LabeledImage, ...]]:
    """Return the groups of two or more byte-identical images, in the order given."""
    groups: dict[str, list[LabeledImage]] = defaultdict(list)
    for image in images:
        if image.sha256:
            groups[image.sha256].append(image)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def images_sha256(hashes: Iterable[str] | Sequence[str]) -> str:
    """Return one hash for a set of images: the SHA-256 of their sorted hashes, one per line."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()

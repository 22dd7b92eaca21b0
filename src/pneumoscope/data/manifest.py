"""The manifest: one row an image. Whatever the layout on disk, everything after `dataset` sees only this."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from pneumoscope.core.errors import ManifestError, PatientLeakError
from pneumoscope.core.files import write_atomically

__all__ = ["COLUMNS", "ETIOLOGIES", "LABELS", "SPLITS", "LabelledImage", "Manifest", "images_sha256"]

LABELS = ("NORMAL", "PNEUMONIA")
ETIOLOGIES = ("normal", "bacteria", "virus", "")
SPLITS = ("train", "validation", "test", "unused", "")
_BY = "# split by "
COLUMNS = ("path", "label", "etiology", "patient", "split", "sha256")


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledImage:
    """One labelled image.

    Attributes:
        path: relative to the manifest's root, with forward slashes; for a MedMNIST archive "file.npz#train/17".
        label: one of `LABELS`.
        etiology: one of `ETIOLOGIES`; "" where the name does not tell.
        patient: the patient key, unique over the manifest ("bacteria-100"); "" where unknown.
        split: one of `SPLITS`; "unused" is set aside, "" not yet decided.
        sha256: of the image's bytes, hexadecimal.
    """

    path: str
    label: str
    etiology: str
    patient: str
    split: str
    sha256: str

    @property
    def positive(self) -> bool:
        """True where pneumonia is present."""
        return self.label == "PNEUMONIA"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Labelled images below one folder.

    Attributes:
        images: in a fixed order: as listed in the file, or sorted by path.
        root: the folder that the paths are relative to.
        by: how the splits were made: "patient", "block", "image", or "given" where they came with the data.
        unreadable: (path, why) of the files that could not be opened while listing.
        notes: what the caller should know of how the manifest came about, in sentences.
    """

    images: tuple[LabelledImage, ...]
    root: Path
    by: str = "given"
    unreadable: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[LabelledImage]:
        return iter(self.images)

    def split(self, name: str) -> tuple[LabelledImage, ...]:
        """The images of one split, in manifest order."""
        return tuple(image for image in self.images if image.split == name)

    def counts(self) -> dict[str, dict[str, int]]:
        """Images by split and label: {split: {label: n}}."""
        found = Counter((image.split, image.label) for image in self.images)
        names = [name for name in SPLITS if any(split == name for split, _ in found)]
        return {name: {label: found[name, label] for label in LABELS} for name in names}

    def sha256(self) -> str:
        """Hash of everything that a run depends on: path, label, patient, split and content of every image."""
        text = "\n".join("\t".join(dataclasses.astuple(image)) for image in self.images)
        return hashlib.sha256(text.encode()).hexdigest()

    def leaks(self) -> dict[str, list[str]]:
        """Patients in more than one of train, validation and test: {patient: [split, ...]}."""
        seen: dict[str, set[str]] = defaultdict(set)
        for image in self.images:
            if image.patient and image.split in {"train", "validation", "test"}:
                seen[image.patient].add(image.split)
        return {patient: sorted(splits) for patient, splits in sorted(seen.items()) if len(splits) > 1}

    def refuse_leaks(self, where: str) -> None:
        """Raise where a patient is in two splits.

        Args:
            where: the manifest's name for the message.
        Raises:
            PatientLeakError: naming the first patient, its splits and how many there are.
        """
        leaks = self.leaks()
        if leaks:
            patient, splits = next(iter(leaks.items()))
            raise PatientLeakError(
                f"patient {patient!r} is in both {' and '.join(splits)} ({len(leaks)} patients in all,"
                f" manifest {where})",
                hint='Re-split: pneumoscope split DATA --by patient; or set data.by = "image" in the recipe to'
                " reproduce a split by image knowingly",
            )

    def to_csv(self) -> str:
        """The manifest as CSV text, with `by` in a comment line at the top."""
        out = io.StringIO()
        out.write(f"{_BY}{self.by}\n")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(dataclasses.astuple(image) for image in self.images)
        return out.getvalue()

    def save(self, file: Path) -> None:
        """Write the manifest whole or not at all, so that `load_manifest` finds the images from where it stands.

        Paths are relative to the file's folder where the images lie below it, and absolute otherwise.

        Raises:
            StorageError: it cannot be written; what was there before is kept.
        """
        folder, root = file.resolve().parent, self.root.resolve()
        prefix = root.relative_to(folder).as_posix() if root.is_relative_to(folder) else root.as_posix()
        images = (
            image if prefix == "." else dataclasses.replace(image, path=(PurePosixPath(prefix) / image.path).as_posix())
            for image in self.images
        )
        write_atomically(file, dataclasses.replace(self, images=tuple(images)).to_csv())

    @classmethod
    def from_csv(cls, text: str, root: Path, where: str) -> Manifest:
        """Read what `to_csv` wrote, or a table of someone else's with at least the columns path and label.

        Labels may be written in any case, "val" stands for "validation"; other columns are ignored.

        Args:
            text: the CSV.
            root: the folder that the paths are relative to.
            where: the file's name for messages.
        Raises:
            ManifestError: a column is missing, a value is unknown, a path is empty or listed twice; the row is named.
        """
        by, body = "given", text
        if text.startswith(_BY):
            first, _, body = text.partition("\n")
            by = first.removeprefix(_BY).strip()
        reader = csv.DictReader(io.StringIO(body), restval="")
        try:
            columns, rows = reader.fieldnames or [], list(reader)
        except csv.Error as error:
            raise ManifestError(f"{where}, after line {reader.line_num}: {error}") from error
        for name in ("path", "label"):
            if name not in columns:
                raise ManifestError(
                    f"{where} has no column {name!r} (it has: {', '.join(columns) or 'none'})",
                    hint="Columns are path and label, and may be etiology, patient, split and sha256",
                )
        images = tuple(_image(row, f"{where}, row {number}") for number, row in enumerate(rows, start=1))
        listed = Counter(image.path for image in images)
        for number, image in enumerate(images, start=1):
            if listed[image.path] > 1:
                raise ManifestError(f"{where}, row {number}: {image.path!r} is listed {listed[image.path]} times")
        return cls(images, root, by)


def _image(row: Mapping[str, str], where: str) -> LabelledImage:
    values = {name: row.get(name, "").strip() for name in COLUMNS}
    values["label"] = values["label"].upper()
    values["split"] = {"val": "validation"}.get(values["split"], values["split"])
    for column, allowed in (("label", LABELS), ("etiology", ETIOLOGIES), ("split", SPLITS)):
        if values[column] not in allowed:
            raise ManifestError(f"{where}: {column} is {row[column]!r}, not one of {', '.join(filter(None, allowed))}")
    if not values["path"] or "\0" in values["path"]:
        raise ManifestError(f"{where}: {row['path']!r} is no path")
    return LabelledImage(**values)


def images_sha256(hashes: Iterable[str] | Sequence[str]) -> str:
    """One hash for a set of images: SHA-256 of their sorted hashes, one a line."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()

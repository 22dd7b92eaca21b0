"""Load the manifest of a labeled data set from any supported layout.

Supported layouts:

- split folders with class folders, `train/NORMAL/*.jpeg` (Kaggle, Mendeley versions 2 and 3; `val` is optional);
- class folders only, `NORMAL/*.png` and `PNEUMONIA/*.png`, without splits;
- a CSV file with at least the columns path and label, such as a saved manifest;
- a MedMNIST archive, such as `pneumoniamnist.npz`.

Class folders with other names are the classes of the data set; see `classes`. Folders may be nested in folders that contain
nothing else, as is common for unpacked archives. Any other layout is an error that shows the folder's content.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from pneumoscope.core.errors import LayoutError, ManifestError, UsageError
from pneumoscope.core.messages import counted
from pneumoscope.data.classes import LABELS, resolve_classes, spelling_notes
from pneumoscope.data.hashing import Progress, hash_images
from pneumoscope.data.label_mapping import ETIOLOGY_COLUMN, LabelMapping, map_labels, map_patients
from pneumoscope.data.manifest import LabeledImage, Manifest
from pneumoscope.data.medmnist import load_medmnist
from pneumoscope.data.patients import parse_file_name
from pneumoscope.imaging.file_type import IMAGE_EXTENSIONS, skip_reason
from pneumoscope.imaging.header_fields import read_header_fields
from pneumoscope.statistics.inputs import count_unknown

__all__ = ["load_manifest"]

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
# Label and etiology ("" if not implied) by class folder. Applies if the data set has no other class folders.
CLASS_FOLDERS = {
    "normal": ("NORMAL", "normal"),
    "pneumonia": ("PNEUMONIA", ""),
    "bacteria": ("PNEUMONIA", "bacteria"),
    "virus": ("PNEUMONIA", "virus"),
}
_HINT = (
    "Expected train/, test/ (and val/) with a folder for each class inside, such as NORMAL/ and PNEUMONIA/, or the class folders"
    " only, or a CSV with the columns path and label, or a MedMNIST .npz"
)
_MAX_NAMED = 3  # skipped files listed in a note
_MIN_SAME_PATIENT = 10  # minimum number of DICOM files for which a single PatientID is considered a placeholder
_IGNORED = {"__MACOSX", "Thumbs.db", "desktop.ini"}


def load_manifest(
    data: Path,
    *,
    root: Path | None = None,
    labels: LabelMapping | None = None,
    recorded: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """List and hash the labeled images of a folder, a CSV file or a MedMNIST archive.

    Images are recognized by content and sorted by path; a CSV file keeps its order. Images that cannot be opened or are links
    to outside the folder are listed in `Manifest.unreadable`, other files in `Manifest.skipped`, and notes to the user in
    `Manifest.notes`. The patient of a DICOM file is a hash from its header, unless the file name or CSV file provides patients.

    Args:
        data: Folder, CSV file or `.npz` file.
        root: For a CSV file, the folder that its paths are relative to; None for the folder of the CSV file.
        labels: Column and label names of the data; None for the defaults.
        recorded: Whether `labels` was recorded by a run; names that do not occur in the data are then ignored.
        progress: Callback with the number of images processed so far and the total.

    Raises:
        UsageError: `labels` specifies columns, but the data are not a CSV file.
        UnknownNameError: `labels` renames a label that no image has.
        LayoutError: The path does not exist, or its layout is not supported.
        ManifestError: The CSV file is malformed, a path leaves the root, or an image does not match its SHA-256.
        DatasetError: The labels are not valid classes; see `classes.resolve_classes`.
    """
    mapping = labels or LabelMapping()
    if data.suffix.lower() != ".csv" and not recorded:
        _check_no_columns(data, mapping)
    if data.is_dir():
        manifest = _load_folder(data, mapping, progress, recorded=recorded)
    elif not data.exists():
        raise LayoutError(f"{str(data)!r} does not exist", hint=_HINT)
    elif data.suffix.lower() == ".csv":
        manifest = _load_csv(data, root or data.parent, mapping, progress, recorded=recorded)
    elif data.suffix.lower() == ".npz":
        manifest = _map(load_medmnist(data), data, mapping, recorded=recorded)
    else:
        raise LayoutError(f"{str(data)!r} is neither a folder, nor a .csv, nor a .npz", hint=_HINT)
    if not manifest.images:
        raise LayoutError(f"no image can be read in {str(data)!r}{_first_unreadable(manifest)}", hint=_HINT)
    return dataclasses.replace(manifest, notes=(*manifest.notes, *_notes(manifest)))


def _check_no_columns(data: Path, mapping: LabelMapping) -> None:
    """Raise if columns are specified for data that are not a CSV file."""
    label_column = "" if mapping.label_column == ETIOLOGY_COLUMN else mapping.label_column
    named = {
        "--label-column": label_column,
        "--path-column": mapping.path_column,
        "--patient-column": mapping.patient_column,
    }
    for flag, column in named.items():
        if column:
            raise UsageError(f"{flag} {column} is given, and {str(data)!r} is not a CSV file", hint=f"Remove {flag}")


def _map(manifest: Manifest, data: Path, mapping: LabelMapping, *, recorded: bool) -> Manifest:
    """Apply a mapping to the labels, which are names of folders or classes, and to the patients of a manifest."""
    name, images, notes = repr(str(data)), list(manifest.images), manifest.notes
    if not images:
        return manifest
    if mapping.patient_pattern or mapping.patients_from == "folder":
        patients, more = map_patients(images, name, mapping, recorded=recorded)
        images = [dataclasses.replace(image, patient=each) for image, each in zip(images, patients, strict=True)]
        notes += more
    if mapping.label_column == ETIOLOGY_COLUMN:
        if unknown := [image.path for image in images if not image.etiology]:
            raise ManifestError(
                f"{name}: the etiology of {counted(len(unknown), 'image')} is unknown; the first is {unknown[0]!r}",
                hint="File names and folders of the public data set state it; for other data use a CSV with a column etiology",
            )
        images = [dataclasses.replace(image, label=image.etiology) for image in images]
    labels, more = map_labels([image.label for image in images], name, mapping, recorded=recorded)
    # Known archives define the order of their classes.
    unchanged = set(labels) <= set(manifest.classes)
    classes, names = resolve_classes(labels, name, mapping.classes or (manifest.classes if unchanged else ()))
    images = [dataclasses.replace(image, label=names[each]) for image, each in zip(images, labels, strict=True)]
    return dataclasses.replace(
        manifest, images=tuple(images), classes=classes, notes=notes + more + spelling_notes(names)
    )


def _first_unreadable(manifest: Manifest) -> str:
    others = (*manifest.unreadable, *manifest.skipped)
    if not others:
        return ""
    path, reason = others[0]
    return f" (skipped {counted(len(others), 'file')}; the first: {path}: {reason})"


def _with_header_patients(manifest: Manifest, mapping: LabelMapping) -> Manifest:
    """Return the manifest with patients from DICOM headers where unknown, or everywhere if the mapping requires it."""
    images = list(manifest.images)
    if mapping.patients_from == "header":
        images = [dataclasses.replace(image, patient="") for image in images]
    patients = {
        i: header.patient
        for i, image in enumerate(images)
        if not image.patient and (header := read_header_fields(manifest.root / image.path)) and header.patient
    }
    if not patients:
        return manifest
    if len(patients) >= _MIN_SAME_PATIENT and len(set(patients.values())) == 1:
        note = f"all {len(patients)} DICOM files have the same PatientID, so that it identifies no patient"
        return dataclasses.replace(manifest, notes=(*manifest.notes, note))
    for i, patient in patients.items():
        images[i] = dataclasses.replace(images[i], patient=patient)
    note = f"the patients of {counted(len(patients), 'image')} are those of the DICOM headers, as hashes"
    return dataclasses.replace(manifest, images=tuple(images), notes=(*manifest.notes, note))


def _notes(manifest: Manifest) -> Iterator[str]:
    images = manifest.images
    if not manifest.binary:
        hint = ". A model of these has no operating points; for a model of pneumonia, add --positive with its class"
        classes = f"{len(manifest.classes)} classes: {', '.join(manifest.classes)}"
        yield f"the data have {classes}{hint if len(manifest.classes) == 2 else ''}"
    if others := [path for path, reason in manifest.skipped if reason != "hidden"]:
        names = ", ".join(others[:_MAX_NAMED]) + (", …" if len(others) > _MAX_NAMED else "")
        yield f"skipped {counted(len(others), 'other file')} ({names}); for details: pneumoscope check-data DATA"
    if unknown := count_unknown(image.patient for image in images):
        yield (
            f"the patient of {unknown:,} of {len(images):,} images is unknown, because neither file names nor DICOM headers"
            " contain it. If images may share a patient, add --patient-pattern, or use a CSV file with a column patient"
        )


# --- folders ---------------------------------------------------------------------------------------------------------


def _load_folder(data: Path, mapping: LabelMapping, progress: Progress | None, *, recorded: bool) -> Manifest:
    root = _descend(data.resolve())
    folders = {folder.name: folder for folder in _visible_folders(root)}
    splits = {name: SPLIT_FOLDERS[name.lower()] for name in folders if name.lower() in SPLIT_FOLDERS}
    classes = [each for name in splits for each in _visible_folders(folders[name])] if splits else folders.values()
    listing = _Listing(root, has_other_classes=any(each.name.lower() not in CLASS_FOLDERS for each in classes))
    if splits:
        listing.skip_others(root, known=splits)
        for name in sorted(splits):
            listing.add_split(folders[name], splits[name])
    else:
        listing.add_split(root, "")
    listed = Manifest(tuple(sorted(listing.images, key=lambda image: image.path)), root, classes=())
    # Before reading the files, so that errors in the labels are reported at once.
    listed = _map(listed, data, mapping, recorded=recorded)
    images, unreadable = hash_images(root, listed.images, progress)
    return _with_header_patients(
        dataclasses.replace(
            listed,
            images=images,
            unreadable=tuple(sorted((*listing.unreadable, *unreadable))),
            skipped=tuple(sorted(listing.skipped)),
        ),
        mapping,
    )


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_ignored(path.name))


def _descend(folder: Path) -> Path:
    """Return the first folder with split or class folders, descending through folders with a single subfolder.

    Two or more folders with other names are class folders if each contains images.
    """
    top = folder
    while True:
        subfolders = _visible_folders(folder)
        if any(path.name.lower() in SPLIT_FOLDERS | CLASS_FOLDERS for path in subfolders):
            return folder
        if len(subfolders) > 1 and all(map(_has_images, subfolders)):
            return folder
        if not any(top.iterdir()):
            raise LayoutError(f"{str(top)!r} is empty", hint=_HINT)
        if len(subfolders) != 1:
            raise LayoutError(f"{str(top)!r} has an unsupported layout. It contains:\n{_tree(top)}\n", hint=_HINT)
        folder = subfolders[0]


def _has_images(folder: Path) -> bool:
    """Return whether the folder contains an image, at any depth."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_ignored(name))
        paths = (Path(parent, name) for name in sorted(files) if not _is_ignored(name))
        if any(path.is_file() and not skip_reason(path) for path in paths):
            return True
    return False


def _tree(folder: Path, *, depth: int = 2, max_entries: int = 6, indent: str = "  ") -> str:
    """Return a short listing of a folder for messages."""
    entries = sorted(folder.iterdir())
    lines = []
    for path in entries[:max_entries]:
        lines.append(f"{indent}{path.name}{'/' if path.is_dir() else ''}")
        if depth > 1 and path.is_dir() and not path.is_symlink():
            lines.extend(filter(None, [_tree(path, depth=depth - 1, max_entries=3, indent=indent + "  ")]))
    if len(entries) > max_entries:
        lines.append(f"{indent}... and {len(entries) - max_entries} more")
    return "\n".join(lines) or f"{indent}(empty)"


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED


class _Listing:
    """Images below a root, unusable images, and skipped files."""

    def __init__(self, root: Path, *, has_other_classes: bool) -> None:
        self.root = root
        self.has_other_classes = has_other_classes
        self.images: list[LabeledImage] = []
        self.unreadable: list[tuple[str, str]] = []
        self.skipped: list[tuple[str, str]] = []

    def skip(self, path: Path, reason: str) -> None:
        """Record an image, or a broken link named like one, as unreadable, and anything else as skipped."""
        is_file, is_named_like_one = path.is_file(), path.suffix.lower() in IMAGE_EXTENSIONS
        is_image = not skip_reason(path) if is_file else is_named_like_one and not path.is_dir()
        others = self.unreadable if is_image else self.skipped
        others.append((path.relative_to(self.root).as_posix(), reason))

    def skip_others(self, folder: Path, *, known: Iterable[str]) -> None:
        """Record unexpected folders and images as skipped; other files, such as a license, are ignored."""
        for path in sorted(folder.iterdir()):
            if path.name in known or _is_ignored(path.name):
                continue
            if path.is_dir() or not skip_reason(path):
                self.skip(path, "outside the split and class folders")

    def add_split(self, folder: Path, split: str) -> None:
        """Add the class folders of one split, or of a data set without splits."""
        if self._skip_outside_link(folder):
            return
        classes = _visible_folders(folder)
        empty = [path.name for path in classes if path.name.lower() not in CLASS_FOLDERS and not _has_images(path)]
        if empty or not classes:
            no_images = f"{next(iter(empty), '')!r} is not a class folder, because it has no images"
            reason = no_images if empty else "there are no class folders"
            name = folder.relative_to(self.root.parent).as_posix()
            raise LayoutError(f"{name}/: {reason}. It contains:\n{_tree(folder)}\n", hint=_HINT)
        self.skip_others(folder, known=[path.name for path in classes])
        for path in classes:
            label, etiology = (path.name, "") if self.has_other_classes else CLASS_FOLDERS[path.name.lower()]
            self._add_images(path, split, label, etiology)

    def _skip_outside_link(self, path: Path) -> bool:
        if not path.is_symlink() or path.resolve().is_relative_to(self.root):
            return False
        self.skip(path, "a link to outside the folder")
        return True

    def _add_images(self, folder: Path, split: str, label: str, etiology: str) -> None:
        if self._skip_outside_link(folder):
            return
        try:
            with os.scandir(folder) as iterator:
                entries = sorted(iterator, key=lambda entry: entry.name)
        except OSError as error:
            self.skip(folder, error.strerror or type(error).__name__)
            return
        if not entries:
            self.skip(folder, "empty folder")
        base = folder.relative_to(self.root).as_posix()
        for entry in entries:
            if _is_ignored(entry.name):
                self.skip(Path(entry), "hidden")
            elif entry.is_symlink() and self._skip_outside_link(Path(entry)):
                pass
            elif entry.is_dir():
                inner = (label, "") if self.has_other_classes else CLASS_FOLDERS.get(entry.name.lower(), (label, ""))
                self._add_images(Path(entry), split, label, inner[1] if inner[0] == label and inner[1] else etiology)
            elif not entry.is_file():
                self.skip(Path(entry), "a broken link or not a file")
            elif reason := skip_reason(Path(entry)):
                self.skip(Path(entry), reason)
            else:
                image = LabeledImage(f"{base}/{entry.name}", label, etiology, "", split, "")
                self.images.append(_add_file_name_info(image))


# --- CSV -------------------------------------------------------------------------------------------------------------


def _load_csv(file: Path, root: Path, mapping: LabelMapping, progress: Progress | None, *, recorded: bool) -> Manifest:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"cannot read {str(file)!r}: {error}") from error
    listed = Manifest.from_csv(text, root.resolve(), str(file), mapping, recorded=recorded)
    _check_paths(listed, file)
    images = listed.images
    # Parse patients from file names only if the CSV has none, because mixing two kinds of identifiers would hide leaks.
    if not any(image.patient for image in images):
        images = tuple(_add_file_name_info(image) for image in images)
    images, unreadable = hash_images(listed.root, images, progress, manifest_name=str(file))
    splits = {image.path: image.split for image in listed.images}
    unreadable_splits = {path: splits[path] for path, _ in unreadable}
    manifest = dataclasses.replace(listed, images=images, unreadable=unreadable, unreadable_splits=unreadable_splits)
    if any(image.patient for image in listed.images) and mapping.patients_from != "header":
        return manifest
    return _with_header_patients(manifest, mapping)


def _check_paths(manifest: Manifest, file: Path) -> None:
    """Raise if a relative path, with links resolved, leaves the root; absolute paths are allowed."""
    inside: dict[Path, bool] = {}
    for image in manifest.images:
        relative = PurePosixPath(image.path)
        if relative.is_absolute():
            continue
        path = manifest.root / relative
        folder = path.parent
        if folder not in inside:
            inside[folder] = folder.resolve().is_relative_to(manifest.root)
        outside_link = path.is_symlink() and not path.resolve().is_relative_to(manifest.root)
        if not inside[folder] or outside_link:
            raise ManifestError(
                f"{str(file)!r}: {image.path!r} is outside {str(manifest.root)!r}",
                hint="Use an absolute path if this is intended",
            )


def _add_file_name_info(image: LabeledImage) -> LabeledImage:
    """Return the image with patient and etiology from its file name, ignoring an etiology that contradicts the label.

    Only the labels NORMAL and PNEUMONIA can contradict an etiology.
    """
    info = parse_file_name(image.path.rpartition("/")[2])
    consistent = info.etiology and (
        image.label not in LABELS or (info.etiology == "normal") == (image.label == "NORMAL")
    )
    etiology = image.etiology or (info.etiology if consistent else "")
    return LabeledImage(image.path, image.label, etiology, image.patient or info.patient, image.split, image.sha256)

"""Whatever way the images lie on disk, out comes one manifest. What is in no known layout is refused and shown.

Known layouts:

- split folders of class folders, `train/NORMAL/*.jpeg` (Kaggle, Mendeley versions 2 and 3; with or without `val`);
- class folders alone, `NORMAL/*.png` and `PNEUMONIA/*.png`, with no splits yet;
- a CSV with at least the columns path and label (our own manifests are such);
- a MedMNIST archive, `pneumoniamnist.npz`.

Folders may stand inside other folders that hold nothing else, as archives unpack.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from pneumoscope.core.errors import LayoutError, ManifestError
from pneumoscope.data.hashing import Progress, hash_images, read_image
from pneumoscope.data.manifest import LabelledImage, Manifest
from pneumoscope.data.medmnist import load_npz
from pneumoscope.data.patients import identify
from pneumoscope.imaging.decode import EXTENSIONS

__all__ = ["load_manifest", "read_image"]

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
# Class folder -> (label, etiology where the folder alone tells it).
CLASS_FOLDERS = {
    "normal": ("NORMAL", "normal"),
    "pneumonia": ("PNEUMONIA", ""),
    "bacteria": ("PNEUMONIA", "bacteria"),
    "virus": ("PNEUMONIA", "virus"),
}
_EXPECTED = (
    "Expected train/, test/ (and val/) with NORMAL/ and PNEUMONIA/ inside, or NORMAL/ and PNEUMONIA/ alone, or a CSV"
    " with the columns path and label, or a MedMNIST .npz"
)
_LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}


def load_manifest(data: Path, *, root: Path | None = None, progress: Progress | None = None) -> Manifest:
    """List and hash the labelled images of a folder, CSV or archive.

    Images come sorted by path (a CSV keeps its own order). Files that cannot be opened, that are no images or that are
    links out of the folder are in `Manifest.unreadable`; what the caller should know is in `Manifest.notes`.

    Args:
        data: the folder, the CSV, or the `.npz`.
        root: for a CSV, what its relative paths are relative to; its own folder where None.
        progress: called with (images done, images in all).
    Raises:
        LayoutError: no such path, or no known layout; what was found is shown.
        ManifestError: a CSV is malformed, leads out of its root, or states another SHA-256 than an image has.
    """
    if data.is_dir():
        manifest = _load_folder(data, progress)
    elif not data.exists():
        raise LayoutError(f"there is no {str(data)!r}", hint=_EXPECTED)
    elif data.suffix.lower() == ".csv":
        manifest = _load_csv(data, root or data.parent, progress)
    elif data.suffix.lower() == ".npz":
        manifest = load_npz(data)
    else:
        raise LayoutError(f"{str(data)!r} is neither a folder, nor a .csv, nor a .npz", hint=_EXPECTED)
    if not manifest.images:
        raise LayoutError(f"no image could be read in {str(data)!r}{_why_none(manifest)}", hint=_EXPECTED)
    return dataclasses.replace(manifest, notes=(*manifest.notes, *_notes(manifest.images)))


def _why_none(manifest: Manifest) -> str:
    if not manifest.unreadable:
        return ""
    path, why = manifest.unreadable[0]
    return f" ({len(manifest.unreadable)} were left out; the first: {path}: {why})"


def _notes(images: Iterable[LabelledImage]) -> Iterator[str]:
    images = tuple(images)
    unknown = sum(not image.patient for image in images)
    if unknown:
        yield (
            f"the patient of {unknown:,} of {len(images):,} images is unknown: their names do not tell it. Give a CSV"
            " with a column patient where several images may show the same one"
        )


# --- folders ---------------------------------------------------------------------------------------------------------


def _load_folder(data: Path, progress: Progress | None) -> Manifest:
    root = _descend(data.resolve())
    listing = _Listing(root)
    names = {folder.name: folder for folder in _visible_folders(root)}
    splits = {name: SPLIT_FOLDERS[name.lower()] for name in names if name.lower() in SPLIT_FOLDERS}
    if splits:
        listing.note_others(root, known=splits)
        for name in sorted(splits):
            listing.add_classes(names[name], splits[name])
    else:
        listing.add_classes(root, "")
    images, unreadable = hash_images(root, sorted(listing.images, key=lambda image: image.path), progress)
    return Manifest(images, root, unreadable=tuple(sorted((*listing.unreadable, *unreadable))))


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_litter(path.name))


def _descend(folder: Path) -> Path:
    """Through folders that hold one folder and nothing else that is known."""
    top = folder
    while True:
        below = _visible_folders(folder)
        if any(path.name.lower() in SPLIT_FOLDERS | CLASS_FOLDERS for path in below):
            return folder
        if len(below) != 1:
            raise LayoutError(f"{str(top)!r} is in no layout that we know; found:\n{_tree(top)}\n", hint=_EXPECTED)
        folder = below[0]


def _tree(folder: Path, *, depth: int = 2, most: int = 6, indent: str = "  ") -> str:
    """A few lines that show what is there."""
    entries = sorted(folder.iterdir())
    lines = []
    for path in entries[:most]:
        lines.append(f"{indent}{path.name}{'/' if path.is_dir() else ''}")
        if depth > 1 and path.is_dir() and not path.is_symlink():
            lines.extend(filter(None, [_tree(path, depth=depth - 1, most=3, indent=indent + "  ")]))
    if len(entries) > most:
        lines.append(f"{indent}... and {len(entries) - most} more")
    return "\n".join(lines) or f"{indent}(empty)"


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in _LITTER


class _Listing:
    """The images below one root, and what was left out of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: list[LabelledImage] = []
        self.unreadable: list[tuple[str, str]] = []

    def leave_out(self, path: Path, why: str) -> None:
        self.unreadable.append((path.relative_to(self.root).as_posix(), why))

    def note_others(self, folder: Path, *, known: Iterable[str]) -> None:
        """Folders and images beside the folders that are read: left out, and said so. A licence or a note is neither."""
        for path in sorted(folder.iterdir()):
            is_image = path.is_dir() or path.suffix.lower() in EXTENSIONS
            if path.name not in known and is_image and not _is_litter(path.name):
                self.leave_out(path, "beside the folders that are read")

    def add_classes(self, folder: Path, split: str) -> None:
        """The class folders of one split (or of the whole, where there are no splits)."""
        if self._leads_out(folder):
            return
        found = _visible_folders(folder)
        strange = [path.name for path in found if path.name.lower() not in CLASS_FOLDERS]
        if strange or not found:
            what = f"{strange[0]!r} is no class that we know" if strange else "it has no class folders"
            where = folder.relative_to(self.root.parent).as_posix()
            raise LayoutError(f"{where}/: {what}; found:\n{_tree(folder)}\n", hint=_EXPECTED)
        self.note_others(folder, known=[path.name for path in found])
        for path in found:
            label, etiology = CLASS_FOLDERS[path.name.lower()]
            self._add_images(path, split, label, etiology)

    def _leads_out(self, path: Path) -> bool:
        if not path.is_symlink() or path.resolve().is_relative_to(self.root):
            return False
        self.leave_out(path, "a link out of the folder; not followed")
        return True

    def _add_images(self, folder: Path, split: str, label: str, etiology: str) -> None:
        if self._leads_out(folder):
            return
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.leave_out(folder, error.strerror or type(error).__name__)
            return
        if not found:
            self.leave_out(folder, "empty folder")
        base = folder.relative_to(self.root).as_posix()
        for entry in found:
            extension = os.path.splitext(entry.name)[1]  # noqa: PTH122  (a Path each would cost a fifth of a second)
            if _is_litter(entry.name):
                self.leave_out(Path(entry), "hidden")
            elif entry.is_symlink() and self._leads_out(Path(entry)):
                pass
            elif entry.is_dir():
                inner = CLASS_FOLDERS.get(entry.name.lower(), (label, ""))
                self._add_images(Path(entry), split, label, inner[1] if inner[0] == label and inner[1] else etiology)
            elif not entry.is_file():
                self.leave_out(Path(entry), "a broken link or not a file")
            elif extension.lower() not in EXTENSIONS:
                self.leave_out(Path(entry), f"not an image by its name ({extension or 'no extension'})")
            else:
                self.images.append(
                    identify_image(LabelledImage(f"{base}/{entry.name}", label, etiology, "", split, ""))
                )


# --- CSV -------------------------------------------------------------------------------------------------------------


def _load_csv(file: Path, root: Path, progress: Progress | None) -> Manifest:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"cannot read {str(file)!r}: {error}") from error
    listed = Manifest.from_csv(text, root.resolve(), str(file))
    _refuse_escapes(listed, file)
    images = listed.images
    # Patients come from names only where the file says nothing of any: two kinds of key would hide a leak.
    if not any(image.patient for image in images):
        images = tuple(identify_image(image) for image in images)
    images, unreadable = hash_images(listed.root, images, progress, where=str(file))
    return dataclasses.replace(listed, images=images, unreadable=unreadable)


def _refuse_escapes(manifest: Manifest, file: Path) -> None:
    """A relative path stays below the root, links included; an absolute path is the caller's own word."""
    inside: dict[Path, bool] = {}
    for image in manifest.images:
        relative = PurePosixPath(image.path)
        if relative.is_absolute():
            continue
        path = manifest.root / relative
        folder = path.parent
        if folder not in inside:
            inside[folder] = folder.resolve().is_relative_to(manifest.root)
        linked = path.is_symlink() and not path.resolve().is_relative_to(manifest.root)
        if not inside[folder] or linked:
            raise ManifestError(
                f"{str(file)!r}: {image.path!r} leads out of {str(manifest.root)!r}",
                hint="Write an absolute path where an image lies elsewhere on purpose",
            )


def identify_image(image: LabelledImage) -> LabelledImage:
    """The image with the patient and etiology that its file name tells; its label stays what the data says."""
    identity = identify(image.path.rpartition("/")[2])
    fits = identity.etiology and (identity.etiology == "normal") == (image.label == "NORMAL")
    etiology = image.etiology or (identity.etiology if fits else "")
    return LabelledImage(
        image.path, image.label, etiology, image.patient or identity.patient, image.split, image.sha256
    )

"""Find the image files that a user names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pneumoscope.imaging.decode import EXTENSIONS, has_dicom_prefix

__all__ = ["DiscoveredImages", "discover_images"]


class DiscoveredImages(NamedTuple):
    """Image files in the order of the arguments, and the number of skipped files, hidden folders and links."""

    paths: tuple[str, ...]
    skipped: int


def discover_images(arguments: Iterable[str]) -> DiscoveredImages:
    """Return the images among files and folders.

    A file is returned whatever its content, so that an unreadable one is reported. A folder is searched recursively, in sorted
    order, for files with the extension of an image or the beginning of a DICOM file, which often has no extension. Hidden files
    and folders, DICOMDIR files and links to folders are skipped.

    Args:
        arguments: Files and folders; a missing path counts as a file.
    """
    paths: list[str] = []
    skipped = 0
    for argument in arguments:
        if not os.path.isdir(argument):  # noqa: PTH112  the path keeps the form that the user wrote
            paths.append(argument)
            continue
        images, others = _search(argument)
        paths.extend(images)
        skipped += others
    return DiscoveredImages(tuple(paths), skipped)


def _search(folder: str) -> tuple[list[str], int]:
    """Return the images below a folder, and the number of other files."""
    images: list[str] = []
    skipped = 0

    def on_error(error: OSError) -> None:
        images.append(str(error.filename))  # decoding the unreadable folder reports why

    for parent, folders, names in os.walk(folder, onerror=on_error):
        visited = [name for name in folders if not name.startswith(".") and not Path(parent, name).is_symlink()]
        skipped += len(folders) - len(visited)
        folders[:] = visited
        found = [path for name in names if _is_image(path := Path(parent, name))]
        images.extend(os.path.join(parent, path.name) for path in found)  # noqa: PTH118  Path would drop a leading ./
        skipped += len(names) - len(found)
    return sorted(images, key=lambda path: Path(path).parts), skipped


def _is_image(path: Path) -> bool:
    if path.name.startswith(".") or path.name == "DICOMDIR":
        return False
    return path.suffix.lower() in EXTENSIONS or has_dicom_prefix(path)

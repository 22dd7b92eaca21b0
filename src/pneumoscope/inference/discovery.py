"""Which images are meant by the files and folders that a person names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pneumoscope.imaging.decode import EXTENSIONS, begins_as_dicom

__all__ = ["DiscoveredImages", "discover_images"]


class DiscoveredImages(NamedTuple):
    """Images in the order in which they were named, and how many other files, hidden folders and links were left out."""

    paths: tuple[str, ...]
    skipped: int


def discover_images(named: Iterable[str]) -> DiscoveredImages:
    """List the images of files and folders.

    A file that is named is taken whatever it is: it either is an image or an error of its own. From a folder come, sorted,
    those below it that have an image's extension or begin as DICOM does, which often has none. Hidden files and folders and
    the index of a DICOM folder are left out.

    Links to folders are not followed; they count as left out.

    Args:
        named: files and folders; what does not exist is taken as a file.
    """
    paths: list[str] = []
    skipped = 0
    for name in named:
        if not os.path.isdir(name):  # noqa: PTH112  a name must come back as it was given
            paths.append(name)
            continue
        images, others = _below(name)
        paths.extend(images)
        skipped += others
    return DiscoveredImages(tuple(paths), skipped)


def _below(folder: str) -> tuple[list[str], int]:
    """The images below a folder, and how many other files there are."""
    images: list[str] = []
    others = 0

    def refused(error: OSError) -> None:
        images.append(str(error.filename))  # a folder that cannot be listed: reading it as an image tells why

    for parent, folders, names in os.walk(folder, onerror=refused):
        followed = [name for name in folders if not name.startswith(".") and not Path(parent, name).is_symlink()]
        others += len(folders) - len(followed)
        folders[:] = followed
        found = [path for name in names if _is_image(path := Path(parent, name))]
        images.extend(os.path.join(parent, path.name) for path in found)  # noqa: PTH118  as above: Path drops a leading ./
        others += len(names) - len(found)
    return sorted(images, key=lambda path: Path(path).parts), others


def _is_image(path: Path) -> bool:
    if path.name.startswith(".") or path.name == "DICOMDIR":
        return False
    return path.suffix.lower() in EXTENSIONS or begins_as_dicom(path)

"""Which films are meant by the files and folders that a person names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pneumoscope.radiograph.decode import EXTENSIONS, begins_as_dicom

__all__ = ["FoundFilms", "find_films"]


class FoundFilms(NamedTuple):
    """Films in the order in which they were named, and how many other files, hidden folders and links were left out."""

    paths: tuple[str, ...]
    skipped: int


def find_films(named: Iterable[str]) -> FoundFilms:
    """List the films of files and folders.

    A file that is named is taken whatever it is: it either is a film or an error of its own. From a folder come, sorted,
    those below it that have a film's extension or begin as DICOM does, which often has none. Hidden files and folders and
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
        films, others = _below(name)
        paths.extend(films)
        skipped += others
    return FoundFilms(tuple(paths), skipped)


def _below(folder: str) -> tuple[list[str], int]:
    """The films below a folder, and how many other files there are."""
    films: list[str] = []
    others = 0

    def refused(error: OSError) -> None:
        films.append(str(error.filename))  # a folder that cannot be listed: reading it as a film tells why

    for parent, folders, names in os.walk(folder, onerror=refused):
        followed = [name for name in folders if not name.startswith(".") and not Path(parent, name).is_symlink()]
        others += len(folders) - len(followed)
        folders[:] = followed
        found = [path for name in names if _is_film(path := Path(parent, name))]
        films.extend(os.path.join(parent, path.name) for path in found)  # noqa: PTH118  as above: Path drops a leading ./
        others += len(names) - len(found)
    return sorted(films, key=lambda path: Path(path).parts), others


def _is_film(path: Path) -> bool:
    if path.name.startswith(".") or path.name == "DICOMDIR":
        return False
    return path.suffix.lower() in EXTENSIONS or begins_as_dicom(path)

"""Find the image files in the files and folders that a user names."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pneumoscope.core.messages import counted
from pneumoscope.imaging.file_type import identify_file, skip_reason

__all__ = ["DiscoveredImages", "SkippedFile", "discover_images", "iter_folder"]

_MAX_DICOMDIR_BYTES = 2**26
_SEPARATOR = re.compile(r"[/\\]")  # of nonstandard paths; the standard uses one value per component
_FORBIDDEN = frozenset(":\0")  # in a file name in a DICOMDIR
_MAX_NAMED = 3  # skipped files per reason in the summary


class SkippedFile(NamedTuple):
    """File or folder that was skipped, and the reason."""

    path: str
    reason: str


class DiscoveredImages(NamedTuple):
    """Image files in the order of the arguments, and the skipped files, hidden folders and links."""

    paths: tuple[str, ...]
    skipped: tuple[SkippedFile, ...] = ()

    def skipped_summary(self) -> str:
        """Return the number of skipped files by reason with the first names, or "" if there are none."""
        if not self.skipped:
            return ""
        by_reason: dict[str, list[str]] = defaultdict(list)
        for path, reason in self.skipped:
            by_reason[reason].append(path)
        parts = []
        for reason, paths in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
            names = ", ".join(Path(path).name for path in paths[:_MAX_NAMED])
            parts.append(f"{reason}: {len(paths):,} ({names}{', …' if len(paths) > _MAX_NAMED else ''})")
        return (
            f"Skipped {counted(len(self.skipped), 'file')}. {'. '.join(part[0].upper() + part[1:] for part in parts)}"
        )


def discover_images(arguments: Iterable[str]) -> DiscoveredImages:
    """Return the images among files and folders.

    A file argument is returned regardless of its content, so that an unreadable one is reported. Folders are searched
    recursively for images in sorted order; see `imaging.file_type.skip_reason`. A DICOMDIR is replaced by the files that it
    lists, even missing ones. Hidden files, hidden folders and links to folders are skipped.

    Args:
        arguments: Files and folders; a missing path counts as a file.
    """
    paths: list[str] = []
    skipped: list[SkippedFile] = []
    for argument in arguments:
        if os.path.isdir(argument):  # noqa: PTH112  the path keeps the form that the user wrote
            images, others = _search(argument)
            paths.extend(images)
            skipped.extend(others)
        else:
            paths.extend(_listed_files(argument) if _is_dicomdir(argument) else [argument])
    return DiscoveredImages(tuple(paths), tuple(skipped))


def _search(folder: str) -> tuple[list[str], list[SkippedFile]]:
    """Return the images below a folder, including those listed in its DICOMDIR files, and the skipped files."""
    images: dict[str, None] = {}
    skipped: list[SkippedFile] = []

    def on_error(error: OSError) -> None:
        images[str(error.filename)] = None  # decoding the unreadable folder reports why

    for parent, folders, names in os.walk(folder, onerror=on_error):
        hidden = [name for name in folders if name.startswith(".")]
        links = [name for name in folders if name not in hidden and Path(parent, name).is_symlink()]
        skipped.extend(SkippedFile(_join(parent, name), "hidden") for name in hidden)
        skipped.extend(SkippedFile(_join(parent, name), "a link to a folder") for name in links)
        folders[:] = [name for name in folders if name not in {*hidden, *links}]
        for name in names:
            path = _join(parent, name)
            reason = skip_reason(Path(path))
            if not reason:
                images[path] = None
            elif _is_dicomdir(path):  # missing files that it lists are reported as unreadable
                images.update(dict.fromkeys(_listed_files(path)))
            else:
                skipped.append(SkippedFile(path, reason))
    return sorted(images, key=lambda path: Path(path).parts), sorted(skipped)


def iter_folder(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the path of each image below a folder with "", and of each skipped file or folder with the reason.

    Files and order are the same as for `discover_images`, but memory use does not grow with the number of files. Files found
    only through a DICOMDIR, because they are missing, hidden or not recognized, are yielded when the DICOMDIR is reached.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted((entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries)
    except OSError:
        yield folder, ""  # decoding the unreadable folder reports why
        return
    for name, is_folder, is_link in names:
        path = _join(folder, name)
        if is_folder and (name.startswith(".") or is_link):
            yield path, "hidden" if name.startswith(".") else "a link to a folder"
        elif is_folder:
            yield from iter_folder(path)
        elif (reason := skip_reason(Path(path))) and _is_dicomdir(path):
            for listed in dict.fromkeys(_listed_files(path)):
                hidden = any(part.startswith(".") for part in Path(os.path.relpath(listed, folder)).parts)
                if hidden or not Path(listed).is_file() or skip_reason(Path(listed)):
                    yield listed, ""
        else:
            yield path, reason


def _join(parent: str, name: str) -> str:
    return os.path.join(parent, name)  # noqa: PTH118  Path would drop a leading ./


def _is_dicomdir(path: str) -> bool:
    try:
        return identify_file(Path(path)).role == "directory"
    except (OSError, ValueError):
        return False


def _listed_files(dicomdir: str) -> list[str]:
    """Return the image files listed in a DICOMDIR, in its order.

    A DICOMDIR that cannot be read, or lists a file outside its folder, is returned itself, so that decoding reports an error.
    """
    from pneumoscope.imaging.dicom_elements import read_elements

    try:
        if Path(dicomdir).stat().st_size > _MAX_DICOMDIR_BYTES:
            return [dicomdir]
        records = read_elements(Path(dicomdir), ["DirectoryRecordSequence"]).DirectoryRecordSequence
        listed = [
            _SEPARATOR.split(identifier if isinstance(identifier, str) else "/".join(identifier))
            for record in records
            if record.get("DirectoryRecordType") == "IMAGE" and (identifier := record.get("ReferencedFileID"))
        ]
    except Exception:  # noqa: BLE001  untrusted bytes can make a parser fail in any way
        return [dicomdir]
    if any(part in {"", ".", ".."} or _FORBIDDEN & {*part} for parts in listed for part in parts):
        return [dicomdir]
    parent = os.path.dirname(dicomdir)  # noqa: PTH120  keeps the form that the user wrote
    names: dict[str, dict[str, str]] = {}
    return [_find_file(parent, parts, names) for parts in listed]


def _find_file(folder: str, parts: list[str], names: dict[str, dict[str, str]]) -> str:
    """Return the path of a listed file, ignoring case: DICOMDIR names are upper case, mounted media often lower case.

    Args:
        folder: Folder of the DICOMDIR.
        parts: Folder names and file name.
        names: Actual names in each folder by case-folded name; filled on demand.
    """
    found = folder
    for part in parts:
        if found not in names:
            try:
                listed = os.listdir(found or ".")  # noqa: PTH208
            except OSError:
                listed = []
            names[found] = {name.casefold(): name for name in listed} | {name: name for name in listed}
        actual = names[found].get(part) or names[found].get(part.casefold()) or part
        found = _join(found, actual)
    return found

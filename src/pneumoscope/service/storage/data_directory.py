"""The data folder, of which it is noticed when it is moved, removed or exchanged while it is in use.

An open database goes with its file wherever that is moved to; images would go to the place where it was. One of the two would
then be missing in either place.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pneumoscope.core.errors import StorageError

__all__ = ["DataDirectory", "create_data_directory"]

_ROOM = 2**20  # bytes: less is no room for an image


class DataDirectory:
    """A folder as it is now.

    Args:
        folder: made where missing; None is in memory, and stays.
        names: of files in it that must stay; those that are there are watched.
    Raises:
        StorageError: it cannot be made.
    """

    def __init__(self, folder: Path | None, *names: str) -> None:
        self._known: dict[Path, tuple[int, int] | None] = {}
        if folder is None:
            return
        create_data_directory(folder)
        watched = (folder, *(folder / name for name in names))
        self._known = {path: _identity(path) for path in watched if path.exists()}

    def check(self) -> None:
        """Go on where it is what it was.

        Raises:
            StorageError: it is another one, or none.
        """
        for path, known in self._known.items():
            if _identity(path) != known:
                raise StorageError(
                    f"{str(path)!r} is gone, or another than this process opened",
                    hint="Nothing was changed. Put back what was there, or start the service again",
                )

    def check_room(self) -> None:
        """Go on where there is room for images, too.

        Raises:
            StorageError: there is none, or `check` says so.
        """
        self.check()
        for path in self._known:
            try:
                free = shutil.disk_usage(path).free
            except OSError as error:
                raise StorageError(f"cannot look at {str(path)!r}: {error.strerror or error}") from error
            if free < _ROOM:
                raise StorageError(f"no room is left on the disk of {str(path)!r}", hint="Free some space")


def create_data_directory(folder: Path) -> None:
    """Make a data folder where it is missing, for its owner alone: images of patients are for nobody else on this machine.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot make {str(folder)!r}: {error.strerror or error}", hint="Choose another folder with --data"
        ) from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino

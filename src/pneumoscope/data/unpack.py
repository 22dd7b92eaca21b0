"""A stranger's zip into a folder: nothing outside it, no link, no bomb, and all of it or nothing."""

from __future__ import annotations

import dataclasses
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from pneumoscope.core.errors import DownloadError

__all__ = ["Limits", "unpack"]

_BLOCK = 1 << 20
_LITTER = {"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"}


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may become.

    Attributes:
        bytes: of all files together, as written, not as the archive claims.
        files: how many.
        ratio: bytes of all files by bytes of the archive. Images are compressed already: 1.1 is usual.
    """

    bytes: int = 20_000_000_000
    files: int = 100_000
    ratio: float = 20.0


def unpack(archive: Path, folder: Path, limits: Limits) -> None:
    """Unpack a zip into a new folder.

    Files are written into a hidden folder beside it, which gets its name at the end.

    Args:
        archive: the zip.
        folder: to be made; must not exist.
        limits: counted while writing.
    Raises:
        DownloadError: damaged, encrypted, a path that leads out, a link, a name twice, more than the limits.
        OSError: the disk is full or cannot be written; nothing is left behind.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # what a killed run left
    part.mkdir()
    try:
        with zipfile.ZipFile(archive) as zipped:
            _unpack_into(part, zipped, archive, limits)
        part.rename(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _unsafe(archive, f"it is not a sound zip ({error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack_into(part: Path, zipped: zipfile.ZipFile, archive: Path, limits: Limits) -> None:
    entries = [entry for entry in zipped.infolist() if _LITTER.isdisjoint(entry.filename.split("/"))]
    if len(entries) > limits.files:
        raise _unsafe(archive, f"it holds {len(entries):,} files, more than {limits.files:,}")
    most = int(min(limits.bytes, limits.ratio * archive.stat().st_size))
    written = 0
    for entry in entries:
        target = part / _safe_path(archive, entry)
        try:
            (target if entry.is_dir() else target.parent).mkdir(parents=True, exist_ok=True)
            if entry.is_dir():
                continue
            file = target.open("xb")
        except (FileExistsError, NotADirectoryError) as error:
            raise _unsafe(archive, f"{entry.filename!r} is in it twice") from error
        with file, zipped.open(entry) as source:
            while block := source.read(_BLOCK):
                written += len(block)
                if written > most:
                    raise _unsafe(archive, f"it unpacks to more than {most:,} bytes")
                file.write(block)


def _safe_path(archive: Path, entry: zipfile.ZipInfo) -> PurePosixPath:
    name = entry.filename
    path = PurePosixPath(name)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise _unsafe(archive, f"{name!r} is a link or a device")
    if path.is_absolute() or ".." in path.parts or "\\" in name or PureWindowsPath(name).drive or not path.parts:
        raise _unsafe(archive, f"{name!r} leads out of the folder")
    if entry.flag_bits & 0x1 or entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise _unsafe(archive, f"{name!r} is encrypted or compressed in an unusual way")
    return path


def _unsafe(archive: Path, why: str) -> DownloadError:
    return DownloadError(f"{archive.name} is refused: {why}", hint="Nothing was unpacked")

"""Download the public data set, verify it and unpack it safely.

Kermany, Zhang & Goldbaum 2018, "Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification", version
2, doi:10.17632/rscbjbr9sj.2, CC BY 4.0.

`pooch` decides whether to download, verifies the SHA-256 and moves the file into place. Because it cannot resume, its
downloader is replaced by one that sends a Range request. `pooch.Unzip` does not limit sizes, so `unpack` is used instead.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import stat
import time
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

import pooch
import requests
from urllib3.exceptions import HTTPError

from pneumoscope.core.errors import DownloadError, StorageError, UsageError

__all__ = ["KERMANY_2018", "Archive", "Limits", "download", "unpack"]

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds
_TRIES = 5  # consecutive attempts without a new byte
_WAIT = 1.0  # seconds
_IGNORED = {"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"}

DownloadProgress = Callable[[int, int | None], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the content of an archive.

    Attributes:
        bytes: Total size of all files, counted while writing; sizes in the archive are not trusted.
        files: Number of entries.
        ratio: Unpacked bytes per byte of the archive. Images are already compressed, so 1.1 is typical.
    """

    bytes: int = 20_000_000_000
    files: int = 100_000
    ratio: float = 20.0


@dataclasses.dataclass(frozen=True, slots=True)
class Archive:
    """Zip file to download.

    Attributes:
        name: File name.
        url: http or https address.
        size: Size in bytes; None if unknown.
        sha256: Hexadecimal digest; None if unknown.
        limits: Limits on the unpacked content.
    """

    name: str
    url: str
    size: int | None
    sha256: str | None
    limits: Limits


# Size and hash as published by other projects that use this file.
KERMANY_2018 = Archive(
    name="ChestXRay2017.zip",
    url=(
        "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
        "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded"
    ),
    size=1_235_512_464,
    sha256="13efc055629733dbab07877f8b3c9f81097840dbcdaa326a8542322c2281ce36",
    limits=Limits(),
)


def download(
    folder: Path, archive: Archive = KERMANY_2018, *, wait: float = _WAIT, progress: DownloadProgress | None = None
) -> Path:
    """Download an archive of images into a folder, verify it and unpack it there.

    The archive is kept; calling the function again verifies it without downloading. If no SHA-256 is known, the digest of the
    first download is stored in NAME.sha256 and verified by later calls.

    Args:
        folder: Destination; created if missing.
        archive: File to download.
        wait: Seconds before the second attempt, doubled each time.
        progress: Callback with the number of bytes so far, and the total or None.

    Returns:
        The folder of the unpacked images, which appears only once complete.

    Raises:
        UsageError: The address is neither http nor https.
        DownloadError: The download failed, the hash differs, or the archive is unsafe to unpack.
        StorageError: The disk is full or not writable.
    """
    if urllib.parse.urlsplit(archive.url).scheme not in {"http", "https"}:
        raise UsageError(f"{archive.url!r} is neither an http nor an https address")
    images, zipped = folder / Path(archive.name).stem, folder / archive.name
    try:
        if zipped.exists() or not images.exists():
            _retrieve(folder, archive, wait, progress)
        if not images.exists():
            try:
                unpack(zipped, images, archive.limits)
            except DownloadError:  # make the next call download it again
                zipped.unlink()
                _record(zipped).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise StorageError(
            f"cannot write to {str(folder)!r}: {error.strerror or error}",
            hint="Free some space or choose another folder. The bytes downloaded so far are kept",
        ) from error
    return images


# --- download --------------------------------------------------------------------------------------------------------


def _retrieve(folder: Path, archive: Archive, wait: float, progress: DownloadProgress | None) -> None:
    """Ensure that the archive is in the folder and has the expected hash."""
    zipped = folder / archive.name
    record = _record(zipped)
    known = archive.sha256 or (record.read_text(encoding="utf-8").partition(" ")[0] if record.exists() else None)
    pooch.get_logger().setLevel("WARNING")
    store = pooch.create(
        path=folder,
        base_url="",
        registry={archive.name: known},
        urls={archive.name: archive.url},
        allow_updates=False,  # never overwrite a file that the user put there
    )
    resume = functools.partial(_download, archive, folder / f"{archive.name}.part", wait, progress)
    try:
        store.fetch(archive.name, downloader=resume)
    except ValueError as error:  # raised by pooch on a hash mismatch
        if not zipped.exists():  # pooch removed it
            raise DownloadError(
                str(error).rstrip("."), hint="Run the same command again, or give the right --sha256"
            ) from error
        raise DownloadError(
            f"{str(zipped)!r} has the SHA-256 {pooch.file_hash(str(zipped))}, expected {known}",
            hint="Remove the file to download it again, or give the right --sha256",
        ) from error
    if known is None:
        record.write_text(f"{pooch.file_hash(str(zipped))}  {archive.name}\n", encoding="utf-8")


def _record(zipped: Path) -> Path:
    return zipped.with_name(f"{zipped.name}.sha256")


class _IncompleteError(Exception):
    """Raised when an attempt ended early; the next one continues."""


def _download(
    archive: Archive,
    part: Path,
    wait: float,
    progress: DownloadProgress | None,
    url: str,
    output_file: str,
    pooch: object,
) -> None:
    """Download to `part`, resuming a partial file, then move it to `output_file`; a pooch downloader."""
    failures = 0
    while True:
        before = _size(part)
        try:
            _attempt(archive, url, part, before, progress)
            break
        except (_IncompleteError, requests.ConnectionError, requests.Timeout, HTTPError) as error:
            failures = 0 if _size(part) > before else failures + 1
            if failures == _TRIES:
                raise DownloadError(
                    f"{url} sent nothing in {failures} consecutive attempts ({error}); {_size(part):,} bytes are kept",
                    hint="Run the same command again to resume",
                ) from error
            time.sleep(wait * 2**failures)
        except requests.RequestException as error:
            raise DownloadError(f"{url} cannot be downloaded: {error}") from error
    part.replace(output_file)


def _attempt(archive: Archive, url: str, part: Path, start: int, progress: DownloadProgress | None) -> None:
    """Request the bytes from `start` onward and append them."""
    if archive.size is not None and start == archive.size:
        return
    headers = {"User-Agent": "pneumoscope", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        status, content_range = response.status_code, response.headers.get("Content-Range", "")
        if status == 416:
            if content_range != f"bytes */{start}":  # otherwise the file is complete
                part.unlink()
                raise _IncompleteError(f"the server has fewer than {start:,} bytes")
            return
        if status in {408, 425, 429} or status >= 500:
            raise _IncompleteError(f"HTTP {status}")
        if status not in {200, 206}:
            raise DownloadError(
                f"{url} answers HTTP {status} {response.reason}",
                hint=f"Download it with a browser, save it in the folder as {archive.name} and run the command again",
            )
        # Servers that ignore Range send the whole file.
        resumed = status == 206 and content_range.startswith(f"bytes {start}-")
        length = response.headers.get("Content-Length", "")
        total = archive.size or ((start if resumed else 0) + int(length) if length.isdigit() else None)
        most = archive.limits.bytes if archive.size is None else archive.size
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.raw.read1(
                _CHUNK
            ):  # iter_content would drop the last bytes when the connection breaks
                if file.tell() + len(chunk) > most:
                    part.unlink()
                    raise DownloadError(
                        f"{url} sends more than {most:,} bytes",
                        hint="This is not the expected file; state the right address with --from",
                    )
                file.write(chunk)
                if progress:
                    progress(file.tell(), total)
    if archive.size is not None and _size(part) < archive.size:
        raise _IncompleteError(f"ended after {_size(part):,} of {archive.size:,} bytes")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


# --- unpack ----------------------------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path, limits: Limits) -> None:
    """Unpack an untrusted zip file into a new folder.

    Files are written to a hidden folder next to it, which is renamed at the end.

    Args:
        archive: Zip file.
        folder: Destination; must not exist.
        limits: Limits enforced while writing.

    Raises:
        DownloadError: The archive is damaged or encrypted, exceeds the limits, or contains a path outside the folder, a link or
            a duplicate name.
        OSError: The disk is full or not writable; no files are left behind.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a killed process
    part.mkdir()
    try:
        with zipfile.ZipFile(archive) as zipped:
            _unpack_into(part, zipped, archive, limits)
        part.rename(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _unsafe(archive, f"not a valid zip file ({error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack_into(part: Path, zipped: zipfile.ZipFile, archive: Path, limits: Limits) -> None:
    entries = [entry for entry in zipped.infolist() if _IGNORED.isdisjoint(entry.filename.split("/"))]
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
            raise _unsafe(archive, f"{entry.filename!r} is a duplicate name") from error
        with file, zipped.open(entry) as source:
            while block := source.read(_CHUNK):
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
        raise _unsafe(archive, f"{name!r} is outside the folder")
    if entry.flag_bits & 0x1 or entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise _unsafe(archive, f"{name!r} is encrypted or compressed by an unsupported method")
    return path


def _unsafe(archive: Path, why: str) -> DownloadError:
    return DownloadError(f"{archive.name} was rejected: {why}", hint="Nothing was unpacked")

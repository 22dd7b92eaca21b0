"""The public images, from Mendeley Data to a folder: resumed where the line was cut, checked, unpacked without trust.

Kermany, Zhang & Goldbaum 2018, "Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification",
version 2, doi:10.17632/rscbjbr9sj.2, CC BY 4.0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from pneumoscope.core.errors import DownloadError, StorageError, UsageError
from pneumoscope.data.unpack import Limits, unpack

__all__ = ["KERMANY_2018", "Archive", "download"]

_BLOCK = 1 << 20
_TIMEOUT = 30.0
# Tries in a row that bring nothing; one that brings bytes starts the count anew.
_TRIES = 5
_WAIT = 1.0

FetchProgress = Callable[[int, int | None], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Archive:
    """A zip to fetch and what is known of it.

    Attributes:
        name: of the file.
        url: where it is.
        size: bytes; None where unknown.
        sha256: hexadecimal; None where unknown.
        limits: what it may unpack to.
    """

    name: str
    url: str
    size: int | None
    sha256: str | None
    limits: Limits


# The size is what several projects found, the hash what one of them published; neither was measured by us.
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
    folder: Path, archive: Archive = KERMANY_2018, *, wait: float = _WAIT, progress: FetchProgress | None = None
) -> Path:
    """Download an archive of images into a folder and unpack it there.

    The archive stays beside the images with its measured hash in NAME.sha256, so that a later call downloads nothing and
    still checks it. Images appear in the folder all at once or not at all.

    Args:
        folder: where to; made where missing.
        archive: what to fetch.
        wait: seconds before the second try; doubled each time.
        progress: called with (bytes so far, bytes in all where known).
    Returns:
        The folder of the unpacked images.
    Raises:
        UsageError: the address is neither http nor https.
        DownloadError: it cannot be fetched, is not what it should be, or is unsafe to unpack.
        StorageError: the disk is full or cannot be written.
    """
    if urllib.parse.urlsplit(archive.url).scheme not in {"http", "https"}:
        raise UsageError(f"{archive.url!r} is neither an http nor an https address")
    images, zipped = folder / Path(archive.name).stem, folder / archive.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not images.exists() and not zipped.exists():
            _download(archive, zipped, wait, progress)
        if zipped.exists():
            _check(archive, zipped)
        if not images.exists():
            _unpack(zipped, images, archive.limits)
    except OSError as error:
        raise StorageError(
            f"cannot write in {str(folder)!r}: {error.strerror or error}",
            hint="Free some space or choose another folder; what was downloaded is kept",
        ) from error
    return images


def _unpack(zipped: Path, images: Path, limits: Limits) -> None:
    try:
        unpack(zipped, images, limits)
    except DownloadError:
        _forget(zipped)
        raise


def _forget(zipped: Path) -> None:
    """Remove a zip that is not what it should be, so that the next call fetches it anew."""
    zipped.unlink(missing_ok=True)
    _record(zipped).unlink(missing_ok=True)


def _record(zipped: Path) -> Path:
    return zipped.with_name(f"{zipped.name}.sha256")


# --- download --------------------------------------------------------------------------------------------------------


class _InterruptedError(Exception):
    """A try ended early; the next may go on from there."""


def _download(archive: Archive, zipped: Path, wait: float, progress: FetchProgress | None) -> None:
    """Bytes into NAME.part, in as many tries as it takes; then the name without .part."""
    part = zipped.with_name(f"{zipped.name}.part")
    barren = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _one_try(archive, part, before, progress)
            break
        except _InterruptedError as error:
            after = part.stat().st_size if part.exists() else 0
            barren = 0 if after > before else barren + 1
            if barren == _TRIES:
                raise DownloadError(
                    f"{archive.url} brought nothing in {barren} tries in a row ({error}); {after:,} bytes are there",
                    hint="Run the same command again to go on from there",
                ) from error
            time.sleep(wait * 2**barren)
    part.replace(zipped)


def _one_try(archive: Archive, part: Path, start: int, progress: FetchProgress | None) -> None:
    """Ask for what is missing and append it.

    Raises:
        _InterruptedError: cut, refused for now, or short of what was promised.
        DownloadError: the server says that there is no such file, or sends more than there should be.
    """
    request = urllib.request.Request(archive.url, headers={"User-Agent": "pneumoscope"})  # noqa: S310 - see `fetch`
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310 - http or https, see `fetch`
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing after `start`
            _end_or_refuse(archive, part, start, error.headers.get("Content-Range", ""))
            return
        if error.code in {408, 425, 429} or error.code >= 500:
            raise _InterruptedError(f"HTTP {error.code}") from error
        raise DownloadError(
            f"{archive.url} answers HTTP {error.code} {error.reason}",
            hint=f"Download it with a browser, put it into the folder as {archive.name} and run the command again",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(str(error) or type(error).__name__) from error
    with answer:
        # A server that ignores Range sends the whole again: begin anew rather than append it to what is there.
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        length = answer.headers.get("Content-Length", "")
        promised = (start if resumed else 0) + int(length) if length.isdigit() else None
        _append(answer, part, "ab" if resumed else "wb", archive, promised, progress)


def _end_or_refuse(archive: Archive, part: Path, start: int, content_range: str) -> None:
    """All bytes were there already, or they are of a longer file than the server has."""
    if start != (archive.size or 0) and content_range != f"bytes */{start}":
        part.unlink()
        raise DownloadError(
            f"{archive.url} has fewer than the {start:,} bytes that were downloaded before",
            hint="They were removed; run the same command again",
        )


def _append(
    answer: http.client.HTTPResponse,
    part: Path,
    mode: str,
    archive: Archive,
    promised: int | None,
    progress: FetchProgress | None,
) -> None:
    most = archive.limits.bytes if archive.size is None else archive.size
    with part.open(mode) as file:
        done = file.tell()
        for block in _blocks(answer):
            done += len(block)
            if done > most:
                raise DownloadError(
                    f"{archive.url} sends more than {most:,} bytes",
                    hint="It is another file than it should be; name the right address with --from",
                )
            file.write(block)
            if progress:
                progress(done, archive.size or promised)
    expected = archive.size if archive.size is not None else promised
    if expected is not None and done < expected:
        raise _InterruptedError(f"ended after {done:,} of {expected:,} bytes")


def _blocks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """What is read; a fault of the line is not a fault of the disk."""
    while True:
        try:
            block = answer.read1(_BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _InterruptedError(str(error) or type(error).__name__) from error
        if not block:
            return
        yield block


# --- check -----------------------------------------------------------------------------------------------------------


def _check(archive: Archive, zipped: Path) -> None:
    """Size and hash against what is known, and against what was measured on the first download.

    Raises:
        DownloadError: it is another file; it is removed.
    """
    size = zipped.stat().st_size
    if archive.size is not None and size != archive.size:
        _forget(zipped)
        raise DownloadError(
            f"{zipped.name} has {size:,} bytes and should have {archive.size:,}",
            hint="It was removed; run the same command again",
        )
    with zipped.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    record = _record(zipped)
    recorded = record.read_text(encoding="utf-8").partition(" ")[0] if record.exists() else None
    for known, what in ((archive.sha256, "should have"), (recorded, "had when it was downloaded")):
        if known and sha256 != known.lower():
            _forget(zipped)
            raise DownloadError(
                f"{zipped.name} has the SHA-256 {sha256} and {what} {known}",
                hint="It was removed; run the same command again, with --sha256 if this file is the right one",
            )
    if recorded is None:
        record.write_text(f"{sha256}  {zipped.name}\n", encoding="utf-8")

"""The bytes behind the rows of a manifest: their hashes, and the films themselves."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pneumoscope.dataset.manifest import Film
from pneumoscope.dataset.medmnist import is_archived, pixels_sha256, read_archived
from pneumoscope.errors import ManifestError, UnreadableFilmError
from pneumoscope.radiograph.decode import Radiograph, decode

__all__ = ["Progress", "hash_films", "read_film"]

# Called with (films done, films in all).
Progress = Callable[[int, int], None]
# Hashing and reading let other threads run; more than a few only wait for each other.
_THREADS = 4
_CHUNK = 64


def read_film(root: Path, film: Film, *, least_side: int = 0) -> Radiograph:
    """Decode one film of a manifest.

    Args:
        root: the manifest's root.
        film: a row of it; its path may lead into a MedMNIST archive.
        least_side: see `radiograph.decode`.
    Raises:
        UnreadableFilmError: it cannot be decoded.
    """
    if is_archived(film.path):
        return read_archived(root, film.path)
    return decode(root / film.path, name=film.path, least_side=least_side)


def hash_films(
    root: Path, films: Sequence[Film], progress: Progress | None = None, *, where: str = ""
) -> tuple[tuple[Film, ...], tuple[tuple[str, str], ...]]:
    """State the SHA-256 of every film, in the order given.

    Args:
        root: what the paths are relative to.
        films: those that already state one are checked against their bytes.
        progress: called now and then.
        where: name of the manifest that states the hashes, for the message.
    Returns:
        The films that can be opened, and (path, why) of the others.
    Raises:
        ManifestError: a film is not the one that the manifest was made of.
    """
    hashed: list[Film] = []
    unreadable: list[tuple[str, str]] = []
    chunks = [films[start : start + _CHUNK] for start in range(0, len(films), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(lambda chunk: [_sha256(root, film.path) for film in chunk], chunks):
            for sha256, why in found:
                film = films[len(hashed) + len(unreadable)]
                if why:
                    unreadable.append((film.path, why))
                    continue
                if film.sha256 and film.sha256.lower() != sha256:
                    raise ManifestError(
                        f"{film.path!r} is not the film that {where} lists: its SHA-256 is {sha256[:12]}..., not"
                        f" {film.sha256[:12]}...",
                        advice="Use the films that the manifest was made of, or write a new one: pneumoscope split",
                    )
                hashed.append(Film(film.path, film.label, film.etiology, film.patient, film.split, sha256))
            if progress:
                progress(len(hashed) + len(unreadable), len(films))
    return tuple(hashed), tuple(unreadable)


def _sha256(root: Path, path: str) -> tuple[str, str]:
    """The hash, or why there is none."""
    if is_archived(path):
        try:
            return pixels_sha256(read_archived(root, path).pixels), ""
        except UnreadableFilmError as error:
            return "", error.why
    try:
        if not stat.S_ISREG((root / path).stat().st_mode):  # reading a pipe or a device would never end
            return "", "not a file"
        with (root / path).open("rb", buffering=0) as file:
            digest = hashlib.sha256()
            size = 0
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    except OSError as error:
        return "", error.strerror or type(error).__name__
    return ("", "empty (0 bytes)") if size == 0 else (digest.hexdigest(), "")

"""One look at every film for the audit: its file, a fingerprint and a thumbnail. Films are decoded once."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumoscope.dataset.contents import Progress, read_film
from pneumoscope.dataset.manifest import Film
from pneumoscope.dataset.medmnist import is_archived
from pneumoscope.errors import UnreadableFilmError
from pneumoscope.radiograph.decode import Radiograph, decode
from pneumoscope.radiograph.prepare import Preparation, prepare

__all__ = ["FINGERPRINT_SIDE", "THUMBNAIL_SIDE", "Examined", "examine_films"]

FINGERPRINT_SIDE = 16
THUMBNAIL_SIDE = 32
_CHUNK = 32


@dataclasses.dataclass(frozen=True, slots=True)
class Examined:
    """What the audit keeps of a film.

    Attributes:
        film: the row of the manifest.
        bytes: size of its file; 0 inside an archive.
        width, height: pixels.
        format, mode: as `Radiograph` has them.
        quantisation: sum over the JPEG quantisation tables, larger is coarser; 0 for other formats.
        fingerprint: perceptual hash, `FINGERPRINT_SIDE` squared bits.
        thumbnail: grey levels, shape (`THUMBNAIL_SIDE`, `THUMBNAIL_SIDE`).
    """

    film: Film
    bytes: int
    width: int
    height: int
    format: str
    mode: str
    quantisation: int
    fingerprint: npt.NDArray[np.bool_]
    thumbnail: npt.NDArray[np.uint8]


def examine_films(
    root: Path, films: Sequence[Film], progress: Progress | None = None
) -> tuple[list[Examined], list[tuple[str, str]]]:
    """Decode every film once.

    Returns:
        What was found of the films that can be decoded, in order, and (path, why) of the others.
    """
    examined: list[Examined] = []
    unreadable: list[tuple[str, str]] = []

    def one(film: Film) -> Examined | UnreadableFilmError:
        try:
            return _examine(root, film)
        except UnreadableFilmError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(films), _CHUNK):
            for found in pool.map(one, films[start : start + _CHUNK]):
                if isinstance(found, UnreadableFilmError):
                    unreadable.append((found.path, found.why))
                else:
                    examined.append(found)
            if progress:
                progress(min(start + _CHUNK, len(films)), len(films))
    return examined, unreadable


def _examine(root: Path, film: Film) -> Examined:
    if is_archived(film.path):
        return _examined(film, read_film(root, film), 0, 0)
    try:
        data = (root / film.path).read_bytes()
    except OSError as error:
        raise UnreadableFilmError(film.path, error.strerror or type(error).__name__) from error
    radiograph = decode(data, name=film.path)
    return _examined(film, radiograph, len(data), _quantisation(data) if radiograph.format == "JPEG" else 0)


def _examined(film: Film, radiograph: Radiograph, size: int, quantisation: int) -> Examined:
    return Examined(
        film,
        size,
        radiograph.width,
        radiograph.height,
        radiograph.format,
        radiograph.mode,
        quantisation,
        np.asarray(imagehash.phash(Image.fromarray(radiograph.pixels), FINGERPRINT_SIDE).hash, dtype=np.bool_).ravel(),
        prepare(radiograph, Preparation(size=THUMBNAIL_SIDE)),
    )


def _quantisation(data: bytes) -> int:
    """Of a file that was decoded before; only its header is read again."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        tables: dict[int, list[int]] = getattr(image, "quantization", {})
        return sum(sum(table) for table in tables.values())

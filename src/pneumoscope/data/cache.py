"""Images decoded and prepared once, kept in one file that later runs map into memory.

The file's name is a hash of what is in it: the content of the images, the preprocessing and its version. It gets that name only when
it is complete and its checksum is written, so a file that was half written is never taken for a whole one; one that was
damaged later fails the checksum and is made anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import StorageError, UnreadableImageError
from pneumoscope.data.hashing import Progress, read_image
from pneumoscope.data.manifest import LabelledImage
from pneumoscope.imaging.preprocess import Preprocessing, preprocess

__all__ = ["AUDIT", "PreprocessedImages", "cache_folder", "load_array", "preprocess_images", "store_array"]

AUDIT = "List all such images with: pneumoscope check-data DATA; then remove them"
_THREADS = min(8, os.cpu_count() or 1)
_CHUNK = 256
Pixels = npt.NDArray[np.uint8]
Number = TypeVar("Number", np.uint8, np.float32)


@dataclasses.dataclass(frozen=True)
class PreprocessedImages:
    """Prepared images in the order asked for.

    Attributes:
        pixels: grey levels, shape (distinct images, size, size), mapped from disk and read-only.
        rows: for each image asked for, its row in `pixels`.
        key: of the cache file.
    """

    pixels: Pixels
    rows: npt.NDArray[np.int64]
    key: str


def cache_folder() -> Path:
    """Where caches are kept: PNEUMOSCOPE_CACHE, else `pneumoscope` in the user's cache folder (XDG_CACHE_HOME)."""
    if os.environ.get("PNEUMOSCOPE_CACHE"):
        return Path(os.environ["PNEUMOSCOPE_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pneumoscope"


def preprocess_images(
    root: Path, images: Sequence[LabelledImage], preprocessing: Preprocessing, progress: Progress | None = None
) -> PreprocessedImages:
    """Every image as a network takes it, from the cache where it is there.

    Args:
        root: the manifest's root.
        images: in any order; the same content is prepared and kept once.
        preprocessing: crop and size.
        progress: called with (images done, images in all) while the cache is made.
    Raises:
        UnreadableImageError: an image cannot be decoded.
        StorageError: the cache cannot be written.
    """
    distinct = {image.sha256: image for image in images}
    order = sorted(distinct)
    described = json.dumps(msgspec.to_builtins(preprocessing), sort_keys=True)
    key = hashlib.sha256("\n".join([described, *order]).encode()).hexdigest()[:32]
    shape = (len(order), preprocessing.size, preprocessing.size)
    name = f"images-{key}"
    pixels = load_array(name, shape, np.uint8)
    if pixels is None:
        ordered = [distinct[sha256] for sha256 in order]
        store_array(name, shape, np.uint8, lambda target: _decode_into(target, root, ordered, preprocessing, progress))
        pixels = load_array(name, shape, np.uint8)
        if pixels is None:
            raise StorageError(
                f"the cache {str(cache_folder() / name)!r} was written and cannot be read back",
                hint="Set PNEUMOSCOPE_CACHE to a folder on a healthy disk",
            )
    position = {sha256: row for row, sha256 in enumerate(order)}
    return PreprocessedImages(pixels, np.array([position[image.sha256] for image in images], dtype=np.int64), key)


def _decode_into(
    target: npt.NDArray[np.uint8],
    root: Path,
    images: Sequence[LabelledImage],
    preprocessing: Preprocessing,
    progress: Progress | None,
) -> None:
    def one(image: LabelledImage) -> Pixels | UnreadableImageError:
        try:
            return preprocess(read_image(root, image, least_side=preprocessing.least_side), preprocessing)
        except UnreadableImageError as error:
            return error

    failed: list[UnreadableImageError] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(images), _CHUNK):
            for row, made in enumerate(pool.map(one, images[start : start + _CHUNK]), start):
                if isinstance(made, UnreadableImageError):
                    failed.append(made)
                else:
                    target[row] = made
            if progress:
                progress(min(start + _CHUNK, len(images)), len(images))
    if failed:
        more = f" (and {len(failed) - 1} more images)" if len(failed) > 1 else ""
        raise UnreadableImageError(failed[0].path, f"{failed[0].why}{more}", hint=AUDIT)


# --- a file with a checksum ------------------------------------------------------------------------------------------


def load_array(name: str, shape: tuple[int, ...], dtype: type[Number]) -> npt.NDArray[Number] | None:
    """An array that `store_array` kept, mapped read-only; None where there is none or it is damaged."""
    path = cache_folder() / name
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        if path.stat().st_size != size + 4:
            return None
        array = np.memmap(path, dtype=dtype, mode="r", shape=shape)
        with path.open("rb") as file:
            file.seek(size)
            stated = int.from_bytes(file.read(4), "little")
    except (OSError, ValueError):
        return None
    return array if _checksum(array) == stated else None


def store_array(
    name: str, shape: tuple[int, ...], dtype: type[Number], fill: Callable[[npt.NDArray[Number]], None]
) -> None:
    """Write an array and its checksum under a temporary name, then give it its own in one step.

    Args:
        fill: writes the whole array in place.
    Raises:
        StorageError: the disk is full or cannot be written; nothing is left behind.
    """
    folder = cache_folder()
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(prefix=f".{name}-", dir=folder)
        temporary = Path(made)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with os.fdopen(handle, "r+b") as file:
            _reserve(file, size + 4)
            array = np.memmap(file, dtype=dtype, mode="r+", shape=shape)
            fill(array)
            array.flush()
            file.seek(size)
            file.write(_checksum(array).to_bytes(4, "little"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / name)
    except OSError as error:
        raise StorageError(
            f"cannot write the cache in {str(folder)!r}: {error.strerror or error}",
            hint="Free some space, or set PNEUMOSCOPE_CACHE to another folder",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _reserve(file: BinaryIO, size: int) -> None:
    # A disk that fills up behind a memory map kills the process instead of raising: where the system can, the blocks are
    # taken now. macOS and Windows cannot; there the file gets its length, and its blocks as they are written.
    reserve = getattr(os, "posix_fallocate", None)
    if reserve is None:
        file.truncate(size)
    else:
        reserve(file.fileno(), 0, size)


def _checksum(array: npt.NDArray[Number]) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)

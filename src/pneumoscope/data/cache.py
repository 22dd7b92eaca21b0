"""Cache of preprocessed images: one file per set of images, memory-mapped by later runs.

The file name is a hash of the images, the preprocessing and its version. A file is renamed to its final name only when it is
complete and has its checksum, so incomplete files are never used. A file damaged later fails the checksum and is rewritten.
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
from pneumoscope.data.hashing import HashedImage, Progress, read_image
from pneumoscope.imaging.preprocess import Preprocessing, preprocess

__all__ = ["UNREADABLE_HINT", "PreprocessedImages", "cache_folder", "load_array", "preprocess_images", "store_array"]

UNREADABLE_HINT = "List all unreadable images with: pneumoscope check-data DATA; then remove them"
_THREADS = min(8, os.cpu_count() or 1)
_CHECKSUM_BYTES = 4
Pixels = npt.NDArray[np.uint8]
Number = TypeVar("Number", np.uint8, np.float32)


@dataclasses.dataclass(frozen=True)
class PreprocessedImages:
    """Preprocessed images from the cache.

    Attributes:
        pixels: Gray levels, shape (distinct images, size, size), memory-mapped and read-only.
        rows: Row in `pixels` of each requested image, shape (images,).
        key: Key of the cache file.
    """

    pixels: Pixels
    rows: npt.NDArray[np.int64]
    key: str

    def requested(self) -> Pixels:
        """Return the requested images in memory and in order, shape (images, size, size)."""
        return self.pixels[self.rows]


def cache_folder() -> Path:
    """Return the cache folder: PNEUMOSCOPE_CACHE, or `pneumoscope` in the user's cache folder (XDG_CACHE_HOME)."""
    if os.environ.get("PNEUMOSCOPE_CACHE"):
        return Path(os.environ["PNEUMOSCOPE_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pneumoscope"


def preprocess_images(
    root: Path,
    images: Sequence[HashedImage],
    preprocessing: Preprocessing,
    progress: Progress | None = None,
    *,
    chunk: int = 256,
) -> PreprocessedImages:
    """Return images preprocessed for the network, from the cache if possible.

    Args:
        root: Folder that the paths are relative to.
        images: Images in any order; identical files are stored once.
        preprocessing: Crop and size.
        progress: Callback with the number of images processed so far and the total; not called if the cache is used.
        chunk: Number of images that are decoded between two calls of `progress`.

    Raises:
        UnreadableImageError: An image cannot be decoded.
        StorageError: The cache cannot be written.
    """
    distinct = {image.sha256: image for image in images}
    order = sorted(distinct)
    description = json.dumps(msgspec.to_builtins(preprocessing), sort_keys=True)
    key = hashlib.sha256("\n".join([description, *order]).encode()).hexdigest()[:32]
    shape = (len(order), preprocessing.size, preprocessing.size)
    name = f"images-{key}"
    pixels = load_array(name, shape, np.uint8)
    if pixels is None:
        ordered = [distinct[sha256] for sha256 in order]
        store_array(
            name, shape, np.uint8, lambda target: _decode_into(target, root, ordered, preprocessing, progress, chunk)
        )
        pixels = load_array(name, shape, np.uint8)
        if pixels is None:
            raise StorageError(
                f"the cache {str(cache_folder() / name)!r} was written but cannot be read",
                hint="Set PNEUMOSCOPE_CACHE to a folder on a healthy disk",
            )
    position = {sha256: row for row, sha256 in enumerate(order)}
    return PreprocessedImages(pixels, np.array([position[image.sha256] for image in images], dtype=np.int64), key)


def _decode_into(
    target: npt.NDArray[np.uint8],
    root: Path,
    images: Sequence[HashedImage],
    preprocessing: Preprocessing,
    progress: Progress | None,
    chunk: int,
) -> None:
    def preprocess_image(image: HashedImage) -> Pixels | UnreadableImageError:
        try:
            return preprocess(read_image(root, image, min_side=preprocessing.min_side), preprocessing)
        except UnreadableImageError as error:
            return error

    failed: list[UnreadableImageError] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(images), chunk):
            for row, result in enumerate(pool.map(preprocess_image, images[start : start + chunk]), start):
                if isinstance(result, UnreadableImageError):
                    failed.append(result)
                else:
                    target[row] = result
            if progress:
                progress(min(start + chunk, len(images)), len(images))
    if failed:
        more = f" (and {len(failed) - 1} more images)" if len(failed) > 1 else ""
        raise UnreadableImageError(failed[0].path, f"{failed[0].detail}{more}", hint=UNREADABLE_HINT)


# --- arrays with a checksum -------------------------------------------------------------------------------------------


def load_array(name: str, shape: tuple[int, ...], dtype: type[Number]) -> npt.NDArray[Number] | None:
    """Return an array written by `store_array`, memory-mapped and read-only, or None if it is missing or damaged."""
    path = cache_folder() / name
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        if path.stat().st_size != size + _CHECKSUM_BYTES:
            return None
        array = np.memmap(path, dtype=dtype, mode="r", shape=shape)
        with path.open("rb") as file:
            file.seek(size)
            expected = int.from_bytes(file.read(_CHECKSUM_BYTES), "little")
    except (OSError, ValueError):
        return None
    return array if _checksum(array) == expected else None


def store_array(
    name: str, shape: tuple[int, ...], dtype: type[Number], fill: Callable[[npt.NDArray[Number]], None]
) -> None:
    """Write an array and its checksum atomically.

    Args:
        name: File name in the cache folder.
        shape, dtype: Shape and type of the array.
        fill: Function that fills the whole array in place.

    Raises:
        StorageError: The disk is full or not writable; no file is left behind.
    """
    folder = cache_folder()
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary_name = tempfile.mkstemp(prefix=f".{name}-", dir=folder)
        temporary = Path(temporary_name)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with os.fdopen(handle, "r+b") as file:
            _reserve(file, size + _CHECKSUM_BYTES)
            array = np.memmap(file, dtype=dtype, mode="r+", shape=shape)
            fill(array)
            array.flush()
            file.seek(size)
            file.write(_checksum(array).to_bytes(_CHECKSUM_BYTES, "little"))
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
    # Allocate all blocks first: if the disk fills up behind a memory map, the process is killed without an exception.
    # macOS and Windows have no such call; there, only set the length.
    reserve = getattr(os, "posix_fallocate", None)
    if reserve is None:
        file.truncate(size)
    else:
        reserve(file.fileno(), 0, size)


def _checksum(array: npt.NDArray[Number]) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)

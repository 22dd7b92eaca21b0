"""Read and hash the images of a manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from pneumoscope.core.errors import ManifestError, UnreadableImageError
from pneumoscope.data.medmnist import is_archive_path, pixels_sha256, read_archive_image
from pneumoscope.imaging.decode import Radiograph, decode

__all__ = ["HashedImage", "Progress", "hash_images", "read_image"]

# Called with the number of images processed so far and the total.
Progress = Callable[[int, int], None]

_THREADS = 4  # more threads contend
_CHUNK_IMAGES = 64
_BLOCK_BYTES = 1 << 20


class HashedImage(Protocol):
    """Dataclass with an image path and hash, such as `LabeledImage`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def path(self) -> str:
        """Path relative to a root, with forward slashes."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, hexadecimal; "" if not yet known."""


Image = TypeVar("Image", bound=HashedImage)


def read_image(root: Path, image: HashedImage, *, min_side: int = 0, allow_rejected: bool = False) -> Radiograph:
    """Decode an image of a manifest.

    Args:
        root: Root folder of the manifest.
        image: Image to decode; its path may be inside a MedMNIST archive.
        min_side, allow_rejected: See `imaging.decode.decode`.

    Raises:
        UnreadableImageError: The image cannot be decoded.
    """
    if is_archive_path(image.path):
        return read_archive_image(root, image.path)
    return decode(root / image.path, name=image.path, min_side=min_side, allow_rejected=allow_rejected)


def hash_images(
    root: Path, images: Sequence[Image], progress: Progress | None = None, *, manifest_name: str = ""
) -> tuple[tuple[Image, ...], tuple[tuple[str, str], ...]]:
    """Compute the SHA-256 of images, verifying existing hashes.

    Args:
        root: Folder that the paths are relative to.
        images: Images to hash.
        progress: Called after each chunk of images.
        manifest_name: Name of the manifest with the existing hashes, for messages.

    Returns:
        The readable images with their hashes, in the same order, and (path, reason) for the others.

    Raises:
        ManifestError: An image does not match its hash in the manifest.
    """
    hashed: list[Image] = []
    unreadable: list[tuple[str, str]] = []
    chunks = [images[start : start + _CHUNK_IMAGES] for start in range(0, len(images), _CHUNK_IMAGES)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for results in pool.map(lambda chunk: [_sha256(root, image.path) for image in chunk], chunks):
            for sha256, reason in results:
                image = images[len(hashed) + len(unreadable)]
                if reason:
                    unreadable.append((image.path, reason))
                    continue
                if image.sha256 and image.sha256.lower() != sha256:
                    raise ManifestError(
                        f"image {image.path!r} has changed since {manifest_name} was written: its SHA-256 is"
                        f" {sha256[:12]}..., expected {image.sha256[:12]}...",
                        hint="Restore the image, or write a new manifest: pneumoscope split",
                    )
                hashed.append(dataclasses.replace(image, sha256=sha256))
            if progress:
                progress(len(hashed) + len(unreadable), len(images))
    return tuple(hashed), tuple(unreadable)


def _sha256(root: Path, path: str) -> tuple[str, str]:
    """Return the hash and "", or "" and the reason for failure."""
    if is_archive_path(path):
        try:
            return pixels_sha256(read_archive_image(root, path).pixels), ""
        except UnreadableImageError as error:
            return "", error.detail
    try:
        if not stat.S_ISREG((root / path).stat().st_mode):  # reading a pipe or a device may never end
            return "", "not a regular file"
        with (root / path).open("rb", buffering=0) as file:
            digest = hashlib.sha256()
            size = 0
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                size += len(block)
    except OSError as error:
        return "", error.strerror or type(error).__name__
    return ("", "empty (0 bytes)") if size == 0 else (digest.hexdigest(), "")

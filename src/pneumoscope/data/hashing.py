"""The bytes behind the rows of a manifest: their hashes, and the images themselves."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pneumoscope.core.errors import ManifestError, UnreadableImageError
from pneumoscope.data.manifest import LabelledImage
from pneumoscope.data.medmnist import is_archived, pixels_sha256, read_archived
from pneumoscope.imaging.decode import Radiograph, decode

__all__ = ["Progress", "hash_images", "read_image"]

# Called with (images done, images in all).
Progress = Callable[[int, int], None]
# Hashing and reading let other threads run; more than a few only wait for each other.
_THREADS = 4
_CHUNK = 64


def read_image(root: Path, image: LabelledImage, *, least_side: int = 0) -> Radiograph:
    """Decode one image of a manifest.

    Args:
        root: the manifest's root.
        image: a row of it; its path may lead into a MedMNIST archive.
        least_side: see `radiograph.decode`.
    Raises:
        UnreadableImageError: it cannot be decoded.
    """
    if is_archived(image.path):
        return read_archived(root, image.path)
    return decode(root / image.path, name=image.path, least_side=least_side)


def hash_images(
    root: Path, images: Sequence[LabelledImage], progress: Progress | None = None, *, where: str = ""
) -> tuple[tuple[LabelledImage, ...], tuple[tuple[str, str], ...]]:
    """State the SHA-256 of every image, in the order given.

    Args:
        root: what the paths are relative to.
        images: those that already state one are checked against their bytes.
        progress: called now and then.
        where: name of the manifest that states the hashes, for the message.
    Returns:
        The images that can be opened, and (path, why) of the others.
    Raises:
        ManifestError: an image is not the one that the manifest was made of.
    """
    hashed: list[LabelledImage] = []
    unreadable: list[tuple[str, str]] = []
    chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(lambda chunk: [_sha256(root, image.path) for image in chunk], chunks):
            for sha256, why in found:
                image = images[len(hashed) + len(unreadable)]
                if why:
                    unreadable.append((image.path, why))
                    continue
                if image.sha256 and image.sha256.lower() != sha256:
                    raise ManifestError(
                        f"{image.path!r} is not the image that {where} lists: its SHA-256 is {sha256[:12]}..., not"
                        f" {image.sha256[:12]}...",
                        hint="Use the images that the manifest was made of, or write a new one: pneumoscope split",
                    )
                hashed.append(
                    LabelledImage(image.path, image.label, image.etiology, image.patient, image.split, sha256)
                )
            if progress:
                progress(len(hashed) + len(unreadable), len(images))
    return tuple(hashed), tuple(unreadable)


def _sha256(root: Path, path: str) -> tuple[str, str]:
    """The hash, or why there is none."""
    if is_archived(path):
        try:
            return pixels_sha256(read_archived(root, path).pixels), ""
        except UnreadableImageError as error:
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

"""Fixtures for data sets: images of noise, and manifests without files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.data.manifest import LabeledImage, Manifest

DrawImage = Callable[..., Path]
MakeManifest = Callable[[Iterable[tuple[str, str, str]]], Manifest]


@pytest.fixture
def draw_image() -> DrawImage:
    """Return a function that writes an image of smooth noise; different seeds give dissimilar images."""

    def draw(path: Path, *, seed: int = 0, size: tuple[int, int] = (60, 50)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 256, size=(12, 12), dtype=np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)
        return path

    return draw


@pytest.fixture
def make_manifest() -> MakeManifest:
    """Return a function that creates a manifest from (path, patient, split); the label is in the path. There are no files."""

    def make(rows: Iterable[tuple[str, str, str]]) -> Manifest:
        images = (
            LabeledImage(
                path,
                "PNEUMONIA" if "PNEUMONIA" in path else "NORMAL",
                "",
                patient,
                split,
                hashlib.sha256(path.encode()).hexdigest(),
            )
            for path, patient, split in rows
        )
        return Manifest(tuple(images), Path("images"))

    return make


@pytest.fixture(scope="session")
def real_images() -> Path:
    """Folder of the public data set."""
    folder = os.environ.get("PNEUMOSCOPE_DATA")
    if not folder:
        pytest.skip("PNEUMOSCOPE_DATA is not set")
    return Path(folder)

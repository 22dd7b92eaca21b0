"""Small labelled sets for the tests of `dataset`: films drawn with noise, and manifests without films."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.dataset.manifest import Film, Manifest

DrawFilm = Callable[..., Path]
MakeManifest = Callable[[Iterable[tuple[str, str, str]]], Manifest]


@pytest.fixture
def draw_film() -> DrawFilm:
    """Draw one film: smooth noise of its own, so that no two look alike."""

    def draw(path: Path, *, seed: int = 0, size: tuple[int, int] = (60, 50)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 256, size=(12, 12), dtype=np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)
        return path

    return draw


@pytest.fixture
def make_manifest() -> MakeManifest:
    """A manifest of (path, patient, split); PNEUMONIA where the path says so. There are no files."""

    def make(rows: Iterable[tuple[str, str, str]]) -> Manifest:
        films = (
            Film(
                path,
                "PNEUMONIA" if "PNEUMONIA" in path else "NORMAL",
                "",
                patient,
                split,
                hashlib.sha256(path.encode()).hexdigest(),
            )
            for path, patient, split in rows
        )
        return Manifest(tuple(films), Path("films"))

    return make


@pytest.fixture(scope="session")
def real_films() -> Path:
    """The folder of the public films."""
    folder = os.environ.get("PNEUMOSCOPE_DATA")
    if not folder:
        pytest.skip("PNEUMOSCOPE_DATA is not set: the public films are not there")
    return Path(folder)

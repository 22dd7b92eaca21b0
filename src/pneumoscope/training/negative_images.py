"""Negative examples for the input classifier: images that are not chest radiographs.

They are drawn, scrambled from radiographs, or read from installed libraries, so a recipe gives the same result everywhere.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, ImageDraw, ImageFont
from pydicom.data import get_testdata_file

from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.phantom import draw_phantom

__all__ = ["installed_photographs", "negative_image"]

GrayImage = npt.NDArray[np.uint8]
# Files of libraries that training already requires.
_PHOTOGRAPHS = (
    ("sklearn", "datasets/images/*.jpg"),
    ("matplotlib", "mpl-data/sample_data/*.jpg"),
    ("matplotlib", "mpl-data/sample_data/*.png"),
)
# Other modalities: one CT slice, two MR slices and an ultrasound image.
_DICOM_FILES = ("CT_small", "MR_small", "examples_overlay", "examples_rgb_color")
_PHANTOMS = 64
_WORDS = (
    "patient",
    "report",
    "of",
    "the",
    "chest",
    "date",
    "name",
    "left",
    "12.4",
    "no",
    "opacity",
    "in",
    "2024",
    "and",
)


def negative_image(rng: np.random.Generator, image: GrayImage) -> GrayImage:
    """Return a random image that is not a chest radiograph, uint8 gray levels of shape (size, size).

    Args:
        rng: Random number generator.
        image: Radiograph, shape (size, size), which some generators scramble.
    """
    generators: tuple[Callable[[np.random.Generator, GrayImage], GrayImage], ...] = (
        _photograph,
        _photograph,
        _phantom,
        _phantom,
        _noise,
        _clouds,
        _page,
        _shapes,
        _blank,
        _tiles,
        _scrambled,
        _tiles_of_photograph,
    )
    return generators[int(rng.integers(len(generators)))](rng, image)


@cache
def installed_photographs() -> tuple[GrayImage, ...]:
    """Return the photographs that installed libraries contain."""
    folders = {name: Path(str(importlib.util.find_spec(name).origin)).parent for name, _ in _PHOTOGRAPHS}  # type: ignore[union-attr]
    files = [path for name, pattern in _PHOTOGRAPHS for path in sorted(folders[name].glob(pattern))]
    return (*(decode(path).pixels for path in files), *map(_dicom_image, _DICOM_FILES))


def _dicom_image(name: str) -> GrayImage:
    """Return a pydicom test image, bypassing `decode`, which rejects these modalities."""
    pixels = pydicom.dcmread(get_testdata_file(f"{name}.dcm", download=False)).pixel_array  # type: ignore[arg-type]
    return _rescale((pixels.mean(axis=-1) if pixels.ndim == 3 else pixels).astype(np.float64))


@cache
def _phantom_image(number: int, size: int) -> GrayImage:
    return draw_phantom(number, bool(number % 2), image=number // 2, size=size)


def _resize(image: GrayImage, size: int) -> GrayImage:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def _photograph(rng: np.random.Generator, image: GrayImage) -> GrayImage:
    """Return a random crop of a photograph or an image of another modality, randomly rotated and mirrored."""
    photographs = installed_photographs()
    photograph = photographs[int(rng.integers(len(photographs)))]
    height, width = (max(8, int(side * rng.uniform(0.3, 1))) for side in photograph.shape)
    top, left = (
        int(rng.integers(side - part + 1)) for side, part in zip(photograph.shape, (height, width), strict=True)
    )
    crop = np.rot90(photograph[top : top + height, left : left + width], int(rng.integers(4)))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return _resize(np.ascontiguousarray(crop), len(image))


def _phantom(rng: np.random.Generator, image: GrayImage) -> GrayImage:
    return _phantom_image(int(rng.integers(_PHANTOMS)), len(image))


def _noise(rng: np.random.Generator, image: GrayImage) -> GrayImage:
    return _to_uint8(rng.normal(rng.uniform(40, 215), rng.uniform(5, 90), image.shape))


def _clouds(rng: np.random.Generator, image: GrayImage) -> GrayImage:
    """Return noise with the power-law spectrum of natural images."""
    y, x = np.meshgrid(*(np.fft.fftfreq(side) for side in image.shape), indexing="ij")
    amplitude = np.maximum(np.hypot(x, y), 1 / len(image)) ** -rng.uniform(0.5, 2)
    return _rescale(np.fft.ifft2(np.fft.fft2(rng.normal(size=image.shape)) * amplitude).real)


def _rescale(values: npt.NDArray[np.float64]) -> GrayImage:
    low, high = np.percentile(values, (1, 99))
    return _to_uint8(255 * (values - low) / max(high - low, 1e-9))


def _to_uint8(values: npt.NDArray[np.float64]) -> GrayImage:
    return np.asarray(np.clip(values, 0, 255), dtype=np.uint8)


def _page(rng: np.random.Generator, image: GrayImage) -> GrayImage:
    """Return lines of text, like a document or a screenshot."""
    background, ink = (int(rng.integers(200, 256)), int(rng.integers(0, 90)))
    if rng.random() < 0.4:
        background, ink = ink, background
    page = Image.new("L", image.shape[::-1], background)
    pen = ImageDraw.Draw(page)
    height = float(rng.uniform(0.03, 0.12) * len(image))
    font = ImageFont.load_default(size=max(6, height))
    for line in np.arange(height, len(image) - height, 1.4 * height):
        if rng.random() < 0.85:
            words = " ".join(rng.choice(_WORDS, int(rng.integers(1, 12))))
            pen.text((float(rng.uniform(0, 0.2) * len(image)), float(line)), words, fill=ink, font=font)
    return np.asarray(page)


def _shapes(rng: np.random.Generator, image: GrayImage) -> GrayImage:
    """Return rectangles and ellipses on a gradient, like a drawing or windows on a screen."""
    size = len(image)
    first, last = rng.uniform(0, 255, 2).tolist()
    page = Image.fromarray(np.tile(np.linspace(first, last, size).astype(np.uint8), (size, 1)))
    page = page.rotate(90 * int(rng.integers(4)))
    pen = ImageDraw.Draw(page)
    for _ in range(int(rng.integers(1, 12))):
        (left, right), (top, bottom) = (sorted(rng.integers(0, size, 2).tolist()) for _ in range(2))
        shape = pen.rectangle if rng.random() < 0.6 else pen.ellipse
        shape((left, top, right, bottom), fill=int(rng.integers(256)), outline=int(rng.integers(256)))
    return np.asarray(page)


def _blank(rng: np.random.Generator, image: GrayImage) -> GrayImage:
    return _to_uint8(rng.uniform(0, 255) + rng.normal(0, rng.uniform(0, 3), image.shape))


def _tiles(rng: np.random.Generator, image: GrayImage) -> GrayImage:
    """Return the image cut into tiles in random order."""
    count = int(rng.integers(2, 8))
    edges = np.linspace(0, len(image), count + 1).astype(int)
    tiles = [image[a:b, c:d] for a, b in pairwise(edges) for c, d in pairwise(edges)]
    result = np.empty_like(image)
    side = len(image) // count + 1
    order = rng.permutation(len(tiles))
    for position, tile in enumerate(order.tolist()):
        (a, b), (c, d) = ((edges[i], edges[i + 1]) for i in divmod(position, count))
        result[a:b, c:d] = np.asarray(Image.fromarray(tiles[tile]).resize((side, side)))[: b - a, : d - c]
    return result


def _tiles_of_photograph(rng: np.random.Generator, image: GrayImage) -> GrayImage:
    return _tiles(rng, _photograph(rng, image))


def _scrambled(rng: np.random.Generator, image: GrayImage) -> GrayImage:
    """Return noise with the amplitude spectrum of the image."""
    phases = np.fft.fft2(rng.normal(size=image.shape))
    return _rescale(
        np.fft.ifft2(np.abs(np.fft.fft2(image - image.mean())) * phases / np.maximum(np.abs(phases), 1e-9)).real
    )

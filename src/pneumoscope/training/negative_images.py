"""Pictures that are no radiograph of a chest, to learn from what is to be refused: drawn, taken apart, or photographed.

All come with the package and its libraries, so that the same recipe learns from the same pictures anywhere.
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

__all__ = ["negative_image"]

Grey = npt.NDArray[np.uint8]
# Files inside libraries that training needs anyway.
_PHOTOGRAPHS = (
    ("sklearn", "datasets/images/*.jpg"),
    ("matplotlib", "mpl-data/sample_data/*.jpg"),
    ("matplotlib", "mpl-data/sample_data/*.png"),
)
# A slice of computed tomography, two of magnetic resonance, and an ultrasound picture: what DICOM holds beside radiographs.
_DICOM = ("CT_small", "MR_small", "examples_overlay", "examples_rgb_color")
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


def negative_image(random: np.random.Generator, image: Grey) -> Grey:
    """A picture of some other kind.

    Args:
        random: draws which one, and how.
        image: a radiograph, shape (size, size), for those that are made by taking one apart.
    Returns:
        Grey levels, shape (size, size).
    """
    makers: tuple[Callable[[np.random.Generator, Grey], Grey], ...] = (
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
    return makers[int(random.integers(len(makers)))](random, image)


@cache
def _photographs() -> tuple[Grey, ...]:
    folders = {name: Path(str(importlib.util.find_spec(name).origin)).parent for name, _ in _PHOTOGRAPHS}  # type: ignore[union-attr]
    files = [path for name, pattern in _PHOTOGRAPHS for path in sorted(folders[name].glob(pattern))]
    return (*(decode(path).pixels for path in files), *map(_slice, _DICOM))


def _slice(name: str) -> Grey:
    """A test picture of pydicom's, which `decode` would refuse by its modality."""
    pixels = pydicom.dcmread(get_testdata_file(f"{name}.dcm", download=False)).pixel_array  # type: ignore[arg-type]
    return _stretch((pixels.mean(axis=-1) if pixels.ndim == 3 else pixels).astype(np.float64))


@cache
def _phantom_of(number: int, size: int) -> Grey:
    return draw_phantom(number, bool(number % 2), image=number // 2, size=size)


def _fit(picture: Grey, size: int) -> Grey:
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR))


def _photograph(random: np.random.Generator, image: Grey) -> Grey:
    """A piece of a photograph or of another modality's picture, turned, mirrored and with other greys."""
    pictures = _photographs()
    picture = pictures[int(random.integers(len(pictures)))]
    height, width = (max(8, int(side * random.uniform(0.3, 1))) for side in picture.shape)
    top, left = (
        int(random.integers(side - part + 1)) for side, part in zip(picture.shape, (height, width), strict=True)
    )
    piece = np.rot90(picture[top : top + height, left : left + width], int(random.integers(4)))
    if random.random() < 0.5:
        piece = piece[:, ::-1]
    return _fit(np.ascontiguousarray(piece), len(image))


def _phantom(random: np.random.Generator, image: Grey) -> Grey:
    return _phantom_of(int(random.integers(_PHANTOMS)), len(image))


def _noise(random: np.random.Generator, image: Grey) -> Grey:
    return _grey(random.normal(random.uniform(40, 215), random.uniform(5, 90), image.shape))


def _clouds(random: np.random.Generator, image: Grey) -> Grey:
    """Noise whose spectrum falls as in natural pictures."""
    y, x = np.meshgrid(*(np.fft.fftfreq(side) for side in image.shape), indexing="ij")
    fall = np.maximum(np.hypot(x, y), 1 / len(image)) ** -random.uniform(0.5, 2)
    return _stretch(np.fft.ifft2(np.fft.fft2(random.normal(size=image.shape)) * fall).real)


def _stretch(values: npt.NDArray[np.float64]) -> Grey:
    low, high = np.percentile(values, (1, 99))
    return _grey(255 * (values - low) / max(high - low, 1e-9))


def _grey(values: npt.NDArray[np.float64]) -> Grey:
    return np.asarray(np.clip(values, 0, 255), dtype=np.uint8)


def _page(random: np.random.Generator, image: Grey) -> Grey:
    """Lines of text on a ground, as documents and screenshots are."""
    ground, ink = (int(random.integers(200, 256)), int(random.integers(0, 90)))
    if random.random() < 0.4:
        ground, ink = ink, ground
    page = Image.new("L", image.shape[::-1], ground)
    pen = ImageDraw.Draw(page)
    height = float(random.uniform(0.03, 0.12) * len(image))
    font = ImageFont.load_default(size=max(6, height))
    for line in np.arange(height, len(image) - height, 1.4 * height):
        if random.random() < 0.85:
            words = " ".join(random.choice(_WORDS, int(random.integers(1, 12))))
            pen.text((float(random.uniform(0, 0.2) * len(image)), float(line)), words, fill=ink, font=font)
    return np.asarray(page)


def _shapes(random: np.random.Generator, image: Grey) -> Grey:
    """Boxes, circles and slopes, as drawings and windows of a screen are."""
    size = len(image)
    first, last = random.uniform(0, 255, 2).tolist()
    page = Image.fromarray(np.tile(np.linspace(first, last, size).astype(np.uint8), (size, 1)))
    page = page.rotate(90 * int(random.integers(4)))
    pen = ImageDraw.Draw(page)
    for _ in range(int(random.integers(1, 12))):
        (left, right), (top, bottom) = (sorted(random.integers(0, size, 2).tolist()) for _ in range(2))
        shape = pen.rectangle if random.random() < 0.6 else pen.ellipse
        shape((left, top, right, bottom), fill=int(random.integers(256)), outline=int(random.integers(256)))
    return np.asarray(page)


def _blank(random: np.random.Generator, image: Grey) -> Grey:
    return _grey(random.uniform(0, 255) + random.normal(0, random.uniform(0, 3), image.shape))


def _tiles(random: np.random.Generator, image: Grey) -> Grey:
    """An image's own greys and textures with its places exchanged."""
    count = int(random.integers(2, 8))
    edges = np.linspace(0, len(image), count + 1).astype(int)
    tiles = [image[a:b, c:d] for a, b in pairwise(edges) for c, d in pairwise(edges)]
    result = np.empty_like(image)
    side = len(image) // count + 1
    order = random.permutation(len(tiles))
    for place, other in enumerate(order.tolist()):
        (a, b), (c, d) = ((edges[i], edges[i + 1]) for i in divmod(place, count))
        result[a:b, c:d] = np.asarray(Image.fromarray(tiles[other]).resize((side, side)))[: b - a, : d - c]
    return result


def _tiles_of_photograph(random: np.random.Generator, image: Grey) -> Grey:
    return _tiles(random, _photograph(random, image))


def _scrambled(random: np.random.Generator, image: Grey) -> Grey:
    """An image's own spectrum with its phases thrown away."""
    phases = np.fft.fft2(random.normal(size=image.shape))
    return _stretch(
        np.fft.ifft2(np.abs(np.fft.fft2(image - image.mean())) * phases / np.maximum(np.abs(phases), 1e-9)).real
    )

"""Write a folder of phantoms with the layout and file names of the public data set.

PHANTOMS.txt explains that the images are synthetic. They are only written to empty folders, so they never mix with radiographs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pneumoscope.core.errors import StorageError, UsageError
from pneumoscope.core.results import SCHEMA
from pneumoscope.imaging.phantom import Etiology, draw_opacity_mask, draw_phantom, validate_size

__all__ = ["PhantomSummary", "write_phantoms"]

_PNEUMONIA_FRACTION = 0.6
_IMAGES_PER_PATIENT = (0.65, 0.25, 0.10)  # probabilities of one, two and three images
# File name prefix and etiology of the series of each label. Patients alternate between the two series.
_SERIES: dict[str, tuple[tuple[str, Etiology | None], ...]] = {
    "NORMAL": (("IM", None), ("NORMAL2-IM", None)),
    "PNEUMONIA": (("bacteria", "bacteria"), ("virus", "virus")),
}
_NOTICE = """PHANTOMS

Every image in this folder is synthetic: drawn by `pneumoscope phantom` from random numbers, not from radiographs.
The "patients" do not exist, and the "pneumonia" is a drawing of an opacity. Use the images to test the software.
Results on them have no medical meaning.

seed {seed}, {size} x {size} pixels, {train} images in train, {test} in test
"""


@dataclasses.dataclass(frozen=True, slots=True)
class PhantomSummary:
    """Summary of the images written by `write_phantoms`.

    Attributes:
        folder: Folder of the images.
        masks: Folder of the opacity masks; None if not written.
        images: Number of images by split and label.
        patients: Number of patients by split.
    """

    folder: str
    masks: str | None
    images: dict[str, dict[str, int]]
    patients: dict[str, int]
    schema: int = SCHEMA


class _PlannedImage(NamedTuple):
    """Image to write; `seed` identifies the patient."""

    split: str
    label: str
    etiology: Etiology | None
    seed: int
    image: int
    name: str


def write_phantoms(
    folder: Path,
    *,
    train: int = 200,
    test: int = 100,
    seed: int = 0,
    size: int = 224,
    masks: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomSummary:
    """Write a folder of synthetic images with the layout and file names of the public data set, and return a summary.

    60% of the images are PNEUMONIA, and patients with pneumonia alternate between bacteria and virus. About a third of the
    patients have two or three images. Each patient is in only one split.

    Args:
        folder: Folder to create; must be empty if it exists.
        train, test: Number of images in each split, at least 2.
        seed: Random seed, 0 or more. The same seed gives the same images.
        size: Width and height of the images, 32 to 2,048 pixels.
        masks: Folder for one mask per image with pneumonia, white inside the opacity: a PNG file with the path of the image and
            the suffix .png. Must be empty if it exists; neither folder may contain the other.
        progress: Callback with the number of images written so far and the total.

    Raises:
        UsageError: The folder is not empty or not a folder, or a number is out of range.
        StorageError: An image cannot be written.
    """
    if train < 2 or test < 2:
        raise UsageError(f"each split needs at least 2 images, one per label, not {train} in train and {test} in test")
    if seed < 0:
        raise UsageError(f"the seed must be 0 or more, not {seed}")
    validate_size(size)
    _require_empty(folder)
    if masks is not None:
        one, other = masks.resolve(), folder.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise UsageError(
                f"the folder of the masks, {str(masks)!r}, and the folder of the images, {str(folder)!r}, contain each other",
                hint="Name separate folders, so that masks are never loaded as images",
            )
        _require_empty(masks)
    plan = list(_plan(np.random.Generator(np.random.PCG64(seed)), {"train": train, "test": test}))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        notice = _NOTICE.format(seed=seed, size=size, train=train, test=test)
        (folder / "PHANTOMS.txt").write_text(notice, encoding="utf-8")
        for done, item in enumerate(plan, start=1):
            target = folder / item.split / item.label
            target.mkdir(parents=True, exist_ok=True)
            pixels = draw_phantom(
                item.seed, item.etiology is not None, etiology=item.etiology, image=item.image, size=size
            )
            Image.fromarray(pixels).save(target / item.name, format="JPEG", quality=92)
            if masks is not None and item.etiology:
                mask = draw_opacity_mask(item.seed, etiology=item.etiology, image=item.image, size=size)
                mask_path = (masks / item.split / item.label / item.name).with_suffix(".png")
                mask_path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(mask_path)
            if progress:
                progress(done, len(plan))
    except OSError as error:
        raise StorageError(
            f"cannot write phantoms to {str(error.filename or folder)!r}: {error.strerror or error}"
        ) from error
    return PhantomSummary(
        str(folder),
        None if masks is None else str(masks),
        {split: dict(Counter(item.label for item in plan if item.split == split)) for split in ("train", "test")},
        {split: len({item.seed for item in plan if item.split == split}) for split in ("train", "test")},
    )


def _require_empty(folder: Path) -> None:
    try:
        entries = sum(1 for _ in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot write phantoms to {str(folder)!r}: {error.strerror or error}") from error
    if entries:
        raise UsageError(
            f"{str(folder)!r} is not empty ({entries} entries)",
            hint="Name a folder that does not exist yet, so that phantoms never mix with radiographs",
        )


def _plan(rng: np.random.Generator, counts: dict[str, int]) -> Iterator[_PlannedImage]:
    """Yield all images in order, with patients numbered within their series as in the public data set."""
    patients: Counter[str] = Counter()
    written = 0
    for split, count in counts.items():
        n_pneumonia = min(max(round(_PNEUMONIA_FRACTION * count), 1), count - 1)
        for label, remaining in (("NORMAL", count - n_pneumonia), ("PNEUMONIA", n_pneumonia)):
            series_cycle = itertools.cycle(_SERIES[label])
            while remaining:
                series, etiology = next(series_cycle)
                patients[series] += 1
                n_images = min(1 + int(rng.choice(3, p=_IMAGES_PER_PATIENT)), remaining)
                remaining -= n_images
                seed = int(rng.integers(2**62))
                for image in range(n_images):
                    written += 1
                    if etiology:
                        name = f"person{patients[series]}_{etiology}_{written}.jpeg"
                    else:
                        suffix = f"-{image + 1:04}" if n_images > 1 else ""
                        name = f"{series}-{patients[series]:04}-0001{suffix}.jpeg"
                    yield _PlannedImage(split, label, etiology, seed, image, name)

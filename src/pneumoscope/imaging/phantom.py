"""A folder of synthetic images, so that the whole program can be tried and tested without a radiograph of anyone.

A phantom is a drawing and is never called real: the folder says so in PHANTOMS.txt, and a folder that holds anything
already is refused, so that phantoms are never mixed with images.
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
from pneumoscope.imaging.phantom_drawing import SIZES, Etiology, draw

__all__ = ["PhantomSummary", "draw", "phantom"]

PNEUMONIA_SHARE = 0.6
_SHARE_WITH_IMAGES = (0.65, 0.25, 0.10)  # patients with one, two and three images
# Where the patients of a label are numbered, and what they have; patients take turns.
_SERIES: dict[str, tuple[tuple[str, Etiology | None], ...]] = {
    "NORMAL": (("IM", None), ("NORMAL2-IM", None)),
    "PNEUMONIA": (("bacteria", "bacteria"), ("virus", "virus")),
}
_NOTICE = """PHANTOMS

Every image in this folder is synthetic: drawn by `pneumoscope phantom` from random numbers, from no radiograph.
The "patients" do not exist and the "pneumonia" is a drawing of an opacity. Use the images to try the program and to
test it.
Nothing measured on them says anything about medicine.

seed {seed}, {size} x {size} pixels, {train} images in train, {test} in test
"""


@dataclasses.dataclass(frozen=True, slots=True)
class PhantomSummary:
    """What `phantom` wrote.

    Attributes:
        folder: where.
        images: by split and label.
        patients: by split.
    """

    folder: str
    images: dict[str, dict[str, int]]
    patients: dict[str, int]
    schema: int = SCHEMA


def phantom(
    folder: Path,
    *,
    train: int = 200,
    test: int = 100,
    seed: int = 0,
    size: int = 224,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomSummary:
    """Write a folder of synthetic images in the layout and with the names of the public data set.

    Three images in five are PNEUMONIA, half of those patients have bacteria; one patient in three has two or three
    images; no patient is in both splits. PHANTOMS.txt in the folder says that the images are synthetic.

    Args:
        folder: must not exist yet, or be empty.
        train, test: images in each split, 2 or more.
        seed: the same seed writes the same images.
        size: side of the images, pixels, 32 to 2,048.
        progress: called with images written and images in all.
    Raises:
        UsageError: the folder is not empty or not a folder, or a number is out of its range.
        StorageError: an image cannot be written.
    """
    if train < 2 or test < 2:
        raise UsageError(f"a split needs 2 images or more, one a label, not train {train} and test {test}")
    if seed < 0:
        raise UsageError(f"a seed is 0 or more, not {seed}")
    if size not in SIZES:
        raise UsageError(f"a phantom is {SIZES[0]} to {SIZES[-1]:,} pixels wide, not {size}")
    _require_empty(folder)
    plan = list(_plan(np.random.Generator(np.random.PCG64(seed)), {"train": train, "test": test}))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        note = _NOTICE.format(seed=seed, size=size, train=train, test=test)
        (folder / "PHANTOMS.txt").write_text(note, encoding="utf-8")
        for done, row in enumerate(plan, start=1):
            target = folder / row.split / row.label
            target.mkdir(parents=True, exist_ok=True)
            pixels = draw(row.seed, row.etiology is not None, etiology=row.etiology, image=row.image, size=size)
            Image.fromarray(pixels).save(target / row.name, format="JPEG", quality=92)
            if progress:
                progress(done, len(plan))
    except OSError as error:
        raise StorageError(f"cannot write phantoms to {str(folder)!r}: {error.strerror or error}") from error
    return PhantomSummary(
        str(folder),
        {split: dict(Counter(row.label for row in plan if row.split == split)) for split in ("train", "test")},
        {split: len({row.seed for row in plan if row.split == split}) for split in ("train", "test")},
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
            hint="Name a folder that does not exist yet, so that no real image is ever mixed with phantoms",
        )


class _Row(NamedTuple):
    """One image to write; `seed` stands for the patient."""

    split: str
    label: str
    etiology: Etiology | None
    seed: int
    image: int
    name: str


def _plan(rng: np.random.Generator, counts: dict[str, int]) -> Iterator[_Row]:
    """Every image of the folder, in order: patients are numbered within their series, as in the public data set."""
    patients: Counter[str] = Counter()
    written = 0
    for split, count in counts.items():
        sick = min(max(round(PNEUMONIA_SHARE * count), 1), count - 1)
        for label, wanted in (("NORMAL", count - sick), ("PNEUMONIA", sick)):
            turn = itertools.cycle(_SERIES[label])
            while wanted:
                series, etiology = next(turn)
                patients[series] += 1
                count_of_patient = min(1 + int(rng.choice(3, p=_SHARE_WITH_IMAGES)), wanted)
                wanted -= count_of_patient
                seed = int(rng.integers(2**62))
                for image in range(count_of_patient):
                    written += 1
                    if etiology:
                        name = f"person{patients[series]}_{etiology}_{written}.jpeg"
                    else:
                        name = f"{series}-{patients[series]:04}-0001{f'-{image + 1:04}' if count_of_patient > 1 else ''}.jpeg"
                    yield _Row(split, label, etiology, seed, image, name)

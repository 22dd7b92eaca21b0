"""Who trains, who validates, who tests. The same images and seed give the same split on every machine and library.

No random number generator is used: whatever is divided is put in the order of SHA-256 of (seed, key), which no library
can change. Keys are patients, or file names without folders where those are unique: images moved or resized are split
the same way.

A given test split is kept as it is. The other images are pooled and divided anew, with two exceptions, set "unused":

- given validation images that are fewer than 1% of the pool (the public set has 16): they are too few to choose anything
  on, and training on them would make runs incomparable with the report, which set them aside;
- images of a patient who is also in the given test split, unless the split is by image.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal

from pneumoscope.core.errors import DatasetError, UsageError
from pneumoscope.data.manifest import LABELS, LabelledImage, Manifest
from pneumoscope.data.patients import series_and_number

__all__ = ["By", "split"]

By = Literal["patient", "block", "image"]
_METHODS = ("patient", "block", "image")
_TINY = 0.01
_TEST = 0.15


@dataclasses.dataclass(frozen=True, slots=True)
class _Unit:
    """What is never divided: the images of one patient, or one image.

    Attributes:
        key: of the patient, or the image's name.
        stratum: what shares are kept in: the label, or the series of a block.
        images: their paths.
    """

    key: str
    stratum: str
    images: tuple[str, ...]


def split(
    manifest: Manifest, *, by: str = "patient", validation: float = 0.15, test: float | None = None, seed: int = 0
) -> Manifest:
    """Divide images into train, validation and test.

    - "patient": whole patients, stratified by label. A patient with images of both labels counts as PNEUMONIA.
    - "block": one contiguous block of patient numbers in each series, from a seeded start and without wrapping around:
      the validation images then differ from the train images somewhat as the official test images do.
    - "image": images, stratified by label, whoever is on them. As the report did; leaks patients into validation.

    Args:
        manifest: with or without splits.
        by: "patient", "block" or "image".
        validation: share of the pooled images (without test images) that validate, between 0 and 1; whole patients come
            as near as they can.
        test: share of all images that test, where the data has no test split; 0.15 where None.
        seed: of the order.
    Returns:
        The same images in the same order, each with its split; `notes` say what was set aside.
    Raises:
        UsageError: an unknown `by`, a share outside (0, 1), or `test` for data that has a test split.
        DatasetError: a split would be empty or of one label; or a block is asked of patients without numbers.
    """
    if by not in _METHODS:
        raise UsageError(f"a split is by {', '.join(_METHODS)}, not by {by!r}")
    has_test = any(image.split == "test" for image in manifest.images)
    if has_test and test is not None:
        raise UsageError(
            f"the data has a test split of its own ({len(manifest.split('test'))} images); test={test} cannot be drawn",
            hint="Leave --test out",
        )
    for name, share in (("validation", validation), ("test", _TEST if test is None else test)):
        if not 0 < share < 1:
            raise UsageError(f"{name} is a share between 0 and 1, not {share}")

    pool, notes = _pool(manifest, by)
    units = _units(pool, by)
    chosen: dict[str, str] = {}
    if not has_test:
        chosen |= dict.fromkeys(_draw(units, _TEST if test is None else test, by, f"{seed}\ntest"), "test")
        units = [unit for unit in units if unit.images[0] not in chosen]
    chosen |= dict.fromkeys(_draw(units, validation, by, f"{seed}\nvalidation"), "validation")
    pooled = {image.path for image in pool}
    images = tuple(
        dataclasses.replace(image, split=chosen.get(image.path, "train") if image.path in pooled else _kept(image))
        for image in manifest.images
    )
    result = dataclasses.replace(manifest, images=images, by=by, notes=(*manifest.notes, *notes))
    _refuse_useless(result)
    return result


def _kept(image: LabelledImage) -> str:
    return "test" if image.split == "test" else "unused"


def _pool(manifest: Manifest, by: str) -> tuple[list[LabelledImage], list[str]]:
    """The images to divide, and what the caller should know of the others."""
    notes = []
    pool = [image for image in manifest.images if image.split in {"train", "validation", ""}]
    given = sum(image.split == "validation" for image in pool)
    if 0 < given < _TINY * len(pool):
        pool = [image for image in pool if image.split != "validation"]
        notes.append(f"the {given} given validation images are set aside: too few to choose anything on")
    if by != "image":
        tested = {image.patient for image in manifest.images if image.split == "test" and image.patient}
        leaked = [image for image in pool if image.patient in tested]
        if leaked:
            pool = [image for image in pool if image.patient not in tested]
            patients = len({image.patient for image in leaked})
            notes.append(f"{len(leaked)} images of {patients} patients who are also in the test split are set aside")
        unknown = sum(not image.patient for image in pool)
        if unknown and by == "patient":
            notes.append(f"{unknown:,} images of unknown patients were divided as if each were a patient of its own")
    return pool, notes


def _units(pool: Sequence[LabelledImage], by: str) -> list[_Unit]:
    listed = Counter(_name(image.path) for image in pool)
    alone = {image.path: _name(image.path) if listed[_name(image.path)] == 1 else image.path for image in pool}
    if by == "image":
        return [_Unit(alone[image.path], image.label, (image.path,)) for image in pool]
    together: dict[tuple[str, str], list[LabelledImage]] = defaultdict(list)
    for image in pool:
        together[image.patient, "" if image.patient else alone[image.path]].append(image)
    return [
        _Unit(patient or name, _stratum(images, by), tuple(image.path for image in images))
        for (patient, name), images in together.items()
    ]


def _stratum(images: Sequence[LabelledImage], by: str) -> str:
    if by == "patient":
        return LABELS[any(image.positive for image in images)]
    found = series_and_number(images[0].patient)
    if found is None:
        raise DatasetError(
            f"a block needs patients with numbers; {images[0].path!r} has the patient {images[0].patient!r}",
            hint="Split by patient instead",
        )
    return found[0]


def _name(path: str) -> str:
    """The name without folders; within an archive its split and row."""
    return path.partition("#")[2] or PurePosixPath(path).name


def _draw(units: Sequence[_Unit], share: float, by: str, salt: str) -> list[str]:
    """Paths of a share of the images, drawn stratum by stratum."""
    strata: dict[str, list[_Unit]] = defaultdict(list)
    for unit in units:
        strata[unit.stratum].append(unit)
    targets = _targets({name: sum(len(unit.images) for unit in strata[name]) for name in sorted(strata)}, share)
    paths: list[str] = []
    for name, target in targets.items():
        block = by == "block"
        ordered = _block_order(strata[name], target, f"{salt}\n{name}") if block else _hash_order(strata[name], salt)
        paths.extend(_take(ordered, target, contiguous=block))
    return paths


def _targets(sizes: Mapping[str, int], share: float) -> dict[str, int]:
    """Images to draw in each stratum: the total is the nearest whole number, the largest remainders are rounded up."""
    total = int(sum(sizes.values()) * share + 0.5)
    targets = {name: int(size * share) for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (targets[name] - sizes[name] * share, name))
    for name in by_remainder[: max(0, total - sum(targets.values()))]:
        targets[name] += 1
    return targets


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\n".join(parts).encode()).digest()


def _hash_order(units: Iterable[_Unit], salt: str) -> list[_Unit]:
    return sorted(units, key=lambda unit: (_digest(salt, unit.key), unit.images))


def _block_order(units: Iterable[_Unit], target: int, salt: str) -> list[_Unit]:
    """By patient number, from a seeded start after which enough images are left."""
    ordered = sorted(units, key=lambda unit: (series_and_number(unit.key) or ("", 0), unit.key))
    left = 0
    last = len(ordered)
    while left < target:
        last -= 1
        left += len(ordered[last].images)
    start = int.from_bytes(_digest(salt)[:8], "big") % (last + 1) if ordered else 0
    return ordered[start:]


def _take(units: Iterable[_Unit], target: int, *, contiguous: bool) -> list[str]:
    """Whole units in order, as near to the target as they come; a block ends at the first that does not fit."""
    paths: list[str] = []
    for unit in units:
        if abs(len(paths) + len(unit.images) - target) < abs(len(paths) - target):
            paths.extend(unit.images)
        elif contiguous:
            break
    return paths


def _refuse_useless(manifest: Manifest) -> None:
    for name in ("train", "validation", "test"):
        found = Counter(image.label for image in manifest.split(name))
        missing = [label for label in LABELS if not found[label]]
        if missing:
            counts = ", ".join(f"{found[label]} {label}" for label in LABELS)
            task = "learned" if name == "train" else "measured"
            raise DatasetError(
                f"the {name} split would hold {counts}: nothing can be {task} there",
                hint="Bring more images of that label, or change the shares, the seed or --by",
            )

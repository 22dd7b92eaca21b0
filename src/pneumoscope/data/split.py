"""Split a data set into train, validation and test. The result depends only on the images, the method and the seed.

Units are ordered by the SHA-256 of (seed, key) instead of a random number generator, so that library updates cannot change a
split. The key of a unit is its patient, or the file name without folders if unique, so that moved or resized images are split
in the same way.

A given test split is kept. The other images are pooled and divided, except for three groups, which get the split "unused":

- given validation images that make up less than 1% of the pool (the public data set has 16): they are too few for model
  selection, and training on them would make runs incomparable with the report, which set them aside;
- images that are byte-identical to an image of the given test split;
- images of patients who are also in the given test split, unless the split is by image.

Byte-identical images and all of their patients' images get the same split, unless the split is by image and they show one
patient.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal, get_args

from pneumoscope.core.errors import DatasetError, UsageError
from pneumoscope.core.messages import counted
from pneumoscope.data.manifest import LabeledImage, Manifest, identical_images
from pneumoscope.data.patients import parse_patient
from pneumoscope.statistics.inputs import count_unknown

__all__ = ["METHODS", "SplitMethod", "expected_leak_rate", "split_manifest"]

SplitMethod = Literal["patient", "block", "image"]
METHODS: tuple[SplitMethod, ...] = get_args(SplitMethod)
_MIN_GIVEN_VALIDATION = 0.01  # fraction of the pool
_DEFAULT_TEST = 0.15
_DEFAULT_VALIDATION = 0.15


@dataclasses.dataclass(frozen=True, slots=True)
class _Unit:
    """Images that must stay in one split: of a patient, or a single image, merged with units that share identical images.

    Attributes:
        key: Patient, or name of the image.
        stratum: Label, or series in a block split; fractions are applied in each stratum.
        paths: Paths of the images.
    """

    key: str
    stratum: str
    paths: tuple[str, ...]


def split_manifest(
    manifest: Manifest,
    *,
    by: str = "patient",
    validation: float = _DEFAULT_VALIDATION,
    test: float | None = None,
    seed: int = 0,
) -> Manifest:
    """Return the manifest with each image assigned to train, validation, test or unused.

    - "patient": whole patients, stratified by label. A patient with images of several labels counts as the last of them, such
      as PNEUMONIA.
    - "block": one contiguous block of patient numbers per series, starting at a seeded position without wrapping around.
      Validation images then differ somewhat from training images, as the official test images do.
    - "image": single images, stratified by label, regardless of patients. Same as in the report; leaks patients into
      validation.

    Args:
        manifest: Manifest with or without splits.
        by: "patient", "block" or "image".
        validation: Fraction of the pooled images (all except test) for validation, between 0 and 1; approximate for whole
            patients.
        test: Fraction of all images for testing if the data have no test split; 0.15 if None.
        seed: Seed of the order.

    Returns:
        The same images in the same order; `notes` describes those that were set aside.

    Raises:
        UsageError: `by` is unknown, a fraction is not between 0 and 1, or `test` is given for data with a test split.
        DatasetError: A split would have no image of a label; byte-identical images have different labels; or "block" is used
            for patients without numbers.
    """
    if by not in METHODS:
        raise UsageError(f"unknown split method {by!r}", hint=f"Choose one of: {', '.join(METHODS)}")
    has_test = any(image.split == "test" for image in manifest.images)
    if has_test and test is not None:
        raise UsageError(
            f"cannot draw a test split of {test}: the data already has one ({counted(len(manifest.split('test')), 'image')})",
            hint="Omit --test",
        )
    test_fraction = _DEFAULT_TEST if test is None else test
    for name, fraction in (("validation", validation), ("test", test_fraction)):
        if not 0 < fraction < 1:
            raise UsageError(f"{name} is {fraction}; it must be a fraction between 0 and 1")

    manifest.check_labels()
    pool, notes = _pool(manifest, by)
    units, identical = _units(pool, by, manifest.classes), _identical(pool, by)
    test_share = None if has_test else test_fraction
    assigned = _assign(units, test_share, validation, by, seed)
    # Merge units only if necessary, to keep the published splits of the public data set.
    if any(len({assigned.get(image.path) for image in group}) > 1 for group in identical):
        assigned = _assign(_merge(units, identical), test_share, validation, by, seed)
    pooled = {image.path for image in pool}

    def new_split(image: LabeledImage) -> str:
        if image.path in pooled:
            return assigned.get(image.path, "train")
        return "test" if image.split == "test" else "unused"

    images = tuple(dataclasses.replace(image, split=new_split(image)) for image in manifest.images)
    result = dataclasses.replace(manifest, images=images, split_by=by, notes=(*manifest.notes, *notes))
    _check_labels(result)
    return result


def expected_leak_rate(manifest: Manifest) -> tuple[float | None, str]:
    """Return the expected fraction of validation images whose patient is also in train, for a split by image.

    Images are drawn without replacement within each label. Given that one of a patient's m images (out of n with that label) is
    drawn for validation, none of the patient's other images are among the t training images with probability C(n - 1 - t, m -
    1) / C(n - 1, m - 1). Labels are drawn independently.

    Returns:
        The fraction for 15% validation images, 0 to 1, and ""; or None and the reason.
    """
    if not any(image.patient for image in manifest.images):
        return None, "no patient is known"
    try:
        divided = split_manifest(manifest, by="image")
    except DatasetError as error:
        return None, error.message
    given_test = any(image.split == "test" for image in manifest.images)
    pooled = {"train", "validation"} if given_test else {"train", "validation", "test"}
    pool = [image for image in divided if image.split in pooled]
    size = Counter(image.label for image in pool)
    train = Counter(image.label for image in pool if image.split == "train")
    validation = Counter(image.label for image in pool if image.split == "validation")
    images_of_patient: dict[str, Counter[str]] = defaultdict(Counter)
    for image in pool:
        images_of_patient[image.patient or image.path][image.label] += 1
    expected = 0.0
    for counts in images_of_patient.values():
        for label, images in counts.items():
            no_leak = 1.0
            for other, siblings in counts.items():
                itself = int(other == label)  # exclude the validation image itself
                no_leak *= _probability_of_none(size[other] - itself, train[other], siblings - itself)
            expected += images * validation[label] / size[label] * (1 - no_leak)
    return expected / validation.total(), ""


def _probability_of_none(n: int, drawn: int, marked: int) -> float:
    """Return the probability that `drawn` of n items, drawn without replacement, include none of the `marked` ones."""
    probability = 1.0
    for i in range(marked):
        probability *= (n - drawn - i) / (n - i)
    return max(0.0, probability)


def _assign(units: Sequence[_Unit], test: float | None, validation: float, by: str, seed: int) -> dict[str, str]:
    """Return the split of each image that is not for training, by path.

    Args:
        units: Units to divide.
        test: Fraction of the images for testing; None to draw no test split.
        validation: Fraction of the remaining images for validation.
        by, seed: See `split_manifest`.
    """
    assigned: dict[str, str] = {}
    if test is not None:
        assigned |= dict.fromkeys(_draw(units, test, by, f"{seed}\ntest"), "test")
        units = [unit for unit in units if unit.paths[0] not in assigned]
    return assigned | dict.fromkeys(_draw(units, validation, by, f"{seed}\nvalidation"), "validation")


def _identical(pool: Sequence[LabeledImage], by: str) -> list[tuple[LabeledImage, ...]]:
    """Return the groups of byte-identical images that must stay in one split.

    A split by image deliberately divides the images of a patient, including identical ones.
    """
    groups = identical_images(pool)
    if by != "image":
        return groups
    return [group for group in groups if not group[0].patient or len({image.patient for image in group}) > 1]


def _merge(units: Sequence[_Unit], identical: Sequence[Sequence[LabeledImage]]) -> list[_Unit]:
    """Return the units, merging those that share identical images."""
    parents = list(range(len(units)))

    def root(index: int) -> int:
        while parents[index] != index:
            index = parents[index]
        return index

    unit_of_path = {path: index for index, unit in enumerate(units) for path in unit.paths}
    for first, *others in identical:
        for other in others:
            a, b = sorted((root(unit_of_path[first.path]), root(unit_of_path[other.path])))
            parents[b] = a
    merged: dict[int, list[_Unit]] = defaultdict(list)
    for index, unit in enumerate(units):
        merged[root(index)].append(unit)
    # PNEUMONIA sorts last, so a patient with both labels counts as PNEUMONIA.
    leading = {index: max(group, key=lambda unit: (unit.stratum, unit.key)) for index, group in merged.items()}
    return [
        dataclasses.replace(leading[index], paths=tuple(path for unit in group for path in unit.paths))
        for index, group in merged.items()
    ]


def _pool(manifest: Manifest, by: str) -> tuple[list[LabeledImage], list[str]]:
    """Return the images to divide, and notes on those set aside."""
    notes = []
    pool = [image for image in manifest.images if image.split in {"train", "validation", ""}]
    given = sum(image.split == "validation" for image in pool)
    if 0 < given < _MIN_GIVEN_VALIDATION * len(pool):
        pool = [image for image in pool if image.split != "validation"]
        notes.append(f"set aside {counted(given, 'given validation image')}: too few to choose anything on")
    test_hashes = {image.sha256 for image in manifest.images if image.split == "test"} - {""}
    copies = [image for image in pool if image.sha256 in test_hashes]
    if copies:
        pool = [image for image in pool if image.sha256 not in test_hashes]
        notes.append(f"set aside {counted(len(copies), 'image')} byte-identical to a test image")
    if by != "image":
        test_images = [*copies, *(image for image in manifest.images if image.split == "test")]
        test_patients = {image.patient for image in test_images if image.patient}
        leaked = [image for image in pool if image.patient in test_patients]
        if leaked:
            pool = [image for image in pool if image.patient not in test_patients]
            patients = counted(len({image.patient for image in leaked}), "patient")
            notes.append(f"set aside {counted(len(leaked), 'image')} of {patients} also in the test split")
        unknown = count_unknown(image.patient for image in pool)
        if unknown and by == "patient":
            notes.append(f"split {counted(unknown, 'image')} without a known patient as if each were a patient")
    return pool, notes


def _units(pool: Sequence[LabeledImage], by: str, classes: Sequence[str]) -> list[_Unit]:
    listed = Counter(_name(image.path) for image in pool)
    keys = {image.path: _name(image.path) if listed[_name(image.path)] == 1 else image.path for image in pool}
    if by == "image":
        return [_Unit(keys[image.path], image.label, (image.path,)) for image in pool]
    groups: dict[tuple[str, str], list[LabeledImage]] = defaultdict(list)
    for image in pool:
        groups[image.patient, "" if image.patient else keys[image.path]].append(image)
    return [
        _Unit(patient or name, _stratum(images, by, classes), tuple(image.path for image in images))
        for (patient, name), images in groups.items()
    ]


def _stratum(images: Sequence[LabeledImage], by: str, classes: Sequence[str]) -> str:
    if by == "patient":
        return max((image.label for image in images), key=classes.index)
    parsed = parse_patient(images[0].patient)
    if parsed is None:
        raise DatasetError(
            f"a block split needs patients with numbers; {images[0].path!r} has the patient {images[0].patient!r}",
            hint="Split by patient instead",
        )
    return parsed[0]


def _name(path: str) -> str:
    """Return the file name without folders, or the split and row in an archive."""
    return path.partition("#")[2] or PurePosixPath(path).name


def _draw(units: Sequence[_Unit], fraction: float, by: str, salt: str) -> list[str]:
    """Return the paths of a fraction of the images, drawn within each stratum."""
    strata: dict[str, list[_Unit]] = defaultdict(list)
    for unit in units:
        strata[unit.stratum].append(unit)
    targets = _targets({name: sum(len(unit.paths) for unit in strata[name]) for name in sorted(strata)}, fraction)
    paths: list[str] = []
    for name, target in targets.items():
        block = by == "block"
        ordered = _block_order(strata[name], target, f"{salt}\n{name}") if block else _hash_order(strata[name], salt)
        paths.extend(_take(ordered, target, contiguous=block))
    return paths


def _targets(sizes: Mapping[str, int], fraction: float) -> dict[str, int]:
    """Return the number of images to draw in each stratum, by the largest remainder method."""
    total = int(sum(sizes.values()) * fraction + 0.5)
    targets = {name: int(size * fraction) for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (targets[name] - sizes[name] * fraction, name))
    for name in by_remainder[: max(0, total - sum(targets.values()))]:
        targets[name] += 1
    return targets


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\n".join(parts).encode()).digest()


def _hash_order(units: Iterable[_Unit], salt: str) -> list[_Unit]:
    return sorted(units, key=lambda unit: (_digest(salt, unit.key), unit.paths))


def _block_order(units: Iterable[_Unit], target: int, salt: str) -> list[_Unit]:
    """Return the units sorted by patient number, from a seeded start that leaves enough images."""
    ordered = sorted(units, key=lambda unit: (parse_patient(unit.key) or ("", 0), unit.key))
    remaining = 0
    last = len(ordered)
    while remaining < target:
        last -= 1
        remaining += len(ordered[last].paths)
    start = int.from_bytes(_digest(salt)[:8], "big") % (last + 1) if ordered else 0
    return ordered[start:]


def _take(units: Iterable[_Unit], target: int, *, contiguous: bool) -> list[str]:
    """Return whole units in order, as close to the target as possible; a block ends at the first unit that does not fit."""
    paths: list[str] = []
    for unit in units:
        if abs(len(paths) + len(unit.paths) - target) < abs(len(paths) - target):
            paths.extend(unit.paths)
        elif contiguous:
            break
    return paths


def _check_labels(manifest: Manifest) -> None:
    if not manifest.images:
        raise DatasetError("the data set has no images", hint=f"Add images of {' and '.join(manifest.classes)}")
    labels = {image.label for image in manifest.images}
    missing = " and ".join(label for label in manifest.classes if label not in labels)
    if missing:
        raise DatasetError(
            f"{counted(len(manifest.images), 'image')} of {' and '.join(sorted(labels))}, and none of {missing}",
            hint=f"Add images of {missing}",
        )
    for name in ("train", "validation", "test"):
        counts = Counter(image.label for image in manifest.split(name))
        if not all(counts[label] for label in manifest.classes):
            found = ", ".join(f"{counts[label]} {label}" for label in manifest.classes)
            needed = "both labels" if manifest.binary else "every class"
            absent = " and ".join(label for label in manifest.classes if not counts[label])
            raise DatasetError(
                f"the {name} split would have {found} images; it needs {needed}",
                hint=f"Add images of {absent}, or change the fractions, the seed or --by",
            )

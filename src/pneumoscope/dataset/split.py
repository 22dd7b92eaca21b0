"""Who trains, who validates, who tests. The same films and seed give the same split on every machine and library.

No random number generator is used: whatever is divided is put in the order of SHA-256 of (seed, key), which no library
can change. Keys are patients, or file names without folders where those are unique: films moved or resized are split
the same way.

A given test split is kept as it is. The other films are pooled and divided anew, with two exceptions, set "unused":

- given validation films that are fewer than 1% of the pool (the public set has 16): they are too few to choose anything
  on, and training on them would make runs incomparable with the report, which set them aside;
- films of a patient who is also in the given test split, unless the split is by image.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal

from pneumoscope.dataset.manifest import LABELS, Film, Manifest
from pneumoscope.dataset.patients import series_and_number
from pneumoscope.errors import DatasetError, UsageError

__all__ = ["By", "split"]

By = Literal["patient", "block", "image"]
_METHODS = ("patient", "block", "image")
_TINY = 0.01
_TEST = 0.15


@dataclasses.dataclass(frozen=True, slots=True)
class _Unit:
    """What is never divided: the films of one patient, or one film.

    Attributes:
        key: of the patient, or the film's name.
        stratum: what shares are kept in: the label, or the series of a block.
        films: their paths.
    """

    key: str
    stratum: str
    films: tuple[str, ...]


def split(
    manifest: Manifest, *, by: str = "patient", validation: float = 0.15, test: float | None = None, seed: int = 0
) -> Manifest:
    """Divide films into train, validation and test.

    - "patient": whole patients, stratified by label. A patient with films of both labels counts as PNEUMONIA.
    - "block": one contiguous block of patient numbers in each series, from a seeded start and without wrapping around:
      the validation films then differ from the train films somewhat as the official test films do.
    - "image": films, stratified by label, whoever is on them. As the report did; leaks patients into validation.

    Args:
        manifest: with or without splits.
        by: "patient", "block" or "image".
        validation: share of the pooled films (without test films) that validate, between 0 and 1; whole patients come
            as near as they can.
        test: share of all films that test, where the data has no test split; 0.15 where None.
        seed: of the order.
    Returns:
        The same films in the same order, each with its split; `notes` say what was set aside.
    Raises:
        UsageError: an unknown `by`, a share outside (0, 1), or `test` for data that has a test split.
        DatasetError: a split would be empty or of one label; or a block is asked of patients without numbers.
    """
    if by not in _METHODS:
        raise UsageError(f"a split is by {', '.join(_METHODS)}, not by {by!r}")
    has_test = any(film.split == "test" for film in manifest.films)
    if has_test and test is not None:
        raise UsageError(
            f"the data has a test split of its own ({len(manifest.split('test'))} films); test={test} cannot be drawn",
            advice="Leave --test out",
        )
    for name, share in (("validation", validation), ("test", _TEST if test is None else test)):
        if not 0 < share < 1:
            raise UsageError(f"{name} is a share between 0 and 1, not {share}")

    pool, notes = _pool(manifest, by)
    units = _units(pool, by)
    chosen: dict[str, str] = {}
    if not has_test:
        chosen |= dict.fromkeys(_draw(units, _TEST if test is None else test, by, f"{seed}\ntest"), "test")
        units = [unit for unit in units if unit.films[0] not in chosen]
    chosen |= dict.fromkeys(_draw(units, validation, by, f"{seed}\nvalidation"), "validation")
    pooled = {film.path for film in pool}
    films = tuple(
        dataclasses.replace(film, split=chosen.get(film.path, "train") if film.path in pooled else _kept(film))
        for film in manifest.films
    )
    result = dataclasses.replace(manifest, films=films, by=by, notes=(*manifest.notes, *notes))
    _refuse_useless(result)
    return result


def _kept(film: Film) -> str:
    return "test" if film.split == "test" else "unused"


def _pool(manifest: Manifest, by: str) -> tuple[list[Film], list[str]]:
    """The films to divide, and what the caller should know of the others."""
    notes = []
    pool = [film for film in manifest.films if film.split in {"train", "validation", ""}]
    given = sum(film.split == "validation" for film in pool)
    if 0 < given < _TINY * len(pool):
        pool = [film for film in pool if film.split != "validation"]
        notes.append(f"the {given} given validation films are set aside: too few to choose anything on")
    if by != "image":
        tested = {film.patient for film in manifest.films if film.split == "test" and film.patient}
        leaked = [film for film in pool if film.patient in tested]
        if leaked:
            pool = [film for film in pool if film.patient not in tested]
            patients = len({film.patient for film in leaked})
            notes.append(f"{len(leaked)} films of {patients} patients who are also in the test split are set aside")
        unknown = sum(not film.patient for film in pool)
        if unknown and by == "patient":
            notes.append(f"{unknown:,} films of unknown patients were divided as if each were a patient of its own")
    return pool, notes


def _units(pool: Sequence[Film], by: str) -> list[_Unit]:
    listed = Counter(_name(film.path) for film in pool)
    alone = {film.path: _name(film.path) if listed[_name(film.path)] == 1 else film.path for film in pool}
    if by == "image":
        return [_Unit(alone[film.path], film.label, (film.path,)) for film in pool]
    together: dict[tuple[str, str], list[Film]] = defaultdict(list)
    for film in pool:
        together[film.patient, "" if film.patient else alone[film.path]].append(film)
    return [
        _Unit(patient or name, _stratum(films, by), tuple(film.path for film in films))
        for (patient, name), films in together.items()
    ]


def _stratum(films: Sequence[Film], by: str) -> str:
    if by == "patient":
        return LABELS[any(film.positive for film in films)]
    found = series_and_number(films[0].patient)
    if found is None:
        raise DatasetError(
            f"a block needs patients with numbers; {films[0].path!r} has the patient {films[0].patient!r}",
            advice="Split by patient instead",
        )
    return found[0]


def _name(path: str) -> str:
    """The name without folders; within an archive its split and row."""
    return path.partition("#")[2] or PurePosixPath(path).name


def _draw(units: Sequence[_Unit], share: float, by: str, salt: str) -> list[str]:
    """Paths of a share of the films, drawn stratum by stratum."""
    strata: dict[str, list[_Unit]] = defaultdict(list)
    for unit in units:
        strata[unit.stratum].append(unit)
    targets = _targets({name: sum(len(unit.films) for unit in strata[name]) for name in sorted(strata)}, share)
    paths: list[str] = []
    for name, target in targets.items():
        block = by == "block"
        ordered = _block_order(strata[name], target, f"{salt}\n{name}") if block else _hash_order(strata[name], salt)
        paths.extend(_take(ordered, target, contiguous=block))
    return paths


def _targets(sizes: Mapping[str, int], share: float) -> dict[str, int]:
    """Films to draw in each stratum: the total is the nearest whole number, the largest remainders are rounded up."""
    total = int(sum(sizes.values()) * share + 0.5)
    targets = {name: int(size * share) for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (targets[name] - sizes[name] * share, name))
    for name in by_remainder[: max(0, total - sum(targets.values()))]:
        targets[name] += 1
    return targets


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\n".join(parts).encode()).digest()


def _hash_order(units: Iterable[_Unit], salt: str) -> list[_Unit]:
    return sorted(units, key=lambda unit: (_digest(salt, unit.key), unit.films))


def _block_order(units: Iterable[_Unit], target: int, salt: str) -> list[_Unit]:
    """By patient number, from a seeded start after which enough films are left."""
    ordered = sorted(units, key=lambda unit: (series_and_number(unit.key) or ("", 0), unit.key))
    left = 0
    last = len(ordered)
    while left < target:
        last -= 1
        left += len(ordered[last].films)
    start = int.from_bytes(_digest(salt)[:8], "big") % (last + 1) if ordered else 0
    return ordered[start:]


def _take(units: Iterable[_Unit], target: int, *, contiguous: bool) -> list[str]:
    """Whole units in order, as near to the target as they come; a block ends at the first that does not fit."""
    paths: list[str] = []
    for unit in units:
        if abs(len(paths) + len(unit.films) - target) < abs(len(paths) - target):
            paths.extend(unit.films)
        elif contiguous:
            break
    return paths


def _refuse_useless(manifest: Manifest) -> None:
    for name in ("train", "validation", "test"):
        found = Counter(film.label for film in manifest.split(name))
        missing = [label for label in LABELS if not found[label]]
        if missing:
            counts = ", ".join(f"{found[label]} {label}" for label in LABELS)
            task = "learned" if name == "train" else "measured"
            raise DatasetError(
                f"the {name} split would hold {counts}: nothing can be {task} there",
                advice="Bring more films of that label, or change the shares, the seed or --by",
            )

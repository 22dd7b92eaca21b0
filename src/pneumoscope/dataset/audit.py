"""What a labelled set is, before anything is trained on it: counts, patients, leaks, duplicates and shortcuts."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from pneumoscope import __version__
from pneumoscope.dataset.duplicates import NearDuplicates, exact_duplicates, near_duplicates
from pneumoscope.dataset.examine import FINGERPRINT_SIDE, Examined, examine_films
from pneumoscope.dataset.manifest import LABELS, SPLITS, Film, Manifest
from pneumoscope.dataset.shortcuts import CONTROLS, measure_shortcuts
from pneumoscope.dataset.split import split
from pneumoscope.errors import DatasetError
from pneumoscope.results import NOTICE, SCHEMA, Interval

__all__ = ["Audit", "SizeSummary", "Spread", "Unreadable", "audit", "siblings_across_validation"]

AuditProgress = Callable[[str, int, int], None]
_VALIDATION = 0.15
_KNOWS_NOTHING = 0.5  # AUROC


@dataclasses.dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that was left out.

    Attributes:
        path: below the data folder.
        why: in words.
    """

    path: str
    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles over films: half of the films lie from `p25` to `p75`, nine tenths from `p5` to `p95`."""

    p5: float
    p25: float
    p50: float
    p75: float
    p95: float


@dataclasses.dataclass(frozen=True, slots=True)
class SizeSummary:
    """How large the films of one label are: a difference between labels is a shortcut.

    Attributes:
        n: films.
        width, height: pixels.
        aspect: width / height.
        bytes: of the file.
        modes: films by colour mode.
    """

    n: int
    width: Spread
    height: Spread
    aspect: Spread
    bytes: Spread
    modes: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Audit:
    """An audit of labelled films. Splits are called as their folders are, so that "val" stays "val"; "all" is no split.

    Attributes:
        data: name of the folder that the films lie in; where it lies is nobody else's business.
        films_sha256: of the manifest.
        films: {split: {label: n}} of the films that can be decoded.
        etiology: {split: {"normal", "bacteria", "virus", "unknown": n}}.
        patients: {split: n} of known patients.
        unknown_patients: films whose patient is unknown.
        patients_in_several_splits: {"train/test": n, ...} of known patients.
        siblings_across_validation: expected share of validation films that would have a film of the same patient in
            training, were 15% of the films drawn by image; None where it cannot be.
        siblings_reason: why it is None; empty otherwise.
        exact_duplicate_groups: groups of byte-identical films.
        exact_duplicates: their paths.
        near_duplicates: by perceptual hash.
        unreadable: what was left out.
        sizes: {label: sizes}.
        shortcuts: {control: AUROC}; 0.5 knows nothing.
        notes: what the reader should know, in sentences.
    """

    data: str
    films_sha256: str
    films: Mapping[str, Mapping[str, int]]
    etiology: Mapping[str, Mapping[str, int]]
    patients: Mapping[str, int]
    unknown_patients: int
    patients_in_several_splits: Mapping[str, int]
    siblings_across_validation: float | None
    siblings_reason: str
    exact_duplicate_groups: int
    exact_duplicates: tuple[tuple[str, ...], ...]
    near_duplicates: NearDuplicates
    unreadable: tuple[Unreadable, ...]
    sizes: Mapping[str, SizeSummary]
    shortcuts: Mapping[str, Interval]
    notes: tuple[str, ...]
    version: str = __version__
    schema: int = SCHEMA
    notice: str = NOTICE


def audit(manifest: Manifest, *, seed: int = 0, progress: AuditProgress | None = None) -> Audit:
    """Look at every film once and at the set as a whole.

    Args:
        manifest: from `load_manifest`.
        seed: of the folds of the shortcut controls.
        progress: called with (what is being done, films done, films in all).
    Raises:
        DatasetError: not one film can be decoded.
    """
    say = progress or (lambda _what, _done, _total: None)
    examined, failed = examine_films(
        manifest.root, manifest.films, lambda done, total: say("reading films", done, total)
    )
    if not examined:
        path, why = failed[0]
        raise DatasetError(f"none of the {len(failed)} films can be decoded; the first: {path}: {why}")
    films = [one.film for one in examined]
    total = len(films)
    splits = _split_names(films)
    names = sorted(set(splits), key=lambda name: SPLITS.index(_STORED.get(name, name)))
    say("comparing films", 0, total)
    fingerprints = np.array([one.fingerprint for one in examined]).reshape(total, FINGERPRINT_SIDE**2)
    duplicates = near_duplicates(films, fingerprints, splits, names)
    groups = exact_duplicates(films)
    say("measuring shortcuts", 0, total)
    shortcuts = measure_shortcuts(examined, seed=seed)
    share, reason = siblings_across_validation(dataclasses.replace(manifest, films=tuple(films)))
    say("measuring shortcuts", total, total)
    patients = _patients(films, splits)
    return Audit(
        data=manifest.root.resolve().name,
        films_sha256=manifest.sha256(),
        films=_counts(names, splits, [film.label for film in films], LABELS),
        etiology=_etiologies(names, splits, films),
        patients={name: len(patients[name]) for name in names},
        unknown_patients=sum(not film.patient for film in films),
        patients_in_several_splits={f"{a}/{b}": len(patients[a] & patients[b]) for a, b in combinations(names, 2)},
        siblings_across_validation=share,
        siblings_reason=reason,
        exact_duplicate_groups=len(groups),
        exact_duplicates=groups,
        near_duplicates=duplicates,
        unreadable=tuple(Unreadable(path, why) for path, why in sorted((*manifest.unreadable, *failed))),
        sizes=_sizes(examined),
        shortcuts=shortcuts,
        notes=(*_giveaways(shortcuts), *manifest.notes),
    )


_STORED = {"val": "validation", "all": ""}


def _split_names(films: Sequence[Film]) -> list[str]:
    """The split of each film under the name that its folder has."""
    short = any(film.split == "validation" and "val" in film.path.lower().split("/") for film in films)
    shown = {"validation": "val" if short else "validation", "": "all"}
    return [shown.get(film.split, film.split) for film in films]


def _counts(
    names: Sequence[str], splits: Sequence[str], values: Sequence[str], columns: Sequence[str]
) -> dict[str, dict[str, int]]:
    found = Counter(zip(splits, values, strict=True))
    return {name: {column: found[name, column] for column in columns} for name in names}


def _etiologies(names: Sequence[str], splits: Sequence[str], films: Sequence[Film]) -> dict[str, dict[str, int]]:
    values = [film.etiology or "unknown" for film in films]
    columns = ["normal", "bacteria", "virus", *(["unknown"] if "unknown" in values else [])]
    return _counts(names, splits, values, columns)


def _patients(films: Sequence[Film], splits: Sequence[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for film, name in zip(films, splits, strict=True):
        if film.patient:
            found[name].add(film.patient)
    return found


def _sizes(examined: Sequence[Examined]) -> dict[str, SizeSummary]:
    found = {}
    for label in LABELS:
        ours = [one for one in examined if one.film.label == label]
        if ours:
            found[label] = SizeSummary(
                n=len(ours),
                width=_spread([one.width for one in ours]),
                height=_spread([one.height for one in ours]),
                aspect=_spread([one.width / one.height for one in ours]),
                bytes=_spread([one.bytes for one in ours]),
                modes=dict(sorted(Counter(one.mode for one in ours).items())),
            )
    return found


def _spread(values: Sequence[float]) -> Spread:
    return Spread(*(float(value) for value in np.percentile(values, (5, 25, 50, 75, 95))))


def siblings_across_validation(manifest: Manifest) -> tuple[float | None, str]:
    """How far a split by image would let training see the patients of validation.

    In each label, films are drawn without replacement. Given that a film of a patient with m of the n films of that
    label is drawn into validation, its siblings all miss the t train films with probability C(n - 1 - t, m - 1) / C(n
    - 1, m - 1). Labels are drawn independently of each other.

    Args:
        manifest: as loaded.
    Returns:
        The expected share, 0 to 1; or None and why.
    """
    if not any(film.patient for film in manifest.films):
        return None, "no patient is known"
    try:
        divided = split(manifest, by="image", validation=_VALIDATION)
    except DatasetError as error:
        return None, error.message
    given_test = any(film.split == "test" for film in manifest.films)
    pooled = {"train", "validation"} if given_test else {"train", "validation", "test"}
    pool = [film for film in divided if film.split in pooled]
    size = Counter(film.label for film in pool)
    trained = Counter(film.label for film in pool if film.split == "train")
    drawn = Counter(film.label for film in pool if film.split == "validation")
    own: dict[str, Counter[str]] = defaultdict(Counter)
    for film in pool:
        own[film.patient or film.path][film.label] += 1
    expected = 0.0
    for counts in own.values():
        for label, films in counts.items():
            missed = 1.0
            for other, siblings in counts.items():
                known = int(other == label)  # the film itself: drawn into validation, so not among the train films
                missed *= _none_drawn(size[other] - known, trained[other], siblings - known)
            expected += films * drawn[label] / size[label] * (1 - missed)
    return expected / drawn.total(), ""


def _none_drawn(n: int, drawn: int, of: int) -> float:
    """Probability that a draw of `drawn` from n without replacement holds none of `of` given ones."""
    probability = 1.0
    for i in range(of):
        probability *= (n - drawn - i) / (n - i)
    return max(0.0, probability)


def _giveaways(shortcuts: Mapping[str, Interval]) -> Iterator[str]:
    """What tells the labels apart though it shows no lung, the surest first."""
    told = [(found, name) for name, found in shortcuts.items() if found.low is not None and found.low > _KNOWS_NOTHING]
    for found, name in sorted(told, key=lambda each: -(each[0].value or 0)):
        yield (
            f"the labels can be told apart without the lungs: {CONTROLS[name]} alone give an AUROC of {found.value:.3f}"
            f" ({found.low:.3f} to {found.high:.3f}), and a network can learn that instead"
        )

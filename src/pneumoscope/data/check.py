"""What a labelled set is, before anything is trained on it: counts, patients, leaks, duplicates and shortcuts."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from pneumoscope import __version__
from pneumoscope.core.errors import DatasetError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.results import SCHEMA, Interval
from pneumoscope.data.duplicates import NearDuplicates, exact_duplicates, near_duplicates
from pneumoscope.data.inspection import FINGERPRINT_SIDE, InspectedImage, inspect_images
from pneumoscope.data.manifest import LABELS, SPLITS, LabelledImage, Manifest
from pneumoscope.data.shortcuts import CONTROLS, measure_shortcuts
from pneumoscope.data.split import split

__all__ = ["DatasetAudit", "Percentiles", "SizeSummary", "Unreadable", "check_data", "siblings_across_validation"]

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
class Percentiles:
    """Percentiles over images: half of the images lie from `p25` to `p75`, nine tenths from `p5` to `p95`."""

    p5: float
    p25: float
    p50: float
    p75: float
    p95: float


@dataclasses.dataclass(frozen=True, slots=True)
class SizeSummary:
    """How large the images of one label are: a difference between labels is a shortcut.

    Attributes:
        n: images.
        width, height: pixels.
        aspect: width / height.
        bytes: of the file.
        modes: images by colour mode.
    """

    n: int
    width: Percentiles
    height: Percentiles
    aspect: Percentiles
    bytes: Percentiles
    modes: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class DatasetAudit:
    """An audit of labelled images. Splits are called as their folders are, so that "val" stays "val"; "all" is no split.

    Attributes:
        data: name of the folder that the images lie in; where it lies is nobody else's business.
        images_sha256: of the manifest.
        images: {split: {label: n}} of the images that can be decoded.
        etiology: {split: {"normal", "bacteria", "virus", "unknown": n}}.
        patients: {split: n} of known patients.
        unknown_patients: images whose patient is unknown.
        patients_in_several_splits: {"train/test": n, ...} of known patients.
        siblings_across_validation: expected share of validation images that would have an image of the same patient in
            training, were 15% of the images drawn by image; None where it cannot be.
        siblings_reason: why it is None; empty otherwise.
        exact_duplicate_groups: groups of byte-identical images.
        exact_duplicates: their paths.
        near_duplicates: by perceptual hash.
        unreadable: what was left out.
        sizes: {label: sizes}.
        shortcuts: {control: AUROC}; 0.5 knows nothing.
        notes: what the reader should know, in sentences.
    """

    data: str
    images_sha256: str
    images: Mapping[str, Mapping[str, int]]
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


def check_data(manifest: Manifest, *, seed: int = 0, progress: AuditProgress | None = None) -> DatasetAudit:
    """Look at every image once and at the set as a whole.

    Args:
        manifest: from `load_manifest`.
        seed: of the folds of the shortcut controls.
        progress: called with (what is being done, images done, images in all).
    Raises:
        DatasetError: not one image can be decoded.
    """
    say = progress or (lambda _what, _done, _total: None)
    examined, failed = inspect_images(
        manifest.root, manifest.images, lambda done, total: say("reading images", done, total)
    )
    if not examined:
        path, why = failed[0]
        raise DatasetError(f"none of the {len(failed)} images can be decoded; the first: {path}: {why}")
    images = [one.image for one in examined]
    total = len(images)
    splits = _split_names(images)
    names = sorted(set(splits), key=lambda name: SPLITS.index(_STORED.get(name, name)))
    say("comparing images", 0, total)
    fingerprints = np.array([one.fingerprint for one in examined]).reshape(total, FINGERPRINT_SIDE**2)
    duplicates = near_duplicates(images, fingerprints, splits, names)
    groups = exact_duplicates(images)
    say("measuring shortcuts", 0, total)
    shortcuts = measure_shortcuts(examined, seed=seed)
    share, reason = siblings_across_validation(dataclasses.replace(manifest, images=tuple(images)))
    say("measuring shortcuts", total, total)
    patients = _patients(images, splits)
    return DatasetAudit(
        data=manifest.root.resolve().name,
        images_sha256=manifest.sha256(),
        images=_counts(names, splits, [image.label for image in images], LABELS),
        etiology=_etiologies(names, splits, images),
        patients={name: len(patients[name]) for name in names},
        unknown_patients=sum(not image.patient for image in images),
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


def _split_names(images: Sequence[LabelledImage]) -> list[str]:
    """The split of each image under the name that its folder has."""
    short = any(image.split == "validation" and "val" in image.path.lower().split("/") for image in images)
    shown = {"validation": "val" if short else "validation", "": "all"}
    return [shown.get(image.split, image.split) for image in images]


def _counts(
    names: Sequence[str], splits: Sequence[str], values: Sequence[str], columns: Sequence[str]
) -> dict[str, dict[str, int]]:
    found = Counter(zip(splits, values, strict=True))
    return {name: {column: found[name, column] for column in columns} for name in names}


def _etiologies(
    names: Sequence[str], splits: Sequence[str], images: Sequence[LabelledImage]
) -> dict[str, dict[str, int]]:
    values = [image.etiology or "unknown" for image in images]
    columns = ["normal", "bacteria", "virus", *(["unknown"] if "unknown" in values else [])]
    return _counts(names, splits, values, columns)


def _patients(images: Sequence[LabelledImage], splits: Sequence[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for image, name in zip(images, splits, strict=True):
        if image.patient:
            found[name].add(image.patient)
    return found


def _sizes(examined: Sequence[InspectedImage]) -> dict[str, SizeSummary]:
    found = {}
    for label in LABELS:
        ours = [one for one in examined if one.image.label == label]
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


def _spread(values: Sequence[float]) -> Percentiles:
    return Percentiles(*(float(value) for value in np.percentile(values, (5, 25, 50, 75, 95))))


def siblings_across_validation(manifest: Manifest) -> tuple[float | None, str]:
    """How far a split by image would let training see the patients of validation.

    In each label, images are drawn without replacement. Given that an image of a patient with m of the n images of that
    label is drawn into validation, its siblings all miss the t train images with probability C(n - 1 - t, m - 1) / C(n
    - 1, m - 1). Labels are drawn independently of each other.

    Args:
        manifest: as loaded.
    Returns:
        The expected share, 0 to 1; or None and why.
    """
    if not any(image.patient for image in manifest.images):
        return None, "no patient is known"
    try:
        divided = split(manifest, by="image", validation=_VALIDATION)
    except DatasetError as error:
        return None, error.message
    given_test = any(image.split == "test" for image in manifest.images)
    pooled = {"train", "validation"} if given_test else {"train", "validation", "test"}
    pool = [image for image in divided if image.split in pooled]
    size = Counter(image.label for image in pool)
    trained = Counter(image.label for image in pool if image.split == "train")
    drawn = Counter(image.label for image in pool if image.split == "validation")
    own: dict[str, Counter[str]] = defaultdict(Counter)
    for image in pool:
        own[image.patient or image.path][image.label] += 1
    expected = 0.0
    for counts in own.values():
        for label, images in counts.items():
            missed = 1.0
            for other, siblings in counts.items():
                known = int(other == label)  # the image itself: drawn into validation, so not among the train images
                missed *= _none_drawn(size[other] - known, trained[other], siblings - known)
            expected += images * drawn[label] / size[label] * (1 - missed)
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

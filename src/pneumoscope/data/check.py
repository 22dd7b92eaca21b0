"""Check a labeled data set: counts, patients, leaks, duplicates and shortcuts.

A shortcut is anything other than the lungs that reveals the label. Shortcuts are measured with three simple models that do not
see the lungs: if one of them scores well, a network can score well in the same way. A better model may find more, so an AUROC
near 0.5 does not prove the absence of shortcuts, but a high AUROC proves that one exists.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pneumoscope import __version__
from pneumoscope.core.errors import DatasetError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.interval import Interval
from pneumoscope.core.messages import counted
from pneumoscope.core.results import SCHEMA
from pneumoscope.data.duplicates import NearDuplicates, exact_duplicates, near_duplicates
from pneumoscope.data.inspection import HASH_BITS, THUMBNAIL_SIDE, InspectedImage, inspect_images
from pneumoscope.data.manifest import LABELS, SPLITS, LabeledImage, Manifest
from pneumoscope.data.split import expected_leak_rate
from pneumoscope.statistics.inputs import count_unknown
from pneumoscope.statistics.intervals import undefined
from pneumoscope.statistics.roc import auroc_interval

__all__ = [
    "CONTROLS",
    "DatasetAudit",
    "Percentiles",
    "SizeSummary",
    "UnreadableFile",
    "border_mask",
    "check_data",
    "measure_shortcuts",
]

# Input of each shortcut control.
CONTROLS = {
    "metadata": "file size, width, height, aspect ratio, format, color mode and JPEG quantization; no pixels",
    "border": "the outer sixteenth of the image on each side",
    "center_blanked": "the image without the central three quarters of its width and height",
}

_FOLDS = 5
_BORDER = THUMBNAIL_SIDE // 16
_WIDE_BORDER = THUMBNAIL_SIDE // 8
_CHANCE = 0.5  # AUROC

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
# Called with the name of the step, the number of images processed so far, and the total.
StepProgress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class UnreadableFile:
    """File that was skipped.

    Attributes:
        path: Path relative to the data folder.
        reason: Reason, as a phrase.
    """

    path: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Percentiles:
    """5th, 25th, 50th, 75th and 95th percentiles over images."""

    p5: float
    p25: float
    p50: float
    p75: float
    p95: float


@dataclasses.dataclass(frozen=True, slots=True)
class SizeSummary:
    """Sizes of the images of one label; a difference between labels is a shortcut.

    Attributes:
        n: Number of images.
        width, height: Width and height in pixels.
        aspect: Width divided by height.
        bytes: File size.
        modes: Number of images by color mode.
    """

    n: int
    width: Percentiles
    height: Percentiles
    aspect: Percentiles
    bytes: Percentiles
    modes: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class DatasetAudit:
    """Result of checking a data set. Splits are named after their folders, such as "val"; "all" if there are none.

    Attributes:
        data: Name of the data folder, without its parents.
        images_sha256: Hash of the manifest.
        images: Number of readable images, {split: {label: n}}.
        etiology: Number of images, {split: {"normal", "bacteria", "virus", "unknown": n}}.
        patients: Number of known patients, {split: n}.
        unknown_patients: Number of images without a known patient.
        patients_in_several_splits: Number of known patients in both splits, {"train/test": n}.
        expected_leak_rate: Expected fraction of validation images whose patient is also in train if 15% of the images were
            drawn without regard to patients; None if undefined.
        expected_leak_rate_reason: Reason if it is None; otherwise empty.
        exact_duplicate_groups: Number of groups of byte-identical images.
        exact_duplicates: Paths of the images in each group.
        near_duplicates: Pairs by perceptual hash.
        unreadable: Files that were skipped.
        sizes: Sizes by label.
        shortcuts: AUROC by control, or by "control, class" for three or more classes; 0.5 is chance.
        notes: Findings as sentences.
    """

    data: str
    images_sha256: str
    images: Mapping[str, Mapping[str, int]]
    etiology: Mapping[str, Mapping[str, int]]
    patients: Mapping[str, int]
    unknown_patients: int
    patients_in_several_splits: Mapping[str, int]
    expected_leak_rate: float | None
    expected_leak_rate_reason: str
    exact_duplicate_groups: int
    exact_duplicates: tuple[tuple[str, ...], ...]
    near_duplicates: NearDuplicates
    unreadable: tuple[UnreadableFile, ...]
    sizes: Mapping[str, SizeSummary]
    shortcuts: Mapping[str, Interval]
    notes: tuple[str, ...]
    version: str = __version__
    schema: int = SCHEMA
    notice: str = NOTICE

    @property
    def etiology_columns(self) -> tuple[str, ...]:
        """Etiologies to show beside the labels; empty for classes other than NORMAL and PNEUMONIA, and if none is known."""
        labels = next(iter(self.images.values()))
        known = any(counts[name] for counts in self.etiology.values() for name in ("bacteria", "virus"))
        if tuple(labels) != LABELS or not known:
            return ()
        return tuple(name for name in next(iter(self.etiology.values())) if name != "normal")


def check_data(manifest: Manifest, *, seed: int = 0, progress: StepProgress | None = None) -> DatasetAudit:
    """Check each image and the data set as a whole.

    Args:
        manifest: Manifest from `load_manifest`.
        seed: Seed of the cross-validation folds of the shortcut controls.
        progress: Callback with the name of the step, the number of images processed so far, and the total.

    Raises:
        DatasetError: No image can be decoded.
    """
    report = progress or (lambda _step, _done, _total: None)
    inspected, failed = inspect_images(
        manifest.root, manifest.images, lambda done, total: report("reading images", done, total)
    )
    if not inspected:
        path, reason = failed[0]
        raise DatasetError(f"no image can be decoded; the first of {len(failed)}: {path}: {reason}")
    images = [properties.image for properties in inspected]
    total = len(images)
    splits = _display_splits(images)
    names = sorted(set(splits), key=lambda name: SPLITS.index(_SPLIT_OF_DISPLAY_NAME.get(name, name)))
    report("comparing images", 0, total)
    hashes = np.array([properties.perceptual_hash for properties in inspected]).reshape(total, HASH_BITS)
    duplicates = near_duplicates(images, hashes, splits, names)
    groups = exact_duplicates(images)
    report("measuring shortcuts", 0, total)
    shortcuts = measure_shortcuts(inspected, classes=manifest.classes, seed=seed)
    leak_rate, leak_rate_reason = expected_leak_rate(dataclasses.replace(manifest, images=tuple(images)))
    report("measuring shortcuts", total, total)
    patients = _patients(images, splits)
    return DatasetAudit(
        data=manifest.root.resolve().name,
        images_sha256=manifest.sha256(),
        images=_count(names, splits, [image.label for image in images], manifest.classes),
        etiology=_count_etiologies(names, splits, images),
        patients={name: len(patients[name]) for name in names},
        unknown_patients=count_unknown(image.patient for image in images),
        patients_in_several_splits={f"{a}/{b}": len(patients[a] & patients[b]) for a, b in combinations(names, 2)},
        expected_leak_rate=leak_rate,
        expected_leak_rate_reason=leak_rate_reason,
        exact_duplicate_groups=len(groups),
        exact_duplicates=groups,
        near_duplicates=duplicates,
        unreadable=tuple(
            UnreadableFile(path, reason) for path, reason in sorted((*manifest.unreadable, *manifest.skipped, *failed))
        ),
        sizes=_sizes(inspected, manifest.classes),
        shortcuts=shortcuts,
        notes=(*_shortcut_notes(shortcuts), *_contradiction_notes(manifest), *manifest.notes),
    )


_SPLIT_OF_DISPLAY_NAME = {"val": "validation", "all": ""}


def _display_splits(images: Sequence[LabeledImage]) -> list[str]:
    """Return the split of each image, named after its folder."""
    short = any(image.split == "validation" and "val" in image.path.lower().split("/") for image in images)
    names = {"validation": "val" if short else "validation", "": "all"}
    return [names.get(image.split, image.split) for image in images]


def _count(
    names: Sequence[str], splits: Sequence[str], values: Sequence[str], columns: Sequence[str]
) -> dict[str, dict[str, int]]:
    counts = Counter(zip(splits, values, strict=True))
    return {name: {column: counts[name, column] for column in columns} for name in names}


def _count_etiologies(
    names: Sequence[str], splits: Sequence[str], images: Sequence[LabeledImage]
) -> dict[str, dict[str, int]]:
    values = [image.etiology or "unknown" for image in images]
    columns = ["normal", "bacteria", "virus", *(["unknown"] if "unknown" in values else [])]
    return _count(names, splits, values, columns)


def _patients(images: Sequence[LabeledImage], splits: Sequence[str]) -> dict[str, set[str]]:
    patients: dict[str, set[str]] = defaultdict(set)
    for image, name in zip(images, splits, strict=True):
        if image.patient:
            patients[name].add(image.patient)
    return patients


def _sizes(inspected: Sequence[InspectedImage], classes: Sequence[str]) -> dict[str, SizeSummary]:
    sizes = {}
    for label in classes:
        images = [properties for properties in inspected if properties.image.label == label]
        if images:
            sizes[label] = SizeSummary(
                n=len(images),
                width=_percentiles([image.width for image in images]),
                height=_percentiles([image.height for image in images]),
                aspect=_percentiles([image.width / image.height for image in images]),
                bytes=_percentiles([image.bytes for image in images]),
                modes=dict(sorted(Counter(image.mode for image in images).items())),
            )
    return sizes


def _percentiles(values: Sequence[float]) -> Percentiles:
    return Percentiles(*(float(value) for value in np.percentile(values, (5, 25, 50, 75, 95))))


def _shortcut_notes(shortcuts: Mapping[str, Interval]) -> Iterator[str]:
    """Yield a sentence for each control whose AUROC is above chance, in descending order."""
    significant = [
        (interval, name) for name, interval in shortcuts.items() if interval.low is not None and interval.low > _CHANCE
    ]
    for interval, name in sorted(significant, key=lambda item: -(item[0].value or 0)):
        control, _, label = name.partition(", ")
        what = f"the class {label}" if label else "the labels"
        yield (
            f"{what} can be predicted without the lungs: a model that sees only {CONTROLS[control]} has an AUROC of"
            f" {interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f}); a network can learn this shortcut"
        )


def _contradiction_notes(manifest: Manifest) -> Iterator[str]:
    """Yield a sentence if byte-identical images have different labels."""
    if pairs := manifest.contradictions():
        a, b = pairs[0]
        yield (
            f"{counted(len(pairs), 'group')} of byte-identical images with different labels; the first: {a.path} is {a.label} and"
            f" {b.path} is {b.label}. Correct the labels, or remove one of the images"
        )


# --- shortcuts -------------------------------------------------------------------------------------------------------


def measure_shortcuts(
    inspected: Sequence[InspectedImage], *, classes: Sequence[str] = LABELS, seed: int = 0
) -> dict[str, Interval]:
    """Return the cross-validated AUROC of each control, with all images of a patient in one fold.

    Args:
        inspected: Images of all classes.
        classes: Classes of the data set.
        seed: Seed of the folds.

    Returns:
        {control: AUROC of the out-of-fold scores, with an interval clustered by patient}, undefined if a label has fewer than 5
        patients. For three or more classes, {"control, class": AUROC of the class against all others}.
    """
    if len(classes) == 2:  # the AUROC of the other class would repeat that of the first
        return _measure_shortcuts(inspected, (classes[0], classes[1]), seed)
    return {
        f"{control}, {name}": interval
        for name in classes
        for control, interval in _measure_shortcuts(inspected, (f"no {name}", name), seed).items()
    }


def _measure_shortcuts(inspected: Sequence[InspectedImage], names: tuple[str, str], seed: int) -> dict[str, Interval]:
    """Return the AUROC of each control for the second label against all other images."""
    labels = np.array([properties.image.label == names[1] for properties in inspected], dtype=np.bool_)
    patients = [properties.image.patient or f"image {properties.image.path}" for properties in inspected]
    method = f"{_FOLDS}-fold by patient"
    for label, positive in zip(names, (False, True), strict=True):
        count = len({patient for patient, value in zip(patients, labels, strict=True) if value == positive})
        if count < _FOLDS:
            reason = f"{_FOLDS} folds need {_FOLDS} {label} patients; found {count}"
            return {control: undefined(reason, n=len(inspected), method=method, seed=seed) for control in CONTROLS}
    folds = list(StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed).split(labels, labels, groups=patients))
    shortcuts = {}
    for control in CONTROLS:
        features, model = _control(control, inspected, seed)
        interval = auroc_interval(_out_of_fold_scores(model, features, labels, folds), labels, patients)
        shortcuts[control] = dataclasses.replace(interval, method=f"{method}, {interval.method}", seed=seed)
    return shortcuts


def _control(control: str, inspected: Sequence[InspectedImage], seed: int) -> tuple[FloatArray, Any]:
    """Return the features (images, features) and the model of a control."""
    if control == "metadata":
        trees = HistGradientBoostingClassifier(max_iter=60, early_stopping=False, random_state=seed)
        return _metadata(inspected), trees
    visible = border_mask(_BORDER if control == "border" else _WIDE_BORDER)
    pixels = np.array([properties.thumbnail[visible] for properties in inspected], dtype=np.float64)
    return pixels, make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))


def border_mask(width: int) -> BoolArray:
    """Return a thumbnail mask that is True in the outer `width` pixels on each side."""
    mask = np.ones((THUMBNAIL_SIDE, THUMBNAIL_SIDE), dtype=np.bool_)
    mask[width:-width, width:-width] = False
    return mask


def _metadata(inspected: Sequence[InspectedImage]) -> FloatArray:
    formats = sorted({(image.format, image.mode) for image in inspected})
    return np.array(
        [
            [
                np.log1p(image.bytes),
                image.width,
                image.height,
                image.width / image.height,
                image.quantization,
                *(float(value == (image.format, image.mode)) for value in formats),
            ]
            for image in inspected
        ],
        dtype=np.float64,
    )


def _out_of_fold_scores(
    model: Any, features: FloatArray, labels: BoolArray, folds: Sequence[tuple[Any, Any]]
) -> FloatArray:
    scores = np.full(len(labels), np.nan)
    # One thread: more would contend, and the last digits would depend on their number.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # A fit that does not converge is a weaker control, not an error.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for train, test in folds:
            scores[test] = model.fit(features[train], labels[train]).predict_proba(features[test])[:, 1]
    return scores

"""Load and score the labeled images of a site."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from pneumoscope.bundle.card import Card
from pneumoscope.core.errors import DatasetError
from pneumoscope.core.prediction import Rejection
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.manifest import LABELS, LabeledImage
from pneumoscope.evaluation.scoring import decode_images
from pneumoscope.evaluation.selection import load_labeled_images, unreadable_error
from pneumoscope.imaging.header_fields import HeaderFields, read_header_fields
from pneumoscope.imaging.preprocess import PreprocessedImage, preprocess_image
from pneumoscope.imaging.statistics import image_statistics
from pneumoscope.inference.decision import failed_checks
from pneumoscope.inference.session import BundleSession, Outputs, network_rejections
from pneumoscope.statistics.inputs import BoolArray, FloatArray, IntArray, patient_groups

__all__ = ["ScoredSite", "SiteImages", "SiteList", "load_site_images", "score_site_images"]

_BATCH = 32


@dataclasses.dataclass(frozen=True)
class SiteImages:
    """Outputs of the network for labeled images, one row per image.

    Attributes:
        labels: True for pneumonia, shape (n,).
        patients: Patient identifier of each image, "" where unknown.
        excluded: True where pixels, header or age reject the image before the network runs, shape (n,).
        logits: Logits, shape (n,).
        upright, age_scores, distances: Outputs of the input checks, shape (n,); None if the bundle lacks the check.
    """

    labels: BoolArray
    patients: tuple[str, ...]
    excluded: BoolArray
    logits: FloatArray
    upright: FloatArray | None = None
    age_scores: FloatArray | None = None
    distances: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: BoolArray | IntArray) -> Self:
        """Return the selected images, by mask or index."""
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows

        def part(values: FloatArray | None) -> FloatArray | None:
            return None if values is None else values[rows]

        return dataclasses.replace(
            self,
            labels=self.labels[rows],
            patients=tuple(self.patients[i] for i in rows.tolist()),
            excluded=self.excluded[rows],
            logits=self.logits[rows],
            upright=part(self.upright),
            age_scores=part(self.age_scores),
            distances=part(self.distances),
        )

    def rejected(self, card: Card) -> BoolArray:
        """Return a mask of the images rejected with the limits of a card, shape (n,)."""
        if card.rejection_limits is None:
            return self.excluded
        failed = failed_checks(card.rejection_limits, self.upright, self.distances, self.age_scores)
        return np.asarray(self.excluded | np.any([*failed.values()], axis=0) if failed else self.excluded)

    def count_patients(self, positive: bool | None = None) -> int:
        """Return the number of patients, optionally of one label; each image of an unknown patient counts as one."""
        groups = patient_groups(self.patients, len(self)) if len(self) else np.array([], dtype=np.int64)
        return len(np.unique(groups if positive is None else groups[self.labels == positive]))

    def first_of_each_patient(self) -> IntArray:
        """Return the index of the first image of each patient, in ascending order."""
        return (
            np.unique(patient_groups(self.patients, len(self)), return_index=True)[1]
            if len(self)
            else np.array([], int)
        )


@dataclasses.dataclass(frozen=True)
class SiteList:
    """The distinct images of a site; duplicates are listed once.

    Attributes:
        root: Folder that paths are relative to.
        images: The images.
        headers: Header fields of each image; None if it is not a DICOM file.
        notes: Remarks about the data, as sentences.
    """

    root: Path
    images: tuple[LabeledImage, ...]
    headers: tuple[HeaderFields | None, ...]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ScoredSite:
    """The scored images of a site.

    Attributes:
        outputs: Outputs of the network.
        rejections: Rejection of each image with the limits of the card, or None.
        headers: Header fields of each image; None if it is not a DICOM file.
        statistics: Image statistics by name, shape (n,).
    """

    outputs: SiteImages
    rejections: tuple[Rejection | None, ...]
    headers: tuple[HeaderFields | None, ...]
    statistics: Mapping[str, FloatArray]


def load_site_images(data: Path, labels: LabelMapping | None = None) -> SiteList:
    """Return the labeled images of a site.

    Args:
        data: Folder, manifest CSV or archive.
        labels: Names of its columns and labels.

    Raises:
        DatasetError: An image cannot be read, the data has a test split, two identical files have different labels, or
            a label has no image.
        ManifestError, LayoutError: See `load_manifest`.
    """
    manifest = load_labeled_images(data, labels, task="an acceptance test")
    if manifest.unreadable:
        raise unreadable_error(manifest.unreadable, "site")
    if manifest.split("test"):
        raise DatasetError(
            f"{str(data)!r} has a test split, which is reserved for `pneumoscope evaluate`",
            hint="Give a folder or a CSV with the images of the site only, without splits",
        )
    first: dict[str, LabeledImage] = {}
    for image in manifest:
        if first.setdefault(image.sha256, image).label != image.label:
            raise DatasetError(
                f"{first[image.sha256].path!r} and {image.path!r} are the same image with different labels",
                hint="Correct the labels; find such images with: pneumoscope check-data DATA",
            )
    missing = [label for label in LABELS if not any(image.label == label for image in first.values())]
    if missing:
        raise DatasetError(f"{str(data)!r} has no {missing[0]} image", hint="An acceptance test needs both labels")
    images = tuple(first.values())
    headers = tuple(read_header_fields(manifest.root / image.path) for image in images)
    return SiteList(manifest.root, images, headers, manifest.notes)


def score_site_images(
    session: BundleSession, site: SiteList, progress: Callable[[int, int], None] | None = None
) -> ScoredSite:
    """Return the outputs of a model for the images of a site, in order.

    Args:
        session: The model.
        site: The images.
        progress: Called with the number of scored images and the total.

    Raises:
        DatasetError: An image cannot be decoded.
    """
    unreadable: list[tuple[str, str]] = []
    by_file: list[Rejection | None] = []
    outputs: list[Outputs] = []
    statistics: dict[str, list[float]] = {}
    batch: list[PreprocessedImage] = []

    def flush() -> None:
        if batch:
            outputs.append(session.outputs(np.stack([image.pixels for image in batch])))
            by_file.extend(session.reject_by_file(image) for image in batch)
            batch.clear()
            if progress:
                progress(len(by_file), len(site.images))

    preprocessing = session.card.preprocessing
    for radiograph in decode_images(site.root, site.images, preprocessing.min_side, unreadable, allow_rejected=True):
        batch.append(preprocess_image(radiograph, preprocessing))
        for name, value in dataclasses.asdict(image_statistics(batch[-1].pixels)).items():
            statistics.setdefault(name, []).append(value)
        if len(batch) == _BATCH:
            flush()
    flush()
    if unreadable:
        raise unreadable_error(unreadable, "site")
    by_network = [each for part in outputs for each in network_rejections(session.card, part)]
    return ScoredSite(
        _site_images(site.images, by_file, outputs),
        tuple(first or second for first, second in zip(by_file, by_network, strict=True)),
        site.headers,
        {name: np.array(values) for name, values in statistics.items()},
    )


def _site_images(
    images: Sequence[LabeledImage], by_file: Sequence[Rejection | None], outputs: Sequence[Outputs]
) -> SiteImages:
    def column(name: str) -> FloatArray | None:
        parts = [getattr(part, name) for part in outputs]
        return None if parts[0] is None else np.concatenate(parts).astype(np.float64)

    classes, logits = column("input_classes"), column("logit")
    assert logits is not None  # every network has a logit output
    return SiteImages(
        labels=np.array([image.positive for image in images]),
        patients=tuple(image.patient for image in images),
        excluded=np.array([rejection is not None for rejection in by_file]),
        logits=logits,
        upright=None if classes is None else classes[:, 0],
        age_scores=column("age_score"),
        distances=column("ood_distance"),
    )

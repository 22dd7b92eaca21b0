"""Count the images of a data set that an evaluation includes, and those that it leaves out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pneumoscope.core.image_flow import ImageCount, ImageFlow
from pneumoscope.data.manifest import LabeledImage, Manifest
from pneumoscope.evaluation.selection import count_patients, count_unknown_patients

__all__ = ["image_flow"]

_NO_SPLIT = "no split"


def image_flow(manifest: Manifest, data: Path, evaluated: Sequence[LabeledImage], source: str = "") -> ImageFlow:
    """Return the flow of images from a data set to an evaluation.

    Args:
        manifest: Manifest of the data set.
        data: Folder, manifest CSV or archive that it was read from.
        evaluated: The evaluated images, with paths in the data set.
        source: Name of the images; that of `data` if empty.
    """
    paths = {image.path for image in evaluated}
    others: dict[str, list[LabeledImage]] = defaultdict(list)
    for image in manifest:
        if image.path not in paths:
            others[image.split or _NO_SPLIT].append(image)
    return ImageFlow(
        # The name only: a path may have the name of a person.
        source=source or data.resolve().name,
        skipped=len(manifest.skipped),
        unreadable=len(manifest.unreadable),
        labeled=_count(manifest.images),
        other_splits={split: _count(images) for split, images in sorted(others.items())},
        evaluated=_count(evaluated),
        copies=len(evaluated) - len({image.sha256 for image in evaluated}),
        contradictory=_count_contradictory(manifest, evaluated),
    )


def _count(images: Sequence[LabeledImage]) -> ImageCount:
    return ImageCount(len(images), count_patients(images), count_unknown_patients(images))


def _count_contradictory(manifest: Manifest, evaluated: Sequence[LabeledImage]) -> int:
    """Return the number of evaluated images that have another label elsewhere in the data."""
    labels: dict[str, set[str]] = defaultdict(set)
    for image in (*manifest, *evaluated):
        labels[image.sha256].add(image.label)
    return sum(len(labels[image.sha256]) > 1 for image in evaluated)

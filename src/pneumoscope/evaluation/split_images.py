"""The images of one split of a data set, and the numbers of images left out."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from pneumoscope.core.image_flow import ImageCount, ImageFlow
from pneumoscope.data.manifest import LabeledImage, Manifest
from pneumoscope.evaluation.selection import count_patients, count_unknown_patients, images_of_split

__all__ = ["SplitImages"]

_NO_SPLIT = "no split"


@dataclasses.dataclass(frozen=True)
class SplitImages:
    """The images of one split of a data set.

    Attributes:
        data: Folder, manifest CSV or archive.
        manifest: Manifest of all its images.
        split: Name of the split.
        images: Images of the split, with paths in the data set.
        run_splits: Splits of images in the evaluated run, by SHA-256; empty without a run.
    """

    data: Path
    manifest: Manifest
    split: str
    images: tuple[LabeledImage, ...]
    run_splits: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def select(
        cls,
        manifest: Manifest,
        data: Path,
        split: str,
        run_manifest: Path | None = None,
        note: Callable[[str], None] | None = None,
    ) -> Self:
        """Return the images of a split, which may all have the same label.

        Args:
            manifest: Manifest of the data.
            data, split, run_manifest: See `selection.select_images`.
            note: Called with each remark about the data.

        Raises:
            UsageError, DatasetError: See `selection.select_images`.
        """
        if note:
            for each in manifest.notes:
                note(each)
        images = images_of_split(manifest, data, split, run_manifest, both_labels=False)
        return cls(data, manifest, split, images, _splits_of_run(run_manifest))

    def flow(self, source: str = "") -> ImageFlow:
        """Return the flow of images from the data set to the split; splits of a run take precedence for other images.

        Args:
            source: Name of the images; the name of the data if empty.
        """
        paths = {image.path for image in self.images}
        others: dict[str, list[LabeledImage]] = defaultdict(list)
        for image in self.manifest:
            if image.path not in paths:
                others[self.run_splits.get(image.sha256, image.split) or _NO_SPLIT].append(image)
        return ImageFlow(
            # The name only, because a path may contain a person's name.
            source=source or self.data.resolve().name,
            skipped=len(self.manifest.skipped),
            unreadable=len(self.manifest.unreadable),
            labeled=_count(self.manifest.images),
            other_splits={split: _count(images) for split, images in sorted(others.items())},
            evaluated=_count(self.images),
            copies=len(self.images) - len({image.sha256 for image in self.images}),
            contradictory=self._count_contradictory(),
        )

    def _count_contradictory(self) -> int:
        """Return the number of images of the split that have another label elsewhere in the data set."""
        labels: dict[str, set[str]] = defaultdict(set)
        for image in (*self.manifest, *self.images):
            labels[image.sha256].add(image.label)
        return sum(len(labels[image.sha256]) > 1 for image in self.images)


def _splits_of_run(manifest: Path | None) -> dict[str, str]:
    """Return the splits of a run's images by SHA-256; empty without a manifest."""
    if manifest is None or not manifest.is_file():
        return {}
    text = manifest.read_text(encoding="utf-8")
    return {image.sha256: image.split for image in Manifest.from_csv(text, manifest.parent, str(manifest))}


def _count(images: Sequence[LabeledImage]) -> ImageCount:
    return ImageCount(len(images), count_patients(images), count_unknown_patients(images))

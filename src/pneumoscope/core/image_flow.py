"""The flow of images from a data set to an evaluation as frozen records; see `results`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

__all__ = ["ImageCount", "ImageFlow"]


@dataclasses.dataclass(frozen=True, slots=True)
class ImageCount:
    """Number of images and of their patients; an image of an unknown patient counts as a patient."""

    images: int
    patients: int


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFlow:
    """From the files of a data set to the evaluated images.

    Attributes:
        source: Name of the images: as stated with `--source`, otherwise that of the folder, manifest or archive.
        skipped: Number of files that are not images of the layout.
        unreadable: Number of images that cannot be read; those of the evaluated split are an error.
        labeled: Labeled images that can be read.
        other_splits: Labeled images that were not evaluated, by split in the data; "no split" without one.
        evaluated: Evaluated images.
    """

    source: str
    skipped: int
    unreadable: int
    labeled: ImageCount
    other_splits: Mapping[str, ImageCount]
    evaluated: ImageCount

"""The flow of images from a data set to an evaluation as frozen records; see `results`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

__all__ = ["ImageCount", "ImageFlow"]


@dataclasses.dataclass(frozen=True, slots=True)
class ImageCount:
    """Number of images and of their patients; an image of an unknown patient counts as a patient.

    Attributes:
        unknown_patients: Number of images of unknown patients; None in records of earlier versions.
    """

    images: int
    patients: int
    unknown_patients: int | None = None


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
        copies: Number of evaluated images that are byte-identical to an earlier one of them; None in records of earlier versions.
        contradictory: Number of evaluated images that are byte-identical to one with another label; likewise.
    """

    source: str
    skipped: int
    unreadable: int
    labeled: ImageCount
    other_splits: Mapping[str, ImageCount]
    evaluated: ImageCount
    copies: int | None = None
    contradictory: int | None = None

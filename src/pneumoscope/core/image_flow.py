"""Frozen records of the flow of images from a data set to an evaluation; see `results`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

__all__ = ["ImageCount", "ImageFlow"]


@dataclasses.dataclass(frozen=True, slots=True)
class ImageCount:
    """Numbers of images and patients; an image of an unknown patient counts as one patient.

    Attributes:
        unknown_patients: Number of images of unknown patients; None in records of earlier versions.
    """

    images: int
    patients: int
    unknown_patients: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFlow:
    """Numbers of images from the files of a data set to the evaluated images.

    Attributes:
        source: Name of the images: the value of `--source`, or the name of the folder, manifest or archive.
        skipped: Number of files that are not images of the layout.
        unreadable: Number of unreadable images; in the evaluated split they raise an error.
        labeled: Readable labeled images.
        other_splits: Labeled images that were not evaluated, by split; "no split" for images without one.
        evaluated: Evaluated images.
        copies: Number of evaluated images that are byte-identical to an earlier evaluated image; None in records of
            earlier versions.
        contradictory: Number of evaluated images with a byte-identical copy under another label; None as above.
    """

    source: str
    skipped: int
    unreadable: int
    labeled: ImageCount
    other_splits: Mapping[str, ImageCount]
    evaluated: ImageCount
    copies: int | None = None
    contradictory: int | None = None

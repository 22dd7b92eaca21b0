"""Decode and score the images of a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.prediction import Rejection
from pneumoscope.data.hashing import read_image
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.evaluation.selection import unreadable_error
from pneumoscope.evaluation.split_images import SplitImages
from pneumoscope.imaging.image import Radiograph
from pneumoscope.inference.batches import process_batches
from pneumoscope.inference.network_session import SessionCard

__all__ = ["Scores", "decode_images", "score_images"]

# Images are decoded in threads while the network scores earlier ones.
_THREADS = 4
_PREFETCH_IMAGES = 64

_Logit = TypeVar("_Logit")
_Logit_co = TypeVar("_Logit_co", covariant=True)


class ScoringSession(Protocol[_Logit_co]):
    """A binary or multiclass session."""

    @property
    def card(self) -> SessionCard:
        """Card of the bundle."""

    def stream(self, images: Iterable[Radiograph]) -> Iterator[tuple[_Logit_co, Rejection | None]]:
        """Yield the logit or logits of each image, and its rejection or None."""


@dataclasses.dataclass(frozen=True)
class Scores(Generic[_Logit]):
    """Network outputs for images.

    Attributes:
        logits: Logit of each image, or its logits for several classes.
        rejections: Rejection of each image, or None.
    """

    logits: list[_Logit]
    rejections: list[Rejection | None]


def score_images(
    session: ScoringSession[_Logit], selected: SplitImages, progress: Callable[[int, int], None] | None
) -> Scores[_Logit]:
    """Return the network outputs for the images of a split, in order.

    Args:
        session: The model.
        selected: The images.
        progress: Called with the number of scored images and the total.

    Raises:
        DatasetError: Images cannot be read. They are never skipped, because n would be wrong.
    """
    unreadable: list[tuple[str, str]] = []
    scores: Scores[_Logit] = Scores([], [])
    root, images = selected.manifest.root, selected.images
    for logit, rejection in session.stream(
        decode_images(root, images, session.card.preprocessing.min_side, unreadable)
    ):
        scores.logits.append(logit)
        scores.rejections.append(rejection)
        if progress:
            progress(len(scores.logits), len(images))
    if unreadable:
        raise unreadable_error(unreadable, selected.split)
    return scores


def decode_images(
    root: Path,
    images: Sequence[LabeledImage],
    min_side: int,
    unreadable: list[tuple[str, str]],
    *,
    allow_rejected: bool = False,
) -> Iterator[Radiograph]:
    """Yield the images in order, decoded ahead in threads. Append path and reason of unreadable ones to a list.

    Args:
        root: Folder that paths are relative to.
        images: The images.
        min_side, allow_rejected: See `imaging.decode.decode`.
        unreadable: The list.
    """

    def read(batch: Sequence[LabeledImage]) -> list[Radiograph | UnreadableImageError]:
        (image,) = batch
        try:
            return [read_image(root, image, min_side=min_side, allow_rejected=allow_rejected)]
        except UnreadableImageError as error:
            return [error]

    results = process_batches(images, read, batch_size=1, threads=_THREADS, ahead=_PREFETCH_IMAGES)
    for image, result in zip(images, results, strict=True):
        if isinstance(result, UnreadableImageError):
            unreadable.append((image.path, result.detail))
        else:
            yield result

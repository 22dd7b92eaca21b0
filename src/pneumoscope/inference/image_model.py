"""Base class of the binary and multiclass models: images in, predictions out."""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UnreadableImageError, UsageError
from pneumoscope.core.prediction import Prediction
from pneumoscope.core.prediction_codes import AgeRequirement, Assumption
from pneumoscope.imaging.image import DicomPart, Radiograph
from pneumoscope.imaging.pixel_values import PixelValues
from pneumoscope.imaging.preprocess import PreprocessedImage
from pneumoscope.inference.batches import process_batches
from pneumoscope.inference.image_loader import ImageLoader, check_age
from pneumoscope.inference.network_session import NetworkOutputs, NetworkSession, SessionCard
from pneumoscope.inference.providers import Provider

if TYPE_CHECKING:
    from pneumoscope.imaging.sandbox.pool import DecodePool
    from pneumoscope.inference.image_loader import ImageSource
    from pneumoscope.inference.saliency import Explanation

__all__ = ["BATCH_SIZE", "ImageModel"]

BATCH_SIZE = 2  # images per network call; larger batches are no faster on a CPU and take more memory

_Card = TypeVar("_Card", bound=SessionCard)
_Outputs = TypeVar("_Outputs", bound=NetworkOutputs)
_Scored = TypeVar("_Scored")
_Prediction = TypeVar("_Prediction", bound=Prediction)
_Result = TypeVar("_Result")


class ImageModel(abc.ABC, Generic[_Card, _Outputs, _Scored, _Prediction]):
    """Model that predicts images with the network of a bundle.

    Attributes:
        card: Card of the bundle.
        folder: Folder of the bundle; None if it has none.
    """

    def __init__(
        self,
        session: NetworkSession[_Card, _Outputs, _Scored],
        *,
        pool: DecodePool | None = None,
        folder: Path | None = None,
    ) -> None:
        """Prepare to decode images.

        Args:
            session: Session that runs the network.
            pool: Pool that decodes every image. If None, a few images are decoded in this process, and many in a pool created
                on first use.
            folder: Folder of the bundle; None if it has none.
        """
        self._network = session
        self.card: _Card = session.card
        self.folder = folder
        self._loader = ImageLoader(self.card.preprocessing, pool)

    @abc.abstractmethod
    def _predict(self, image: PreprocessedImage, scored: _Scored) -> _Prediction:
        """Return the prediction for a scored image."""

    @abc.abstractmethod
    def failed(self, error: UnreadableImageError) -> _Prediction:
        """Return the prediction for an unreadable image."""

    @abc.abstractmethod
    def _draw(self, image: PreprocessedImage, heatmap: npt.NDArray[np.float32], prediction: _Prediction) -> bytes:
        """Return a PNG of an accepted image with its heatmap, one row of `NetworkOutputs.heatmap`, and its prediction."""

    @property
    def has_heatmaps(self) -> bool:
        """Whether the network has heatmaps."""
        return self._network.has_heatmaps

    def require_heatmaps(self) -> None:
        """Raise BundleError if the network has no heatmaps."""
        self._network.require_heatmaps()

    @property
    def require_age(self) -> AgeRequirement:
        """Which images are rejected if the age is unknown; see `load_model`."""
        return self._network.require_age

    @property
    def provider(self) -> Provider:
        """Processor that runs the network; see `load_model`."""
        return self._network.provider

    @property
    def assumptions(self) -> list[Assumption]:
        """Assumptions about all images, sorted; see `load_model`."""
        return sorted(self._network.assumptions)

    def close(self) -> None:
        """Stop the worker processes, if any; otherwise they stop with this process."""
        self._loader.close()

    def run_self_test(self) -> None:
        """Check that the network still computes the outputs on its card; see `NetworkSession.run_self_test`."""
        self._network.run_self_test()

    def predict(self, image: ImageSource, *, name: str = "", age: float | None = None) -> _Prediction:
        """Return the prediction for one image.

        Args:
            image: A path, the bytes of a file, gray levels (uint8, shape (height, width), 0 is black), a PIL image or a pydicom
                Dataset.
            name: Name in the prediction; if empty, the path, or "bytes", "array", "image" or "dataset".
            age: Age of the patient in years; ignored if the file states an age.

        Raises:
            UnreadableImageError: The image cannot be decoded; see `imaging.decode`.
            UsageError: The age is not from 0 to 130 years.
        """
        preprocessed = self._loader.preprocess(image, name=name, age=age)
        return self._predict(preprocessed, next(self._network.stream([preprocessed])))

    def predict_batch(
        self, images: Sequence[ImageSource], *, names: Sequence[str] = (), ages: Sequence[float | None] = ()
    ) -> list[_Prediction]:
        """Return predictions like `predict_many`, but from a single run of the network in the calling thread.

        Args:
            images: See `predict`.
            names: Names in the predictions, one per image; see `predict`. Failures omit empty names.
            ages: Ages of the patients, one per image; see `predict`.

        Raises:
            UsageError: An age is not from 0 to 130 years.
        """
        return self._predict_batch(images, self._loader.pool, names, ages)

    def predict_many(
        self, images: Iterable[ImageSource], *, batch_size: int = BATCH_SIZE, workers: int = 0, age: float | None = None
    ) -> Generator[_Prediction]:
        """Yield predictions in the order of the images; an unreadable image yields a prediction with `failure`.

        Each thread decodes and scores separate batches and reads at most a few batches ahead of the caller. More than
        `image_loader.MIN_IMAGES_FOR_POOL` images are decoded in worker processes, one per core, which are kept for the next
        call.

        Args:
            images: See `predict`.
            batch_size: Images per network call.
            workers: Threads that run the network; 0 for one per core, plus one if worker processes decode.
            age: Patient age in years for all images; see `predict`.

        Raises:
            UsageError: A number is out of range, or `images` is a single image.
        """

        def predict_batch(batch: Sequence[ImageSource], pool: DecodePool | None) -> list[_Prediction]:
            return self._predict_batch(batch, pool, ages=[age] * len(batch))

        return self._stream(images, predict_batch, batch_size, workers, age)

    def explain(self, image: ImageSource, *, name: str = "", age: float | None = None) -> Explanation:
        """Return the prediction for one image and its heatmap, from the same run of the network.

        Args:
            image, name, age: See `predict`.

        Raises:
            BundleError: The network has no heatmaps.
            UnreadableImageError: The image cannot be decoded.
            UsageError: The age is not from 0 to 130 years.
        """
        self.require_heatmaps()
        preprocessed = self._loader.preprocess(image, name=name, age=age, keep_radiograph=True)
        return self._explain([preprocessed])[0]

    def explain_many(
        self, images: Iterable[ImageSource], *, batch_size: int = BATCH_SIZE, workers: int = 0, age: float | None = None
    ) -> Generator[Explanation]:
        """Yield predictions with heatmaps like `predict_many`, each pair from the same run of the network.

        Args:
            images, batch_size, workers, age: See `predict_many`.

        Raises:
            BundleError: The network has no heatmaps.
            UsageError: A number is out of range, or `images` is a single image.
        """
        self.require_heatmaps()

        def explain_batch(batch: Sequence[ImageSource], pool: DecodePool | None) -> list[Explanation]:
            return self._explain_batch(batch, pool, age)

        return self._stream(images, explain_batch, batch_size, workers, age)

    def decode(self, image: Path | bytes, *, name: str = "") -> Radiograph:
        """Return an image decoded at its original size, for display.

        Raises:
            UnreadableImageError: The image cannot be decoded.
        """
        return self._loader.decode(image, name=name)

    def decode_values(self, image: Path | bytes, *, name: str = "") -> PixelValues:
        """Return the pixel values of an image before windowing, for display with other windows.

        Raises:
            UnreadableImageError: The image cannot be decoded.
        """
        return self._loader.decode_values(image, name=name)

    def read_part(self, image: bytes, part: DicomPart) -> bytes:
        """Return a part of a DICOM file: its header, its frame, or a description of its gray levels.

        Raises:
            UnreadableImageError: The part cannot be read.
        """
        return self._loader.read_part(image, part)

    def _stream(
        self,
        images: Iterable[ImageSource],
        process: Callable[[Sequence[ImageSource], DecodePool | None], list[_Result]],
        batch_size: int,
        workers: int,
        age: float | None,
    ) -> Generator[_Result]:
        check_age(age)
        if isinstance(images, str | bytes | os.PathLike):
            raise UsageError(
                f"images is one image, {images!r:.80}", hint="Pass a list of images, or use predict or explain"
            )
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; the minimum is 1")
        if workers < 0:
            raise UsageError(f"workers is {workers}; pass 0 for one per core")
        pool = self._loader.choose_pool(images)
        # One extra thread covers the latency between threads and worker processes.
        threads = workers or (os.cpu_count() or 1) + (pool is not None)
        return process_batches(images, lambda batch: process(batch, pool), batch_size=batch_size, threads=threads)

    def _predict_batch(
        self,
        images: Sequence[ImageSource],
        pool: DecodePool | None,
        names: Sequence[str] = (),
        ages: Sequence[float | None] = (),
    ) -> list[_Prediction]:
        preprocessed = self._loader.preprocess_many(images, pool, names=names, ages=ages)
        readable = [each for each in preprocessed if isinstance(each, PreprocessedImage)]
        scored = self._network.stream(readable, batch=max(1, len(readable)))
        return [
            self._predict(each, next(scored)) if isinstance(each, PreprocessedImage) else self.failed(each)
            for each in preprocessed
        ]

    def _explain_batch(
        self, images: Sequence[ImageSource], pool: DecodePool | None, age: float | None
    ) -> list[Explanation]:
        from pneumoscope.inference.saliency import Explanation

        preprocessed = self._loader.preprocess_many(images, pool, ages=[age] * len(images), keep_radiograph=True)
        explanations = iter(self._explain([each for each in preprocessed if isinstance(each, PreprocessedImage)]))
        return [
            next(explanations) if isinstance(each, PreprocessedImage) else Explanation(self.failed(each), None)
            for each in preprocessed
        ]

    def _explain(self, images: Sequence[PreprocessedImage]) -> list[Explanation]:
        from pneumoscope.inference.saliency import Explanation

        if not images:
            return []
        outputs = self._network.outputs(np.stack([image.pixels for image in images]), heatmaps=True)
        assert outputs.heatmap is not None
        explanations = []
        for image, scored, heatmap in zip(images, self._network.score(images, outputs), outputs.heatmap, strict=True):
            prediction = self._predict(image, scored)
            picture = None if prediction.rejection else self._draw(image, heatmap, prediction)
            explanations.append(Explanation(prediction, picture))
        return explanations

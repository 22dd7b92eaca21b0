"""A bundle as Python and the command line use it: an image in, a `Prediction` out; many images in, a stream of them out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.card import Card
from pneumoscope.core.errors import UnreadableImageError, UsageError
from pneumoscope.core.prediction import Failure, ImageInfo, ModelInfo, Prediction
from pneumoscope.imaging.decode import Radiograph, decode
from pneumoscope.inference.decision import DEFAULT_OPERATING_POINT, decide, find_operating_point, threshold_probability
from pneumoscope.inference.session import BundleSession, Scored
from pneumoscope.runs.run_folder import find_bundle

if TYPE_CHECKING:
    from pneumoscope.inference.saliency import Layer

__all__ = ["BATCH", "ImageSource", "Model", "load_model"]

# A path, the bytes of a file, or grey levels (uint8, shape (height, width), 0 black).
ImageSource = str | Path | bytes | npt.NDArray[np.uint8]
_Judged = TypeVar("_Judged")
# Images that go through the network at once. More are no faster on a processor, and hold up what comes after them.
BATCH = 4


class Model:
    """A bundle that judges images at one operating point.

    Attributes:
        card: of the bundle.
        facts: what each prediction says of the bundle.
        point, point_name: the operating point.
        threshold: of that point, as a probability.
    """

    def __init__(self, session: BundleSession, *, operating_point: str = "") -> None:
        """Choose the operating point.

        Raises:
            UnknownNameError: the card has no such operating point.
        """
        self._session = session
        self.card: Card = session.card
        self.point = find_operating_point(self.card, operating_point)
        self.operating_point_name = operating_point or DEFAULT_OPERATING_POINT
        self.threshold = threshold_probability(self.card, self.point)
        self.facts = ModelInfo(self.card.name, self.card.version, self.card.onnx_sha256)

    def run_self_test(self) -> None:
        """See whether the network still scores as its card says; see `BundleSession.run_self_test`."""
        self._session.run_self_test()

    def predict(self, image: ImageSource, *, name: str = "") -> Prediction:
        """Judge one image.

        Args:
            image: a path, the bytes of a file, or an array of grey levels: uint8, shape (height, width), 0 black.
            name: what to call it; its path where empty, or "bytes" or "array".
        Raises:
            UnreadableImageError: see `radiograph.decode`.
        """
        radiograph = self._decode(image, name)
        return self._predict(radiograph, next(self._session.stream([radiograph])))

    def predict_batch(self, images: Sequence[ImageSource]) -> list[Prediction]:
        """Judge images in one run of the network, in the thread that calls; else as `predict_many`.

        Args:
            images: as for `predict`.
        """
        read = [self._try_to_decode(image) for image in images]
        good = [found for found in read if isinstance(found, Radiograph)]
        scored = self._session.stream(good, batch=max(1, len(good)))
        return [
            self._predict(found, next(scored)) if isinstance(found, Radiograph) else self._failed(found)
            for found in read
        ]

    def predict_many(
        self, images: Iterable[ImageSource], *, batch_size: int = BATCH, workers: int = 0
    ) -> Generator[Prediction]:
        """Judge many images, in the order given. One that cannot be read becomes a prediction with `error`.

        Each worker reads, decodes and scores a batch of its own, so that every core has work whether decoding or the network
        takes longer. However many images there are, no more than a few batches a worker are ahead of the caller, and `images` is
        not asked for more.

        Args:
            images: as for `predict`.
            batch_size: images that go through the network at once.
            workers: threads; 0 takes one a core.
        Raises:
            UsageError: a number is below what makes sense.
        """
        return self._stream(images, self.predict_batch, batch_size, workers)

    def explain_many(
        self, images: Iterable[ImageSource], *, batch_size: int = BATCH, workers: int = 0
    ) -> Generator[tuple[Prediction, bytes | None]]:
        """Judge many images as `predict_many` does, and draw the heatmap of each out of the same run of the network.

        Args:
            images, batch_size, workers: as for `predict_many`.
        Returns:
            Predictions, each with a PNG (see `session.heatmap`); None where the image could not be read or is rejected.
        Raises:
            BundleError: the network gives no heatmaps.
            UsageError: a number is below what makes sense.
        """
        self._session.refuse_unexplained()
        return self._stream(images, self._explain_batch, batch_size, workers)

    def heatmap_layer(self, image: ImageSource) -> Layer:
        """The heatmap of one image alone, to be laid over it.

        Args:
            image: as for `predict`; it is drawn for rejected images too, so ask only for others.
        Raises:
            BundleError: the network gives no heatmaps.
            UnreadableImageError: see `radiograph.decode`.
        """
        from pneumoscope.inference.saliency import heatmap_layer

        self._session.refuse_unexplained()
        radiograph = self._decode(image, "")
        pixels = self._session.preprocess(radiograph).pixels
        heatmap = self._session.outputs(pixels[None], heatmaps=True).heatmap
        assert heatmap is not None  # it was asked for
        return heatmap_layer(radiograph, heatmap[0], self.card.preprocessing.crop)

    def _stream(
        self,
        images: Iterable[ImageSource],
        judge: Callable[[Sequence[ImageSource]], list[_Judged]],
        size: int,
        workers: int,
    ) -> Generator[_Judged]:
        if size < 1:
            raise UsageError(f"batch_size is {size}; one image at a time is the least")
        if workers < 0:
            raise UsageError(f"workers is {workers}; 0 takes one a core")
        return self._ahead(images, judge, size, workers or os.cpu_count() or 1)

    def _ahead(
        self,
        images: Iterable[ImageSource],
        judge: Callable[[Sequence[ImageSource]], list[_Judged]],
        size: int,
        workers: int,
    ) -> Generator[_Judged]:
        ahead: deque[Future[list[_Judged]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            try:
                for batch in _batches(images, size):
                    ahead.append(pool.submit(judge, batch))
                    if len(ahead) > 2 * workers:
                        yield from ahead.popleft().result()
                while ahead:
                    yield from ahead.popleft().result()
            finally:  # whoever listened has gone, or a batch failed: what has not begun is not begun
                for future in ahead:
                    future.cancel()

    def _explain_batch(self, images: Sequence[ImageSource]) -> list[tuple[Prediction, bytes | None]]:
        from pneumoscope.inference.saliency import render_heatmap

        read = [self._try_to_decode(image) for image in images]
        good = [found for found in read if isinstance(found, Radiograph)]
        explained: Iterator[tuple[Scored, npt.NDArray[np.float32]]] = iter(())
        if good:
            preprocessed = [self._session.preprocess(image) for image in good]
            outputs = self._session.outputs(np.stack([image.pixels for image in preprocessed]), heatmaps=True)
            assert outputs.heatmap is not None  # they were asked for
            explained = iter(zip(self._session.score(preprocessed, outputs), outputs.heatmap, strict=True))
        judged: list[tuple[Prediction, bytes | None]] = []
        for found in read:
            if not isinstance(found, Radiograph):
                judged.append((self._failed(found), None))
                continue
            scored, heatmap = next(explained)
            prediction = self._predict(found, scored)
            picture = None
            if prediction.probability is not None:
                picture = render_heatmap(
                    found,
                    heatmap,
                    self.card,
                    probability=prediction.probability,
                    threshold=self.threshold,
                    decision=str(prediction.decision),
                )
            judged.append((prediction, picture))
        return judged

    def _try_to_decode(self, image: ImageSource) -> Radiograph | UnreadableImageError:
        try:
            return self._decode(image, "")
        except UnreadableImageError as error:
            return error

    def _decode(self, image: ImageSource, name: str) -> Radiograph:
        if isinstance(image, np.ndarray):
            return Radiograph(image, name or "array", "array", str(image.dtype))
        source = image if isinstance(image, bytes) else Path(image)
        return decode(
            source,
            name=name or (image if isinstance(image, str) else ""),
            least_side=self.card.preprocessing.least_side,
        )

    def _predict(self, image: Radiograph, scored: Scored) -> Prediction:
        result = decide(self.card, self.point, scored.logit, scored.rejection)
        width, height = image.reduced_from or (image.width, image.height)
        return Prediction(
            path=image.source,
            decision=result.decision,
            probability=result.probability,
            interval=result.interval,
            threshold=result.threshold,
            operating_point=self.operating_point_name,
            rejection=result.rejection,
            uncertainty=result.uncertainty,
            image=ImageInfo(width, height, image.format),
            model=self.facts,
        )

    def _failed(self, error: UnreadableImageError) -> Prediction:
        return Prediction(
            path=error.path,
            decision=None,
            operating_point=self.operating_point_name,
            failure=Failure.from_error(error),
            model=self.facts,
        )


def load_model(bundle: str | Path | None = None, *, operating_point: str = "", threads: int = 0) -> Model:
    """Load a bundle.

    Args:
        bundle: its folder, or that of a run, which has one inside; the one that comes with the package where None.
        operating_point: a name on the card; "balanced" where empty.
        threads: for one network call; 0 takes every core. With 1, `predict_many` is a little faster and `predict` slower.
    Raises:
        BundleError: there is none, or it is refused; see `bundle.card.read_bundle`.
        RunError: the run has no bundle.
        UnknownNameError: the card has no such operating point.
    """
    folder = find_bundle(None if bundle is None else Path(bundle))
    return Model(BundleSession.load(folder, threads=threads), operating_point=operating_point)


def _batches(images: Iterable[ImageSource], size: int) -> Iterator[tuple[ImageSource, ...]]:
    asked = iter(images)
    while batch := tuple(islice(asked, size)):
        yield batch

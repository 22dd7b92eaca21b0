"""A bundle as Python and the command line use it: a film in, a `Prediction` out; many films in, a stream of them out."""

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

from pneumoscope.bundle.card import Card, find_bundle
from pneumoscope.errors import UnreadableFilmError, UsageError
from pneumoscope.predictor.decide import DEFAULT_POINT, decide, find_point, threshold_probability
from pneumoscope.predictor.predictor import Predictor, Scored
from pneumoscope.radiograph.decode import Radiograph, decode
from pneumoscope.results import FilmFacts, ModelFacts, Prediction

if TYPE_CHECKING:
    from pneumoscope.predictor.heatmap import Layer

__all__ = ["BATCH", "Film", "Model", "load_model"]

# A path, the bytes of a file, or grey levels (uint8, shape (height, width), 0 black).
Film = str | Path | bytes | npt.NDArray[np.uint8]
_Judged = TypeVar("_Judged")
# Films that go through the network at once. More are no faster on a processor, and hold up what comes after them.
BATCH = 4


class Model:
    """A bundle that judges films at one operating point.

    Attributes:
        card: of the bundle.
        facts: what each prediction says of the bundle.
        point, point_name: the operating point.
        threshold: of that point, as a probability.
    """

    def __init__(self, predictor: Predictor, *, operating_point: str = "") -> None:
        """Choose the operating point.

        Raises:
            UnknownNameError: the card has no such operating point.
        """
        self._predictor = predictor
        self.card: Card = predictor.card
        self.point = find_point(self.card, operating_point)
        self.point_name = operating_point or DEFAULT_POINT
        self.threshold = threshold_probability(self.card, self.point)
        self.facts = ModelFacts(self.card.name, self.card.version, self.card.onnx_sha256)

    def try_golden_film(self) -> None:
        """See whether the network still scores as its card says; see `Predictor.try_golden_film`."""
        self._predictor.try_golden_film()

    def predict(self, film: Film, *, name: str = "") -> Prediction:
        """Judge one film.

        Args:
            film: a path, the bytes of a file, or an array of grey levels: uint8, shape (height, width), 0 black.
            name: what to call it; its path where empty, or "bytes" or "array".
        Raises:
            UnreadableFilmError: see `radiograph.decode`.
        """
        radiograph = self._decode(film, name)
        return self._judge(radiograph, next(self._predictor.stream([radiograph])))

    def predict_batch(self, films: Sequence[Film]) -> list[Prediction]:
        """Judge films in one run of the network, in the thread that calls; else as `predict_many`.

        Args:
            films: as for `predict`.
        """
        read = [self._try_to_decode(film) for film in films]
        good = [found for found in read if isinstance(found, Radiograph)]
        scored = self._predictor.stream(good, batch=max(1, len(good)))
        return [
            self._judge(found, next(scored)) if isinstance(found, Radiograph) else self._failed(found) for found in read
        ]

    def predict_many(
        self, films: Iterable[Film], *, batch_size: int = BATCH, workers: int = 0
    ) -> Generator[Prediction]:
        """Judge many films, in the order given. One that cannot be read becomes a prediction with `error`.

        Each worker reads, decodes and scores a batch of its own, so that every core has work whether decoding or the network
        takes longer. However many films there are, no more than a few batches a worker are ahead of the caller, and `films` is
        not asked for more.

        Args:
            films: as for `predict`.
            batch_size: films that go through the network at once.
            workers: threads; 0 takes one a core.
        Raises:
            UsageError: a number is below what makes sense.
        """
        return self._stream(films, self.predict_batch, batch_size, workers)

    def explain_many(
        self, films: Iterable[Film], *, batch_size: int = BATCH, workers: int = 0
    ) -> Generator[tuple[Prediction, bytes | None]]:
        """Judge many films as `predict_many` does, and draw the heatmap of each out of the same run of the network.

        Args:
            films, batch_size, workers: as for `predict_many`.
        Returns:
            Predictions, each with a PNG (see `predictor.heatmap`); None where the film could not be read or is rejected.
        Raises:
            BundleError: the network gives no heatmaps.
            UsageError: a number is below what makes sense.
        """
        self._predictor.refuse_unexplained()
        return self._stream(films, self._explain_batch, batch_size, workers)

    def heatmap_layer(self, film: Film) -> Layer:
        """The heatmap of one film alone, to be laid over it.

        Args:
            film: as for `predict`; it is drawn for rejected films too, so ask only for others.
        Raises:
            BundleError: the network gives no heatmaps.
            UnreadableFilmError: see `radiograph.decode`.
        """
        from pneumoscope.predictor.heatmap import heatmap_layer

        self._predictor.refuse_unexplained()
        radiograph = self._decode(film, "")
        ready = self._predictor.ready(radiograph)
        heatmap = self._predictor.outputs(ready.pixels[None], heatmaps=True).heatmap
        assert heatmap is not None  # it was asked for
        return heatmap_layer(radiograph, heatmap[0], self.card.preparation.crop)

    def _stream(
        self, films: Iterable[Film], judge: Callable[[Sequence[Film]], list[_Judged]], size: int, workers: int
    ) -> Generator[_Judged]:
        if size < 1:
            raise UsageError(f"batch_size is {size}; one film at a time is the least")
        if workers < 0:
            raise UsageError(f"workers is {workers}; 0 takes one a core")
        return self._ahead(films, judge, size, workers or os.cpu_count() or 1)

    def _ahead(
        self, films: Iterable[Film], judge: Callable[[Sequence[Film]], list[_Judged]], size: int, workers: int
    ) -> Generator[_Judged]:
        ahead: deque[Future[list[_Judged]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            try:
                for batch in _batches(films, size):
                    ahead.append(pool.submit(judge, batch))
                    if len(ahead) > 2 * workers:
                        yield from ahead.popleft().result()
                while ahead:
                    yield from ahead.popleft().result()
            finally:  # whoever listened has gone, or a batch failed: what has not begun is not begun
                for future in ahead:
                    future.cancel()

    def _explain_batch(self, films: Sequence[Film]) -> list[tuple[Prediction, bytes | None]]:
        from pneumoscope.predictor.heatmap import render_heatmap

        read = [self._try_to_decode(film) for film in films]
        good = [found for found in read if isinstance(found, Radiograph)]
        explained: Iterator[tuple[Scored, npt.NDArray[np.float32]]] = iter(())
        if good:
            ready = [self._predictor.ready(film) for film in good]
            outputs = self._predictor.outputs(np.stack([film.pixels for film in ready]), heatmaps=True)
            assert outputs.heatmap is not None  # they were asked for
            explained = iter(zip(self._predictor.scored(ready, outputs), outputs.heatmap, strict=True))
        judged: list[tuple[Prediction, bytes | None]] = []
        for found in read:
            if not isinstance(found, Radiograph):
                judged.append((self._failed(found), None))
                continue
            scored, heatmap = next(explained)
            prediction = self._judge(found, scored)
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

    def _try_to_decode(self, film: Film) -> Radiograph | UnreadableFilmError:
        try:
            return self._decode(film, "")
        except UnreadableFilmError as error:
            return error

    def _decode(self, film: Film, name: str) -> Radiograph:
        if isinstance(film, np.ndarray):
            return Radiograph(film, name or "array", "array", str(film.dtype))
        source = film if isinstance(film, bytes) else Path(film)
        return decode(
            source, name=name or (film if isinstance(film, str) else ""), least_side=self.card.preparation.least_side
        )

    def _judge(self, film: Radiograph, scored: Scored) -> Prediction:
        verdict = decide(self.card, self.point, scored.logit, scored.refusal)
        width, height = film.reduced_from or (film.width, film.height)
        return Prediction(
            path=film.source,
            decision=verdict.decision,
            probability=verdict.probability,
            interval=verdict.interval,
            interval_reason=verdict.interval_reason,
            threshold=verdict.threshold,
            reason=verdict.reason,
            film=FilmFacts(width, height, film.format),
            model=self.facts,
        )

    def _failed(self, error: UnreadableFilmError) -> Prediction:
        why = f"{error.why}. {error.advice}" if error.advice else error.why
        return Prediction(
            path=error.path,
            decision=None,
            probability=None,
            interval=None,
            interval_reason="the film could not be read",
            threshold=None,
            reason="",
            film=None,
            model=self.facts,
            error=why,
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
    return Model(Predictor.load(folder, threads=threads), operating_point=operating_point)


def _batches(films: Iterable[Film], size: int) -> Iterator[tuple[Film, ...]]:
    asked = iter(films)
    while batch := tuple(islice(asked, size)):
        yield batch

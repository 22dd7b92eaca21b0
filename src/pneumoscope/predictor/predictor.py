"""Scores films with a bundle. What is evaluated is what is shipped: nothing after training scores in another way."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.card import Calibration, Card, read_bundle
from pneumoscope.bundle.golden import GOLDEN_TOLERANCE, golden_film
from pneumoscope.errors import BundleError, UsageError
from pneumoscope.radiograph.prepare import prepare

if TYPE_CHECKING:
    from pneumoscope.radiograph.decode import Radiograph

__all__ = ["OUTPUTS", "Outputs", "Predictor", "calibrated", "sigmoid"]

# Of the network file, with their numbers of dimensions. One that cannot explain itself gives the first alone.
OUTPUTS = ("logit", "heatmap", "features")
_DIMENSIONS = (1, 3, 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Outputs:
    """What a network gives in one run for n films.

    Attributes:
        logit: float32, shape (n,).
        heatmap: what each place of the last feature map contributes to the logit, float32, shape (n, height, width); above 0
            towards pneumonia. The places of one film and a constant sum to the logit where the network ends in average
            pooling and one linear layer; elsewhere these are first-order shares.
        features: mean of the last feature map over its places, float32, shape (n, channels).
    """

    logit: npt.NDArray[np.float32]
    heatmap: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]


class Predictor:
    """A bundle, ready to score.

    Attributes:
        card: of the bundle.
        explains: whether the network gives heatmaps and features.
    """

    def __init__(self, card: Card, network: bytes, *, threads: int = 0) -> None:
        """Start a session.

        Args:
            card: of the bundle.
            network: the ONNX file's bytes.
            threads: for one network call; 0 takes every core.
        Raises:
            BundleError: ONNX Runtime cannot run the file, or it takes or gives something else than our format says.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or (os.cpu_count() or 1)
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BundleError(f"the network of bundle {card.name!r} cannot be run: {error}") from error
        self.card = card
        self.explains = len(self._session.get_outputs()) > 1
        self._refuse_another_format()

    @classmethod
    def load(cls, folder: Path, *, threads: int = 0) -> Predictor:
        """Read and check a bundle, start a session, and try it on the golden film.

        Raises:
            BundleError: see `bundle.card.read_bundle`; or the golden film's logit is not the one on the card.
        """
        card, network = read_bundle(folder)
        predictor = cls(card, network, threads=threads)
        found = float(predictor.logits(golden_film(card.preparation.size))[0])
        if not abs(found - card.golden_logit) <= GOLDEN_TOLERANCE * max(1, abs(card.golden_logit)):
            raise BundleError(
                f"bundle {card.name!r} gives its golden film the logit {found:.6g} here; its card says {card.golden_logit:.6g}",
                advice="ONNX Runtime computes it otherwise on this machine: try another version of onnxruntime",
            )
        return predictor

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Logits of films that are already prepared.

        Args:
            pixels: grey levels, shape (n, size, size).
        Returns:
            Shape (n,); above 0 the network leans to pneumonia.
        """
        return np.asarray(self._session.run(["logit"], {"film": pixels})[0], dtype=np.float32)

    def outputs(self, pixels: npt.NDArray[np.uint8]) -> Outputs:
        """Logits, heatmaps and features of films that are already prepared, in one run.

        Args:
            pixels: grey levels, shape (n, size, size).
        Raises:
            BundleError: the network gives logits alone.
        """
        self.refuse_unexplained()
        return Outputs(*self._session.run(list(OUTPUTS), {"film": pixels}))

    def refuse_unexplained(self) -> None:
        """Raise where the network gives no heatmaps.

        Raises:
            BundleError: saying why it may not.
        """
        if not self.explains:
            raise BundleError(
                f"the network of bundle {self.card.name!r} ({self.card.network}) gives no heatmaps: its logit does not hang on"
                " places of a last feature map, or in a way that could not be exported",
                advice="Ask for none, or train a convolutional network: pneumoscope models",
            )

    def stream(self, films: Iterable[Radiograph], *, batch: int = 32) -> Iterator[float]:
        """Logits of films one after the other, holding at most `batch` of them in memory.

        Raises:
            UsageError: `batch` is below 1.
        """
        if batch < 1:
            raise UsageError(f"batch is {batch}; one film at a time is the least")
        waiting: list[npt.NDArray[np.uint8]] = []
        for film in films:
            waiting.append(prepare(film, self.card.preparation))
            if len(waiting) == batch:
                yield from self.logits(np.stack(waiting)).tolist()
                waiting.clear()
        if waiting:
            yield from self.logits(np.stack(waiting)).tolist()

    def probability(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Calibrated probability of pneumonia, 0 to 1, by the card's calibration."""
        return calibrated(self.card.calibration, logits)

    def _refuse_another_format(self) -> None:
        size = self.card.preparation.size
        takes = [
            (value.name, value.type, [side if isinstance(side, int) else "n" for side in value.shape])
            for value in self._session.get_inputs()
        ]
        gives = [(value.name, value.type, len(value.shape)) for value in self._session.get_outputs()]
        should_take = [("film", "tensor(uint8)", ["n", size, size])]
        should_give = [(name, "tensor(float)", n) for name, n in zip(OUTPUTS, _DIMENSIONS, strict=True)]
        if takes != should_take or gives not in (should_give, should_give[:1]):
            raise BundleError(
                f"the network of bundle {self.card.name!r} takes {takes} and gives {gives}, not {should_take}"
                f" and {should_give}",
                advice="Export it again",
            )


def calibrated(calibration: Calibration, logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Probability of pneumonia, 0 to 1, of logits of any shape; infinite ones too."""
    return sigmoid(calibration.slope * np.asarray(logits, dtype=np.float64) + calibration.intercept)


def sigmoid(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-x)) in double precision, without overflow at either end."""
    x = np.asarray(logits, dtype=np.float64)
    return np.exp(-np.logaddexp(0.0, -x))

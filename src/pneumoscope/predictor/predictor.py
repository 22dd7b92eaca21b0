"""Scores films with a bundle. What is evaluated is what is shipped: nothing after training scores in another way."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.card import Card, read_bundle
from pneumoscope.errors import BundleError, UsageError
from pneumoscope.radiograph.prepare import prepare

if TYPE_CHECKING:
    from pneumoscope.radiograph.decode import Radiograph

__all__ = ["Predictor", "sigmoid"]


class Predictor:
    """A bundle, ready to score.

    Attributes:
        card: of the bundle.
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
        self._refuse_another_format()

    @classmethod
    def load(cls, folder: Path, *, threads: int = 0) -> Predictor:
        """Read and check a bundle, then start a session.

        Raises:
            BundleError: see `bundle.card.read_bundle`.
        """
        card, network = read_bundle(folder)
        return cls(card, network, threads=threads)

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Logits of films that are already prepared.

        Args:
            pixels: grey levels, shape (n, size, size).
        Returns:
            Shape (n,); above 0 the network leans to pneumonia.
        """
        return np.asarray(self._session.run(["logit"], {"film": pixels})[0], dtype=np.float32)

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
        calibration = self.card.calibration
        return sigmoid(calibration.slope * logits.astype(np.float64) + calibration.intercept)

    def _refuse_another_format(self) -> None:
        size = self.card.preparation.size
        takes = [
            (value.name, value.type, [side if isinstance(side, int) else "n" for side in value.shape])
            for value in self._session.get_inputs()
        ]
        gives = [(value.name, value.type) for value in self._session.get_outputs()]
        should = [("film", "tensor(uint8)", ["n", size, size])], [("logit", "tensor(float)")]
        if (takes, gives) != should:
            raise BundleError(
                f"the network of bundle {self.card.name!r} takes {takes} and gives {gives}, not {should[0]} and {should[1]}",
                advice="Export it again",
            )


def sigmoid(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-x)) in double precision, without overflow at either end."""
    x = np.asarray(logits, dtype=np.float64)
    return np.exp(-np.logaddexp(0.0, -x))

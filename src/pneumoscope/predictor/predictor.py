"""Scores films with a bundle. What is evaluated is what is shipped: nothing after training scores in another way."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.card import KINDS, Calibration, Card, read_bundle
from pneumoscope.bundle.golden import GOLDEN_TOLERANCE, golden_film
from pneumoscope.errors import BundleError, UsageError
from pneumoscope.predictor.refuse import refusal, refusal_of_age
from pneumoscope.radiograph.plausible import why_implausible
from pneumoscope.radiograph.prepare import prepare

if TYPE_CHECKING:
    from pneumoscope.radiograph.decode import Radiograph

__all__ = ["OUTPUTS", "Outputs", "Predictor", "Ready", "Scored", "calibrated", "refusals", "sigmoid"]

# Of the network file, with their numbers of dimensions. Every file gives the first; the others are there where they can be.
OUTPUTS = {"logit": 1, "heatmap": 3, "kinds": 2, "distance": 1}


@dataclasses.dataclass(frozen=True, slots=True)
class Outputs:
    """What a network gives in one run for n films; None where it does not, or was not asked to.

    Attributes:
        logit: float32, shape (n,).
        heatmap: what each place of the last feature map contributes to the logit, float32, shape (n, height, width); above 0
            towards pneumonia. The places of one film and a constant sum to the logit where the network ends in average
            pooling and one linear layer; elsewhere these are first-order shares.
        kinds: probability of each kind of picture on the card, float32, shape (n, kinds).
        distance: of the features from those of the training films, float32, shape (n,); about 1 for films like those.
    """

    logit: npt.NDArray[np.float32]
    heatmap: npt.NDArray[np.float32] | None = None
    kinds: npt.NDArray[np.float32] | None = None
    distance: npt.NDArray[np.float32] | None = None


class Ready(NamedTuple):
    """A prepared film, shape (size, size), and why its pixels can be no film; empty where nothing speaks against it."""

    pixels: npt.NDArray[np.uint8]
    implausible: str


class Scored(NamedTuple):
    """One film's logit, and why nothing is to be said of it; empty where it can be judged."""

    logit: float
    refusal: str


class Predictor:
    """A bundle, ready to score.

    Attributes:
        card: of the bundle.
        explains: whether the network gives heatmaps.
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
        # Its builds can report on their use to their maker, which is switched off where it is first imported: nothing leaves
        # the machine. Whoever has set it otherwise has decided so.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or (os.cpu_count() or 1)
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BundleError(f"the network of bundle {card.name!r} cannot be run: {error}") from error
        self.card = card
        self._gives = [output.name for output in self._session.get_outputs()]
        self._refuse_another_format()
        self.explains = "heatmap" in self._gives

    @classmethod
    def load(cls, folder: Path, *, threads: int = 0) -> Predictor:
        """Read and check a bundle, start a session, and try it on the golden film.

        Raises:
            BundleError: see `bundle.card.read_bundle`; the network gives what the card has no limits for, or the golden film
                another logit than the card says.
        """
        card, network = read_bundle(folder)
        predictor = cls(card, network, threads=threads)
        predictor._refuse_other_limits()
        predictor.try_golden_film()
        return predictor

    def try_golden_film(self) -> None:
        """Score the golden film, and compare.

        Raises:
            BundleError: its logit is another than the card says.
        """
        found, stated = float(self.logits(golden_film(self.card.preparation.size))[0]), self.card.golden_logit
        if not abs(found - stated) <= GOLDEN_TOLERANCE * max(1, abs(stated)):
            raise BundleError(
                f"bundle {self.card.name!r} gives its golden film the logit {found:.6g} here; its card says {stated:.6g}",
                advice="ONNX Runtime computes it otherwise on this machine: try another version of onnxruntime",
            )

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Logits of films that are already prepared.

        Args:
            pixels: grey levels, shape (n, size, size).
        Returns:
            Shape (n,); above 0 the network leans to pneumonia.
        """
        return np.asarray(self._run(["logit"], pixels)["logit"], dtype=np.float32)

    def outputs(self, pixels: npt.NDArray[np.uint8], *, heatmaps: bool = False) -> Outputs:
        """All that the network gives for films that are already prepared, in one run.

        Args:
            pixels: grey levels, shape (n, size, size).
            heatmaps: whether they are wanted; the heatmap is None otherwise.
        Raises:
            BundleError: heatmaps are wanted and the network gives none; it gives too few of something, or no numbers.
        """
        if heatmaps:
            self.refuse_unexplained()
        names = [name for name in self._gives if heatmaps or name != "heatmap"]
        return Outputs(**self._run(names, pixels))

    def _run(self, names: Sequence[str], pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        found = dict(zip(names, self._session.run(names, {"film": pixels}), strict=True))
        for name, values in found.items():
            short = len(values) != len(pixels) or (name == "kinds" and values.shape[1] != len(KINDS))
            if short or not np.isfinite(values).all():
                raise BundleError(
                    f"the network of bundle {self.card.name!r} gives {name!r} of shape {values.shape} for {len(pixels)} films,"
                    " or what is no number",
                    advice="Export it again, or get it from whom you trust",
                )
        return found

    def ready(self, film: Radiograph) -> Ready:
        """A film as the network takes it, and what its own pixels say against it: all of it that is still needed."""
        against = why_implausible(film, self.card.preparation.size // 2) or refusal_of_age(self.card, film.age)
        return Ready(prepare(film, self.card.preparation), against)

    def scored(self, films: Sequence[Ready], outputs: Outputs) -> list[Scored]:
        """The films of a run: their logits, and whether they are refused.

        Args:
            films: in the order of the run.
            outputs: of the run.
        """
        return [
            Scored(logit, film.implausible or refused)
            for film, logit, refused in zip(films, outputs.logit.tolist(), refusals(self.card, outputs), strict=True)
        ]

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

    def stream(self, films: Iterable[Radiograph], *, batch: int = 32) -> Iterator[Scored]:
        """Films one after the other, scored, holding at most `batch` of them in memory.

        Raises:
            UsageError: `batch` is below 1.
        """
        if batch < 1:
            raise UsageError(f"batch is {batch}; one film at a time is the least")
        waiting: list[Ready] = []
        for film in films:
            waiting.append(self.ready(film))
            if len(waiting) == batch:
                yield from self._scored(waiting)
                waiting.clear()
        if waiting:
            yield from self._scored(waiting)

    def _scored(self, films: Sequence[Ready]) -> list[Scored]:
        return self.scored(films, self.outputs(np.stack([film.pixels for film in films])))

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
        may_give = [(name, "tensor(float)", dimensions) for name, dimensions in OUTPUTS.items()]
        if takes != should_take or gives[:1] != may_give[:1] or any(output not in may_give for output in gives):
            raise BundleError(
                f"the network of bundle {self.card.name!r} takes {takes} and gives {gives}, not {should_take}"
                f" and some of {may_give}, the first always",
                advice="Export it again",
            )

    def _refuse_other_limits(self) -> None:
        expected = self.card.refusal is not None
        for name in ("kinds", "distance"):
            if (name in self._gives) != expected:
                raise BundleError(
                    f"the network of bundle {self.card.name!r} gives {self._gives}; its card"
                    f" {'has' if expected else 'has no'} limits for {name!r}",
                    advice="Export it again",
                )


def refusals(card: Card, outputs: Outputs) -> list[str]:
    """Why nothing is to be said of each film of a run by what the network gives; empty where something is."""
    n = len(outputs.logit)
    kinds = [None] * n if outputs.kinds is None else outputs.kinds.tolist()
    distances = [None] * n if outputs.distance is None else outputs.distance.tolist()
    return [refusal(card, *limits) for limits in zip(kinds, distances, strict=True)]


def calibrated(calibration: Calibration, logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Probability of pneumonia, 0 to 1, of logits of any shape; infinite ones too."""
    return sigmoid(calibration.slope * np.asarray(logits, dtype=np.float64) + calibration.intercept)


def sigmoid(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-x)) in double precision, without overflow at either end."""
    x = np.asarray(logits, dtype=np.float64)
    return np.exp(-np.logaddexp(0.0, -x))

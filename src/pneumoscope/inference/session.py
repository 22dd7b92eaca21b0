"""Scores images with a bundle. What is evaluated is what is shipped: nothing after training scores in another way."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.card import INPUT_CLASSES, Calibration, Card, read_bundle
from pneumoscope.bundle.self_test import SELF_TEST_TOLERANCE, self_test_image
from pneumoscope.core.errors import BundleError, UsageError
from pneumoscope.imaging.input_checks import check_input
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference.rejection import refusal, refusal_of_age

if TYPE_CHECKING:
    from pneumoscope.imaging.decode import Radiograph

__all__ = ["OUTPUTS", "BundleSession", "Outputs", "Ready", "Scored", "calibrated", "refusals", "sigmoid"]

# Of the network file, with their numbers of dimensions. Every file gives the first; the others are there where they can be.
OUTPUTS = {"logit": 1, "heatmap": 3, "input_classes": 2, "distance": 1}


@dataclasses.dataclass(frozen=True, slots=True)
class Outputs:
    """What a network gives in one run for n images; None where it does not, or was not asked to.

    Attributes:
        logit: float32, shape (n,).
        heatmap: what each place of the last feature map contributes to the logit, float32, shape (n, height, width); above 0
            towards pneumonia. The places of one image and a constant sum to the logit where the network ends in average
            pooling and one linear layer; elsewhere these are first-order shares.
        kinds: probability of each kind of picture on the card, float32, shape (n, kinds).
        distance: of the features from those of the training images, float32, shape (n,); about 1 for images like those.
    """

    logit: npt.NDArray[np.float32]
    heatmap: npt.NDArray[np.float32] | None = None
    input_classes: npt.NDArray[np.float32] | None = None
    distance: npt.NDArray[np.float32] | None = None


class Ready(NamedTuple):
    """A prepared image, shape (size, size), and why its pixels can be no image; empty where nothing speaks against it."""

    pixels: npt.NDArray[np.uint8]
    implausible: str


class Scored(NamedTuple):
    """One image's logit, and why nothing is to be said of it; empty where it can be judged."""

    logit: float
    refusal: str


class BundleSession:
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
    def load(cls, folder: Path, *, threads: int = 0) -> BundleSession:
        """Read and check a bundle, start a session, and try it on the golden image.

        Raises:
            BundleError: see `bundle.card.read_bundle`; the network gives what the card has no limits for, or the golden image
                another logit than the card says.
        """
        card, network = read_bundle(folder)
        session = cls(card, network, threads=threads)
        session._refuse_other_limits()
        session.run_self_test()
        return session

    def run_self_test(self) -> None:
        """Score the golden image, and compare.

        Raises:
            BundleError: its logit is another than the card says.
        """
        found, stated = float(self.logits(self_test_image(self.card.preprocessing.size))[0]), self.card.self_test_logit
        if not abs(found - stated) <= SELF_TEST_TOLERANCE * max(1, abs(stated)):
            raise BundleError(
                f"bundle {self.card.name!r} gives its golden image the logit {found:.6g} here; its card says {stated:.6g}",
                hint="ONNX Runtime computes it otherwise on this machine: try another version of onnxruntime",
            )

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Logits of images that are already prepared.

        Args:
            pixels: grey levels, shape (n, size, size).
        Returns:
            Shape (n,); above 0 the network leans to pneumonia.
        """
        return np.asarray(self._run(["logit"], pixels)["logit"], dtype=np.float32)

    def outputs(self, pixels: npt.NDArray[np.uint8], *, heatmaps: bool = False) -> Outputs:
        """All that the network gives for images that are already prepared, in one run.

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
        found = dict(zip(names, self._session.run(names, {"image": pixels}), strict=True))
        for name, values in found.items():
            short = len(values) != len(pixels) or (name == "input_classes" and values.shape[1] != len(INPUT_CLASSES))
            if short or not np.isfinite(values).all():
                raise BundleError(
                    f"the network of bundle {self.card.name!r} gives {name!r} of shape {values.shape} for {len(pixels)} images,"
                    " or what is no number",
                    hint="Export it again, or get it from whom you trust",
                )
        return found

    def ready(self, image: Radiograph) -> Ready:
        """An image as the network takes it, and what its own pixels say against it: all of it that is still needed."""
        against = check_input(image, self.card.preprocessing.size // 2) or refusal_of_age(self.card, image.age)
        return Ready(preprocess(image, self.card.preprocessing), against)

    def scored(self, images: Sequence[Ready], outputs: Outputs) -> list[Scored]:
        """The images of a run: their logits, and whether they are refused.

        Args:
            images: in the order of the run.
            outputs: of the run.
        """
        return [
            Scored(logit, image.implausible or refused)
            for image, logit, refused in zip(images, outputs.logit.tolist(), refusals(self.card, outputs), strict=True)
        ]

    def refuse_unexplained(self) -> None:
        """Raise where the network gives no heatmaps.

        Raises:
            BundleError: saying why it may not.
        """
        if not self.explains:
            raise BundleError(
                f"the network of bundle {self.card.name!r} ({self.card.network}) gives no heatmaps: its logit does not draw_figures on"
                " places of a last feature map, or in a way that could not be exported",
                hint="Ask for none, or train a convolutional network: pneumoscope models",
            )

    def stream(self, images: Iterable[Radiograph], *, batch: int = 32) -> Iterator[Scored]:
        """Images one after the other, scored, holding at most `batch` of them in memory.

        Raises:
            UsageError: `batch` is below 1.
        """
        if batch < 1:
            raise UsageError(f"batch is {batch}; one image at a time is the least")
        waiting: list[Ready] = []
        for image in images:
            waiting.append(self.ready(image))
            if len(waiting) == batch:
                yield from self._scored(waiting)
                waiting.clear()
        if waiting:
            yield from self._scored(waiting)

    def _scored(self, images: Sequence[Ready]) -> list[Scored]:
        return self.scored(images, self.outputs(np.stack([image.pixels for image in images])))

    def probability(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Calibrated probability of pneumonia, 0 to 1, by the card's calibration."""
        return calibrated(self.card.calibration, logits)

    def _refuse_another_format(self) -> None:
        size = self.card.preprocessing.size
        takes = [
            (value.name, value.type, [side if isinstance(side, int) else "n" for side in value.shape])
            for value in self._session.get_inputs()
        ]
        gives = [(value.name, value.type, len(value.shape)) for value in self._session.get_outputs()]
        should_take = [("image", "tensor(uint8)", ["n", size, size])]
        may_give = [(name, "tensor(float)", dimensions) for name, dimensions in OUTPUTS.items()]
        if takes != should_take or gives[:1] != may_give[:1] or any(output not in may_give for output in gives):
            raise BundleError(
                f"the network of bundle {self.card.name!r} takes {takes} and gives {gives}, not {should_take}"
                f" and some of {may_give}, the first always",
                hint="Export it again",
            )

    def _refuse_other_limits(self) -> None:
        expected = self.card.rejection_limits is not None
        for name in ("input_classes", "distance"):
            if (name in self._gives) != expected:
                raise BundleError(
                    f"the network of bundle {self.card.name!r} gives {self._gives}; its card"
                    f" {'has' if expected else 'has no'} limits for {name!r}",
                    hint="Export it again",
                )


def refusals(card: Card, outputs: Outputs) -> list[str]:
    """Why nothing is to be said of each image of a run by what the network gives; empty where something is."""
    n = len(outputs.logit)
    input_classes = [None] * n if outputs.input_classes is None else outputs.input_classes.tolist()
    distances = [None] * n if outputs.distance is None else outputs.distance.tolist()
    return [refusal(card, *limits) for limits in zip(input_classes, distances, strict=True)]


def calibrated(calibration: Calibration, logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Probability of pneumonia, 0 to 1, of logits of any shape; infinite ones too."""
    return sigmoid(calibration.slope * np.asarray(logits, dtype=np.float64) + calibration.intercept)


def sigmoid(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-x)) in double precision, without overflow at either end."""
    x = np.asarray(logits, dtype=np.float64)
    return np.exp(-np.logaddexp(0.0, -x))

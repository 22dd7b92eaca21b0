"""Scores images with a bundle. What is evaluated is what is shipped: nothing after training scores in another way."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.card import INPUT_CLASSES, Card, read_bundle
from pneumoscope.bundle.network_checks import SELF_TEST_TOLERANCE, self_test_image
from pneumoscope.core.errors import BundleError, UsageError
from pneumoscope.core.prediction import Rejection
from pneumoscope.imaging.input_checks import check_image
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference.decision import calibrate, reject_by_age, reject_by_network

if TYPE_CHECKING:
    from pneumoscope.imaging.decode import Radiograph

__all__ = ["OUTPUTS", "BundleSession", "Outputs", "PreprocessedImage", "Scored", "network_rejections"]

# Of the network file, with their numbers of dimensions. Every file gives the first; the others are there where they can be.
OUTPUTS = {"logit": 1, "heatmap": 3, "input_classes": 2, "ood_distance": 1}


@dataclasses.dataclass(frozen=True, slots=True)
class Outputs:
    """What a network gives in one run for n images; None where it does not, or was not asked to.

    Attributes:
        logit: float32, shape (n,).
        heatmap: what each place of the last feature map contributes to the logit, float32, shape (n, height, width); above 0
            towards pneumonia. The places of one image and a constant sum to the logit where the network ends in average
            pooling and one linear layer; elsewhere these are first-order shares.
        kinds: probability of each kind of picture on the card, float32, shape (n, kinds).
        ood_distance: of the features from those of the training images, float32, shape (n,); about 1 for images like those.
    """

    logit: npt.NDArray[np.float32]
    heatmap: npt.NDArray[np.float32] | None = None
    input_classes: npt.NDArray[np.float32] | None = None
    ood_distance: npt.NDArray[np.float32] | None = None


class PreprocessedImage(NamedTuple):
    """An image ready for the network.

    Attributes:
        pixels: Gray levels, uint8, shape (size, size).
        rejection: Reason found in the header or the pixels to make no prediction, or None.
    """

    pixels: npt.NDArray[np.uint8]
    rejection: Rejection | None


class Scored(NamedTuple):
    """The logit of one image, and the reason to make no prediction or None."""

    logit: float
    rejection: Rejection | None


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

    def preprocess(self, image: Radiograph) -> PreprocessedImage:
        """Return the network's input for an image, with the rejection by its pixels or stated age."""
        rejection = check_image(image, self.card.preprocessing.size // 2) or reject_by_age(self.card, image.age)
        return PreprocessedImage(preprocess(image, self.card.preprocessing), rejection)

    def score(self, images: Sequence[PreprocessedImage], outputs: Outputs) -> list[Scored]:
        """Return logits and rejections of a batch.

        Args:
            images: The batch, in order.
            outputs: What the network returned for it.
        """
        rejections = network_rejections(self.card, outputs)
        return [
            Scored(logit, image.rejection or rejection)
            for image, logit, rejection in zip(images, outputs.logit.tolist(), rejections, strict=True)
        ]

    def refuse_unexplained(self) -> None:
        """Raise where the network gives no heatmaps.

        Raises:
            BundleError: saying why it may not.
        """
        if not self.explains:
            raise BundleError(
                f"the network of bundle {self.card.name!r} ({self.card.network}) gives no heatmaps: its logit does not depend on"
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
        waiting: list[PreprocessedImage] = []
        for image in images:
            waiting.append(self.preprocess(image))
            if len(waiting) == batch:
                yield from self._scored(waiting)
                waiting.clear()
        if waiting:
            yield from self._scored(waiting)

    def _scored(self, images: Sequence[PreprocessedImage]) -> list[Scored]:
        return self.score(images, self.outputs(np.stack([image.pixels for image in images])))

    def probability(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Calibrated probability of pneumonia, 0 to 1, by the card's calibration."""
        return calibrate(self.card.calibration, logits)

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
        for name in ("input_classes", "ood_distance"):
            if (name in self._gives) != expected:
                raise BundleError(
                    f"the network of bundle {self.card.name!r} gives {self._gives}; its card"
                    f" {'has' if expected else 'has no'} limits for {name!r}",
                    hint="Export it again",
                )


def network_rejections(card: Card, outputs: Outputs) -> list[Rejection | None]:
    """Return the rejection of each image of a batch by the network's outputs, or None."""
    n = len(outputs.logit)
    input_classes = [None] * n if outputs.input_classes is None else outputs.input_classes.tolist()
    distances = [None] * n if outputs.ood_distance is None else outputs.ood_distance.tolist()
    return [reject_by_network(card, *each) for each in zip(input_classes, distances, strict=True)]

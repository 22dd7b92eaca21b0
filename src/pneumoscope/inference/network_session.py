"""Run the network of a bundle with ONNX Runtime: base class of the binary and multiclass sessions."""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.card import INPUT_CLASSES
from pneumoscope.core.errors import BundleError, UsageError
from pneumoscope.core.prediction import Rejection
from pneumoscope.core.prediction_codes import ASSUMPTIONS, AgeRequirement, Assumption
from pneumoscope.imaging.image import Radiograph
from pneumoscope.imaging.preprocess import PreprocessedImage, Preprocessing, preprocess_image
from pneumoscope.inference.decision import InputRequirements, reject_by_age, reject_by_file, reject_by_network
from pneumoscope.inference.providers import Provider, import_onnxruntime, provider_arguments, require_running

__all__ = ["CHECK_OUTPUTS", "NetworkOutputs", "NetworkSession", "OutputShape", "SessionCard", "network_rejections"]


class OutputShape(NamedTuple):
    """Number of dimensions of an output and the size of the second one, or None if it may vary."""

    dimensions: int
    width: int | None = None


# Optional outputs of the input checks.
CHECK_OUTPUTS: Mapping[str, OutputShape] = {
    "input_classes": OutputShape(2, len(INPUT_CLASSES)),
    "ood_distance": OutputShape(1),
    "age_score": OutputShape(1),
}


class SessionCard(InputRequirements, Protocol):
    """The part of a card that all sessions need."""

    @property
    def name(self) -> str:
        """Name of the model."""

    @property
    def network(self) -> str:
        """Name of the network."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of images for the network."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOutputs(abc.ABC):
    """Outputs of a network for n images in addition to its logits; None if not available or not requested.

    Attributes:
        heatmap: Contribution of each position in the last feature map to the logit, float32, shape (n, height, width); for
            several classes, to each class's logit, shape (n, K, height, width). If the network ends in average pooling and one
            linear layer, the contributions plus a constant sum to the logit (class activation mapping); otherwise they are
            first-order contributions.
        input_classes: Probability of each input class on the card, float32, shape (n, classes).
        ood_distance: Distance from the training images in feature space, float32, shape (n,); about 1 in distribution.
        age_score: Score that the patient is outside the age range, 0 to 1, float32, shape (n,).
    """

    heatmap: npt.NDArray[np.float32] | None = None
    input_classes: npt.NDArray[np.float32] | None = None
    ood_distance: npt.NDArray[np.float32] | None = None
    age_score: npt.NDArray[np.float32] | None = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""


_Card = TypeVar("_Card", bound=SessionCard)
_Outputs = TypeVar("_Outputs", bound=NetworkOutputs)
_Scored = TypeVar("_Scored")


class NetworkSession(abc.ABC, Generic[_Card, _Outputs, _Scored]):
    """ONNX Runtime session of a bundle's network.

    Attributes:
        card: Card of the bundle.
        assumptions: Overrides of DICOM headers for all images.
        require_age: Which images are rejected if the age of the patient is unknown.
        provider: Processor that runs the network.
        has_heatmaps: True if the network has the output `heatmap`.
    """

    def __init__(
        self,
        card: _Card,
        network: bytes,
        outputs: Mapping[str, OutputShape],
        *,
        threads: int = 0,
        require_age: AgeRequirement = "never",
        assume: Collection[Assumption] = (),
        provider: Provider = "cpu",
    ) -> None:
        """Start an ONNX Runtime session.

        Args:
            card: Card of the bundle.
            network: Content of the ONNX file.
            outputs: Supported outputs by name; only the first is required.
            threads: Threads per network call; 0 for one per core.
            require_age: Which images are rejected if the age of the patient is unknown.
            assume: Overrides of DICOM headers for all images; see `core.prediction_codes.OVERRIDES`.
            provider: Processor that runs the network.

        Raises:
            BundleError: ONNX Runtime cannot run the file, or its inputs and outputs do not match the bundle format.
            UsageError: `require_age` or `assume` has an unknown value, or the provider is not available.
        """
        if require_age not in get_args(AgeRequirement):
            raise UsageError(
                f"require_age is {require_age!r}", hint=f"Pass one of: {', '.join(get_args(AgeRequirement))}"
            )
        for assumption in assume:
            if assumption not in ASSUMPTIONS:
                raise UsageError(f"assume has {assumption!r}", hint=f"Pass one or more of: {', '.join(ASSUMPTIONS)}")
        onnxruntime, providers = import_onnxruntime(), provider_arguments(provider)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or (os.cpu_count() or 1)
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(network, options, providers=providers)
        except Exception as error:
            raise BundleError(f"the network of bundle {card.name!r} cannot be run: {error}") from error
        require_running(provider, self._session.get_providers())
        self.provider = provider
        self.card = card
        self.assumptions = tuple(assume)
        self.require_age = require_age
        self._known_outputs = dict(outputs)
        self._output_names = [output.name for output in self._session.get_outputs()]
        self.has_heatmaps = "heatmap" in self._output_names
        self._check_signature()

    @abc.abstractmethod
    def run_self_test(self) -> None:
        """Score the self-test image and compare the result with the card.

        Raises:
            BundleError: The results differ.
        """

    @abc.abstractmethod
    def outputs(self, pixels: npt.NDArray[np.uint8], *, heatmaps: bool = False) -> _Outputs:
        """Return the outputs for preprocessed images, from one run of the network.

        Args:
            pixels: Gray levels, uint8, shape (n, size, size).
            heatmaps: Whether to include heatmaps.

        Raises:
            BundleError: The network has no heatmaps, or an output has the wrong shape or is not finite.
        """

    @abc.abstractmethod
    def score(self, images: Sequence[PreprocessedImage], outputs: _Outputs) -> list[_Scored]:
        """Return the scores and rejections of a batch.

        Args:
            images: Images of the batch.
            outputs: Outputs of the network for these images, in the same order.
        """

    def reject_by_file(self, image: PreprocessedImage) -> Rejection | None:
        """Return the rejection of an image by its pixels, header or age, before running the network; None if it passes."""
        if rejection := reject_by_file(image.rejections, self.assumptions):
            return rejection
        required = self.require_age == "always" or (self.require_age == "dicom" and image.format == "DICOM")
        return reject_by_age(self.card, image.age, required=required)

    def stream(self, images: Iterable[Radiograph | PreprocessedImage], *, batch: int = 32) -> Iterator[_Scored]:
        """Yield scores and rejections image by image, with at most `batch` images in memory.

        Raises:
            UsageError: `batch` is below 1.
        """
        if batch < 1:
            raise UsageError(f"batch is {batch}; the minimum is 1")
        pending: list[PreprocessedImage] = []
        for image in images:
            if not isinstance(image, PreprocessedImage):
                image = preprocess_image(image, self.card.preprocessing)
            pending.append(image)
            if len(pending) == batch:
                yield from self._score_batch(pending)
                pending.clear()
        if pending:
            yield from self._score_batch(pending)

    def require_heatmaps(self) -> None:
        """Raise if the network has no heatmaps.

        Raises:
            BundleError: The network has no output `heatmap`.
        """
        if not self.has_heatmaps:
            raise BundleError(
                f"the network of bundle {self.card.name!r} ({self.card.network}) has no heatmaps: its logits do not depend"
                " on a last feature map, or the dependence could not be exported",
                hint="Run without heatmaps, or train a convolutional network: pneumoscope models",
            )

    def _run_outputs(self, pixels: npt.NDArray[np.uint8], *, heatmaps: bool) -> dict[str, npt.NDArray[np.float32]]:
        """Return all outputs by name, with heatmaps only on request; see `outputs`."""
        if heatmaps:
            self.require_heatmaps()
        return self._run([name for name in self._output_names if heatmaps or name != "heatmap"], pixels)

    def _score_batch(self, images: Sequence[PreprocessedImage]) -> list[_Scored]:
        return self.score(images, self.outputs(np.stack([image.pixels for image in images])))

    def _run(self, names: Sequence[str], pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        outputs = dict(zip(names, self._session.run(names, {"image": pixels}), strict=True))
        for name, values in outputs.items():
            width = self._known_outputs[name].width
            bad_shape = len(values) != len(pixels) or (width is not None and values.shape[1] != width)
            if bad_shape or not np.isfinite(values).all():
                raise BundleError(
                    f"the network of bundle {self.card.name!r} returned {name!r} of shape {values.shape} for"
                    f" {len(pixels)} images, or values that are not finite",
                    hint="Export the bundle again, or get it from a trusted source",
                )
        return outputs

    def _check_signature(self) -> None:
        size = self.card.preprocessing.size
        inputs = [
            (value.name, value.type, [side if isinstance(side, int) else "n" for side in value.shape])
            for value in self._session.get_inputs()
        ]
        outputs = [(value.name, value.type, len(value.shape)) for value in self._session.get_outputs()]
        expected_inputs = [("image", "tensor(uint8)", ["n", size, size])]
        known_outputs = [(name, "tensor(float)", shape.dimensions) for name, shape in self._known_outputs.items()]
        if (
            inputs != expected_inputs
            or outputs[:1] != known_outputs[:1]
            or any(output not in known_outputs for output in outputs)
        ):
            raise BundleError(
                f"the network of bundle {self.card.name!r} has inputs {inputs} and outputs {outputs}; expected inputs"
                f" {expected_inputs} and outputs among {known_outputs}, the first of them required",
                hint="Export the bundle again",
            )

    def _check_limits(self) -> None:
        limits = self.card.rejection_limits
        has_age_limit = limits is not None and limits.max_age_score is not None
        for name in ("input_classes", "age_score", "ood_distance"):
            has_limits = has_age_limit if name == "age_score" else limits is not None
            if (name in self._output_names) != has_limits:
                raise BundleError(
                    f"the network of bundle {self.card.name!r} has outputs {self._output_names}, but its card"
                    f" {'has' if has_limits else 'has no'} limits for {name!r}",
                    hint="Export the bundle again",
                )


def network_rejections(card: InputRequirements, outputs: NetworkOutputs) -> list[Rejection | None]:
    """Return the rejection of each image in a batch by the network's outputs, or None."""
    n = len(outputs)
    input_classes = [None] * n if outputs.input_classes is None else outputs.input_classes.tolist()
    age_scores = [None] * n if outputs.age_score is None else outputs.age_score.tolist()
    distances = [None] * n if outputs.ood_distance is None else outputs.ood_distance.tolist()
    return [reject_by_network(card, *each) for each in zip(input_classes, distances, age_scores, strict=True)]

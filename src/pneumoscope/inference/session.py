"""Run the network of a bundle with ONNX Runtime. Evaluation, the CLI and the service all score through this module."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import INPUT_CLASSES, Card
from pneumoscope.bundle.network_checks import SELF_TEST_TOLERANCE, self_test_image
from pneumoscope.bundle.prevalence import apply_prevalence
from pneumoscope.bundle.site_profile import SiteProfile, apply_site_profile, read_site_profile
from pneumoscope.core.errors import BundleError, UsageError
from pneumoscope.core.prediction import ASSUMPTIONS, AgeRequirement, Assumption, Rejection
from pneumoscope.imaging.image import Radiograph
from pneumoscope.imaging.preprocess import PreprocessedImage, preprocess_image
from pneumoscope.inference.decision import calibrate, reject_by_age, reject_by_file, reject_by_network
from pneumoscope.inference.providers import Provider, import_onnxruntime, provider_arguments, require_running

__all__ = ["OUTPUTS", "BundleSession", "Outputs", "Scored", "network_rejections"]

# Outputs of the network file and their numbers of dimensions. The first is required, the others are optional.
OUTPUTS = {"logit": 1, "heatmap": 3, "input_classes": 2, "ood_distance": 1, "age_score": 1}


@dataclasses.dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs of the network for n images; None if the network has no such output or it was not requested.

    Attributes:
        logit: float32, shape (n,).
        heatmap: Contribution of each position of the last feature map to the logit, float32, shape (n, height, width);
            positive towards pneumonia. The contributions and a constant sum to the logit if the network ends in average
            pooling and one linear layer (class activation mapping); otherwise they are first-order contributions.
        input_classes: Probability of each input class on the card, float32, shape (n, classes).
        ood_distance: Distance from the training images in feature space, float32, shape (n,); about 1 in distribution.
        age_score: Score that the patient is outside the age range, 0 to 1, float32, shape (n,).
    """

    logit: npt.NDArray[np.float32]
    heatmap: npt.NDArray[np.float32] | None = None
    input_classes: npt.NDArray[np.float32] | None = None
    ood_distance: npt.NDArray[np.float32] | None = None
    age_score: npt.NDArray[np.float32] | None = None


class Scored(NamedTuple):
    """The logit of one image, and the reason to make no prediction or None."""

    logit: float
    rejection: Rejection | None


class BundleSession:
    """A bundle that is ready to score images.

    Attributes:
        card: Card of the bundle, with the changes of the site profile or of the prevalence.
        profile: The site profile, or None.
        site: Name and short hash of the site profile, or the stated prevalence; see `ModelInfo`.
        assumptions: Overrides of DICOM headers that hold for all images.
        require_age: Images that are rejected if the age of the patient is unknown.
        has_heatmaps: True if the network has the output `heatmap`.
        provider: Processor that runs the network.
    """

    def __init__(
        self,
        card: Card,
        network: bytes,
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
            threads: Threads per network call; 0 means one per core.
            require_age: Images that are rejected if the age of the patient is unknown.
            assume: Overrides of DICOM headers that hold for all images; see `core.prediction.OVERRIDES`.
            provider: Processor that runs the network.
        Raises:
            BundleError: ONNX Runtime cannot run the file, or its inputs and outputs do not match the bundle format.
            UsageError: `require_age` is not one of `AgeRequirement`, `assume` has a value that is not an `Assumption`, or the
                provider is not available.
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
        self.profile: SiteProfile | None = None
        self.site = ""
        self.assumptions = tuple(assume)
        self.require_age = require_age
        self._output_names = [output.name for output in self._session.get_outputs()]
        self._check_signature()
        self.has_heatmaps = "heatmap" in self._output_names

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        threads: int = 0,
        require_age: AgeRequirement = "never",
        assume: Collection[Assumption] = (),
        site: Path | None = None,
        prevalence: float | None = None,
        provider: Provider = "cpu",
    ) -> BundleSession:
        """Read and verify a bundle, start a session and run its self-test.

        Args:
            folder: Folder of the bundle.
            threads, require_age, assume, provider: See `__init__`.
            site: Site profile to apply to the card, see `bundle.site_profile`.
            prevalence: Prevalence that probabilities are stated for, see `bundle.prevalence`; that of the card if None.

        Raises:
            BundleError: See `bundle_folder.read_bundle`; the outputs do not match the limits on the card, or the self-test fails.
            SiteProfileError: The site profile cannot be read, was changed, or belongs to another model.
            UsageError: The prevalence is not between 0 and 1, or there is a site profile, which has its own; or the provider is
                not available.
        """
        if site is not None and prevalence is not None:
            raise UsageError(
                "a site profile and a prevalence cannot be combined",
                hint="The profile has a prevalence of its own. To change it: pneumoscope accept --prevalence",
            )
        card, network = read_bundle(folder)
        session = cls(card, network, threads=threads, require_age=require_age, assume=assume, provider=provider)
        session._check_limits()
        session.run_self_test()
        if site is not None:
            profile = read_site_profile(site)
            session.card, session.profile, session.site = apply_site_profile(card, profile), profile, profile.label
        elif prevalence is not None and prevalence != card.calibration.prevalence:
            session.card, session.site = apply_prevalence(card, prevalence), f"prevalence={float(prevalence)!r}"
        return session

    def run_self_test(self) -> None:
        """Score the self-test image and compare the logit with the card.

        Raises:
            BundleError: The logits differ.
        """
        actual = float(self.logits(self_test_image(self.card.preprocessing.size))[0])
        expected = self.card.self_test_logit
        if not abs(actual - expected) <= SELF_TEST_TOLERANCE * max(1, abs(expected)):
            raise BundleError(
                f"the self-test of bundle {self.card.name!r} failed: logit {actual:.6g}, expected {expected:.6g}",
                hint="ONNX Runtime computes other values on this machine; try another version of onnxruntime",
            )

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the logits of preprocessed images, shape (n,); positive towards pneumonia.

        Args:
            pixels: Gray levels, uint8, shape (n, size, size).
        """
        return np.asarray(self._run(["logit"], pixels)["logit"], dtype=np.float32)

    def outputs(self, pixels: npt.NDArray[np.uint8], *, heatmaps: bool = False) -> Outputs:
        """Return all outputs for preprocessed images, from one run of the network.

        Args:
            pixels: Gray levels, uint8, shape (n, size, size).
            heatmaps: Include heatmaps.
        Raises:
            BundleError: The network has no heatmaps, or an output has the wrong shape or is not finite.
        """
        if heatmaps:
            self.require_heatmaps()
        names = [name for name in self._output_names if heatmaps or name != "heatmap"]
        return Outputs(**self._run(names, pixels))

    def _run(self, names: Sequence[str], pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        outputs = dict(zip(names, self._session.run(names, {"image": pixels}), strict=True))
        for name, values in outputs.items():
            bad_shape = len(values) != len(pixels) or (
                name == "input_classes" and values.shape[1] != len(INPUT_CLASSES)
            )
            if bad_shape or not np.isfinite(values).all():
                raise BundleError(
                    f"the network of bundle {self.card.name!r} returned {name!r} of shape {values.shape} for"
                    f" {len(pixels)} images, or values that are not finite",
                    hint="Export the bundle again, or get it from a trusted source",
                )
        return outputs

    def score(self, images: Sequence[PreprocessedImage], outputs: Outputs) -> list[Scored]:
        """Return logits and rejections of a batch.

        Args:
            images: The batch, in order.
            outputs: Outputs of the network for it.
        """
        return [
            Scored(logit, self.reject_by_file(image) or rejection)
            for image, logit, rejection in zip(
                images, outputs.logit.tolist(), network_rejections(self.card, outputs), strict=True
            )
        ]

    def reject_by_file(self, image: PreprocessedImage) -> Rejection | None:
        """Return the rejection by the pixels, the header or the age of an image, before the network; None if it passes."""
        if rejection := reject_by_file(image.rejections, self.assumptions):
            return rejection
        required = self.require_age == "always" or (self.require_age == "dicom" and image.format == "DICOM")
        return reject_by_age(self.card, image.age, required=required)

    def require_heatmaps(self) -> None:
        """Raise if the network has no heatmaps.

        Raises:
            BundleError: The network has no output `heatmap`.
        """
        if not self.has_heatmaps:
            raise BundleError(
                f"the network of bundle {self.card.name!r} ({self.card.network}) has no heatmaps: its logit does not depend on"
                " a last feature map, or the dependence could not be exported",
                hint="Run without heatmaps, or train a convolutional network: pneumoscope models",
            )

    def stream(self, images: Iterable[Radiograph | PreprocessedImage], *, batch: int = 32) -> Iterator[Scored]:
        """Yield logits and rejections image by image, holding at most `batch` images in memory.

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

    def _score_batch(self, images: Sequence[PreprocessedImage]) -> list[Scored]:
        return self.score(images, self.outputs(np.stack([image.pixels for image in images])))

    def probability(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return calibrated probabilities of pneumonia, 0 to 1, of logits of any shape."""
        return calibrate(self.card.calibration, logits)

    def _check_signature(self) -> None:
        size = self.card.preprocessing.size
        inputs = [
            (value.name, value.type, [side if isinstance(side, int) else "n" for side in value.shape])
            for value in self._session.get_inputs()
        ]
        outputs = [(value.name, value.type, len(value.shape)) for value in self._session.get_outputs()]
        expected_inputs = [("image", "tensor(uint8)", ["n", size, size])]
        known_outputs = [(name, "tensor(float)", dimensions) for name, dimensions in OUTPUTS.items()]
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


def network_rejections(card: Card, outputs: Outputs) -> list[Rejection | None]:
    """Return the rejection of each image of a batch by the network's outputs, or None."""
    n = len(outputs.logit)
    input_classes = [None] * n if outputs.input_classes is None else outputs.input_classes.tolist()
    age_scores = [None] * n if outputs.age_score is None else outputs.age_score.tolist()
    distances = [None] * n if outputs.ood_distance is None else outputs.ood_distance.tolist()
    return [reject_by_network(card, *each) for each in zip(input_classes, distances, age_scores, strict=True)]

"""Score images with the network of a binary bundle, for evaluation, the CLI and the service."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import Card, RejectionLimits
from pneumoscope.bundle.network_checks import SELF_TEST_TOLERANCE, self_test_image
from pneumoscope.bundle.prevalence import apply_prevalence
from pneumoscope.bundle.site_profile import SiteProfile, apply_site_profile, read_site_profile
from pneumoscope.core.errors import BundleError, UsageError
from pneumoscope.core.prediction import Rejection
from pneumoscope.core.prediction_codes import AgeRequirement, Assumption
from pneumoscope.imaging.preprocess import PreprocessedImage
from pneumoscope.inference.decision import calibrate
from pneumoscope.inference.network_session import (
    CHECK_OUTPUTS,
    NetworkOutputs,
    NetworkSession,
    OutputShape,
    network_rejections,
)
from pneumoscope.inference.providers import Provider

__all__ = ["OUTPUTS", "BundleSession", "Outputs", "Scored", "network_rejections"]

# Outputs of the network file; only the first is required.
OUTPUTS: Mapping[str, OutputShape] = {"logit": OutputShape(1), "heatmap": OutputShape(3), **CHECK_OUTPUTS}


@dataclasses.dataclass(frozen=True, slots=True)
class Outputs(NetworkOutputs):
    """Outputs of a binary network for n images.

    Attributes:
        logit: Logit, float32, shape (n,). Positive values, like positive contributions in `heatmap`, indicate pneumonia.
    """

    logit: npt.NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.logit)


class Scored(NamedTuple):
    """Logit of one image, and its rejection or None."""

    logit: float
    rejection: Rejection | None


class BundleSession(NetworkSession[Card, Outputs, Scored]):
    """ONNX Runtime session of a binary bundle.

    Attributes:
        card: Card of the bundle, updated by the site profile or prevalence.
        profile: Site profile, or None.
        bundle_limits: Rejection limits of the bundle before the site profile changes them; None without input checks.
        site, prevalence: Name and short hash of the site profile, and the requested prevalence; see `ModelInfo`.
        assumptions: Overrides of DICOM headers for all images.
        require_age: Which images are rejected if the age of the patient is unknown.
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
            threads: Threads per network call; 0 for one per core.
            require_age: Which images are rejected if the age of the patient is unknown.
            assume: Overrides of DICOM headers for all images; see `core.prediction_codes.OVERRIDES`.
            provider: Processor that runs the network.

        Raises:
            BundleError: ONNX Runtime cannot run the file, or its inputs and outputs do not match the bundle format.
            UsageError: `require_age` or `assume` has an unknown value, or the provider is not available.
        """
        super().__init__(
            card, network, OUTPUTS, threads=threads, require_age=require_age, assume=assume, provider=provider
        )
        self.profile: SiteProfile | None = None
        self.bundle_limits: RejectionLimits | None = card.rejection_limits
        self.site = ""
        self.prevalence: float | None = None

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
            prevalence: Prevalence assumed by the probabilities, see `bundle.prevalence`; None for the card's prevalence.

        Raises:
            BundleError: See `bundle_folder.read_bundle`; or the outputs do not match the limits on the card, or the self-test
                fails.
            SiteProfileError: The site profile cannot be read, was modified, or belongs to another model.
            UsageError: The prevalence is not between 0 and 1 or is combined with a site profile; or see `__init__`.
        """
        if site is not None and prevalence is not None:
            raise UsageError(
                "a site profile and a prevalence cannot be combined",
                hint="The profile has its own prevalence. To change it: pneumoscope accept --prevalence",
            )
        card, network = read_bundle(folder)
        session = cls(card, network, threads=threads, require_age=require_age, assume=assume, provider=provider)
        session._check_limits()
        session.run_self_test()
        if site is not None:
            profile = read_site_profile(site)
            session.card, session.profile, session.site = apply_site_profile(card, profile), profile, profile.label
        elif prevalence is not None and prevalence != card.calibration.prevalence:
            session.card, session.prevalence = apply_prevalence(card, prevalence), float(prevalence)
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
        """Return the logits of preprocessed images, shape (n,); positive values indicate pneumonia.

        Args:
            pixels: Gray levels, uint8, shape (n, size, size).
        """
        return np.asarray(self._run(["logit"], pixels)["logit"], dtype=np.float32)

    def outputs(self, pixels: npt.NDArray[np.uint8], *, heatmaps: bool = False) -> Outputs:
        """Return all outputs for preprocessed images (n, size, size); see `NetworkSession.outputs`."""
        return Outputs(**self._run_outputs(pixels, heatmaps=heatmaps))

    def score(self, images: Sequence[PreprocessedImage], outputs: Outputs) -> list[Scored]:
        """Return the logits and rejections of a batch.

        Args:
            images: Images of the batch.
            outputs: Outputs of the network for these images, in the same order.
        """
        return [
            Scored(logit, self.reject_by_file(image) or rejection)
            for image, logit, rejection in zip(
                images, outputs.logit.tolist(), network_rejections(self.card, outputs), strict=True
            )
        ]

    def probability(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return calibrated probabilities of pneumonia, 0 to 1, for logits of any shape."""
        return calibrate(self.card.calibration, logits)

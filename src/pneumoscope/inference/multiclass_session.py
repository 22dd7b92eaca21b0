"""Score images with the network of a multiclass bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pneumoscope.bundle.bundle_folder import read_multiclass_bundle
from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.bundle.network_checks import SELF_TEST_TOLERANCE, self_test_image
from pneumoscope.core.errors import BundleError
from pneumoscope.core.prediction import Rejection
from pneumoscope.core.prediction_codes import AgeRequirement, Assumption
from pneumoscope.imaging.preprocess import PreprocessedImage
from pneumoscope.inference.network_session import (
    CHECK_OUTPUTS,
    NetworkOutputs,
    NetworkSession,
    OutputShape,
    network_rejections,
)
from pneumoscope.inference.providers import Provider

__all__ = ["MulticlassOutputs", "MulticlassScored", "MulticlassSession"]


@dataclasses.dataclass(frozen=True, slots=True)
class MulticlassOutputs(NetworkOutputs):
    """Outputs of a multiclass network for n images.

    Attributes:
        logits: Logits, float32, shape (n, K).
    """

    logits: npt.NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.logits)


class MulticlassScored(NamedTuple):
    """Logits of one image, shape (K,), and its rejection or None."""

    logits: npt.NDArray[np.float32]
    rejection: Rejection | None


class MulticlassSession(NetworkSession[MulticlassCard, MulticlassOutputs, MulticlassScored]):
    """ONNX Runtime session of a multiclass bundle."""

    def __init__(
        self,
        card: MulticlassCard,
        network: bytes,
        *,
        threads: int = 0,
        require_age: AgeRequirement = "never",
        assume: Collection[Assumption] = (),
        provider: Provider = "cpu",
    ) -> None:
        """Start an ONNX Runtime session; see `NetworkSession`."""
        k = len(card.classes)
        outputs: Mapping[str, OutputShape] = {
            "logits": OutputShape(2, k),
            "heatmap": OutputShape(4, k),
            **CHECK_OUTPUTS,
        }
        super().__init__(
            card, network, outputs, threads=threads, require_age=require_age, assume=assume, provider=provider
        )

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        threads: int = 0,
        require_age: AgeRequirement = "never",
        assume: Collection[Assumption] = (),
        provider: Provider = "cpu",
    ) -> MulticlassSession:
        """Read and verify a bundle, start a session and run its self-test.

        Args:
            folder: Folder of the bundle.
            threads, require_age, assume, provider: See `NetworkSession`.

        Raises:
            BundleError: See `bundle_folder.read_multiclass_bundle`; or the outputs do not match the limits on the card, or the
                self-test fails.
        """
        card, network = read_multiclass_bundle(folder)
        session = cls(card, network, threads=threads, require_age=require_age, assume=assume, provider=provider)
        session._check_limits()
        session.run_self_test()
        return session

    def run_self_test(self) -> None:
        """Score the self-test image and compare the logits with the card.

        Raises:
            BundleError: A logit differs.
        """
        actual = self.logits(self_test_image(self.card.preprocessing.size))[0]
        expected = np.array(self.card.self_test_logits)
        if not (np.abs(actual - expected) <= SELF_TEST_TOLERANCE * np.maximum(1, np.abs(expected))).all():
            raise BundleError(
                f"the self-test of bundle {self.card.name!r} failed: logits {actual.tolist()}, expected {expected.tolist()}",
                hint="ONNX Runtime computes other values on this machine; try another version of onnxruntime",
            )

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the logits, shape (n, K), of preprocessed images (n, size, size)."""
        return np.asarray(self._run(["logits"], pixels)["logits"], dtype=np.float32)

    def outputs(self, pixels: npt.NDArray[np.uint8], *, heatmaps: bool = False) -> MulticlassOutputs:
        """Return all outputs for preprocessed images (n, size, size); see `NetworkSession.outputs`."""
        return MulticlassOutputs(**self._run_outputs(pixels, heatmaps=heatmaps))

    def score(self, images: Sequence[PreprocessedImage], outputs: MulticlassOutputs) -> list[MulticlassScored]:
        """Return the logits and rejections of a batch; see `NetworkSession.score`."""
        rejections = network_rejections(self.card, outputs)
        return [
            MulticlassScored(logits, self.reject_by_file(image) or rejection)
            for image, logits, rejection in zip(images, outputs.logits, rejections, strict=True)
        ]

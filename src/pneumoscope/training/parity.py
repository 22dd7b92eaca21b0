"""Whether the exported network says what the trained one says; where it does not, no bundle is written."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pneumoscope.bundle.card import Parity
from pneumoscope.core.errors import ParityError
from pneumoscope.inference.session import Outputs
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.models.input_checks import InputChecks

__all__ = ["EXPLAINED_TOLERANCE", "TOLERANCE", "check_explanations", "check_parity"]

# Of a logit, relative to its size where that is above 1. Scores then agree to 1e-4, since x sigmoid'(x) is 0.224 at most.
TOLERANCE = 4e-4
# Of everything else, of its scale: what a picture of 256 greys does not show, and a distance of two decimals does not print.
EXPLAINED_TOLERANCE = 1e-3
_JUMP = 0.1


def check_parity(network: ClassifierNetwork, pixels: npt.NDArray[np.uint8], logits: npt.NDArray[np.float32]) -> Parity:
    """Compare torch with what the exported network said.

    Both compute in single precision, whose rounding a network may magnify: one trained on a few hundred images was found to differ
    by 8e-5 from itself in double precision.

    Args:
        network: in evaluation mode.
        pixels: shape (n, size, size).
        logits: of the exported network, shape (n,).
    Raises:
        ParityError: they differ by more than `TOLERANCE` on an image.
    """
    with torch.inference_mode():
        own = torch.cat([network(torch.from_numpy(np.array(part))) for part in np.array_split(pixels, 2)]).numpy()
    largest = float((np.abs(own - logits) / np.maximum(1, np.abs(own))).max())
    if not largest <= TOLERANCE:
        raise ParityError(
            f"the exported network's logits differ from torch's by up to {largest:.2g} of their size on {len(pixels)} images"
            f" (at most {TOLERANCE:g} is allowed)",
            hint="This is a fault of the export, not of the training; the checkpoints are kept",
        )
    return Parity(images=len(pixels), largest=largest)


def check_explanations(
    network: ClassifierNetwork, pixels: npt.NDArray[np.uint8], outputs: Outputs, screen: InputChecks | None = None
) -> None:
    """Compare all but the logits of the exported network with torch's.

    Differences of distances are relative to the largest one on these images, those of heatmaps to the largest sum of their terms'
    sizes: a heatmap sums over channels what may cancel down to nothing, and rounding is of the size of the terms. A gradient
    jumps where a ReLU's input is zero to within rounding, on in one program and off in the other (torch's own single and double
    precision differ so): a heatmap in ten may differ by more, up to `_JUMP`.

    Args:
        network: in evaluation mode.
        pixels: shape (n, size, size).
        outputs: of the exported network, for these images, heatmaps included where it gives them.
        screen: what was exported with it.
    Raises:
        ParityError: they differ by more than `EXPLAINED_TOLERANCE`.
    """
    images = torch.from_numpy(np.array(pixels))
    with torch.no_grad():
        features = network.forward_features(network.normalize(images))
        if outputs.heatmap is not None:
            explanation = network.class_activation(images)
            terms = network.feature_grid(network.logits_and_gradient(features)[1] * features)
            assert explanation is not None  # the exported network has one
            assert terms is not None
            largest = float(terms.abs().sum(1).max())
            _compare("heatmap", explanation[1], outputs.heatmap, largest, spared=math.ceil(len(pixels) / 10))
        if screen:
            _compare("input_classes", screen.classifier(images).softmax(1), outputs.input_classes, 1)
            distance = screen.detector(screen.extractor(images))
            _compare("ood_distance", distance, outputs.ood_distance, float(distance.max()))


def _compare(name: str, tensor: Tensor, given: npt.NDArray[np.float32] | None, scale: float, spared: int = 0) -> None:
    assert given is not None  # the exported network has it
    own = tensor.numpy().reshape(len(tensor), -1)
    difference = np.abs(own - given.reshape(own.shape)).max(1) / scale
    difference.sort()
    largest, jump = float(difference[-1 - spared]), float(difference[-1])
    if not (largest <= EXPLAINED_TOLERANCE and jump <= (_JUMP if spared else EXPLAINED_TOLERANCE)):
        without = f", by {largest:.2g} without the worst {spared}" if spared else ""
        raise ParityError(
            f"output {name!r} of the exported network differs from torch's by up to {jump:.2g} of its scale on {len(own)}"
            f" images{without} (at most {EXPLAINED_TOLERANCE:g} is allowed)",
            hint="This is a fault of the export, not of the training; the checkpoints are kept",
        )

"""Networks that check the input: an input classifier, an age classifier and an out-of-distribution (OOD) detector.

The OOD detector uses features from the first stages of EfficientNet-Lite0 with ImageNet weights instead of the classifier's own
features: a network trained to recognize pneumonia under any framing and exposure becomes insensitive to the population.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pneumoscope.models.backbones import Backbone
from pneumoscope.models.factory import create_model

__all__ = [
    "EXTRACTOR_SIDE",
    "AgeClassifier",
    "FeatureExtractor",
    "InputChecks",
    "InputClassifier",
    "MahalanobisDetector",
    "downsample",
]

_CLASSIFIER_SIDE = 56  # pixels; fast, and enough to see the orientation of a chest
EXTRACTOR_SIDE = 112  # pixels
_AGE_DROPOUT = 0.2
_EXTRACTOR_BORDER = 4  # pixels; the border depends more on the scanner than on the patient
_EXTRACTOR_STAGE = 3  # of five; its feature map has 1/16 of the side


class InputClassifier(nn.Module):
    """Small convolutional network for the classes in `bundle.card.INPUT_CLASSES`.

    Args:
        input_classes: Number of classes.
    """

    def __init__(self, input_classes: int) -> None:
        super().__init__()
        widths = (1, 16, 32, 64, 128)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(inputs, outputs, 3, stride=1 + (inputs > 1), padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                )
                for inputs, outputs in pairwise(widths)
            )
        )
        self.last = nn.Linear(widths[-1], input_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, classes) of gray levels (n, size, size), uint8 or float."""
        gray = images.unsqueeze(1).to(self.last.weight.dtype) / 128 - 1
        maps: Tensor = self.layers(downsample(gray, _CLASSIFIER_SIDE))
        logits: Tensor = self.last(maps.mean((2, 3)))
        return logits


class AgeClassifier(nn.Module):
    """EfficientNet-Lite0 with one logit that is positive if the patient is outside the age range.

    The logit is averaged over an image and its mirror image.

    Raises:
        MissingExtraError: The package of the initial weights is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = create_model(
            "tf_efficientnet_lite0",
            image_size=EXTRACTOR_SIDE,
            weights="imagenet",
            dropout=_AGE_DROPOUT,
            border_mask=_EXTRACTOR_BORDER,
            flip_averaging=True,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n,) of gray levels (n, size, size), uint8 or float."""
        logits: Tensor = self.network(downsample(images.unsqueeze(1).float(), EXTRACTOR_SIDE).squeeze(1))
        return logits


class FeatureExtractor(nn.Module):
    """Features for the OOD detector: channel means of an intermediate feature map of EfficientNet-Lite0 with ImageNet weights.

    Raises:
        MissingExtraError: The package of the weights is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # random initial values are overwritten by the weights
            network = create_model(
                "tf_efficientnet_lite0", image_size=EXTRACTOR_SIDE, weights="imagenet", border_mask=_EXTRACTOR_BORDER
            )
        self.network = cast(Backbone, network.eval().requires_grad_(False))

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (n, 112) of gray levels (n, size, size), uint8 or float."""
        gray = downsample(images.unsqueeze(1).float(), EXTRACTOR_SIDE).squeeze(1)
        maps: Tensor
        (maps,) = self.network.model.forward_intermediates(
            self.network.normalize(gray), indices=[_EXTRACTOR_STAGE], intermediates_only=True, stop_early=True
        )
        return maps.mean((2, 3))


class MahalanobisDetector(nn.Module):
    """Distance of an image's features from those of the training images.

    This is the Mahalanobis distance under probabilistic principal component analysis of standardized features, in which each
    component has a separate variance and the residual has one common variance. The squared distance is divided by the number of
    features before taking the root, so training images have a distance of about 1.

    Attributes:
        mean, scale: Mean and standard deviation of each feature, shape (channels,).
        components: Orthonormal principal components, shape (k, channels).
        deviations: Standard deviation along each component, shape (k,).
        rest: Standard deviation of the residual.

    Source: Tipping & Bishop 1999, J R Stat Soc B 61:611.
    """

    mean: Tensor
    scale: Tensor
    components: Tensor
    deviations: Tensor
    rest: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, components: Tensor, deviations: Tensor, rest: Tensor) -> None:
        super().__init__()
        buffers = {"mean": mean, "scale": scale, "components": components, "deviations": deviations, "rest": rest}
        for name, value in buffers.items():
            self.register_buffer(name, value.float())

    def forward(self, features: Tensor) -> Tensor:
        """Return the distances (n,), 0 or more, of features (n, channels)."""
        standardized = (features - self.mean) / self.scale
        projected = standardized @ self.components.T
        residual = ((standardized - projected @ self.components) / self.rest).square().sum(1)
        return torch.sqrt(((projected / self.deviations).square().sum(1) + residual) / features.shape[1])


class InputChecks(NamedTuple):
    """Modules that check the input: input classifier, OOD detector on extracted features, and an optional age classifier."""

    classifier: InputClassifier
    extractor: FeatureExtractor
    detector: MahalanobisDetector
    age_classifier: AgeClassifier | None = None


def downsample(images: Tensor, side: int) -> Tensor:
    """Return images (n, channels, size, size) averaged by the largest integer factor that keeps at least `side` pixels."""
    # Average pooling by an integer factor gives the same result in every runtime.
    return F.avg_pool2d(images, max(1, images.shape[-1] // side))

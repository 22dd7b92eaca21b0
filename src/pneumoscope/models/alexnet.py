"""The report's AlexNet: the 2012 network in one column, LRN after the pool, and the report's head instead of fc8.

image            224 x 224 x 3
conv1 11, 4, 2  55 -> pool 27 x 27 x 96    LRN        34,944 parameters
conv2 5, 1, 2   27 -> pool 13 x 13 x 256   LRN       614,656
conv3 3, 1, 1             13 x 13 x 384              885,120
conv4 3, 1, 1             13 x 13 x 384            1,327,488
conv5 3, 1, 1   13 -> pool  6 x 6 x 256              884,992
fc6   9,216 -> 4,096      ReLU, dropout 0.5       37,752,832
fc7   4,096 -> 4,096      ReLU, dropout 0.5       16,781,312
head  4,096 -> 1                                     541,313
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pneumoscope.models.base import UNIT, Network, Scaling
from pneumoscope.models.heads import dense_head, keras_initialise

__all__ = ["AlexNet", "LocalResponseNorm"]


class LocalResponseNorm(nn.Module):
    """b = a / (k + alpha x sum of a^2 over n neighbouring channels)^0.75, k = 2, n = 5, alpha = 1e-4.

    Written out because torch's own goes through a three-dimensional pooling, which is slower on a CPU;
    x^-0.75 is taken as rsqrt(x) sqrt(rsqrt(x)). torch divides the sum by n, so its `alpha` would be 5e-4.

    Source: Krizhevsky 2012, section 3.3; the sum runs over channels max(0, i - 2) to min(N - 1, i + 2).
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (n, channels, height, width) to the same shape."""
        channels = maps.shape[1]
        squares = F.pad(maps * maps, (0, 0, 0, 0, 2, 2))
        total = squares[:, :channels]
        for shift in range(1, 5):
            total = total + squares[:, shift : shift + channels]
        root = torch.rsqrt(2.0 + 1e-4 * total)
        return maps * root * torch.sqrt(root)


class AlexNet(Network):
    """58,822,657 trainable parameters at 224 pixels; 62,517,177 with fc8.

    Args:
        image_size: side of the image, at least 63 pixels (below that nothing is left for the last pool).
        fc8: Keep the 1,000-way layer with its softmax; the head then reads its outputs ("alexnet-fc8").
        scaling: of grey levels.
    """

    def __init__(self, image_size: int = 224, *, fc8: bool = False, scaling: Scaling = UNIT) -> None:
        super().__init__(scaling)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            LocalResponseNorm(),
            nn.Conv2d(96, 256, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            LocalResponseNorm(),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        side = (image_size - 7) // 4 + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1
        dense: list[nn.Module] = [nn.Flatten()]
        for inputs in (256 * side * side, 4096):
            dense += [nn.Linear(inputs, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)]
        if fc8:
            dense += [nn.Linear(4096, 1000), nn.Softmax(dim=1)]
        self.dense = nn.Sequential(*dense)
        self.head = dense_head(1000 if fc8 else 4096, second=64)
        keras_initialise(self)

    def features(self, image: Tensor) -> Tensor:
        """(n, 3, 224, 224) to (n, 256, 6, 6)."""
        maps: Tensor = self.layers(image)
        return maps

    def classify(self, features: Tensor) -> Tensor:
        """(n, 256, 6, 6) to logits (n, 1)."""
        logits: Tensor = self.head(self.dense(features))
        return logits

    def convolutions(self) -> Iterator[nn.Parameter]:
        """conv1 to conv5."""
        return self.layers.parameters()

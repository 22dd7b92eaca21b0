"""AlexNet and VGG19 as described in the report, with its dense heads and Keras's defaults (the report used Keras).

AlexNet is the 2012 network in one column, with local response normalization (LRN) after the pooling and the report's head in
place of fc8:

image            224 x 224 x 3
conv1 11, 4, 2  55 -> pool 27 x 27 x 96    LRN        34,944 parameters
conv2 5, 1, 2   27 -> pool 13 x 13 x 256   LRN       614,656
conv3 3, 1, 1             13 x 13 x 384              885,120
conv4 3, 1, 1             13 x 13 x 384            1,327,488
conv5 3, 1, 1   13 -> pool  6 x 6 x 256              884,992
fc6   9,216 -> 4,096      ReLU, dropout 0.5       37,752,832
fc7   4,096 -> 4,096      ReLU, dropout 0.5       16,781,312
head  4,096 -> 1                                     541,313

VGG19 has sixteen 3 x 3 convolutions in five groups, then the report's head in place of fc6 to fc8:

image      224 x 224 x 3
64, 64                -> pool 112 x 112 x 64
128, 128              -> pool  56 x 56 x 128
256, 256, 256, 256    -> pool  28 x 28 x 256
512, 512, 512, 512    -> pool  14 x 14 x 512
512, 512, 512, 512    -> pool   7 x 7 x 512     20,024,384 parameters
head  25,088 -> 1                                3,266,049
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pneumoscope.models.base import UNIT, ClassifierNetwork, Normalization

__all__ = ["VGG19", "AlexNet", "LocalResponseNorm", "dense_head"]

_VGG19_GROUPS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels, convolutions


class LocalResponseNorm(nn.Module):
    """Local response normalization, b = a / (k + alpha x sum of a^2 over n adjacent channels)^0.75.

    k = 2, n = 5 and alpha = 1e-4. torch's own implementation uses three-dimensional pooling, which is slower on a CPU;
    x^-0.75 is computed as rsqrt(x) sqrt(rsqrt(x)). torch divides the sum by n, so its `alpha` would be 5e-4.

    Source: Krizhevsky 2012, section 3.3; the sum runs over channels max(0, i - 2) to min(N - 1, i + 2).
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Return the normalized feature maps, shape (n, channels, height, width)."""
        channels = maps.shape[1]
        squares = F.pad(maps * maps, (0, 0, 0, 0, 2, 2))
        total = squares[:, :channels]
        for shift in range(1, 5):
            total = total + squares[:, shift : shift + channels]
        root = torch.rsqrt(2.0 + 1e-4 * total)
        return maps * root * torch.sqrt(root)


class AlexNet(ClassifierNetwork):
    """AlexNet with 58,822,657 trainable parameters at 224 pixels; 62,517,177 with fc8.

    Args:
        image_size: Side of the images, at least 63 pixels.
        fc8: Keep the 1,000-way layer with its softmax; the head takes its outputs, as the report's text says literally.
        normalization: Normalization of gray levels.
    """

    def __init__(self, image_size: int = 224, *, fc8: bool = False, normalization: Normalization = UNIT) -> None:
        super().__init__(normalization)
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
        _initialize_like_keras(self)

    def forward_features(self, channels: Tensor) -> Tensor:
        """Return the feature map (n, 256, 6, 6) of channels (n, 3, 224, 224)."""
        maps: Tensor = self.layers(channels)
        return maps

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits (n, 1) of the feature map (n, 256, 6, 6)."""
        logits: Tensor = self.head(self.dense(features))
        return logits

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of conv1 to conv5."""
        return self.layers.parameters()


class VGG19(ClassifierNetwork):
    """VGG19 with 23,290,433 trainable parameters at 224 pixels.

    The layers are in torchvision's order, so that its public weights match by name.

    Args:
        image_size: Side of the images, at least 32 pixels.
        normalization: Normalization of gray levels.
    """

    def __init__(self, image_size: int = 224, *, normalization: Normalization = UNIT) -> None:
        super().__init__(normalization)
        layers: list[nn.Module] = []
        inputs = 3
        for outputs, depth in _VGG19_GROUPS:
            for _ in range(depth):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.head = dense_head(512 * (image_size // 32) ** 2, second=32)
        _initialize_like_keras(self)

    def forward_features(self, channels: Tensor) -> Tensor:
        """Return the feature map (n, 512, 7, 7) of channels (n, 3, 224, 224)."""
        maps: Tensor = self.layers(channels)
        return maps

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits (n, 1) of the feature map (n, 512, 7, 7)."""
        logits: Tensor = self.head(features.flatten(1))
        return logits

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the sixteen convolutions."""
        return self.layers.parameters()


def dense_head(features: int, second: int) -> nn.Sequential:
    """Return the report's head, without its last sigmoid: the loss and the score apply it.

    BatchNorm, Dense 128 ReLU, Dropout 0.25, BatchNorm, Dense `second` sigmoid, Dropout 0.2, BatchNorm, Dense 1.

    Args:
        features: Number of inputs per image.
        second: Width of the second dense layer: 64 for AlexNet, 32 for VGG19.
    """
    return nn.Sequential(
        _batch_norm(features),
        nn.Linear(features, 128),
        nn.ReLU(),
        nn.Dropout(0.25),
        _batch_norm(128),
        nn.Linear(128, second),
        nn.Sigmoid(),
        nn.Dropout(0.2),
        _batch_norm(second),
        nn.Linear(second, 1),
    )


def _batch_norm(features: int) -> nn.BatchNorm1d:
    # Keras's constants: epsilon 1e-3; momentum 0.99 of the old value, which is 0.01 in torch's convention.
    return nn.BatchNorm1d(features, eps=1e-3, momentum=0.01)


def _initialize_like_keras(module: nn.Module) -> None:
    """Set Glorot-uniform weights and zero biases in all convolutions and dense layers (Glorot & Bengio 2010)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

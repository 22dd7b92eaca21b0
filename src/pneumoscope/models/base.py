"""Interface of all classifier networks: gray-level images in, one logit per image or per class out.

Normalization is part of the network, so training, the exported file and inference share it. As in timm, the network is divided
into `forward_features` (to the last feature map) and `forward_head` (to the logit). Features of a frozen backbone are cached at
this point, and class activation maps are computed from it: the contribution of a position is the sum over channels of feature
map times gradient of the logit (HiResCAM, Draelos & Carin 2020). For average pooling with one linear layer, this is class
activation mapping (Zhou 2016), and the contributions plus the bias sum to the logit; for any other head it is a first-order
approximation. If the head normalizes the pooled features (LayerNorm, as in ConvNeXt), it is invariant to the scale of its
input. The contributions then sum to about zero, and are only meaningful relative to each other.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EFFICIENTNET_LITE", "IMAGENET", "UNIT", "ClassifierNetwork", "HeadGradient", "Normalization"]

# Maps the last feature map, shape (n, ...), to the logits (n, K) and their gradients with respect to it, (n, K, ...).
HeadGradient = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True, slots=True)
class Normalization:
    """Normalization of gray levels, (level - offset) / scale, one value per channel, on the scale of 0 to 255."""

    offset: tuple[float, float, float]
    scale: tuple[float, float, float]


UNIT = Normalization((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
# ImageNet's mean and standard deviation as in torchvision (0.485, 0.229, ...), times 255.
IMAGENET = Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
EFFICIENTNET_LITE = Normalization((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))


class ClassifierNetwork(nn.Module, abc.ABC):
    """Network with one logit per image, positive for pneumonia, or with one logit per class.

    Attributes:
        outputs: Number of logits per image, K. If 1, logits have shape (n,) instead of (n, K).
        offset, scale: Normalization, shape (1, 3, 1, 1); buffers, which are saved with the weights.
        memory_format: Memory format of the weights that is faster on a CPU.
        border_mask: Width in pixels of the border that is replaced with black.
        flip_averaging: Test-time augmentation: in evaluation mode, logits and class activation maps are averaged over the image
            and its mirror image.
    """

    offset: Tensor
    scale: Tensor
    memory_format = torch.contiguous_format
    border_mask = 0
    flip_averaging = False

    def __init__(self, normalization: Normalization, outputs: int = 1) -> None:
        super().__init__()
        self.outputs = outputs
        self.register_buffer("offset", torch.tensor(normalization.offset).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(normalization.scale).view(1, 3, 1, 1))

    def normalize(self, images: Tensor) -> Tensor:
        """Return gray levels (n, size, size), uint8 or float, as three normalized channels (n, 3, size, size)."""
        gray = images.unsqueeze(1).to(self.scale.dtype)
        if self.border_mask:
            inner = slice(self.border_mask, -self.border_mask)
            gray = F.pad(gray[..., inner, inner], (self.border_mask,) * 4)
        return (gray - self.offset) / self.scale

    @abc.abstractmethod
    def forward_features(self, channels: Tensor) -> Tensor:
        """Return the last feature map (n, channels, height, width) for normalized channels (n, 3, size, size)."""

    @abc.abstractmethod
    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits (n, K) for the last feature map."""

    @abc.abstractmethod
    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of `forward_features`, which `freeze = "convolutions"` freezes."""

    def feature_grid(self, features: Tensor) -> Tensor | None:
        """Return the last feature map as (n, channels, height, width), or None if it has no spatial positions.

        Override this if `forward_features` uses a different axis order.
        """
        return features

    def logits_and_gradients(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and their gradients with respect to the last feature map; the reference `HeadGradient`."""
        result: Any = torch.func.vjp(self.forward_head, features)  # torch's stubs allow two or three values
        logits, backward = result
        one_hot = torch.eye(self.outputs, dtype=logits.dtype, device=logits.device)
        return logits, torch.stack([backward(row.expand_as(logits))[0] for row in one_hot], 1)

    def class_activation(
        self, images: Tensor, head_gradient: HeadGradient | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Return the logits and class activation maps of images.

        Args:
            images: Gray levels (n, size, size).
            head_gradient: Alternative implementation of `logits_and_gradients`, such as its exported graph.

        Returns:
            Logits (n,) and the contribution of each position to the logit (n, height, width). For several classes, logits (n,
            K) and contributions (n, K, height, width). None if the last feature map has no spatial positions.
        """
        features = self.forward_features(self.normalize(self.with_flips(images)))
        if self.feature_grid(features) is None:
            return None
        logits, gradients = (head_gradient or self.logits_and_gradients)(features)
        maps = []
        for gradient in gradients.unbind(1):
            contributions = self.feature_grid(gradient * features)
            assert contributions is not None  # same shape as the features
            maps.append(contributions.sum(1))
        return self.average_flips(self.flatten(logits)), self.average_flips(self.flatten(torch.stack(maps, 1)))

    def with_flips(self, images: Tensor) -> Tensor:
        """Return the images (n, size, size), followed by their mirror images if flip averaging is active."""
        return torch.cat([images, images.flip(2)]) if self.flip_averaging and not self.training else images

    def average_flips(self, outputs: Tensor) -> Tensor:
        """Return the outputs averaged over images and mirror images, reverting `with_flips`.

        Args:
            outputs: Logits (m,) or (m, K), or maps (m, height, width) or (m, K, height, width), where m is n or 2 n. Maps of
                mirror images are mirrored back before averaging.

        Returns:
            Outputs for n images.
        """
        if not self.flip_averaging or self.training:
            return outputs
        # Not `chunk`, for which the exporter treats the number of images as a constant.
        original, mirrored = outputs.reshape(2, -1, *outputs.shape[1:]).unbind()
        return (original + (mirrored.flip(mirrored.ndim - 1) if mirrored.ndim > 2 else mirrored)) / 2

    def flatten(self, outputs: Tensor) -> Tensor:
        """Return logits (n, K) or maps (n, K, height, width), without the second axis if K is 1."""
        return outputs.squeeze(1) if self.outputs == 1 else outputs

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n,), or (n, K) for several classes, of gray levels (n, size, size)."""
        channels = self.normalize(self.with_flips(images))
        return self.average_flips(self.flatten(self.forward_head(self.forward_features(channels))))

"""What every network here is: images in, logits out, with the convolutions and the rest kept apart.

The scaling of grey levels is inside, so that training, the exported file and everything that scores share it by construction.
The cut between `features` and `classify` is where frozen convolutions are cached and where a heatmap looks: what a place of
the last feature map contributes to the logit is the sum over channels of map times gradient of the logit (HiResCAM, Draelos &
Carin 2020). Where a network ends in average pooling and one linear layer this is class activation mapping (Zhou 2016), and the
contributions and the bias sum to the logit; behind any other head it is their first-order share. Behind a head that normalises
the pooled map (LayerNorm, as in ConvNeXt) contributions sum to about zero, since such a head does not mind its input's size:
they compare places, and a map of one place says nothing.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["IMAGENET", "LITE", "UNIT", "Network", "Pull", "Scaling"]

# A last feature map to logits (n, 1) and their gradient with respect to that map, in its shape.
Pull = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True, slots=True)
class Scaling:
    """(grey level - offset) / scale, one value a channel, in units of 0 to 255."""

    offset: tuple[float, float, float]
    scale: tuple[float, float, float]


UNIT = Scaling((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
# Mean and deviation of ImageNet in the units of torchvision's weights (0.485, 0.229, ... of 1), times 255.
IMAGENET = Scaling((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
LITE = Scaling((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))


class Network(nn.Module, abc.ABC):
    """A network for one logit an image.

    Attributes:
        offset, scale: of grey levels; buffers, so that they travel with the weights.
        memory_format: of the weights, the quicker one on a CPU.
        edge: pixels at each edge that are seen as black, whatever is there.
        mirrored: in evaluation mode, whatever is said of an image is the mean of what is said of it and of its mirror image.
    """

    offset: Tensor
    scale: Tensor
    memory_format = torch.contiguous_format
    border_mask = 0
    flip_averaging = False

    def __init__(self, scaling: Scaling) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(scaling.offset).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(scaling.scale).view(1, 3, 1, 1))

    def image(self, images: Tensor) -> Tensor:
        """Grey levels (n, size, size), uint8 or float, to three scaled channels (n, 3, size, size)."""
        grey = images.unsqueeze(1).to(self.scale.dtype)
        if self.border_mask:
            inner = slice(self.border_mask, -self.border_mask)
            grey = F.pad(grey[..., inner, inner], (self.border_mask,) * 4)
        return (grey - self.offset) / self.scale

    @abc.abstractmethod
    def features(self, image: Tensor) -> Tensor:
        """Scaled channels (n, 3, size, size) to the last feature map (n, channels, height, width)."""

    @abc.abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """The last feature map to logits (n, 1)."""

    @abc.abstractmethod
    def convolutions(self) -> Iterator[nn.Parameter]:
        """The parameters behind `features`: what `freeze = "convolutions"` holds still."""

    def places(self, features: Tensor) -> Tensor | None:
        """The last feature map rearranged to (n, channels, height, width), so that it lies over the image.

        None where it has no places to lay over an image. Overridden where `features` gives another arrangement.
        """
        return features

    def pull(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, 1) and their gradient with respect to the last feature map: the reference `Pull`."""
        traced: Any = torch.func.vjp(self.classify, features)  # typed as two or three values
        logits, back = traced
        return logits, back(torch.ones_like(logits))[0]

    def explain(self, images: Tensor, pull: Pull | None = None) -> tuple[Tensor, Tensor] | None:
        """Logits and heatmaps.

        Args:
            images: grey levels (n, size, size).
            pull: another way to the same gradient, such as its exported graph.
        Returns:
            Logits (n,); what each place contributes to its image's logit (n, height, width). None where the last feature map
            has no places.
        """
        features = self.features(self.image(self.sides(images)))
        if self.places(features) is None:
            return None
        logits, gradient = (pull or self.pull)(features)
        contributions = self.places(gradient * features)
        assert contributions is not None  # of the same shape as the features
        return self.joined(logits.squeeze(1)), self.joined(contributions.sum(1))

    def sides(self, images: Tensor) -> Tensor:
        """The images that are looked at, (n, size, size): those given, and behind them their mirror images where these count."""
        return torch.cat([images, images.flip(2)]) if self.flip_averaging and not self.training else images

    def joined(self, found: Tensor) -> Tensor:
        """What was found on `sides`, logits (m,) or heatmaps (m, height, width), as what is said of the images given."""
        if not self.flip_averaging or self.training:
            return found
        # Not by `chunk`, which takes the number of images for a constant when it is exported.
        own, other = found.reshape(2, -1, *found.shape[1:]).unbind()
        return (own + (other.flip(2) if other.ndim == 3 else other)) / 2

    def forward(self, images: Tensor) -> Tensor:
        """Grey levels (n, size, size) to logits (n,)."""
        return self.joined(self.classify(self.features(self.image(self.sides(images)))).squeeze(1))

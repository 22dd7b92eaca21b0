"""What every network here is: films in, logits out, with the convolutions and the rest kept apart.

The scaling of grey levels is inside, so that training, the exported file and everything that scores share it by construction.
The cut between `features` and `classify` is where frozen convolutions are cached and where a heatmap looks.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["IMAGENET", "LITE", "UNIT", "Network", "Scaling"]


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
    """A network for one logit a film.

    Attributes:
        offset, scale: of grey levels; buffers, so that they travel with the weights.
        memory_format: of the weights, the quicker one on a CPU.
    """

    offset: Tensor
    scale: Tensor
    memory_format = torch.contiguous_format

    def __init__(self, scaling: Scaling) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(scaling.offset).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(scaling.scale).view(1, 3, 1, 1))

    def image(self, films: Tensor) -> Tensor:
        """Grey levels (n, size, size), uint8 or float, to three scaled channels (n, 3, size, size)."""
        return (films.unsqueeze(1).to(self.scale.dtype) - self.offset) / self.scale

    @abc.abstractmethod
    def features(self, image: Tensor) -> Tensor:
        """Scaled channels (n, 3, size, size) to the last feature map (n, channels, height, width)."""

    @abc.abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """The last feature map to logits (n, 1)."""

    @abc.abstractmethod
    def convolutions(self) -> Iterator[nn.Parameter]:
        """The parameters behind `features`: what `freeze = "convolutions"` holds still."""

    def forward(self, films: Tensor) -> Tensor:
        """Grey levels (n, size, size) to logits (n,)."""
        return self.classify(self.features(self.image(films))).squeeze(1)

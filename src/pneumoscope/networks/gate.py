"""Beside the network that reads a film: what tells films that it can read from what it cannot know."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Gate", "Population", "Screen"]

_SIDE = 56  # pixels; enough to see which way up a chest is, and quick


class Gate(nn.Module):
    """A small convolutional network: which kind of picture is it?

    Args:
        kinds: how many kinds there are.
    """

    def __init__(self, kinds: int) -> None:
        super().__init__()
        widths = (1, 16, 32, 64, 128)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, stride=1 + (before > 1), padding=1, bias=False),
                              nn.BatchNorm2d(after), nn.ReLU())
                for before, after in pairwise(widths)
            )
        )  # fmt: skip
        self.last = nn.Linear(widths[-1], kinds)

    def forward(self, films: Tensor) -> Tensor:
        """Grey levels (n, size, size), uint8 or float, to logits (n, kinds)."""
        grey = films.unsqueeze(1).to(self.last.weight.dtype) / 128 - 1
        # Averaged over whole squares, which any runtime does alike; what is left over is a few pixels.
        maps: Tensor = self.layers(F.avg_pool2d(grey, max(1, films.shape[-1] // _SIDE)))
        logits: Tensor = self.last(maps.mean((2, 3)))
        return logits


class Population(nn.Module):
    """How far a film's features lie from those of the films that the network was trained on.

    The squared Mahalanobis distance under probabilistic principal component analysis of standardised features: along the
    components each is measured in its own deviation, everything beside them in one. Divided by the number of features and
    rooted, so that the training films are at about 1.

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


class Screen(NamedTuple):
    """What looks at a film beside the network; no population where the network's features have no places to be pooled over."""

    gate: Gate
    population: Population | None

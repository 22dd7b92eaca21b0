"""Beside the network that reads an image: what tells images as they should be from other pictures."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["InputClassifier"]

_SIDE = 56  # pixels; enough to see which way up a chest is, and quick


class InputClassifier(nn.Module):
    """A small convolutional network: which kind of picture is it?

    Args:
        kinds: how many kinds there are.
    """

    def __init__(self, input_classes: int) -> None:
        super().__init__()
        widths = (1, 16, 32, 64, 128)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, stride=1 + (before > 1), padding=1, bias=False),
                              nn.BatchNorm2d(after), nn.ReLU())
                for before, after in pairwise(widths)
            )
        )  # fmt: skip
        self.last = nn.Linear(widths[-1], input_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Grey levels (n, size, size), uint8 or float, to logits (n, kinds)."""
        grey = images.unsqueeze(1).to(self.last.weight.dtype) / 128 - 1
        # Averaged over whole squares, which any runtime does alike: where a side is no multiple of 56, images are seen larger than
        # those that it learned from.
        maps: Tensor = self.layers(F.avg_pool2d(grey, max(1, images.shape[-1] // _SIDE)))
        logits: Tensor = self.last(maps.mean((2, 3)))
        return logits

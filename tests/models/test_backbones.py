"""Any network of timm behind the same interface: whatever it ends in, and whatever size it is built for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pneumoscope.core.errors import RecipeError, UnknownNameError
from pneumoscope.models.backbones import Backbone
from pneumoscope.models.base import LITE
from pneumoscope.models.factory import build

pytestmark = pytest.mark.training

# One of each way in which timm ends a network: a dense layer, a convolution, two dense layers whose mean is taken, a small
# head, dense layers side by side, and networks built for one size of image (transformers).
ENDINGS = (
    ("resnet18", 64),
    ("dla34", 64),
    ("efficientformer_l1", 224),
    ("levit_128s", 224),
    ("repvit_m0_9", 64),
    ("caformer_s18", 64),
    ("crossvit_tiny_240", 240),
    ("vit_tiny_patch16_224", 96),
    ("swin_tiny_patch4_window7_224", 224),
)


@pytest.mark.parametrize(("name", "size"), ENDINGS)
def test_gives_one_logit_a_image_whatever_timm_ends_it_in(name: str, size: int) -> None:
    torch.manual_seed(0)
    network = build(name, image_size=size)
    images = torch.randint(0, 256, (2, size, size), dtype=torch.uint8)
    assert network.training
    network.eval()
    with torch.no_grad():
        logits = network(images)
        assert logits.shape == (2,)
        # What a head for a thousand classes would give with one is far larger: training could not begin.
        assert logits.abs().max() < 2.0
        # The cut between features and the rest is where it is said to be.
        assert torch.equal(network.classify(network.features(network.image(images))).squeeze(1), logits)


@pytest.mark.parametrize(("name", "size"), ENDINGS)
def test_frozen_convolutions_leave_a_head_to_train(name: str, size: int) -> None:
    with torch.device("meta"):
        network = Backbone(name, image_size=size)
    frozen = {id(parameter) for parameter in network.convolutions()}
    free = [parameter for parameter in network.parameters() if id(parameter) not in frozen]
    assert frozen
    assert free
    assert {id(parameter) for parameter in free} == {id(parameter) for parameter in network.last_layers().parameters()}


def test_a_transformer_is_built_for_the_size_of_the_images() -> None:
    network = build("vit_tiny_patch16_224", image_size=96)
    assert isinstance(network, Backbone)
    assert network.model.pos_embed.shape == (1, 1 + (96 // 16) ** 2, 192)


@pytest.mark.parametrize(("name", "size", "own"), [("crossvit_tiny_240", 224, 240), ("efficientformer_l1", 96, 224)])
def test_images_of_a_size_that_it_cannot_take_are_refused_before_any_work(name: str, size: int, own: int) -> None:
    with pytest.raises(RecipeError, match=f"{name}.* cannot .*{size} pixels") as caught:
        build(name, image_size=size)
    assert f"network.image_size = {own}" in str(caught.value)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(UnknownNameError, match="resnet18"):
        Backbone("resnet81", image_size=64)


def test_scaling_is_that_of_the_weights() -> None:
    lite = build("tf_efficientnet_lite0", image_size=64)
    assert lite.offset.flatten().tolist() == list(LITE.offset)
    assert lite.scale.flatten().tolist() == list(LITE.scale)
    # lite3's weights are timm's own, with the mean and deviation of its table: 0.5 of 255.
    with torch.device("cpu"):
        other = Backbone("tf_efficientnet_lite3", image_size=64)
    assert other.offset.flatten().tolist() == [127.5] * 3
    assert other.scale.flatten().tolist() == [127.5] * 3


def test_only_the_outputs_are_drawn_anew() -> None:
    """A head of several layers keeps timm's values but for the layer that gives the logit."""
    torch.manual_seed(0)
    head = Backbone("caformer_s18", image_size=64).last_layers()
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == 2
    outputs = [layer for layer in layers if layer.out_features == 1]
    assert len(outputs) == 1
    assert 0.005 < outputs[0].weight.std().item() < 0.02


def empty(name: str, size: int) -> Backbone:
    with torch.device("meta"):
        return Backbone(name, image_size=size)


@pytest.mark.parametrize(("name", "prefix"), [("test_vit2", 1), ("test_vit", 1), ("levit_128s", 0)])
def test_tokens_lie_on_the_image_row_by_row_and_prefix_tokens_nowhere(name: str, prefix: int) -> None:
    network = empty(name, 224 if name == "levit_128s" else 64)
    tokens = torch.arange(-prefix, 16)  # the token at row r and column c of 4 x 4 is 4 r + c
    features = torch.stack([tokens, 100 * tokens], dim=1).expand(3, -1, -1)

    places = network.places(features)

    assert places.shape == (3, 2, 4, 4)
    assert places[0, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert places[2, 1, 3, 2] == 1400


def test_maps_with_the_channels_last_are_turned() -> None:
    features = torch.arange(2 * 3 * 3 * 5).view(2, 3, 3, 5)

    places = empty("swin_tiny_patch4_window7_224", 224).places(features)

    assert torch.equal(places, features.permute(0, 3, 1, 2))
    assert empty("resnet18", 64).places(features) is features


@pytest.mark.parametrize(
    "features", [[torch.zeros(1, 5, 2), torch.zeros(1, 10, 2)], torch.zeros(1, 11, 2), torch.zeros(1, 16)]
)
def test_what_has_no_grid_has_no_places(features: object) -> None:
    assert empty("test_vit2", 64).places(features) is None

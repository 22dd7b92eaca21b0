"""timm networks behind one interface, for every kind of head and image size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pneumoscope.core.errors import RecipeError, UnknownNameError
from pneumoscope.models.backbones import Backbone
from pneumoscope.models.base import EFFICIENTNET_LITE
from pneumoscope.models.factory import create_model

pytestmark = pytest.mark.training

# One of each kind of head in timm: a dense layer, a convolution, two dense layers that are averaged, a small head, parallel
# dense layers, and networks built for one image size (transformers).
NETWORKS = (
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


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_returns_one_logit_per_image_for_every_kind_of_head(name: str, size: int) -> None:
    torch.manual_seed(0)
    network = create_model(name, image_size=size)
    images = torch.randint(0, 256, (2, size, size), dtype=torch.uint8)
    assert network.training
    network.eval()
    with torch.no_grad():
        logits = network(images)
        assert logits.shape == (2,)
        # A head initialized for a thousand classes would give far larger logits, and training would not start.
        assert logits.abs().max() < 2.0
        assert torch.equal(network.forward_head(network.forward_features(network.normalize(images))).squeeze(1), logits)


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_backbone_parameters_are_all_but_the_head(name: str, size: int) -> None:
    with torch.device("meta"):
        network = Backbone(name, image_size=size)
    frozen = {id(parameter) for parameter in network.backbone_parameters()}
    trainable = [parameter for parameter in network.parameters() if id(parameter) not in frozen]
    assert frozen
    assert trainable
    assert {id(parameter) for parameter in trainable} == {
        id(parameter) for parameter in network.head_layers().parameters()
    }


def test_transformer_is_built_for_the_image_size() -> None:
    network = create_model("vit_tiny_patch16_224", image_size=96)
    assert isinstance(network, Backbone)
    assert network.model.pos_embed.shape == (1, 1 + (96 // 16) ** 2, 192)


@pytest.mark.parametrize(
    ("name", "size", "default"), [("crossvit_tiny_240", 224, 240), ("efficientformer_l1", 96, 224)]
)
def test_unsupported_image_size_is_an_error(name: str, size: int, default: int) -> None:
    with pytest.raises(RecipeError, match=f"{name}.* cannot .*{size} pixels") as caught:
        create_model(name, image_size=size)
    assert f"network.image_size = {default}" in str(caught.value)


@pytest.mark.parametrize(("output_stride", "side"), [(32, 7), (16, 14), (8, 28)])
def test_output_stride_sets_the_resolution_of_the_last_feature_map(output_stride: int, side: int) -> None:
    network = create_model("tf_efficientnet_lite0", image_size=224, output_stride=output_stride)
    assert network.forward_features(network.normalize(torch.zeros(1, 224, 224))).shape == (1, 1280, side, side)
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == {
        name: tensor.shape for name, tensor in create_model("tf_efficientnet_lite0").state_dict().items()
    }


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vgg19", "alexnet"])
def test_network_without_an_output_stride_is_an_error(name: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s){name}.*output_stride|output_stride.*{name}"):
        create_model(name, image_size=224, output_stride=16)


def test_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="resnet18"):
        Backbone("resnet81", image_size=64)


def test_normalization_matches_the_weights() -> None:
    lite = create_model("tf_efficientnet_lite0", image_size=64)
    assert lite.offset.flatten().tolist() == list(EFFICIENTNET_LITE.offset)
    assert lite.scale.flatten().tolist() == list(EFFICIENTNET_LITE.scale)
    # The weights of lite3 are timm's own, with a mean and standard deviation of 0.5.
    other = Backbone("tf_efficientnet_lite3", image_size=64)
    assert other.offset.flatten().tolist() == [127.5] * 3
    assert other.scale.flatten().tolist() == [127.5] * 3


def test_only_the_output_layer_of_a_head_is_reinitialized() -> None:
    torch.manual_seed(0)
    head = Backbone("caformer_s18", image_size=64).head_layers()
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == 2
    outputs = [layer for layer in layers if layer.out_features == 1]
    assert len(outputs) == 1
    assert 0.005 < outputs[0].weight.std().item() < 0.02


def on_meta_device(name: str, size: int) -> Backbone:
    with torch.device("meta"):
        return Backbone(name, image_size=size)


@pytest.mark.parametrize(("name", "prefix"), [("test_vit2", 1), ("test_vit", 1), ("levit_128s", 0)])
def test_tokens_are_arranged_row_by_row_without_prefix_tokens(name: str, prefix: int) -> None:
    network = on_meta_device(name, 224 if name == "levit_128s" else 64)
    tokens = torch.arange(-prefix, 16)  # the token at row r and column c of 4 x 4 is 4 r + c
    features = torch.stack([tokens, 100 * tokens], dim=1).expand(3, -1, -1)

    grid = network.feature_grid(features)

    assert grid.shape == (3, 2, 4, 4)
    assert grid[0, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert grid[2, 1, 3, 2] == 1400


def test_channels_last_maps_become_channels_first() -> None:
    features = torch.arange(2 * 3 * 3 * 5).view(2, 3, 3, 5)

    grid = on_meta_device("swin_tiny_patch4_window7_224", 224).feature_grid(features)

    assert torch.equal(grid, features.permute(0, 3, 1, 2))
    assert on_meta_device("resnet18", 64).feature_grid(features) is features


@pytest.mark.parametrize(
    "features", [[torch.zeros(1, 5, 2), torch.zeros(1, 10, 2)], torch.zeros(1, 11, 2), torch.zeros(1, 16)]
)
def test_features_without_a_square_grid_have_none(features: object) -> None:
    assert on_meta_device("test_vit2", 64).feature_grid(features) is None

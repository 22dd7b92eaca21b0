"""AlexNet and VGG19 as in the report's tables: shapes, parameters, constants, initial values."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pneumoscope.core.errors import RecipeError
from pneumoscope.models.base import EFFICIENTNET_LITE, IMAGENET, UNIT
from pneumoscope.models.factory import create_model
from pneumoscope.models.report_networks import VGG19, AlexNet, LocalResponseNorm, dense_head

pytestmark = pytest.mark.training


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def alexnet():
    torch.manual_seed(0)
    return AlexNet().eval()


@pytest.fixture(scope="module")
def vgg19():
    torch.manual_seed(0)
    return VGG19().eval()


def test_alexnet_layers_have_the_reports_number_of_parameters(alexnet):
    convolutions = [layer for layer in alexnet.layers if isinstance(layer, nn.Conv2d)]
    dense = [layer for layer in alexnet.dense if isinstance(layer, nn.Linear)]

    assert [count(layer) for layer in convolutions] == [34_944, 614_656, 885_120, 1_327_488, 884_992]
    assert [count(layer) for layer in dense] == [37_752_832, 16_781_312]
    assert [layer.p for layer in alexnet.dense if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


def test_alexnet_feature_maps_have_the_reports_sizes(alexnet):
    maps, sizes = torch.zeros(1, 3, 224, 224), []
    with torch.inference_mode():
        for layer in alexnet.layers:
            maps = layer(maps)
            if isinstance(layer, nn.MaxPool2d):
                sizes.append(tuple(maps.shape[1:]))

    assert sizes == [(96, 27, 27), (256, 13, 13), (256, 6, 6)]


def test_alexnet_applies_lrn_after_pooling(alexnet):
    layers = [type(layer).__name__ for layer in alexnet.layers]

    assert layers[:8] == ["Conv2d", "ReLU", "MaxPool2d", "LocalResponseNorm"] * 2
    assert "LocalResponseNorm" not in layers[8:]


def test_alexnet_number_of_parameters_with_and_without_fc8(alexnet):
    assert count(alexnet) == 58_822_657
    with_fc8 = AlexNet(fc8=True)
    assert count(with_fc8) == 62_517_177
    assert [type(layer) for layer in with_fc8.dense][-2:] == [nn.Linear, nn.Softmax]


def test_vgg19_layers_have_the_reports_number_of_parameters(vgg19):
    assert count(vgg19.layers) == 20_024_384
    assert count(vgg19.head) == 3_266_049
    assert [layer.out_channels for layer in vgg19.layers if isinstance(layer, nn.Conv2d)] == (
        [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    )


def test_vgg19_feature_map_is_7_x_7_x_512(vgg19):
    with torch.inference_mode():
        maps = vgg19.forward_features(torch.zeros(1, 3, 224, 224))

    assert maps.shape == (1, 512, 7, 7)


def test_lrn_matches_a_calculation_by_hand():
    # One position, five channels 0 to 4 with values 10 to 50; channel 1 sums over 0 to 3: 100 + 400 + 900 + 1600 = 3000.
    maps = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0]).view(1, 5, 1, 1)

    out = LocalResponseNorm()(maps).flatten()

    assert out[1].item() == pytest.approx(20 / (2 + 1e-4 * 3000) ** 0.75, rel=1e-6)
    assert out[4].item() == pytest.approx(50 / (2 + 1e-4 * (900 + 1600 + 2500)) ** 0.75, rel=1e-6)


def test_lrn_matches_torch_whose_alpha_is_divided_by_n():
    maps = 50 * torch.randn(2, 96, 5, 7, generator=torch.Generator().manual_seed(3))

    expected = F.local_response_norm(maps, size=5, alpha=5e-4, beta=0.75, k=2.0)

    torch.testing.assert_close(LocalResponseNorm()(maps), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("features", "second"), [(4096, 64), (25_088, 32)])
def test_dense_head_has_the_reports_layers(features, second):
    layers = [
        (type(layer).__name__, getattr(layer, "out_features", getattr(layer, "p", None)))
        for layer in dense_head(features, second)
    ]

    assert layers == [
        ("BatchNorm1d", None),
        ("Linear", 128),
        ("ReLU", None),
        ("Dropout", 0.25),
        ("BatchNorm1d", None),
        ("Linear", second),
        ("Sigmoid", None),
        ("Dropout", 0.2),
        ("BatchNorm1d", None),
        ("Linear", 1),
    ]


@pytest.mark.parametrize("network", ["alexnet", "vgg19"])
def test_initial_values_are_keras_defaults(network, request):
    for layer in request.getfixturevalue(network).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            receptive_field = layer.weight[0][0].numel()
            fan_in, fan_out = layer.weight.shape[1] * receptive_field, layer.weight.shape[0] * receptive_field
            limit = math.sqrt(6 / (fan_in + fan_out))
            assert layer.weight.abs().max() <= limit
            assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.1)
            assert not layer.bias.any()
        if isinstance(layer, nn.BatchNorm1d):
            assert (layer.eps, layer.momentum) == (1e-3, 0.01)


@pytest.mark.parametrize(("normalization", "black", "white"), [(UNIT, 0.0, 1.0), (EFFICIENTNET_LITE, -127 / 128, 1.0)])
def test_gray_levels_are_normalized_inside_the_network(normalization, black, white):
    image = VGG19(32, normalization=normalization).normalize(torch.tensor([[[0, 255]]], dtype=torch.uint8))

    assert image.shape == (1, 3, 1, 2)
    assert image[0, :, 0, 0].tolist() == pytest.approx([black] * 3)
    assert image[0, :, 0, 1].tolist() == pytest.approx([white] * 3)


def test_imagenet_normalization_matches_torchvision():
    from torchvision.transforms.v2.functional import normalize

    gray = torch.randint(0, 256, (1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = normalize(gray.repeat(3, 1, 1) / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])

    torch.testing.assert_close(VGG19(32, normalization=IMAGENET).normalize(gray)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("alexnet", 62), ("vgg19", 31), ("resnet18", 16)])
def test_too_small_images_are_an_error(name, size):
    with pytest.raises(RecipeError, match=f"image_size is {size}; '{name}' needs at least"):
        create_model(name, image_size=size)


@pytest.mark.parametrize(("name", "size"), [("alexnet", 63), ("vgg19", 32)])
def test_smallest_images_are_accepted(name, size):
    network = create_model(name, image_size=size).eval()

    with torch.inference_mode():
        assert network(torch.zeros(2, size, size, dtype=torch.uint8)).shape == (2,)

"""AlexNet and VGG19 against the tables of the report: shapes, parameters, constants, initial values."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pneumoscope.core.errors import RecipeError
from pneumoscope.models.alexnet import AlexNet, LocalResponseNorm
from pneumoscope.models.base import IMAGENET, LITE, UNIT
from pneumoscope.models.factory import build
from pneumoscope.models.heads import dense_head
from pneumoscope.models.vgg19 import VGG19

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


def test_alexnet_has_the_layers_of_the_report(alexnet):
    convolutions = [layer for layer in alexnet.layers if isinstance(layer, nn.Conv2d)]
    dense = [layer for layer in alexnet.dense if isinstance(layer, nn.Linear)]

    assert [count(layer) for layer in convolutions] == [34_944, 614_656, 885_120, 1_327_488, 884_992]
    assert [count(layer) for layer in dense] == [37_752_832, 16_781_312]
    assert [layer.p for layer in alexnet.dense if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


def test_alexnet_has_the_sizes_of_the_report(alexnet):
    maps, sizes = torch.zeros(1, 3, 224, 224), []
    with torch.inference_mode():
        for layer in alexnet.layers:
            maps = layer(maps)
            if isinstance(layer, nn.MaxPool2d):
                sizes.append(tuple(maps.shape[1:]))

    assert sizes == [(96, 27, 27), (256, 13, 13), (256, 6, 6)]


def test_lrn_comes_after_the_pool(alexnet):
    input_classes = [type(layer).__name__ for layer in alexnet.layers]

    assert input_classes[:8] == ["Conv2d", "ReLU", "MaxPool2d", "LocalResponseNorm"] * 2
    assert "LocalResponseNorm" not in input_classes[8:]


def test_alexnet_counts_with_and_without_fc8(alexnet):
    assert count(alexnet) == 58_822_657
    literal = AlexNet(fc8=True)
    assert count(literal) == 62_517_177
    assert [type(layer) for layer in literal.dense][-2:] == [nn.Linear, nn.Softmax]


def test_vgg19_counts(vgg19):
    assert count(vgg19.layers) == 20_024_384
    assert count(vgg19.head) == 3_266_049
    assert [layer.out_channels for layer in vgg19.layers if isinstance(layer, nn.Conv2d)] == (
        [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    )


def test_vgg19_ends_in_seven_by_seven_by_512(vgg19):
    with torch.inference_mode():
        maps = vgg19.features(torch.zeros(1, 3, 224, 224))

    assert maps.shape == (1, 512, 7, 7)


def test_lrn_is_the_written_formula():
    # One place, five channels 0..4 with values 10, 20, 30, 40, 50; channel 1 sees 0 to 3: 100 + 400 + 900 + 1600 = 3000.
    maps = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0]).view(1, 5, 1, 1)

    out = LocalResponseNorm()(maps).flatten()

    assert out[1].item() == pytest.approx(20 / (2 + 1e-4 * 3000) ** 0.75, rel=1e-6)
    assert out[4].item() == pytest.approx(50 / (2 + 1e-4 * (900 + 1600 + 2500)) ** 0.75, rel=1e-6)


def test_lrn_agrees_with_torch_whose_alpha_is_divided_by_n():
    maps = 50 * torch.randn(2, 96, 5, 7, generator=torch.Generator().manual_seed(3))

    theirs = F.local_response_norm(maps, size=5, alpha=5e-4, beta=0.75, k=2.0)

    torch.testing.assert_close(LocalResponseNorm()(maps), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("features", "second"), [(4096, 64), (25_088, 32)])
def test_the_head_is_the_reports(features, second):
    input_classes = [
        (type(layer).__name__, getattr(layer, "out_features", getattr(layer, "p", None)))
        for layer in dense_head(features, second)
    ]

    assert input_classes == [
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
def test_initial_values_are_kerass(network, request):
    for layer in request.getfixturevalue(network).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            field = layer.weight[0][0].numel()
            fan_in, fan_out = layer.weight.shape[1] * field, layer.weight.shape[0] * field
            limit = math.sqrt(6 / (fan_in + fan_out))
            assert layer.weight.abs().max() <= limit
            assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.1)
            assert not layer.bias.any()
        if isinstance(layer, nn.BatchNorm1d):
            assert (layer.eps, layer.momentum) == (1e-3, 0.01)


@pytest.mark.parametrize(("scaling", "black", "white"), [(UNIT, 0.0, 1.0), (LITE, -127 / 128, 1.0)])
def test_grey_levels_are_scaled_inside_the_network(scaling, black, white):
    image = VGG19(32, scaling=scaling).image(torch.tensor([[[0, 255]]], dtype=torch.uint8))

    assert image.shape == (1, 3, 1, 2)
    assert image[0, :, 0, 0].tolist() == pytest.approx([black] * 3)
    assert image[0, :, 0, 1].tolist() == pytest.approx([white] * 3)


def test_imagenet_scaling_is_torchvisions():
    from torchvision.transforms.v2.functional import normalize

    grey = torch.randint(0, 256, (1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    theirs = normalize(grey.repeat(3, 1, 1) / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])

    torch.testing.assert_close(VGG19(32, scaling=IMAGENET).image(grey)[0], theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("alexnet", 62), ("vgg19", 31), ("resnet18", 16)])
def test_images_that_are_too_small_are_refused(name, size):
    with pytest.raises(RecipeError, match=f"image_size is {size}; '{name}' needs at least"):
        build(name, image_size=size)


@pytest.mark.parametrize(("name", "size"), [("alexnet", 63), ("vgg19", 32)])
def test_the_smallest_images_pass(name, size):
    network = build(name, image_size=size).eval()

    with torch.inference_mode():
        assert network(torch.zeros(2, size, size, dtype=torch.uint8)).shape == (2,)

"""What a place of the last feature map contributes to the logit, for every network by one definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pneumoscope.models.factory import build

pytestmark = pytest.mark.training


def images(size: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("name", "last"), [("resnet18", "fc"), ("tf_efficientnet_lite0", "classifier")])
def test_behind_average_pooling_and_a_linear_layer_it_is_class_activation_mapping(name: str, last: str) -> None:
    """The closed form: the last layer's weights over the map, divided by its places; with the bias they are the logit."""
    torch.manual_seed(0)
    network = build(name, image_size=96).eval()
    layer: nn.Linear = getattr(network.model, last)
    nn.init.constant_(layer.bias, 0.3)
    with torch.no_grad():
        maps = network.features(network.image(images(96)))
        logit, heatmap = network.explain(images(96)) or ()

        assert maps.shape[2:] == (3, 3)
        expected = torch.einsum("nchw,c->nhw", maps, layer.weight[0]) / 9
        torch.testing.assert_close(heatmap, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(heatmap.sum((1, 2)) + 0.3, logit, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logit, network(images(96)))
    assert heatmap.std() > 0.001


@pytest.mark.parametrize(("name", "size"), [("alexnet", 95), ("vgg19", 64)])
def test_behind_the_reports_heads_it_is_how_the_logit_moves_when_one_place_grows(name: str, size: int) -> None:
    """Central differences in double precision: that place of the map 1 + h and 1 - h times as strong."""
    torch.manual_seed(0)
    network = build(name, image_size=size).eval().double()
    with torch.no_grad():
        maps = network.features(network.image(images(size)))
        _, heatmap = network.explain(images(size)) or ()
        assert heatmap.shape == (3, 2, 2)
        step = 1e-5
        for row in range(2):
            for column in range(2):
                place = torch.zeros(2, 2, dtype=torch.double)
                place[row, column] = step
                moved = network.classify(maps * (1 + place)) - network.classify(maps * (1 - place))
                expected = moved.squeeze(1) / (2 * step)
                torch.testing.assert_close(heatmap[:, row, column], expected, rtol=1e-4, atol=1e-10)
    assert heatmap.abs().min() > 1e-8


def test_another_way_to_the_gradient_can_be_given() -> None:
    network = build("test_efficientnet", image_size=64).eval()
    with torch.no_grad():
        maps = network.features(network.image(images(64)))
        logit, heatmap = network.explain(images(64), lambda maps: (maps[:, :1, 0, 0], 2 * maps)) or ()

    torch.testing.assert_close(logit, maps[:, 0, 0, 0])
    torch.testing.assert_close(heatmap, (2 * maps * maps).sum(1))


def test_a_network_without_places_explains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("test_efficientnet", image_size=64).eval()
    monkeypatch.setattr(network, "places", lambda features: None)

    with torch.no_grad():
        assert network.explain(images(64)) is None


@pytest.mark.parametrize("name", ["alexnet", "test_efficientnet"])
def test_the_edge_is_black_whatever_is_there(name: str) -> None:
    network = build(name, image_size=64, border_mask=3).eval()
    inner, other = images(64), images(64, seed=2)
    other[:, 3:-3, 3:-3] = inner[:, 3:-3, 3:-3]
    black = inner.clone()
    for side in (black[:, :3], black[:, -3:], black[:, :, :3], black[:, :, -3:]):
        side.zero_()

    torch.testing.assert_close(network.image(other), network.image(inner), rtol=0, atol=0)
    torch.testing.assert_close(network.image(inner), build(name, image_size=64).image(black), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["alexnet", "test_efficientnet", "test_vit2"])
def test_what_is_said_of_a_mirrored_image_is_the_mirror_image_of_what_is_said_of_the_image(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, image_size=64).eval()
    given, flipped = images(64), images(64).flip(2)
    with torch.no_grad():
        one = [network.explain(given), network.explain(flipped)]
        network.flip_averaging = True
        both = [network.explain(given), network.explain(flipped)]
        logits = network(given)

    assert one[0]
    assert one[1]
    assert both[0]
    assert both[1]
    torch.testing.assert_close(both[0][0], (one[0][0] + one[1][0]) / 2)
    torch.testing.assert_close(both[0][1], (one[0][1] + one[1][1].flip(2)) / 2)
    torch.testing.assert_close(both[1][0], both[0][0])
    torch.testing.assert_close(both[1][1], both[0][1].flip(2))
    torch.testing.assert_close(logits, both[0][0])


def test_a_network_in_training_sees_images_one_way() -> None:
    network = build("test_efficientnet", image_size=64, flip_averaging=True)
    torch.testing.assert_close(network.sides(images(64)), images(64))
    assert network(images(64)).shape == (len(images(64)),)

"""Class activation maps, border mask and flip averaging of all networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pneumoscope.models.factory import create_model

pytestmark = pytest.mark.training


def images(size: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("name", "last"), [("resnet18", "fc"), ("tf_efficientnet_lite0", "classifier")])
def test_average_pooling_and_linear_layer_give_class_activation_mapping(name: str, last: str) -> None:
    """Closed form (Zhou 2016): weights of the last layer times the map, divided by its positions."""
    torch.manual_seed(0)
    network = create_model(name, image_size=96).eval()
    layer: nn.Linear = getattr(network.model, last)
    nn.init.constant_(layer.bias, 0.3)
    with torch.no_grad():
        maps = network.forward_features(network.normalize(images(96)))
        logit, heatmap = network.class_activation(images(96)) or ()

        assert maps.shape[2:] == (3, 3)
        expected = torch.einsum("nchw,c->nhw", maps, layer.weight[0]) / 9
        torch.testing.assert_close(heatmap, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(heatmap.sum((1, 2)) + 0.3, logit, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logit, network(images(96)))
    assert heatmap.std() > 0.001


@pytest.mark.parametrize("flip_averaging", [False, True])
def test_each_class_has_the_map_of_its_row_of_the_last_layer(flip_averaging: bool) -> None:
    torch.manual_seed(0)
    network = create_model("test_efficientnet", image_size=96, outputs=3, flip_averaging=flip_averaging).eval()
    layer: nn.Linear = network.model.classifier
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    with torch.no_grad():
        maps = network.forward_features(network.normalize(images(96)))
        logits, heatmaps = network.class_activation(images(96)) or ()

        assert (logits.shape, heatmaps.shape) == ((3, 3), (3, 3, *maps.shape[2:]))
        torch.testing.assert_close(logits, network(images(96)))
        torch.testing.assert_close(heatmaps.sum((2, 3)) + layer.bias, logits, rtol=1e-5, atol=1e-6)
        positions = maps.shape[2] * maps.shape[3]
        expected = torch.einsum("nchw,kc->nkhw", maps, layer.weight) / positions
        if flip_averaging:
            mirrored = network.forward_features(network.normalize(images(96).flip(2)))
            expected = (expected + torch.einsum("nchw,kc->nkhw", mirrored, layer.weight).flip(3) / positions) / 2
        torch.testing.assert_close(heatmaps, expected, rtol=1e-5, atol=1e-6)
    assert heatmaps.std() > 0.001


@pytest.mark.parametrize(("name", "size"), [("alexnet", 95), ("vgg19", 64)])
def test_dense_heads_give_the_derivative_by_the_strength_of_one_position(name: str, size: int) -> None:
    """Central differences in double precision: one position of the map scaled by 1 + h and 1 - h."""
    torch.manual_seed(0)
    network = create_model(name, image_size=size).eval().double()
    with torch.no_grad():
        maps = network.forward_features(network.normalize(images(size)))
        _, heatmap = network.class_activation(images(size)) or ()
        assert heatmap.shape == (3, 2, 2)
        step = 1e-5
        for row in range(2):
            for column in range(2):
                perturbation = torch.zeros(2, 2, dtype=torch.double)
                perturbation[row, column] = step
                difference = network.forward_head(maps * (1 + perturbation)) - network.forward_head(
                    maps * (1 - perturbation)
                )
                expected = difference.squeeze(1) / (2 * step)
                torch.testing.assert_close(heatmap[:, row, column], expected, rtol=1e-4, atol=1e-10)
    assert heatmap.abs().min() > 1e-8


def test_accepts_another_implementation_of_the_head_gradient() -> None:
    network = create_model("test_efficientnet", image_size=64).eval()
    with torch.no_grad():
        maps = network.forward_features(network.normalize(images(64)))
        logit, heatmap = (
            network.class_activation(images(64), lambda maps: (maps[:, :1, 0, 0], 2 * maps.unsqueeze(1))) or ()
        )

    torch.testing.assert_close(logit, maps[:, 0, 0, 0])
    torch.testing.assert_close(heatmap, (2 * maps * maps).sum(1))


def test_network_without_spatial_features_has_no_class_activation_map(monkeypatch: pytest.MonkeyPatch) -> None:
    network = create_model("test_efficientnet", image_size=64).eval()
    monkeypatch.setattr(network, "feature_grid", lambda features: None)

    with torch.no_grad():
        assert network.class_activation(images(64)) is None


@pytest.mark.parametrize("name", ["alexnet", "test_efficientnet"])
def test_border_mask_hides_the_border(name: str) -> None:
    network = create_model(name, image_size=64, border_mask=3).eval()
    inner, other = images(64), images(64, seed=2)
    other[:, 3:-3, 3:-3] = inner[:, 3:-3, 3:-3]
    black = inner.clone()
    for side in (black[:, :3], black[:, -3:], black[:, :, :3], black[:, :, -3:]):
        side.zero_()

    torch.testing.assert_close(network.normalize(other), network.normalize(inner), rtol=0, atol=0)
    torch.testing.assert_close(
        network.normalize(inner), create_model(name, image_size=64).normalize(black), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", ["alexnet", "test_efficientnet", "test_vit2"])
def test_flip_averaging_makes_outputs_equivariant_to_mirroring(name: str) -> None:
    torch.manual_seed(0)
    network = create_model(name, image_size=64).eval()
    original, mirrored = images(64), images(64).flip(2)
    with torch.no_grad():
        single = [network.class_activation(original), network.class_activation(mirrored)]
        network.flip_averaging = True
        averaged = [network.class_activation(original), network.class_activation(mirrored)]
        logits = network(original)

    assert single[0]
    assert single[1]
    assert averaged[0]
    assert averaged[1]
    torch.testing.assert_close(averaged[0][0], (single[0][0] + single[1][0]) / 2)
    torch.testing.assert_close(averaged[0][1], (single[0][1] + single[1][1].flip(2)) / 2)
    torch.testing.assert_close(averaged[1][0], averaged[0][0])
    torch.testing.assert_close(averaged[1][1], averaged[0][1].flip(2))
    torch.testing.assert_close(logits, averaged[0][0])


def test_flip_averaging_is_off_during_training() -> None:
    network = create_model("test_efficientnet", image_size=64, flip_averaging=True)
    torch.testing.assert_close(network.with_flips(images(64)), images(64))
    assert network(images(64)).shape == (len(images(64)),)

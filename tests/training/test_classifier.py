"""The loss of a training step."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon

from pneumoscope.models.factory import create_model
from pneumoscope.runs.recipe_files import read_recipe
from pneumoscope.training.classifier import Classifier
from pneumoscope.training.data_module import Batch
from pneumoscope.training.objective import BinaryObjective, SoftmaxObjective

pytestmark = pytest.mark.training

js_divergence = BinaryObjective((1, 1), 0).divergence


def test_js_divergence_matches_scipy():
    first, second = torch.tensor([0.0, 2.0, -3.0, 30.0]), torch.tensor([0.0, -1.0, -3.5, -30.0])
    p, q = (np.stack([torch.sigmoid(x).double(), torch.sigmoid(-x).double()]) for x in (first, second))

    np.testing.assert_allclose(js_divergence(first, second), jensenshannon(p, q) ** 2, atol=1e-6)
    assert js_divergence(first, second)[3] == pytest.approx(np.log(2))


def test_js_divergence_has_a_finite_gradient_for_confident_predictions():
    logits = torch.tensor([80.0, -80.0, 0.0], requires_grad=True)
    js_divergence(logits, torch.tensor([-80.0, -80.0, 0.0])).sum().backward()

    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("consistency", [0.0, 3.0])
def test_loss_is_the_cross_entropy_of_both_views_plus_their_divergence(consistency, monkeypatch):
    recipe = read_recipe("quick", [f"training.consistency={consistency}", "augmentation.flip=true"])
    model = Classifier(
        recipe, create_model("test_efficientnet", image_size=32).eval(), (1.0, 1.0), 1, on_features=False
    )
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    images = torch.randint(0, 256, (8, 32, 32), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.tensor([1.0, 0.0, 1.0, 1.0])

    loss = model.training_step(Batch(images, labels, torch.arange(4), 1.0), 0)

    logits = model.network(images)
    assert not torch.allclose(logits[:4], logits[4:])
    expected = F.binary_cross_entropy_with_logits(logits, torch.cat([labels, labels]))
    torch.testing.assert_close(loss, expected + consistency * js_divergence(logits[:4], logits[4:]).mean())


def test_softmax_divergence_matches_scipy_and_that_of_two_classes():
    first, second = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    found = SoftmaxObjective((1, 1, 1), 0).divergence(first, second)
    expected = jensenshannon(first.softmax(1), second.softmax(1), axis=1) ** 2
    np.testing.assert_allclose(found, expected)

    two = SoftmaxObjective((1, 1), 0).divergence(first[:, :2], second[:, :2])
    binary = js_divergence(first[:, 1] - first[:, 0], second[:, 1] - second[:, 0])
    torch.testing.assert_close(two, binary)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_softmax_loss_of_two_classes_is_the_binary_loss(smoothing):
    logits, labels = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0, 1, 1])
    weights = (1.5, 0.75)
    found = SoftmaxObjective(weights, smoothing).loss(logits, labels)
    expected = BinaryObjective(weights, smoothing).loss(logits[:, 1] - logits[:, 0], labels.float())
    torch.testing.assert_close(found, expected)


def test_a_network_of_several_classes_is_trained_on_all_of_them(monkeypatch):
    recipe = read_recipe("quick", ["training.consistency=3.0", "augmentation.flip=true"])
    network = create_model("test_efficientnet", image_size=32, outputs=3).eval()
    model = Classifier(recipe, network, (1.0, 2.0, 3.0), 1, on_features=False)
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    images = torch.randint(0, 256, (8, 32, 32), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.tensor([2, 0, 1, 2])

    loss = model.training_step(Batch(images, labels, torch.arange(4), 1.0), 0)

    logits = network(images)
    assert logits.shape == (8, 3)
    probabilities = logits.softmax(1)
    weighted = (
        -torch.tensor([1.0, 2.0, 3.0])[labels] * (probabilities[:4].log() + probabilities[4:].log())[range(4), labels]
    )
    p, q = probabilities.chunk(2)
    mean = (p + q) / 2
    divergence = ((p * (p / mean).log()).sum(1) + (q * (q / mean).log()).sum(1)) / 2
    torch.testing.assert_close(loss, weighted.sum() / 8 + 3 * divergence.mean())

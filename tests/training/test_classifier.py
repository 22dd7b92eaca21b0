"""The loss of a training step."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon

from pneumoscope.models.factory import create_model
from pneumoscope.runs.recipe import read_recipe
from pneumoscope.training.classifier import Classifier, js_divergence
from pneumoscope.training.data_module import Batch

pytestmark = pytest.mark.training


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

"""The gate is small and takes images of any size; the population's distance is the one that the textbook defines."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from pneumoscope.models.input_classifier import InputClassifier
from pneumoscope.models.ood import FeatureExtractor
from pneumoscope.training.ood import fit_mahalanobis

pytestmark = pytest.mark.training


def test_the_gate_takes_images_of_any_size_and_is_small():
    gate = InputClassifier(7).eval()
    for size in (32, 64, 95, 224):
        images = torch.randint(0, 256, (2, size, size), dtype=torch.uint8)
        assert gate(images).shape == (2, 7)
        torch.testing.assert_close(gate(images), gate(images.float()))
    assert sum(parameter.numel() for parameter in gate.parameters()) < 150_000


def test_the_eye_sees_as_imagenet_left_it_and_leaves_every_generator_alone():
    """Second opinion: timm's own layers, one after the other, on the image with its edge painted black."""
    state = torch.get_rng_state()
    eye = FeatureExtractor()
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.randint(0, 256, (2, 112, 112), dtype=torch.uint8)
    black = torch.zeros_like(images)
    black[:, 4:-4, 4:-4] = images[:, 4:-4, 4:-4]

    model = eye.network.model
    with torch.no_grad():
        maps = model.bn1(model.conv_stem((black.unsqueeze(1).float().expand(-1, 3, -1, -1) - 127) / 128))
        for stage in model.blocks[:5]:
            maps = stage(maps)
        assert maps.shape == (2, 112, 7, 7)
        torch.testing.assert_close(eye(images), maps.mean((2, 3)), rtol=1e-4, atol=1e-5)
        larger = images.repeat_interleave(2, 1).repeat_interleave(2, 2)
        torch.testing.assert_close(eye(larger), eye(images), rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in eye.parameters())


def test_a_distance_is_the_mahalanobis_distance_under_probabilistic_pca():
    """Second opinion: scipy's distance with the precision matrix that scikit-learn derives from the same model."""
    random = np.random.default_rng(0)
    features = (random.normal(size=(300, 120)) @ random.normal(size=(120, 120))).astype(np.float32)
    new = random.normal(size=(5, 120)).astype(np.float32) * 20
    standard = StandardScaler().fit(features.astype(np.float64))
    model = PCA(96, svd_solver="full").fit(standard.transform(features))
    precision = model.get_precision()

    found = fit_mahalanobis(features)(torch.from_numpy(new)).numpy()

    expected = [mahalanobis(image, model.mean_, precision) / np.sqrt(120) for image in standard.transform(new)]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_images_that_it_was_fitted_on_are_at_about_one_and_others_farther_away():
    random = np.random.default_rng(1)
    features = (random.normal(size=(2000, 80)) * np.linspace(0.1, 3, 80)).astype(np.float32)
    population = fit_mahalanobis(features)

    assert abs(population(torch.from_numpy(features)).square().mean().item() - 1) < 0.01
    assert population(torch.from_numpy(features + 3)).min() > population(torch.from_numpy(features)).quantile(0.99)


def test_features_that_never_change_do_not_divide_by_nothing():
    features = np.ones((10, 6), np.float32)
    population = fit_mahalanobis(features)
    assert population(torch.from_numpy(features)).tolist() == [0] * 10
    assert torch.isfinite(population(torch.from_numpy(features + 1))).all()
    assert population(torch.from_numpy(features + 1)).min() > 1000

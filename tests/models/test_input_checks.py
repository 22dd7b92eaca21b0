"""Input classifier, feature extractor and Mahalanobis detector, compared with timm, SciPy and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from pneumoscope.models.input_checks import FeatureExtractor, InputClassifier
from pneumoscope.training.input_checks import fit_mahalanobis

pytestmark = pytest.mark.training


def test_input_classifier_is_small_and_accepts_any_image_size():
    torch.manual_seed(0)
    classifier = InputClassifier(7).eval()
    for size in (32, 64, 95, 224):
        images = torch.randint(0, 256, (2, size, size), dtype=torch.uint8)
        assert classifier(images).shape == (2, 7)
        torch.testing.assert_close(classifier(images), classifier(images.float()))
    assert sum(parameter.numel() for parameter in classifier.parameters()) < 150_000


def test_feature_extractor_matches_timm_layer_by_layer_and_keeps_the_random_state():
    state = torch.get_rng_state()
    extractor = FeatureExtractor()
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.randint(0, 256, (2, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    black = torch.zeros_like(images)
    black[:, 4:-4, 4:-4] = images[:, 4:-4, 4:-4]

    model = extractor.network.model
    with torch.no_grad():
        maps = model.bn1(model.conv_stem((black.unsqueeze(1).float().expand(-1, 3, -1, -1) - 127) / 128))
        for stage in model.blocks[:5]:
            maps = stage(maps)
        assert maps.shape == (2, 112, 7, 7)
        torch.testing.assert_close(extractor(images), maps.mean((2, 3)), rtol=1e-4, atol=1e-5)
        larger = images.repeat_interleave(2, 1).repeat_interleave(2, 2)
        torch.testing.assert_close(extractor(larger), extractor(images), rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


def test_distance_matches_scipy_with_the_precision_matrix_of_scikit_learn():
    random = np.random.default_rng(0)
    features = (random.normal(size=(300, 120)) @ random.normal(size=(120, 120))).astype(np.float32)
    new = random.normal(size=(5, 120)).astype(np.float32) * 20
    scaler = StandardScaler().fit(features.astype(np.float64))
    model = PCA(96, svd_solver="full").fit(scaler.transform(features))
    precision = model.get_precision()

    distances = fit_mahalanobis(features)(torch.from_numpy(new)).numpy()

    expected = [mahalanobis(image, model.mean_, precision) / np.sqrt(120) for image in scaler.transform(new)]
    np.testing.assert_allclose(distances, expected, rtol=1e-3)


def test_training_images_have_a_distance_of_about_one_and_others_a_larger_one():
    random = np.random.default_rng(1)
    features = (random.normal(size=(2000, 80)) * np.linspace(0.1, 3, 80)).astype(np.float32)
    detector = fit_mahalanobis(features)

    assert abs(detector(torch.from_numpy(features)).square().mean().item() - 1) < 0.01
    assert detector(torch.from_numpy(features + 3)).min() > detector(torch.from_numpy(features)).quantile(0.99)


def test_constant_features_give_finite_distances():
    features = np.ones((10, 6), np.float32)
    detector = fit_mahalanobis(features)
    assert detector(torch.from_numpy(features)).tolist() == [0] * 10
    assert torch.isfinite(detector(torch.from_numpy(features + 1))).all()
    assert detector(torch.from_numpy(features + 1)).min() > 1000

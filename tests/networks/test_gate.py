"""The gate is small and takes films of any size; the population's distance is the one that the textbook defines."""

import numpy as np
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from pneumoscope.networks.gate import Gate
from pneumoscope.training.screen import fit_population


def test_the_gate_takes_films_of_any_size_and_is_small():
    gate = Gate(7).eval()
    for size in (32, 64, 95, 224):
        films = torch.randint(0, 256, (2, size, size), dtype=torch.uint8)
        assert gate(films).shape == (2, 7)
        torch.testing.assert_close(gate(films), gate(films.float()))
    assert sum(parameter.numel() for parameter in gate.parameters()) < 150_000


def test_a_distance_is_the_mahalanobis_distance_under_probabilistic_pca():
    """Second opinion: scipy's distance with the precision matrix that scikit-learn derives from the same model."""
    random = np.random.default_rng(0)
    features = (random.normal(size=(300, 90)) @ random.normal(size=(90, 90))).astype(np.float32)
    new = random.normal(size=(5, 90)).astype(np.float32) * 20
    standard = StandardScaler().fit(features.astype(np.float64))
    model = PCA(64, svd_solver="full").fit(standard.transform(features))
    precision = model.get_precision()

    found = fit_population(features)(torch.from_numpy(new)).numpy()

    expected = [mahalanobis(film, model.mean_, precision) / np.sqrt(90) for film in standard.transform(new)]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_films_that_it_was_fitted_on_are_at_about_one_and_others_farther_away():
    random = np.random.default_rng(1)
    features = (random.normal(size=(2000, 80)) * np.linspace(0.1, 3, 80)).astype(np.float32)
    population = fit_population(features)

    assert abs(population(torch.from_numpy(features)).square().mean().item() - 1) < 0.01
    assert population(torch.from_numpy(features + 3)).min() > population(torch.from_numpy(features)).quantile(0.99)


def test_features_that_never_change_do_not_divide_by_nothing():
    features = np.ones((10, 6), np.float32)
    population = fit_population(features)
    assert population(torch.from_numpy(features)).tolist() == [0] * 10
    assert torch.isfinite(population(torch.from_numpy(features + 1))).all()
    assert population(torch.from_numpy(features + 1)).min() > 1000

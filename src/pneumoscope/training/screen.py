"""What is learned from the training films beside the label: how they look as they should, and how far they reach."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA

from pneumoscope.networks.population import Eye, Population, Screen
from pneumoscope.training.augment import augment
from pneumoscope.training.films import derive_seed
from pneumoscope.training.gate import PLAUSIBLE, train_gate

__all__ = ["fit_population", "make_screen"]

_COMPONENTS = 96
_COPIES = 4  # of each film, besides the film as it is: fewer do not show all ways in which it may lie and be lit
_BATCH = 32


def make_screen(pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], *, steps: int, seed: int) -> Screen:
    """Train the gate, and describe the population.

    The population is the training films as they are and each several times a little askew and lit otherwise: how a film was
    laid and lit is not who is on it.

    Args:
        pixels: prepared films, shape (n, size, size).
        rows: of the training films among them.
        steps, seed: see `train_gate`.
    Raises:
        MissingExtraError: see `Eye`.
    """
    eye = Eye()
    found = []
    with torch.no_grad():
        for start in range(0, len(rows), _BATCH):
            films = torch.from_numpy(pixels[rows[start : start + _BATCH]])
            found.append(eye(films).numpy())
            for copy in range(_COPIES):
                seeds = [derive_seed(seed, start + place, copy, 10) for place in range(len(films))]
                found.append(eye(augment(films, PLAUSIBLE, seeds)).numpy())
    population = fit_population(np.concatenate(found))
    return Screen(train_gate(pixels, rows, steps=steps, seed=seed), eye, population)


def fit_population(features: npt.NDArray[np.float32]) -> Population:
    """Describe films by the means, deviations, main components and remaining variance of their features.

    Args:
        features: shape (n, channels), of three films or more.
    """
    count = min(_COMPONENTS, min(features.shape) - 1)
    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    # Features that are the same on every film would divide by nothing, here and below.
    scale = np.where(scale > 1e-6 * float(scale.max()) + 1e-12, scale, 1.0)
    with np.errstate(invalid="ignore"):  # a share of no variance at all, which is not asked for
        model = PCA(count, svd_solver="full").fit((features - mean) / scale)
    tiny = 1e-6 * float(np.sqrt(model.explained_variance_[0])) + 1e-12
    return Population(
        torch.from_numpy(mean),
        torch.from_numpy(scale),
        torch.from_numpy(model.components_),
        torch.from_numpy(np.maximum(np.sqrt(model.explained_variance_), tiny)),
        torch.tensor(max(float(np.sqrt(model.noise_variance_)), tiny)),
    )

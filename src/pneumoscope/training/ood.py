"""What is learned from the training images beside the label: how they look as they should, and how far they reach."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA

from pneumoscope.models.input_checks import FeatureExtractor, InputChecks, MahalanobisDetector
from pneumoscope.training.augmentation import augment
from pneumoscope.training.data_module import derive_seed
from pneumoscope.training.input_classifier import PLAUSIBLE, train_input_classifier

__all__ = ["fit_input_checks", "fit_mahalanobis"]

_COMPONENTS = 96
_COPIES = 4  # of each image, besides the image as it is: fewer do not show all ways in which it may lie and be lit
_BATCH = 32


def fit_input_checks(
    pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], *, steps: int, seed: int
) -> InputChecks:
    """Train the gate, and describe the population.

    The population is the training images as they are and each several times a little askew and lit otherwise: how an image was
    laid and lit is not who is on it.

    Args:
        pixels: prepared images, shape (n, size, size).
        rows: of the training images among them.
        steps, seed: see `train_input_classifier`.
    Raises:
        MissingExtraError: see `FeatureExtractor`.
    """
    eye = FeatureExtractor()
    found = []
    with torch.no_grad():
        for start in range(0, len(rows), _BATCH):
            images = torch.from_numpy(pixels[rows[start : start + _BATCH]])
            found.append(eye(images).numpy())
            for copy in range(_COPIES):
                seeds = [derive_seed(seed, start + place, copy, 10) for place in range(len(images))]
                found.append(eye(augment(images, PLAUSIBLE, seeds)).numpy())
    population = fit_mahalanobis(np.concatenate(found))
    return InputChecks(train_input_classifier(pixels, rows, steps=steps, seed=seed), eye, population)


def fit_mahalanobis(features: npt.NDArray[np.float32]) -> MahalanobisDetector:
    """Describe images by the means, deviations, main components and remaining variance of their features.

    Args:
        features: shape (n, channels), of three images or more.
    """
    count = min(_COMPONENTS, min(features.shape) - 1)
    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    # Features that are the same on every image would divide by nothing, here and below.
    scale = np.where(scale > 1e-6 * float(scale.max()) + 1e-12, scale, 1.0)
    with np.errstate(invalid="ignore"):  # a share of no variance at all, which is not asked for
        model = PCA(count, svd_solver="full").fit((features - mean) / scale)
    tiny = 1e-6 * float(np.sqrt(model.explained_variance_[0])) + 1e-12
    return MahalanobisDetector(
        torch.from_numpy(mean),
        torch.from_numpy(scale),
        torch.from_numpy(model.components_),
        torch.from_numpy(np.maximum(np.sqrt(model.explained_variance_), tiny)),
        torch.tensor(max(float(np.sqrt(model.noise_variance_)), tiny)),
    )

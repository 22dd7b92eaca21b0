"""Cache the features of a frozen backbone; training then uses them in place of images.

The name of the cached array is a hash of the images and of the weights that computed the features.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import numpy.typing as npt
import torch

from pneumoscope.data.cache import PreprocessedImages, load_array, store_array
from pneumoscope.data.hashing import Progress
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.models.weights import weights_sha256

__all__ = ["CachedFeatures", "cache_features"]

_BATCH = 32


@dataclasses.dataclass(frozen=True)
class CachedFeatures:
    """Cached array of features, float32, one row per distinct image.

    Attributes:
        name: Name in the cache; see `data.cache.load_array`.
        shape: Shape of the array, (images, channels, height, width).
    """

    name: str
    shape: tuple[int, ...]


def cache_features(
    network: ClassifierNetwork, images: PreprocessedImages, progress: Progress | None = None
) -> CachedFeatures:
    """Return the cached last feature maps of all images, computing them if necessary.

    Args:
        network: Network with its initial weights; used in evaluation mode.
        images: Preprocessed images.
        progress: Callback with the number of images processed so far and the total.

    Raises:
        StorageError: The cache cannot be written.
    """
    training = network.training
    network.eval()
    with torch.inference_mode():
        shape = (len(images.pixels), *_features(network, images.pixels[:1]).shape[1:])
        key = hashlib.sha256(f"{images.key} {network.border_mask} {weights_sha256(network)}".encode()).hexdigest()[:32]
        features = CachedFeatures(f"features-{key}", tuple(int(side) for side in shape))

        def compute(target: npt.NDArray[np.generic]) -> None:
            for start in range(0, len(images.pixels), _BATCH):
                batch = images.pixels[start : start + _BATCH]
                target[start : start + len(batch)] = _features(network, batch)
                if progress:
                    progress(start + len(batch), len(images.pixels))

        if load_array(features.name, features.shape, np.float32) is None:
            store_array(features.name, features.shape, np.float32, compute)
    network.train(training)
    return features


def _features(network: ClassifierNetwork, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    maps = network.forward_features(network.normalize(torch.from_numpy(np.array(pixels))))
    return np.asarray(maps.numpy(), dtype=np.float32)

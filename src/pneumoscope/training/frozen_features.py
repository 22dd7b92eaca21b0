"""Features of frozen convolutions: computed once, kept, and trained on as if they were images.

The name of the kept array is a hash of the images and of the weights that made it.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch

from pneumoscope.data.cache import PreprocessedImages, load_array, store_array
from pneumoscope.data.hashing import Progress
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.models.weights import weights_sha256
from pneumoscope.training.data_module import KeptFeatures

__all__ = ["keep_features"]

_BATCH = 32


def keep_features(
    network: ClassifierNetwork, images: PreprocessedImages, progress: Progress | None = None
) -> KeptFeatures:
    """Compute the last feature map of every image, unless it is kept already.

    Args:
        network: with its starting weights; evaluated without dropout and with its stored batch statistics.
        images: prepared.
        progress: called with (images done, images in all).
    Raises:
        StorageError: the cache cannot be written.
    """
    training = network.training
    network.eval()
    with torch.inference_mode():
        shape = (len(images.pixels), *_features(network, images.pixels[:1]).shape[1:])
        key = hashlib.sha256(f"{images.key} {network.border_mask} {weights_sha256(network)}".encode()).hexdigest()[:32]
        kept = KeptFeatures(f"features-{key}", tuple(int(side) for side in shape))

        def fill(target: npt.NDArray[np.generic]) -> None:
            for start in range(0, len(images.pixels), _BATCH):
                part = images.pixels[start : start + _BATCH]
                target[start : start + len(part)] = _features(network, part)
                if progress:
                    progress(start + len(part), len(images.pixels))

        if load_array(kept.name, kept.shape, np.float32) is None:
            store_array(kept.name, kept.shape, np.float32, fill)
    network.train(training)
    return kept


def _features(network: ClassifierNetwork, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    maps = network.forward_features(network.normalize(torch.from_numpy(np.array(pixels))))
    return np.asarray(maps.numpy(), dtype=np.float32)

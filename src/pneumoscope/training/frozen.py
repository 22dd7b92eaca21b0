"""Features of frozen convolutions: computed once, kept, and trained on as if they were films.

The name of the kept array is a hash of the films and of the weights that made it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import torch

from pneumoscope.dataset.cache import PreparedFilms, keep_array, kept_array
from pneumoscope.dataset.contents import Progress
from pneumoscope.networks.network import Network
from pneumoscope.training.films import KeptFeatures

__all__ = ["keep_features", "weights_sha256"]

_BATCH = 32


def keep_features(network: Network, films: PreparedFilms, progress: Progress | None = None) -> KeptFeatures:
    """Compute the last feature map of every film, unless it is kept already.

    Args:
        network: with its starting weights; evaluated without dropout and with its stored batch statistics.
        films: prepared.
        progress: called with (films done, films in all).
    Raises:
        StorageError: the cache cannot be written.
    """
    training = network.training
    network.eval()
    with torch.inference_mode():
        shape = (len(films.pixels), *_features(network, films.pixels[:1]).shape[1:])
        kept = KeptFeatures(f"features-{weights_sha256(network, films.key)[:32]}", tuple(int(side) for side in shape))

        def fill(target: npt.NDArray[np.generic]) -> None:
            for start in range(0, len(films.pixels), _BATCH):
                part = films.pixels[start : start + _BATCH]
                target[start : start + len(part)] = _features(network, part)
                if progress:
                    progress(start + len(part), len(films.pixels))

        if kept_array(kept.name, kept.shape, np.float32) is None:
            keep_array(kept.name, kept.shape, np.float32, fill)
    network.train(training)
    return kept


def _features(network: Network, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    maps = network.features(network.image(torch.from_numpy(np.array(pixels))))
    return np.asarray(maps.numpy(), dtype=np.float32)


def weights_sha256(network: Network, films: str = "", *, without: Collection[str] = ()) -> str:
    """Hash of a network's weights: the name and the values of each, in the order of their names.

    Args:
        network: on the CPU or not.
        films: what else decides; hashed first.
        without: names to leave out.
    """
    digest = hashlib.sha256(films.encode())
    for name, tensor in sorted(network.state_dict().items()):
        if name not in without:
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()

"""Metrics of saliency maps: deletion and insertion curves, weight randomization, rank correlation, pointing games.

Sources: Petsiuk, Das and Saenko 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models". Adebayo et
al. 2018, "Sanity Checks for Saliency Maps". Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop". Wang
et al. 2020, "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image, ImageFilter
from scipy.stats import spearmanr

from pneumoscope.core.errors import UsageError
from pneumoscope.core.interval import Interval
from pneumoscope.imaging.preprocess import Crop
from pneumoscope.inference.decision import sigmoid
from pneumoscope.inference.saliency import resize_to_image
from pneumoscope.inference.session import BundleSession
from pneumoscope.statistics.intervals import patient_bootstrap

__all__ = [
    "STEPS",
    "FloatArray",
    "explain_pixels",
    "localize",
    "mean_over_images",
    "perturbation_aucs",
    "random_heatmap",
    "rank_correlation",
    "shuffle_weights",
]

FloatArray = npt.NDArray[np.floating[Any]]

STEPS = 16  # number of steps of the deletion and insertion curves
_BLUR_RADIUS = 1 / 8  # relative to the side of the image
_WEIGHTED_OPERATORS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_BATCH = 32


def random_heatmap(heatmap: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return a random heatmap with the power spectrum and mean of the given one and white-noise phases."""
    noise = np.fft.rfft2(rng.normal(size=heatmap.shape))
    phases = noise / np.abs(noise)
    phases[0, 0] = 1
    return np.fft.irfft2(np.fft.rfft2(heatmap) * phases, s=heatmap.shape)


def perturbation_aucs(
    session: BundleSession, image: npt.NDArray[np.uint8], heatmap: FloatArray, sign: int
) -> tuple[float, float]:
    """Return the areas under the deletion and insertion curves of the predicted class's score, 0 to 1.

    Args:
        session: Session of the bundle.
        image: Input of the network, shape (size, size).
        heatmap: Contributions to the logit, shape (rows, columns).
        sign: 1 if the predicted class is pneumonia, -1 otherwise.

    Source: Petsiuk, Das and Saenko 2018.
    """
    size = len(image)
    importance = sign * resize_to_image(heatmap.astype(np.float32), size, size, "squash")
    rank = np.empty(size * size, int)
    rank[np.argsort(-importance, axis=None, kind="stable")] = np.arange(size * size)
    fractions = np.linspace(0, 1, STEPS + 1)
    selected = rank.reshape(1, size, size) < fractions[:, None, None] * size * size
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(_BLUR_RADIUS * size)))
    perturbed = np.concatenate([np.where(selected, blurred, image), np.where(selected, image, blurred)])
    logits = np.concatenate([session.logits(perturbed[i : i + _BATCH]) for i in range(0, len(perturbed), _BATCH)])
    deletion, insertion = sigmoid(sign * logits).reshape(2, -1)
    return float(np.trapezoid(deletion, fractions)), float(np.trapezoid(insertion, fractions))


def shuffle_weights(network: bytes, fraction: float, rng: np.random.Generator) -> tuple[bytes, int]:
    """Return the network with the weights and biases of its last layers shuffled within each tensor.

    Args:
        network: ONNX file.
        fraction: Fraction of the layers, counted from the logit; 0 shuffles the last layer only.
        rng: Random number generator.

    Returns:
        The ONNX file and the number of shuffled layers.

    Raises:
        UsageError: The network has no layer with weights.
    """
    model = onnx.load_from_string(network)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    layers: list[list[str]] = []
    known: set[str] = set()
    for node in _ancestors("logit", model.graph):
        # The gradient, if exported, reuses weights of layers that are already listed.
        weights = [name for name in node.input if name in tensors and name not in known]
        if node.op_type in _WEIGHTED_OPERATORS and weights:
            layers.append(weights)
            known.update(weights)
    if not layers:
        raise UsageError("the network has no layer with weights to shuffle")
    count = max(1, round(fraction * len(layers)))
    for name in (name for layer in layers[-count:] for name in layer):
        values = onnx.numpy_helper.to_array(tensors[name])
        shuffled = rng.permutation(values.flatten()).reshape(values.shape)
        # The gradient may have a transposed copy of the weights.
        for copy, tensor in tensors.items():
            if copy != name and values.ndim == 2 and np.array_equal(onnx.numpy_helper.to_array(tensor), values.T):
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(shuffled.T), copy))
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(shuffled, name))
    return model.SerializeToString(), count


def _ancestors(output: str, graph: Any) -> list[Any]:
    """Return the nodes that an output depends on, in topological order (that of the graph)."""
    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    return nodes[::-1]


def localize(heatmap: FloatArray, mask: npt.NDArray[np.bool_], crop: Crop) -> tuple[bool, float]:
    """Return whether the peak of a heatmap lies inside a mask, and the fraction of its positive contributions inside.

    A heatmap without positive contributions gives False and 0.

    Args:
        heatmap: Contributions to the logit, shape (rows, columns).
        mask: True where the disease is, shape (height, width).
        crop: Crop of the preprocessing.

    Sources: Zhang et al. 2018 (pointing game, without a tolerance); Wang et al. 2020 (energy-based pointing game).
    """
    height, width = mask.shape
    positive = np.maximum(resize_to_image(heatmap.astype(np.float32), width, height, crop), 0).astype(np.float64)
    total = positive.sum()
    if not total > 0:
        return False, 0.0
    return bool(mask.flat[positive.argmax()]), float(positive[mask].sum() / total)


def rank_correlation(a: FloatArray, b: FloatArray) -> float:
    """Return Spearman's correlation of two heatmaps over their cells; NaN if either is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(spearmanr(a, b, axis=None).statistic)


def explain_pixels(
    session: BundleSession, pixels: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the logits, shape (n,), and heatmaps, shape (n, rows, columns), of network inputs.

    Args:
        session: Session of a bundle with heatmaps.
        pixels: Inputs of the network, shape (n, size, size).
    """
    batches = [session.outputs(pixels[i : i + _BATCH], heatmaps=True) for i in range(0, len(pixels), _BATCH)]
    heatmaps = [outputs.heatmap for outputs in batches if outputs.heatmap is not None]
    return np.concatenate([outputs.logit for outputs in batches]), np.concatenate(heatmaps)


def mean_over_images(values: npt.ArrayLike, positive: Sequence[bool], patients: Sequence[str], seed: int) -> Interval:
    """Return the mean of a measure over images, with a patient bootstrap interval.

    Args:
        values: One number per image.
        positive, patients: Whether the image shows pneumonia, and its patient.
        seed: Seed of the bootstrap.
    """
    return patient_bootstrap(
        lambda x, _, weights: weights @ x / weights.sum(1),
        np.asarray(values, np.float64),
        positive,
        patients,
        seed=seed,
    )

"""Softmax, log odds and prevalence adjustment. Used by deployed models and therefore free of SciPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pneumoscope.statistics.inputs import FloatArray

__all__ = ["TEMPERATURE_RANGE", "adjust_prevalence", "log_odds", "softmax"]

# Bounds of a fitted temperature; beyond them, probabilities are 0 and 1, or all equal.
TEMPERATURE_RANGE = (1e-3, 1e3)


def softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> FloatArray:
    """Return the softmax of logits divided by a temperature, in double precision.

    Args:
        logits: Logits, shape (..., K).
        temperature: See `temperature.fit_temperature`.
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    # Subtract the largest logit to avoid overflow.
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def log_odds(probabilities: npt.ArrayLike) -> FloatArray:
    """Return log(p / (1 - p)) for each class, as a ranking score, shape (n, K).

    1 - p is the sum over the other classes, so that probabilities near 1 do not tie.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    rest = np.stack([np.delete(p, index, axis=1).sum(axis=1) for index in range(p.shape[1])], axis=1)
    tiny = np.finfo(np.float64).tiny
    return np.asarray(np.log(np.maximum(p, tiny)) - np.log(np.maximum(rest, tiny)))


def adjust_prevalence(probabilities: npt.ArrayLike, source: float, target: float) -> FloatArray:
    """Return probabilities for a population with a different prevalence of pneumonia.

    The odds are multiplied by a constant. The images of each label are assumed to have the same distribution in both
    populations.

    Args:
        probabilities: Probabilities of pneumonia in the source population, 0 to 1, any shape.
        source: Prevalence in the source population, above 0 and below 1.
        target: Prevalence in the target population, above 0 and below 1.

    Source: Saerens 2002, Neural Comput 14:21, equation 2.4.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    pneumonia, normal = p * target / source, (1 - p) * (1 - target) / (1 - source)
    return np.asarray(pneumonia / (pneumonia + normal))

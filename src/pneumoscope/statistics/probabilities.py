"""Softmax, log odds and change of prevalence. Deployed models use this module, so it does not import SciPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pneumoscope.statistics.inputs import FloatArray

__all__ = ["TEMPERATURE_RANGE", "adjust_prevalence", "log_odds", "softmax"]

# Bounds of a fitted temperature; outside them, probabilities are 0 and 1, or all alike.
TEMPERATURE_RANGE = (1e-3, 1e3)


def softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> FloatArray:
    """Return the softmax of logits divided by a temperature, in double precision.

    Args:
        logits: Logits, shape (..., K).
        temperature: See `temperature.fit_temperature`.
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    # Without the largest logit, the exponential would overflow.
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def log_odds(probabilities: npt.ArrayLike) -> FloatArray:
    """Return the logarithm of p / (1 - p) of each class, to rank images by; shape (n, K).

    1 - p is summed over the other classes, so that probabilities near 1 do not tie.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    rest = np.stack([np.delete(p, index, axis=1).sum(axis=1) for index in range(p.shape[1])], axis=1)
    tiny = np.finfo(np.float64).tiny
    return np.asarray(np.log(np.maximum(p, tiny)) - np.log(np.maximum(rest, tiny)))


def adjust_prevalence(probabilities: npt.ArrayLike, source: float, target: float) -> FloatArray:
    """Return probabilities for a population in which pneumonia is more or less common.

    The odds are multiplied by a constant. The images of each label are assumed to be distributed alike in both
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

"""The softmax, without SciPy, so that predictions need not import it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pneumoscope.statistics.inputs import FloatArray

__all__ = ["softmax"]


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

"""What every statistic is given: scores, labels and patients, checked once and in the same words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UndefinedMetricError

__all__ = ["BoolArray", "FloatArray", "IntArray", "checked", "patient_numbers"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


def checked(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, BoolArray]:
    """Scores and labels as arrays that a statistic can be computed from.

    Args:
        scores: a finite number an image, shape (n,).
        labels: True where pneumonia is present, shape (n,).
    Returns:
        The same in double precision and as truth values.
    Raises:
        UndefinedMetricError: no image, other shapes, or a score that is not finite.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.bool_)
    if x.ndim != 1 or x.shape != y.shape:
        raise UndefinedMetricError(f"scores of shape {x.shape} do not go with labels of shape {y.shape}")
    if not len(x):
        raise UndefinedMetricError("there is no image")
    bad = int(np.count_nonzero(~np.isfinite(x)))
    if bad:
        raise UndefinedMetricError(f"{bad} of {len(x)} scores are not finite")
    return x, y


def patient_numbers(patients: Sequence[str] | None, n: int) -> IntArray:
    """Patients numbered from 0; images whose patient is unknown ("" or no list at all) are a patient each.

    Args:
        patients: a key an image, or None.
        n: images.
    Returns:
        Shape (n,); equal numbers are one patient.
    Raises:
        UndefinedMetricError: not a key an image.
    """
    if patients is None:
        return np.arange(n, dtype=np.int64)
    if len(patients) != n:
        raise UndefinedMetricError(f"{len(patients)} patients do not go with {n} images")
    known: dict[str | int, int] = {}
    return np.array([known.setdefault(key or image, len(known)) for image, key in enumerate(patients)], dtype=np.int64)

"""Array types of this package, and shared validation of scores, labels and patients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UndefinedMetricError

__all__ = [
    "BoolArray",
    "FloatArray",
    "IntArray",
    "count_unknown",
    "patient_groups",
    "validate",
    "validate_both_classes",
    "validate_classes",
    "validate_probabilities",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


def validate(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, BoolArray]:
    """Return scores and labels as arrays of float64 and bool.

    Args:
        scores: One finite number per image, shape (n,).
        labels: True where pneumonia is present, shape (n,).

    Raises:
        UndefinedMetricError: There are no images, the shapes differ, or a score is not finite.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.bool_)
    if x.ndim != 1 or x.shape != y.shape:
        raise UndefinedMetricError(f"scores of shape {x.shape} do not match labels of shape {y.shape}")
    if not len(x):
        raise UndefinedMetricError("there are no images")
    n_invalid = int(np.count_nonzero(~np.isfinite(x)))
    if n_invalid:
        raise UndefinedMetricError(f"{n_invalid} of {len(x)} scores are not finite")
    return x, y


def validate_both_classes(scores: npt.ArrayLike, labels: npt.ArrayLike, purpose: str) -> tuple[FloatArray, BoolArray]:
    """Return the result of `validate` for images of both classes.

    Args:
        scores: One finite number per image, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        purpose: Subject of the error message, such as "AUROC".

    Raises:
        UndefinedMetricError: As in `validate`, or a class has no images.
    """
    x, y = validate(scores, labels)
    n_pneumonia = int(np.count_nonzero(y))
    if n_pneumonia in (0, len(y)):
        raise UndefinedMetricError(
            f"{purpose} needs both classes; there are {len(y) - n_pneumonia} NORMAL and {n_pneumonia} PNEUMONIA images"
        )
    return x, y


def validate_probabilities(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, BoolArray]:
    """Return the result of `validate` for probabilities.

    Args:
        probabilities: Probability of pneumonia of each image, 0 to 1, shape (n,).
        labels: True where pneumonia is present, shape (n,).

    Raises:
        UndefinedMetricError: As in `validate`, or a probability is out of range.
    """
    p, y = validate(probabilities, labels)
    if p.min() < 0 or p.max() > 1:
        raise UndefinedMetricError(f"probabilities range from {p.min():g} to {p.max():g}, not within 0 to 1")
    return p, y


def validate_classes(probabilities: npt.ArrayLike, targets: npt.ArrayLike) -> tuple[FloatArray, IntArray]:
    """Return probabilities and targets as arrays of float64 and int64.

    Args:
        probabilities: One row per image, each summing to 1, shape (n, K) with K at least 2.
        targets: Class index of each image, 0 to K - 1, shape (n,).

    Raises:
        UndefinedMetricError: There are no images, the shapes differ, a row is not a distribution, or a target is not a
            class.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.int64)
    if p.ndim != 2 or p.shape[1] < 2 or y.shape != p.shape[:1]:
        raise UndefinedMetricError(f"probabilities of shape {p.shape} do not match targets of shape {y.shape}")
    if not len(y):
        raise UndefinedMetricError("there are no images")
    invalid = ~np.isfinite(p).all(axis=1) | (p < 0).any(axis=1) | (np.abs(p.sum(axis=1) - 1) > 1e-6)
    if invalid.any():
        raise UndefinedMetricError(f"the probabilities of {int(invalid.sum())} of {len(y)} images do not sum to 1")
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise UndefinedMetricError(f"targets range from {y.min()} to {y.max()}; there are {p.shape[1]} classes")
    return p, y


def count_unknown(patients: Iterable[str]) -> int:
    """Return the number of images of unknown patients.

    Args:
        patients: One patient key per image, "" where unknown.
    """
    return sum(not patient for patient in patients)


def patient_groups(patients: Sequence[str] | None, n: int) -> IntArray:
    """Return a group number per image, shape (n,); images of one patient have the same number.

    Groups are numbered from 0 in order of appearance. An image of an unknown patient forms a separate group.

    Args:
        patients: One patient key per image, "" where unknown; None if all are unknown.
        n: Number of images.

    Raises:
        UndefinedMetricError: The number of keys is not `n`.
    """
    if patients is None:
        return np.arange(n, dtype=np.int64)
    if len(patients) != n:
        raise UndefinedMetricError(f"{len(patients)} patients do not match {n} images")
    groups: dict[str | int, int] = {}
    return np.array(
        [groups.setdefault(key or image, len(groups)) for image, key in enumerate(patients)], dtype=np.int64
    )

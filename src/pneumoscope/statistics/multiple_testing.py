"""Correct p-values for multiple testing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pneumoscope.core.errors import UndefinedMetricError

__all__ = ["holm"]

_PValue = TypeVar("_PValue", float, float | None)


def holm(p_values: Sequence[_PValue]) -> list[_PValue]:
    """Return p-values corrected by Holm's method, in the same order.

    Args:
        p_values: One p-value per test. None (no test possible) stays None and does not count as a test.

    Raises:
        UndefinedMetricError: A p-value is outside 0 to 1.

    Source: Holm 1979, Scand J Stat 6:65.
    """
    tests = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected = list(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tests):
        if not 0 <= p <= 1:
            raise UndefinedMetricError(f"p value {index + 1} of {len(p_values)} is {p}, not within 0 to 1")
        largest = max(largest, min(1.0, (len(tests) - rank) * p))
        corrected[index] = largest
    return corrected

"""Agreement between two readers, or between a reader and the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pneumoscope.core.interval import Interval
from pneumoscope.statistics.intervals import normal_quantile, undefined

__all__ = ["cohen_kappa"]

_METHOD = "cohen-kappa"


def cohen_kappa(a: Sequence[bool], b: Sequence[bool], level: float = 0.95) -> Interval:
    """Return Cohen's kappa of two ratings of the same images: 1 is perfect agreement, 0 is chance agreement.

    Args:
        a, b: Whether each rater calls the image positive, shape (n,).
        level: Coverage, 0 to 1.

    Returns:
        Kappa with its normal interval, clipped to -1 to 1, or without an interval if the variance is 0 (all ratings
        agree, or none); undefined without images, or if a rater gives all images the same label.

    Raises:
        ValueError: The ratings differ in number.

    Source: Cohen 1960, Educ Psychol Meas 20:37; variance by Fleiss, Cohen and Everitt 1969, Psychol Bull 72:323.
    """
    n = len(a)
    if n != len(b):
        raise ValueError(f"{n} and {len(b)} ratings")
    if n == 0:
        return undefined("there are no images", n=0, method=_METHOD, level=level)
    p = [[sum(x == i and y == j for x, y in zip(a, b, strict=True)) / n for j in (True, False)] for i in (True, False)]
    rows, columns = [sum(row) for row in p], [sum(column) for column in zip(*p, strict=True)]
    if len(set(a)) == 1 or len(set(b)) == 1:  # kappa would be 0 with a zero-width interval, whatever the agreement
        return undefined("a rater gives all images the same label", n=n, method=_METHOD, level=level)
    observed, expected = p[0][0] + p[1][1], rows[0] * columns[0] + rows[1] * columns[1]
    kappa = (observed - expected) / (1 - expected)
    agreeing = sum(p[i][i] * (1 - (rows[i] + columns[i]) * (1 - kappa)) ** 2 for i in (0, 1))
    differing = (1 - kappa) ** 2 * sum(p[i][1 - i] * (columns[i] + rows[1 - i]) ** 2 for i in (0, 1))
    variance = (agreeing + differing - (kappa - expected * (1 - kappa)) ** 2) / (n * (1 - expected) ** 2)
    if variance < 1e-12:  # the formula would give a zero-width interval
        return Interval(kappa, None, None, _METHOD, n, level, reason="there is no interval without variation")
    half_width = normal_quantile(level) * math.sqrt(variance)
    return Interval(kappa, max(-1.0, kappa - half_width), min(1.0, kappa + half_width), _METHOD, n, level)

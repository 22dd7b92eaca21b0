"""Non-inferiority of a proportion to an uncertain reference: test, power and sample size."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
from scipy import stats

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.statistics.inputs import FloatArray
from pneumoscope.statistics.intervals import difference, normal_quantile

__all__ = ["MAX_SAMPLE", "NonInferiority", "Verdict", "compare_with_reference", "power", "sample_size"]

Verdict = Literal["non_inferior", "inferior", "inconclusive"]

MAX_SAMPLE = 20_000  # images; larger samples are not searched
# Power is not monotonic in the number of images, because counts are integers: it drops whenever one more error is
# needed, about every 1 / (1 - reference) images. It must stay above the target for several such steps.
_MIN_RUN, _MAX_RUN = 25, 500


@dataclasses.dataclass(frozen=True, slots=True)
class NonInferiority:
    """Comparison of a proportion with a reference.

    Attributes:
        difference: Proportion minus reference, with its 95% interval.
        margin: Largest acceptable decrease, 0 to 1.
        verdict: "non_inferior" if the interval lies above -margin, "inferior" if it lies below, "inconclusive"
            otherwise. "non_inferior" has a one-sided type I error of 2.5%.
        power: Probability of "non_inferior" with the same number of images if the true proportion equals the reference.
    """

    difference: Interval
    margin: float
    verdict: Verdict
    power: float


def compare_with_reference(
    observed: Interval, reference: Interval, margin: float, effective_n: int | None = None
) -> NonInferiority:
    """Test whether a proportion is lower than a reference by less than the margin.

    Args:
        observed: Proportion with Wilson's interval, from `intervals.proportion`.
        reference: Proportion on other images, at the same level.
        margin: Largest acceptable decrease, above 0, below 1.
        effective_n: Effective sample size of `observed` for the power, see `intervals.effective_size`; its n if None.

    Raises:
        UndefinedMetricError: A proportion is undefined, or the margin is out of range.

    Source: Confidence-interval approach to non-inferiority, Piaggio 2012, JAMA 308:2594; interval of Newcombe 1998.
    """
    _check(reference, margin)
    result = difference(observed, reference)
    if result.low is None or result.high is None:
        raise UndefinedMetricError(f"non-inferiority is undefined: {result.reason}")
    verdict: Verdict = "inconclusive"
    if result.low > -margin:
        verdict = "non_inferior"
    elif result.high < -margin:
        verdict = "inferior"
    return NonInferiority(result, margin, verdict, power(effective_n or observed.n, reference, margin))


def power(n: int, reference: Interval, margin: float) -> float:
    """Return the probability that n images show non-inferiority if the true proportion equals the reference.

    It is the sum of binomial probabilities over the counts that show non-inferiority; the reference and its interval
    are fixed.

    Args:
        n: Number of independent images, at least 1.
        reference: The reference.
        margin: See `compare_with_reference`.

    Raises:
        UndefinedMetricError: The reference is undefined, `n` is below 1, or the margin is out of range.
    """
    value, high = _check(reference, margin)
    if n < 1:
        raise UndefinedMetricError(f"power needs at least one image, not {n}")
    counts = np.arange(n + 1)
    p = counts / n
    below = p - _wilson_low(p, n, reference.level or 0.95)
    low = p - value - np.hypot(below, high - value)
    return float(stats.binom.pmf(counts[low > -margin], n, value).sum())


def sample_size(reference: Interval, margin: float, target: float = 0.8) -> int | None:
    """Return the number of independent images from which the power stays at or above the target.

    Args:
        reference: The reference.
        margin: See `compare_with_reference`.
        target: Target power, above 0, below 1.

    Returns:
        The number, or None if more than `MAX_SAMPLE` are needed or the uncertainty of the reference alone exceeds the
        margin.

    Raises:
        UndefinedMetricError: See `power`; or the target is out of range.
    """
    value, high = _check(reference, margin)
    if not 0 < target < 1:
        raise UndefinedMetricError(f"the power is {target}, not between 0 and 1")
    if high - value >= margin:
        return None

    def is_enough(n: int) -> bool:
        return power(n, reference, margin) >= target

    low, size = 0, 16  # no n up to `low` was sufficient, apart from integer effects
    while not is_enough(size):
        if size == MAX_SAMPLE:
            return None
        low, size = size, min(2 * size, MAX_SAMPLE)
    while size - low > 1:
        middle = (low + size) // 2
        low, size = (low, middle) if is_enough(middle) else (middle, size)
    run = min(_MAX_RUN, _MIN_RUN + math.ceil(3 / max(1 - value, 1e-6)))
    while failures := [n for n in range(size, size + run) if not is_enough(n)]:
        size = failures[-1] + 1
    return size


def _check(reference: Interval, margin: float) -> tuple[float, float]:
    """Return the value and upper limit of a reference; raise if it is undefined or the margin is out of range."""
    if not 0 < margin < 1:
        raise UndefinedMetricError(f"the margin is {margin}, not between 0 and 1")
    if reference.value is None or reference.high is None:
        raise UndefinedMetricError(f"the reference is undefined: {reference.reason}")
    return reference.value, reference.high


def _wilson_low(p: FloatArray, n: int, level: float) -> FloatArray:
    """Return the lower limits of Wilson's intervals; see `intervals.wilson`."""
    z = normal_quantile(level)
    half_width = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return np.maximum(0.0, (p + z * z / (2 * n) - half_width) / (1 + z * z / n))

"""Intervals of proportions, of their differences, and of anything else by drawing patients.

Several images of one patient are not independent. Two answers are used here, both of which give back the ordinary
formula where every image is a patient of its own: proportions take Wilson's interval with the images divided by the
design effect, and everything that is no proportion draws whole patients.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.results import Interval
from pneumoscope.statistics.inputs import BoolArray, FloatArray, IntArray, checked, patient_numbers

__all__ = [
    "RESAMPLES",
    "Statistic",
    "design_effect",
    "newcombe",
    "normal_quantile",
    "paired_difference",
    "patient_bootstrap",
    "proportion",
    "undefined",
    "wilson",
]

RESAMPLES = 2000
# Weights of one block of resamples: 4 million doubles, 32 MB, however many images there are.
_BLOCK = 4_000_000

# (scores (n,), labels (n,), weights (r, n)) -> (r,): the statistic of each weighting, NaN where it does not exist.
Statistic = Callable[[FloatArray, BoolArray, FloatArray], FloatArray]


def normal_quantile(level: float) -> float:
    """Half-width of a two-sided normal interval, in standard deviations: 1.96 at 0.95.

    Raises:
        UndefinedMetricError: the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise UndefinedMetricError(f"the level of an interval is {level}, not between 0 and 1")
    return float(special.ndtri((1 + level) / 2))


def undefined(reason: str, *, n: int, method: str, level: float | None = 0.95, seed: int | None = None) -> Interval:
    """The interval of a number that does not exist, with the reason."""
    return Interval(None, None, None, method, n, level, seed, reason)


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """A proportion and its score interval; for one image a patient.

    Args:
        successes: 0 to n; fractions are allowed, so that an effective number of images can be used.
        n: images.
        level: coverage, 0 to 1.
    Returns:
        The interval contains the proportion, stays in 0 to 1 and is undefined where n is 0.
    Raises:
        UndefinedMetricError: fewer than 0 or more than n successes.
    Source: Wilson 1927, J Am Stat Assoc 22:209.
    """
    z = normal_quantile(level)
    if not 0 <= successes <= n:
        raise UndefinedMetricError(f"{successes} of {n} is no proportion")
    if n == 0:
        return undefined("there is no image to take the proportion of", n=0, method="wilson", level=level)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n the formula gives 0 and 1 but for rounding.
    low = 0.0 if successes == 0 else max(0.0, min(p, centre - half))
    high = 1.0 if successes == n else min(1.0, max(p, centre + half))
    return Interval(p, low, high, "wilson", round(n), level)


def design_effect(values: npt.ArrayLike, groups: IntArray) -> float:
    """How many times larger the variance of a mean is because patients repeat.

    Args:
        values: a number an image, shape (n,).
        groups: patient numbers, shape (n,).
    Returns:
        At least 1, and exactly 1 where each image is a patient. Where all values are equal nothing can be estimated and
        the images of a patient count as one.
    Source: the ratio estimator of Rao & Scott 1992, Biometrics 48:577.
    """
    x = np.asarray(values, dtype=np.float64)
    n, m = len(x), int(groups.max()) + 1
    residuals = x - x.mean()
    within = float(residuals @ residuals)
    if m == n:
        return 1.0
    if m == 1 or within <= 1e-12 * n:
        return n / m
    between = float(np.square(np.bincount(groups, residuals)).sum())
    return max(1.0, (m / (m - 1) * between) / (n / (n - 1) * within))


def proportion(
    correct: npt.ArrayLike, patients: Sequence[str] | None, *, why: str = "there is no such image", level: float = 0.95
) -> Interval:
    """Share of images, by Wilson's interval with n divided by the design effect of repeated patients.

    Wilson's own interval is too narrow where a patient has several images; the design effect widens it and is named in
    `method`.

    Args:
        correct: True where the image counts, shape (n,).
        patients: a key an image; "" is a patient of its own; None where none is known.
        why: the reason to give where there is no image.
    Source: Wilson 1927 with the effective sample size of Rao & Scott 1992.
    """
    x = np.asarray(correct, dtype=np.bool_)
    n = len(x)
    groups = patient_numbers(patients, n)
    if n == 0:
        return undefined(why, n=0, method="wilson", level=level)
    effect = design_effect(x, groups)
    found = wilson(int(np.count_nonzero(x)) / effect, n / effect, level)
    return Interval(found.value, found.low, found.high, _named("wilson", effect), n, level)


def _named(method: str, effect: float) -> str:
    return method if effect == 1 else f"{method}, design effect {effect:.2f}"


def newcombe(successes_a: int, n_a: int, successes_b: int, n_b: int, level: float = 0.95) -> Interval:
    """Difference of two proportions of different images, a minus b.

    Returns:
        n is the images of both.
    Source: the hybrid score interval, method 10 of Newcombe 1998, Stat Med 17:873.
    """
    a, b = wilson(successes_a, n_a, level), wilson(successes_b, n_b, level)
    if a.value is None or b.value is None:
        return undefined("one side has no image", n=n_a + n_b, method="newcombe, unpaired", level=level)
    low, high = _square_and_add(a, b, 0.0)
    return Interval(a.value - b.value, low, high, "newcombe, unpaired", n_a + n_b, level)


def paired_difference(
    a_correct: npt.ArrayLike, b_correct: npt.ArrayLike, patients: Sequence[str] | None = None, level: float = 0.95
) -> Interval:
    """Difference of two proportions of the same images, a minus b.

    Args:
        a_correct, b_correct: True where an image is called correctly, shape (n,), in the same order.
        patients: a key an image; where they repeat all counts are divided by the design effect of the difference.
    Raises:
        UndefinedMetricError: no image, or not the same images.
    Source: method 10 of Newcombe 1998, Stat Med 17:2635, with its continuity-corrected phi.
    """
    x, b = checked(a_correct, b_correct)
    a = x.astype(np.bool_)
    effect = design_effect(x - b, patient_numbers(patients, len(b)))
    both, only_a, only_b, neither = (
        float(np.count_nonzero(cell)) / effect for cell in (a & b, a & ~b, ~a & b, ~a & ~b)
    )
    n = both + only_a + only_b + neither
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    product = both * neither - only_a * only_b
    if product > 0:
        product = max(product - n / 2, 0.0)
    phi = product / math.sqrt(margins) if margins > 0 else 0.0
    first, second = wilson(both + only_a, n, level), wilson(both + only_b, n, level)
    low, high = _square_and_add(first, second, phi)
    return Interval((only_a - only_b) / n, low, high, _named("newcombe, paired", effect), len(b), level)


def _square_and_add(a: Interval, b: Interval, phi: float) -> tuple[float, float]:
    """Ends of a minus b from the ends of each and their correlation."""
    if a.value is None or a.low is None or a.high is None or b.value is None or b.low is None or b.high is None:
        raise UndefinedMetricError("a difference needs two proportions that exist")
    down_a, up_a, down_b, up_b = a.value - a.low, a.high - a.value, b.value - b.low, b.high - b.value
    low = math.sqrt(max(0.0, down_a**2 - 2 * phi * down_a * up_b + up_b**2))
    high = math.sqrt(max(0.0, up_a**2 - 2 * phi * up_a * down_b + down_b**2))
    difference = a.value - b.value
    return max(-1.0, difference - low), min(1.0, difference + high)


def mean_of_two(a: Interval, b: Interval) -> Interval:
    """Mean of two shares of different images, with an interval from theirs: the distances to their ends, squared and added.

    Args:
        a, b: shares at one level; where one does not exist, neither does the mean, for the same reason.
    Source: Zou & Donner 2008, Statistics in Medicine 27:1693 (recovery of variance estimates); for a difference of Wilson
        intervals this is Newcombe's method.
    """
    n, method = a.n + b.n, "wilson, both labels"
    if a.value is None or b.value is None or b.low is None or b.high is None:
        return undefined(a.reason or b.reason, n=n, method=method, level=a.level)
    # The mean is half of a - (1 - b), and half of one.
    low, high = _square_and_add(a, dataclasses.replace(b, value=1 - b.value, low=1 - b.high, high=1 - b.low), 0)
    return Interval((a.value + b.value) / 2, (1 + low) / 2, (1 + high) / 2, method, n, a.level)


def patient_bootstrap(
    statistic: Statistic,
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: Sequence[str] | None,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
    why: str = "the statistic does not exist for these images",
) -> Interval:
    """Percentile interval of a statistic over draws of whole patients, with replacement.

    Percentile and not BCa: its ends are values that the statistic takes, it needs no jackknife, and at hundreds of
    patients the two differ by less than a tenth of their width. A draw without the statistic (no pneumonia in it, say)
    is dropped; where that is more than half of them, the interval is left out and the reason says so.

    Args:
        statistic: of scores (n,), labels (n,) and image weights (r, n), giving (r,); see `Statistic`.
        scores: what the statistic is of: scores, probabilities or decisions, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        patients: a key an image; "" is a patient of its own; None where none is known.
        resamples: draws.
        seed: of the draws.
        why: the reason to give where the statistic does not exist.
    Raises:
        UndefinedMetricError: see `inputs.checked`.
    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, sections 5.3 and 3.8 (draws of clusters).
    """
    x, y = checked(scores, labels)
    groups = patient_numbers(patients, len(x))
    value = float(statistic(x, y, np.ones((1, len(x))))[0])
    method = "patient bootstrap"
    if not math.isfinite(value):
        return undefined(why, n=len(x), method=method, level=level, seed=seed)
    drawn = _drawn(statistic, x, y, groups, resamples, seed)
    kept = drawn[np.isfinite(drawn)]
    if 2 * len(kept) < resamples:
        reason = f"the statistic exists in only {len(kept)} of {resamples} draws"
        return Interval(value, None, None, method, len(x), level, seed, reason)
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), method, len(x), level, seed)


def _drawn(
    statistic: Statistic, scores: FloatArray, labels: BoolArray, groups: IntArray, resamples: int, seed: int
) -> FloatArray:
    """The statistic of each draw, in blocks that bound the memory."""
    random = np.random.default_rng(seed)
    patients = int(groups.max()) + 1
    block = max(1, min(resamples, _BLOCK // len(scores)))
    found = []
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        draws = random.integers(0, patients, size=(rows, patients)) + patients * np.arange(rows)[:, None]
        times = np.bincount(draws.ravel(), minlength=rows * patients).reshape(rows, patients)
        found.append(statistic(scores, labels, times[:, groups].astype(np.float64)))
    return np.concatenate(found)

"""Confidence intervals of proportions and their differences, and the patient bootstrap for other statistics.

Images of one patient are not independent. For proportions, Wilson's interval is computed with the number of images
divided by the design effect. For other statistics, whole patients are resampled. With one image per patient both reduce
to the usual formula.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.statistics.inputs import BoolArray, FloatArray, IntArray, patient_groups, validate

__all__ = [
    "MIN_PATIENTS",
    "RESAMPLES",
    "WeightedStatistic",
    "WeightedStatistics",
    "design_effect",
    "difference",
    "effective_size",
    "mean_of_proportions",
    "newcombe",
    "normal_quantile",
    "paired_difference",
    "patient_bootstrap",
    "patient_bootstraps",
    "proportion",
    "too_few_of",
    "undefined",
    "wilson",
]

RESAMPLES = 2000
# The range of n independent values misses their median with probability 2^(1 - n), which is below 5% from n = 6. With
# fewer patients, no resampling of them can give a 95% interval.
MIN_PATIENTS = 6
# Weights per block of resamples: 4 million doubles, 32 MB, for any number of images.
_BLOCK = 4_000_000

# (scores (n,), labels (n,), weights (r, n)) -> (r,): the statistic for each row of image weights, NaN where undefined.
WeightedStatistic = Callable[[FloatArray, BoolArray, FloatArray], FloatArray]
# As above, with k statistics per row: result of shape (r, k).
WeightedStatistics = Callable[[FloatArray, BoolArray, FloatArray], FloatArray]


def normal_quantile(level: float) -> float:
    """Return the half-width of a two-sided normal interval in standard deviations: 1.96 for 0.95.

    Raises:
        UndefinedMetricError: The level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise UndefinedMetricError(f"the confidence level is {level}, not between 0 and 1")
    return float(special.ndtri((1 + level) / 2))


def undefined(reason: str, *, n: int, method: str, level: float | None = 0.95, seed: int | None = None) -> Interval:
    """Return the interval of an undefined statistic, with the reason."""
    return Interval(None, None, None, method, n, level, seed, reason)


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Return a proportion with its Wilson score interval, for one image per patient.

    Args:
        successes: 0 to n. Fractions are allowed, so that n can be an effective sample size.
        n: Number of images.
        level: Coverage, 0 to 1.

    Returns:
        The interval, which contains the proportion and stays within 0 to 1; undefined if n is 0.

    Raises:
        UndefinedMetricError: `successes` is not within 0 to n, or the level is not between 0 and 1.

    Source: Wilson 1927, J Am Stat Assoc 22:209.
    """
    z = normal_quantile(level)
    if not 0 <= successes <= n:
        raise UndefinedMetricError(f"{successes} of {n} is not a proportion")
    if n == 0:
        return undefined("there are no images", n=0, method="wilson", level=level)
    p = successes / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n the formula gives exactly 0 and 1, apart from rounding.
    low = 0.0 if successes == 0 else max(0.0, min(p, center - half_width))
    high = 1.0 if successes == n else min(1.0, max(p, center + half_width))
    return Interval(p, low, high, "wilson", round(n), level)


def design_effect(values: npt.ArrayLike, groups: IntArray) -> float:
    """Return the factor by which repeated patients increase the variance of a mean.

    Args:
        values: One number per image, shape (n,).
        groups: Patient numbers from `inputs.patient_groups`, shape (n,).

    Returns:
        At least 1, and exactly 1 with one image per patient. If all values are equal, the effect cannot be estimated,
        and the images of a patient count as one.

    Source: Ratio estimator of Rao & Scott 1992, Biometrics 48:577.
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


def effective_size(values: npt.ArrayLike, patients: Sequence[str] | None) -> int:
    """Return the effective sample size of the mean: n divided by the design effect.

    Args:
        values: One number per image, shape (n,), at least one.
        patients: One patient key per image, "" where unknown; None if all are unknown.
    """
    x = np.asarray(values, dtype=np.float64)
    return max(1, round(len(x) / design_effect(x, patient_groups(patients, len(x)))))


def proportion(
    correct: npt.ArrayLike,
    patients: Sequence[str] | None,
    *,
    reason: str = "there are no such images",
    level: float = 0.95,
) -> Interval:
    """Return the fraction of True values, with Wilson's interval adjusted for repeated patients.

    The interval uses n divided by the design effect, which `Interval.method` reports.

    Args:
        correct: True for images in the numerator, shape (n,).
        patients: One patient key per image, "" where unknown; None if all are unknown.
        reason: Reason of the undefined interval if there are no images.
        level: Coverage, 0 to 1.

    Raises:
        UndefinedMetricError: The number of patient keys is not n, or the level is not between 0 and 1.

    Source: Wilson 1927 with the effective sample size of Rao & Scott 1992.
    """
    x = np.asarray(correct, dtype=np.bool_)
    n = len(x)
    groups = patient_groups(patients, n)
    if n == 0:
        return undefined(reason, n=0, method="wilson", level=level)
    effect = design_effect(x, groups)
    interval = wilson(int(np.count_nonzero(x)) / effect, n / effect, level)
    return dataclasses.replace(interval, method=_with_design_effect("wilson", effect), n=n)


def _with_design_effect(method: str, effect: float) -> str:
    return method if effect == 1 else f"{method}, design effect {effect:.2f}"


def newcombe(successes_a: int, n_a: int, successes_b: int, n_b: int, level: float = 0.95) -> Interval:
    """Return the difference of two proportions on different images, a minus b.

    Args:
        successes_a, successes_b: 0 to `n_a` and 0 to `n_b`.
        n_a, n_b: Numbers of images; the interval reports their sum.
        level: Coverage, 0 to 1.

    Raises:
        UndefinedMetricError: See `wilson`.

    Source: Hybrid score interval, method 10 of Newcombe 1998, Stat Med 17:873.
    """
    return difference(wilson(successes_a, n_a, level), wilson(successes_b, n_b, level))


def difference(a: Interval, b: Interval, method: str = "newcombe, unpaired") -> Interval:
    """Return the difference of two proportions on different images, a minus b, from their intervals.

    Args:
        a, b: Proportions with Wilson's intervals at the same level, as from `wilson` or `proportion`; or other values
            from 0 to 1 with possibly asymmetric intervals, such as AUROCs.
        method: Name of the method.

    Source: Newcombe's hybrid score interval (see `newcombe`); for intervals adjusted for repeated patients, Zou &
    Donner 2008, Stat Med 27:1693.
    """
    n = a.n + b.n
    if a.value is None or b.value is None:
        return undefined("one side has no images", n=n, method=method, level=a.level)
    low, high = _newcombe_limits(a, b, 0.0)
    return Interval(a.value - b.value, low, high, method, n, a.level)


def paired_difference(
    a_correct: npt.ArrayLike, b_correct: npt.ArrayLike, patients: Sequence[str] | None = None, level: float = 0.95
) -> Interval:
    """Return the difference of two proportions on the same images, a minus b.

    Args:
        a_correct, b_correct: True where an image is classified correctly, shape (n,), in the same order.
        patients: One patient key per image, "" where unknown. If patients repeat, all counts are divided by the design
            effect of the difference.
        level: Coverage, 0 to 1.

    Raises:
        UndefinedMetricError: There are no images, or the shapes differ.

    Source: Method 10 of Newcombe 1998, Stat Med 17:2635, with its continuity-corrected phi.
    """
    x, b = validate(a_correct, b_correct)
    a = x.astype(np.bool_)
    effect = design_effect(x - b, patient_groups(patients, len(b)))
    both, only_a, only_b, neither = (
        float(np.count_nonzero(cell)) / effect for cell in (a & b, a & ~b, ~a & b, ~a & ~b)
    )
    n = both + only_a + only_b + neither
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    product = both * neither - only_a * only_b
    if product > 0:
        product = max(product - n / 2, 0.0)
    phi = product / math.sqrt(margins) if margins > 0 else 0.0
    low, high = _newcombe_limits(wilson(both + only_a, n, level), wilson(both + only_b, n, level), phi)
    method = _with_design_effect("newcombe, paired", effect)
    return Interval((only_a - only_b) / n, low, high, method, len(b), level)


def _newcombe_limits(a: Interval, b: Interval, phi: float) -> tuple[float, float]:
    """Return the limits of a minus b from the limits of each proportion and their correlation."""
    if a.value is None or a.low is None or a.high is None or b.value is None or b.low is None or b.high is None:
        raise UndefinedMetricError("the difference of two proportions needs two that are defined")
    down_a, up_a, down_b, up_b = a.value - a.low, a.high - a.value, b.value - b.low, b.high - b.value
    low = math.sqrt(max(0.0, down_a**2 - 2 * phi * down_a * up_b + up_b**2))
    high = math.sqrt(max(0.0, up_a**2 - 2 * phi * up_a * down_b + down_b**2))
    difference = a.value - b.value
    return max(-1.0, difference - low), min(1.0, difference + high)


def mean_of_proportions(a: Interval, b: Interval) -> Interval:
    """Return the mean of two proportions on different images.

    Args:
        a, b: Proportions at the same level. If one is undefined, so is the mean, for the same reason.

    Source: Method of variance estimates recovery, Zou & Donner 2008, Stat Med 27:1693; for a difference of Wilson
    intervals this is Newcombe's method.
    """
    n, method = a.n + b.n, "wilson, both labels"
    if a.value is None or b.value is None or b.low is None or b.high is None:
        return undefined(a.reason or b.reason, n=n, method=method, level=a.level)
    # The mean is half of a - (1 - b), plus one half.
    low, high = _newcombe_limits(a, dataclasses.replace(b, value=1 - b.value, low=1 - b.high, high=1 - b.low), 0)
    return Interval((a.value + b.value) / 2, (1 + low) / 2, (1 + high) / 2, method, n, a.level)


def patient_bootstrap(
    statistic: WeightedStatistic,
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: Sequence[str] | None,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
    reason: str = "the statistic is undefined for these images",
    by_label: bool = False,
) -> Interval:
    """Return a statistic with its percentile interval over resamples of whole patients, with replacement.

    The percentile interval is preferred to BCa: its limits are values of the statistic, it needs no jackknife, and with
    hundreds of patients the two differ by less than a tenth of their width. Resamples in which the statistic is
    undefined, such as those without pneumonia, are discarded. The interval is omitted, with the reason, if more than
    half are discarded, if there are fewer than `MIN_PATIENTS` patients, or if the statistic is the same in all
    resamples, such as the AUPRC of perfectly separated labels: resampling cannot produce an error that no image shows.

    Args:
        statistic: Function of scores, labels and image weights; see `WeightedStatistic`.
        scores: Scores, probabilities or decisions, shape (n,).
        labels: True where pneumonia is present, shape (n,).
        patients: One patient key per image, "" where unknown; None if all are unknown.
        resamples: Number of resamples.
        level: Coverage, 0 to 1.
        seed: Seed of the resamples.
        reason: Reason of the undefined interval if the statistic is undefined for the original images.
        by_label: True if the statistic compares the labels, like the AUPRC: `MIN_PATIENTS` then applies to each label.

    Raises:
        UndefinedMetricError: See `inputs.validate`.

    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, sections 5.3 (percentile) and 3.8
    (clusters).
    """

    def each(x: FloatArray, y: BoolArray, weights: FloatArray) -> FloatArray:
        return statistic(x, y, weights)[:, None]

    return patient_bootstraps(
        each, scores, labels, patients, resamples=resamples, level=level, seed=seed, reason=reason, by_label=by_label
    )[0]


def patient_bootstraps(
    statistics: WeightedStatistics,
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: Sequence[str] | None,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
    reason: str = "the statistic is undefined for these images",
    by_label: bool = False,
) -> list[Interval]:
    """Return several statistics with intervals as in `patient_bootstrap`, from the same resamples.

    Args:
        statistics: Function of scores, labels and image weights; see `WeightedStatistics`.
        scores, labels, patients, resamples, level, seed, reason, by_label: See `patient_bootstrap`.

    Raises:
        UndefinedMetricError: See `inputs.validate`.
    """
    x, y = validate(scores, labels)
    groups = patient_groups(patients, len(x))
    values = statistics(x, y, np.ones((1, len(x))))[0].tolist()
    method, n = "patient bootstrap", len(x)
    few_patients = _too_few_patients(groups, y, by_label=by_label)
    # Undefined statistics are not resampled, because a regression without a solution takes long to fail.
    is_resampled = not few_patients and any(map(math.isfinite, values))
    resampled = _resample(statistics, x, y, groups, resamples, seed) if is_resampled else None
    intervals = []
    for index, value in enumerate(values):
        if not math.isfinite(value):
            intervals.append(undefined(reason, n=n, method=method, level=level, seed=seed))
            continue
        if resampled is None:
            intervals.append(Interval(value, None, None, method, n, level, seed, few_patients))
            continue
        defined = resampled[np.isfinite(resampled[:, index]), index]
        if 2 * len(defined) < resamples:
            few = f"the statistic is defined in only {len(defined)} of {resamples} resamples"
            intervals.append(Interval(value, None, None, method, n, level, seed, few))
            continue
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]).tolist()
        if high - low <= 1e-12 * max(1.0, abs(value)):
            intervals.append(Interval(value, None, None, method, n, level, seed, "it is the same in all resamples"))
            continue
        intervals.append(Interval(value, low, high, method, n, level, seed))
    return intervals


def too_few_of(count: int, group: str, purpose: str) -> str:
    """Return why `count` patients of a group, such as "the class virus", are too few for a purpose; "" if enough."""
    if count >= MIN_PATIENTS:
        return ""
    which = f"1 patient of {group} is" if count == 1 else f"{count} patients of {group} are"
    return f"{which} too few for {purpose}, which needs {MIN_PATIENTS} of each"


def _too_few_patients(groups: IntArray, labels: BoolArray, *, by_label: bool) -> str:
    """Return why there are too few patients for a bootstrap; "" if there are enough."""
    n_patients = int(groups.max()) + 1
    if n_patients == 1:
        return "all images are of one patient"
    if n_patients < MIN_PATIENTS:
        return f"{n_patients} patients are too few for a bootstrap, which needs {MIN_PATIENTS}"
    by_side = [len(np.unique(groups[side])) for side in (labels, ~labels) if by_label and side.any()]
    return too_few_of(min(by_side), "one label", "a bootstrap") if by_side else ""


def _resample(
    statistics: WeightedStatistics, scores: FloatArray, labels: BoolArray, groups: IntArray, resamples: int, seed: int
) -> FloatArray:
    """Return the k statistics of each resample, shape (resamples, k), in blocks that bound the memory."""
    random = np.random.default_rng(seed)
    patients = int(groups.max()) + 1
    block = max(1, min(resamples, _BLOCK // len(scores)))
    values = []
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        draws = random.integers(0, patients, size=(rows, patients)) + patients * np.arange(rows)[:, None]
        counts = np.bincount(draws.ravel(), minlength=rows * patients).reshape(rows, patients)
        values.append(statistics(scores, labels, counts[:, groups].astype(np.float64)))
    return np.concatenate(values)

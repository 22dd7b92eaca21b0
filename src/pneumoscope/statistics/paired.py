"""Is one network better than another on the same images? Paired tests, and the correction for asking often."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.results import Interval
from pneumoscope.statistics.inputs import checked, patient_numbers
from pneumoscope.statistics.intervals import normal_quantile
from pneumoscope.statistics.roc import delong_covariance

__all__ = ["delong_test", "holm", "mcnemar_exact"]


def mcnemar_exact(
    a_correct: npt.ArrayLike, b_correct: npt.ArrayLike, patients: Sequence[str] | None = None
) -> float | None:
    """Two-sided p that two networks are right equally often.

    If they are, each patient's lead (images that only a gets right less images that only b does) is as likely the other
    way round. The chance of a total lead at least as large is summed over all 2^k such turns, exactly. With an image a
    patient that is McNemar's exact (binomial) test; where patients repeat it keeps their images together, as the plain
    test does not.

    Args:
        a_correct, b_correct: True where an image is called correctly, shape (n,), in the same order.
        patients: a key an image; "" is a patient of its own.
    Returns:
        None where no patient has a lead: nothing speaks for either.
    Raises:
        UndefinedMetricError: no image, or not the same images.
    Source: McNemar 1947, Psychometrika 12:153; exact sign-change test, Pitman 1937.
    """
    a, b = checked(a_correct, b_correct)
    leads = np.bincount(patient_numbers(patients, len(a)), a - b)
    steps = np.abs(leads[leads != 0]).astype(np.int64)
    if not len(steps):
        return None
    reach = int(steps.sum())
    chance = np.zeros(2 * reach + 1)  # of a total lead of -reach ... reach
    chance[reach] = 1.0
    for step in steps:
        chance = (np.roll(chance, step) + np.roll(chance, -step)) / 2  # nothing wraps: reach is the sum of all steps
    total = abs(round(float(leads.sum())))
    at_least = np.abs(np.arange(-reach, reach + 1)) >= total
    return min(1.0, float(chance[at_least].sum()))


def delong_test(
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: Sequence[str] | None = None,
    level: float = 0.95,
) -> tuple[Interval, float | None]:
    """Difference of two AUROCs on the same images, a minus b, and the two-sided p that there is none.

    Args:
        scores_a, scores_b: shape (n,), in the same order.
        labels: True where pneumonia is present, shape (n,).
        patients: a key an image; images of one patient may be correlated.
    Returns:
        The difference with a normal interval, and p: None, and no interval, where the two rank alike and so have no
        variance.
    Raises:
        UndefinedMetricError: a class has fewer than 2 patients, or not the same images.
    Source: as `roc.delong_covariance`.
    """
    a, y = checked(scores_a, labels)
    b, _ = checked(scores_b, labels)
    groups = patient_numbers(patients, len(a))
    method = "delong" if len(np.unique(groups)) == len(a) else "delong by patient"
    area, covariance = delong_covariance(np.stack([a, b]), y, groups)
    difference = float(area[0] - area[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance <= 1e-15:
        return Interval(difference, None, None, method, len(a), level, None, "the two rank the images alike"), None
    deviation = math.sqrt(variance)
    half = normal_quantile(level) * deviation
    interval = Interval(difference, max(-1.0, difference - half), min(1.0, difference + half), method, len(a), level)
    return interval, float(2 * special.ndtr(-abs(difference) / deviation))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values corrected for their number, in the order given. None is no test: it passes through and is not counted.

    Raises:
        UndefinedMetricError: a p outside 0 to 1.
    Source: Holm 1979, Scand J Stat 6:65.
    """
    tests = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(tests):
        if not 0 <= p <= 1:
            raise UndefinedMetricError(f"p value {place + 1} is {p}, not between 0 and 1")
        largest = max(largest, min(1.0, (len(tests) - rank) * p))
        corrected[place] = largest
    return corrected

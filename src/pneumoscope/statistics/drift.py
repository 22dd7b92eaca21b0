"""Data drift: compare recent images with reference images, by their values or by the deciles of their scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.statistics.multiple_testing import holm

__all__ = ["MIN_IMAGES", "Drift", "DriftTest", "detect_drift", "measure_drift"]

MIN_IMAGES = 50  # fewer could only reveal very large changes
_DRAWS = 4000
_TENTHS = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Drift:
    """Recent images by tenths of the reference distribution.

    Attributes:
        counts: Images in each tenth of the reference distribution, lowest first; about n / 10 each without drift.
        n: Number of images.
        difference: Total variation distance, 0 to 0.9: the fraction of images that would have to move to make the
            tenths equal.
        chance: 95th percentile of the difference without drift.
        seed: Seed of the simulation of `chance`.
    """

    counts: tuple[int, ...]
    n: int
    difference: float
    chance: float
    seed: int


@dataclasses.dataclass(frozen=True, slots=True)
class DriftTest:
    """Comparison of one quantity between recent and reference images.

    Attributes:
        name: "rejected" or the name of the quantity.
        reference, recent: Median (for "rejected", the fraction) of the reference images and the recent images.
        n_reference, n_recent: Numbers of images.
        p_value: Before correction.
        adjusted: Corrected for the number of tests.
        alarm: True if `adjusted` is at most the probability of a false alarm per check.
    """

    name: str
    reference: float
    recent: float
    n_reference: int
    n_recent: int
    p_value: float
    adjusted: float
    alarm: bool


def detect_drift(
    reference: Mapping[str, Sequence[float]],
    recent: Mapping[str, Sequence[float]],
    *,
    rejected: tuple[int, int],
    images: tuple[int, int],
    false_alarms: float,
) -> tuple[DriftTest, ...]:
    """Return one test per quantity with at least `MIN_IMAGES` recent values, and the test of rejections.

    Each quantity is compared by a two-sample Kolmogorov-Smirnov test, rejections by Fisher's exact test. Holm's
    correction limits the probability of a false alarm over all tests.

    Args:
        reference, recent: Values of each quantity, by name, one per image.
        rejected, images: Number of rejected images and of all images, each as (reference, recent).
        false_alarms: Probability of a false alarm.

    Source: Smirnov 1939 (two-sample test); Fisher 1922 (exact test).
    """
    from scipy import stats  # deferred: slow, and the service starts without it

    p_values: dict[str, float] = {}
    compared: dict[str, tuple[float, float, int, int]] = {}
    for name, expected in reference.items():
        found = recent.get(name, ())
        if len(expected) and len(found) >= MIN_IMAGES:  # rejected images have no score
            p_values[name] = float(stats.ks_2samp(expected, found, method="asymp").pvalue)
            compared[name] = (float(np.median(expected)), float(np.median(found)), len(expected), len(found))
    table = [[count, total - count] for count, total in zip(rejected, images, strict=True)]
    p_values["rejected"] = float(stats.fisher_exact(table).pvalue)
    compared["rejected"] = (rejected[0] / images[0], rejected[1] / images[1], *images)
    return tuple(
        DriftTest(name, *compared[name], p_value, adjusted, adjusted <= false_alarms)
        for (name, p_value), adjusted in zip(p_values.items(), holm(list(p_values.values())), strict=True)
    )


def measure_drift(probabilities: npt.ArrayLike, deciles: Sequence[float], n_reference: int, *, seed: int = 0) -> Drift:
    """Return the difference of recent images from the reference distribution, and the difference expected by chance.

    The images are assumed to be independent; repeated patients make chance differences larger.

    Args:
        probabilities: Probabilities of recent images, 0 to 1, shape (n,).
        deciles: The nine deciles of the reference distribution, in ascending order.
        n_reference: Number of images from which the deciles were computed, which determines their sampling error.
        seed: Seed of the simulation.

    Raises:
        UndefinedMetricError: There are fewer than `MIN_IMAGES` images, or the deciles are not nine ascending numbers.

    Source: The probabilities between neighboring order statistics have a Dirichlet distribution (Wilks 1962,
    Mathematical Statistics, section 7.7); the counts in them are multinomial.
    """
    x, edges = np.asarray(probabilities, dtype=np.float64), np.asarray(deciles, dtype=np.float64)
    if edges.shape != (_TENTHS - 1,) or not (np.diff(edges) >= 0).all():
        raise UndefinedMetricError(f"deciles must be nine ascending numbers, not {list(deciles)}")
    if len(x) < MIN_IMAGES:
        raise UndefinedMetricError(f"drift needs at least {MIN_IMAGES} images; there are {len(x)}")
    counts = np.bincount(np.searchsorted(edges, x, side="right"), minlength=_TENTHS)
    random = np.random.default_rng(seed)
    fractions = random.dirichlet(np.full(_TENTHS, (n_reference + 1) / _TENTHS), _DRAWS)
    simulated = random.multinomial(len(x), fractions)
    return Drift(
        counts=tuple(counts.tolist()),
        n=len(x),
        difference=float(_total_variation(counts)),
        chance=float(np.quantile(_total_variation(simulated), 0.95)),
        seed=seed,
    )


def _total_variation(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the total variation distance of counts from equal counts, over the last axis."""
    n = counts.sum(axis=-1, keepdims=True)
    return np.asarray(np.abs(counts / n - 1 / _TENTHS).sum(axis=-1) / 2)

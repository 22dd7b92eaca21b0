"""Data drift: comparison of recent scores with the deciles of a reference distribution."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UndefinedMetricError

__all__ = ["MIN_IMAGES", "Drift", "measure_drift"]

MIN_IMAGES = 50  # with fewer images, chance alone makes a large difference
_DRAWS = 4000
_TENTHS = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Drift:
    """Recent images by tenths of the reference distribution.

    Attributes:
        counts: Images in each tenth of the reference distribution, lowest first. Without drift each has about n / 10.
        n: Number of images.
        difference: Total variation distance, 0 to 0.9: the fraction of images that would have to move for the tenths to
            be equal.
        chance: 95th percentile of the difference without drift.
        seed: Seed of the simulation behind `chance`.
    """

    counts: tuple[int, ...]
    n: int
    difference: float
    chance: float
    seed: int


def measure_drift(probabilities: npt.ArrayLike, deciles: Sequence[float], n_reference: int, *, seed: int = 0) -> Drift:
    """Return the difference of recent images from the reference distribution, and the difference expected by chance.

    The images are taken to be independent. Where patients repeat, chance makes larger differences.

    Args:
        probabilities: Probabilities of recent images, 0 to 1, shape (n,).
        deciles: The nine deciles of the reference distribution, in ascending order.
        n_reference: Number of images behind the deciles, which vary by chance as well.
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

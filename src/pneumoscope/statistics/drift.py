"""Whether the images of today are spread over the scale as those were that a model was set with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import UndefinedMetricError

__all__ = ["LEAST", "Drift", "drift"]

LEAST = 50  # images: fewer say nothing
_DRAWS = 4000
_TENTHS = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Drift:
    """Images of today against tenths of the reference.

    Attributes:
        counts: images in each tenth of the reference, lowest first; alike, each holds about a tenth.
        n: images.
        difference: share of images that would have to lie elsewhere for each tenth to hold as many, 0 to 0.9 (the total variation
            distance).
        chance: what the difference stays below in 95 of 100 draws when nothing but chance makes it.
        seed: of the draws.
    """

    counts: tuple[int, ...]
    n: int
    difference: float
    chance: float
    seed: int


def drift(probabilities: npt.ArrayLike, deciles: Sequence[float], reference: int, *, seed: int = 0) -> Drift:
    """Compare images with a reference of which only the deciles are known.

    Args:
        probabilities: of today's images, shape (n,), 0 to 1.
        deciles: the nine values that cut the reference into tenths, rising.
        reference: images that these came from; they are a sample themselves, and chance moved them, too.
        seed: of the draws.
    Raises:
        UndefinedMetricError: fewer than `LEAST` images, or deciles that are no nine rising numbers.
    Source: the share of a population between neighbouring order statistics of a sample is Dirichlet distributed (Wilks 1962);
        images fall into such shares as a multinomial. Images are taken as independent: where patients repeat, chance does more.
    """
    x, cuts = np.asarray(probabilities, dtype=np.float64), np.asarray(deciles, dtype=np.float64)
    if cuts.shape != (_TENTHS - 1,) or not (np.diff(cuts) >= 0).all():
        raise UndefinedMetricError(f"deciles are nine rising numbers; these are {list(deciles)}")
    if len(x) < LEAST:
        raise UndefinedMetricError(f"{len(x)} images say nothing of a drift; {LEAST} are the least")
    counts = np.bincount(np.searchsorted(cuts, x, side="right"), minlength=_TENTHS)
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.full(_TENTHS, (reference + 1) / _TENTHS), _DRAWS)
    drawn = random.multinomial(len(x), shares)
    return Drift(
        counts=tuple(counts.tolist()),
        n=len(x),
        difference=float(_distance(counts)),
        chance=float(np.quantile(_distance(drawn), 0.95)),
        seed=seed,
    )


def _distance(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    n = counts.sum(axis=-1, keepdims=True)
    found: npt.NDArray[np.float64] = np.abs(counts / n - 1 / _TENTHS).sum(axis=-1) / 2
    return found

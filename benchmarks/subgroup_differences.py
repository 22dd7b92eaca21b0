"""Measure intervals and tests of AUROCs of different images where a label is rare.

Images have normal scores of variance 1, and one image per patient. The first table shows the coverage of the interval of the
difference between two sets with the same AUROC, as `evaluate --reference` computes it, and of a normal interval with DeLong's
variances. The second shows the coverage for the macro AUROC of three classes. The third shows how often Cochran's Q, the test of
interaction of `evaluate --by`, has p < 0.05 for three groups with the same AUROC.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.statistics.heterogeneity import (
    auroc_heterogeneity,
    unpaired_area_difference,
    unpaired_auroc_difference,
)
from pneumoscope.statistics.multiclass_paired import macro_auroc_area
from pneumoscope.statistics.roc import delong_covariance

FloatArray = npt.NDArray[np.float64]
Group = tuple[FloatArray, npt.NDArray[np.bool_], list[str]]

COMMON = 60  # images of each label that is not rare
CLASSES = ("a", "b", "c")
SIGNIFICANT = 0.05


def draw_group(random: np.random.Generator, rare: int, area: float) -> Group:
    """Return scores, labels and unknown patients of a set with a rare positive label.

    Args:
        random: The generator.
        rare: Number of images with the label True; `COMMON` have the label False.
        area: Expected AUROC, 0.5 to 1.
    """
    labels = np.repeat([True, False], [rare, COMMON])
    distance = np.sqrt(2) * stats.norm.ppf(area)
    return random.normal(size=len(labels)) + distance * labels, labels, [""] * len(labels)


def two_label_coverage(rare: int, area: float, draws: int, seed: int) -> tuple[float, float]:
    """Return how often the interval of the difference, and a normal interval, contain 0.

    Args:
        rare: Number of images of the rare label in the first set.
        area: AUROC of both sets.
        draws: Number of simulated pairs of sets.
        seed: Seed.
    """
    random, covered = np.random.default_rng(seed), np.zeros(2, dtype=np.int64)
    for _ in range(draws):
        a, b = draw_group(random, rare, area), draw_group(random, COMMON, area)
        covered += _contains_0(unpaired_auroc_difference(a, b)), _normal_contains_0(a, b)
    mover, normal = (covered / draws).tolist()
    return mover, normal


def three_class_coverage(rare: int, area: float, draws: int, seed: int) -> float:
    """Return how often the interval of a difference in macro AUROC contains 0; see `two_label_coverage`."""
    random, covered = np.random.default_rng(seed), 0
    distance = np.sqrt(2) * stats.norm.ppf(area)
    for _ in range(draws):
        areas = []
        for count in (rare, COMMON):
            targets = np.repeat([0, 1, 2], [COMMON, COMMON, count])
            scores = random.normal(size=(len(targets), len(CLASSES))) + distance * np.eye(len(CLASSES))[targets]
            areas.append(macro_auroc_area(scores, targets, CLASSES))
        covered += _contains_0(unpaired_area_difference(*areas))
    return covered / draws


def false_positive_rate(rare: int, area: float, draws: int, seed: int) -> float:
    """Return how often Cochran's Q of three groups, one with a rare label, has p < 0.05. An undefined test is not significant."""
    random, significant = np.random.default_rng(seed), 0
    for _ in range(draws):
        groups = [draw_group(random, count, area) for count in (rare, COMMON, COMMON)]
        try:
            significant += auroc_heterogeneity(groups) < SIGNIFICANT
        except UndefinedMetricError:
            continue
    return significant / draws


def _contains_0(interval: Interval) -> bool:
    # Without an end, an interval excludes no value.
    return interval.low is None or interval.high is None or interval.low <= 0 <= interval.high


def _normal_contains_0(a: Group, b: Group) -> bool:
    areas, variances = zip(*(_area(group) for group in (a, b)), strict=True)
    return bool(abs(areas[0] - areas[1]) <= stats.norm.ppf(0.975) * np.sqrt(sum(variances)))


def _area(group: Group) -> tuple[float, float]:
    scores, labels, _ = group
    areas, covariance = delong_covariance(scores[None], labels, np.arange(len(labels)))
    return float(areas[0]), float(covariance[0, 0])


def _rows(options: argparse.Namespace) -> Iterator[str]:
    head = [f"AUROC {area:.2f}" for area in options.areas]
    common = (options.draws, options.seed)
    yield _row("images of the rare label", [f"{name}{kind}" for name in head for kind in ("", ", normal")])
    yield "|" + (2 * len(head) + 1) * " --- |"
    for rare in options.rare:
        yield _row(rare, [f"{rate:.1%}" for area in options.areas for rate in two_label_coverage(rare, area, *common)])
    for title, rate in (("rare class", three_class_coverage), ("rare label, Cochran's Q", false_positive_rate)):
        yield ""
        yield _row(f"images of the {title}", head)
        yield "|" + (len(head) + 1) * " --- |"
        for rare in options.rare:
            yield _row(rare, [f"{rate(rare, area, *common):.1%}" for area in options.areas])


def _row(first: object, cells: Sequence[str]) -> str:
    return f"| {first} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rare", type=int, nargs="+", default=[6, 10, 20, 60])
    parser.add_argument("--areas", type=float, nargs="+", default=[0.7, 0.85, 0.95])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=18)
    for row in _rows(parser.parse_args(arguments)):
        print(row, flush=True)


if __name__ == "__main__":
    main()

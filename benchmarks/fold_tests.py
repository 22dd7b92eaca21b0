"""Measure how often tests over the folds of a cross-validation find a difference that is not there.

Two recipes of equal expected accuracy are simulated: the same linear classifier on two different, equally informative sets of
features. For each number of images and folds, the table states the share of p values below 0.05 of the corrected t test that
`compare` uses, of the paired t test of the folds, and of McNemar's test of the pooled predictions; and how often the corrected
interval of a mean contains the expected accuracy of a network trained on so many images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.model_selection import StratifiedKFold

from pneumoscope.statistics.resampled import folds_difference, folds_mean

FloatArray = npt.NDArray[np.float64]

SHIFT = 0.25  # difference of the means of each feature between the classes, in standard deviations
FEATURES = 20  # of each recipe
SIGNIFICANT = 0.05


class Rates(NamedTuple):
    """Fractions of the repeats.

    Attributes:
        corrected, paired_t, mcnemar: False alarms of each test.
        coverage: Intervals of the mean that contain the expected accuracy.
    """

    corrected: float
    paired_t: float
    mcnemar: float
    coverage: float


def simulate(n: int, folds: int, repeats: int, seed: int) -> Rates:
    """Return the rates of one number of images and folds.

    Args:
        n: Number of images, half of each class.
        folds: Number of folds.
        repeats: Number of simulated cross-validations.
        seed: Seed of the images; the division into folds has the number of the repeat.
    """
    generator, y, ratio = np.random.default_rng(seed), np.arange(n) < n // 2, 1 / (folds - 1)
    alarms = np.zeros(3, dtype=np.int64)
    truths, intervals = [], []
    for repeat in range(repeats):
        x = generator.normal(size=(n, 2 * FEATURES))
        x[y] += SHIFT
        accuracies, correct = np.zeros((2, folds)), np.zeros((2, n), dtype=bool)
        for fold, (train, test) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=repeat).split(x, y)):
            for recipe, columns in enumerate((slice(FEATURES), slice(FEATURES, 2 * FEATURES))):
                weights, constant = fit_classifier(x[train, columns], y[train])
                correct[recipe, test] = (x[test, columns] @ weights + constant > 0) == y[test]
                accuracies[recipe, fold] = correct[recipe, test].mean()
                truths.append(expected_accuracy(weights, constant))
        alarms += _significant(accuracies, correct, ratio)
        intervals.append(folds_mean(accuracies[0], ratio, n=n))
    truth = float(np.mean(truths))
    covered = sum(
        each.low is None or each.high is None or each.low <= truth <= each.high for each in intervals
    )  # without an end, an interval excludes nothing
    return Rates(*(alarms / repeats).tolist(), covered / repeats)


def _significant(accuracies: FloatArray, correct: npt.NDArray[np.bool_], ratio: float) -> list[bool]:
    """Return for each test whether its p is below 0.05."""
    _, p = folds_difference(*accuracies, ratio, n=correct.shape[1])
    differs = bool(np.ptp(accuracies[0] - accuracies[1]))
    only = [int((correct[i] & ~correct[1 - i]).sum()) for i in (0, 1)]
    return [
        p is not None and p < SIGNIFICANT,
        differs and float(stats.ttest_rel(*accuracies).pvalue) < SIGNIFICANT,
        sum(only) > 0 and float(stats.binomtest(only[0], sum(only)).pvalue) < SIGNIFICANT,
    ]


def fit_classifier(x: FloatArray, y: npt.NDArray[np.bool_]) -> tuple[FloatArray, float]:
    """Return the weights and the constant of Fisher's discriminant with a ridge."""
    means = [x[y == label].mean(axis=0) for label in (True, False)]
    within = x - np.where(y[:, None], *means)
    weights = np.linalg.solve(within.T @ within / len(x) + np.eye(x.shape[1]), means[0] - means[1])
    return weights, float(-weights @ (means[0] + means[1]) / 2)


def expected_accuracy(weights: FloatArray, constant: float) -> float:
    """Return the accuracy of a classifier on infinitely many images."""
    length = np.linalg.norm(weights)
    return float((stats.norm.cdf(-constant / length) + stats.norm.cdf((SHIFT * weights.sum() + constant) / length)) / 2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--folds", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--repeats", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print("| images | folds | corrected t test | paired t test | McNemar, pooled | coverage |\n|" + 6 * " --- |")
    for n in options.images:
        for folds in options.folds:
            rates = simulate(n, folds, options.repeats, options.seed)
            print(f"| {n} | {folds} | " + " | ".join(f"{rate:.1%}" for rate in rates) + " |", flush=True)


if __name__ == "__main__":
    main()

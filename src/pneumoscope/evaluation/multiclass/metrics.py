"""Metrics of scored multiclass images, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from pneumoscope.core.interval import Interval
from pneumoscope.core.multiclass_results import ClassPair, ClassResult, MulticlassScoredImage
from pneumoscope.statistics.calibration import reliability_bins
from pneumoscope.statistics.inputs import BoolArray, FloatArray, IntArray
from pneumoscope.statistics.multiclass import (
    class_metrics,
    confusion_matrix,
    overall_metrics,
    pair_metrics,
    set_metrics,
)

__all__ = ["ClassScores", "MulticlassMetrics", "class_scores", "multiclass_metrics"]

# Metrics that the fitted temperature improves. It does not change the predicted class and hardly changes the ranking.
_CALIBRATED = {
    "brier",
    "log_loss",
    "expected_calibration_error",
    "calibration_slope",
    "calibration_intercept",
    "observed_expected_ratio",
}


class ClassScores(NamedTuple):
    """Scored images as arrays.

    Attributes:
        probabilities: Shape (n, K).
        targets: Class index of each image, shape (n,).
        predicted: Index of the predicted class, shape (n,).
        patients: Patient identifier of each image.
    """

    probabilities: FloatArray
    targets: IntArray
    predicted: IntArray
    patients: tuple[str, ...]


class MulticlassMetrics(NamedTuple):
    """Metrics of an evaluation; see `MulticlassEvaluation`."""

    metrics: Mapping[str, Interval]
    confusion: tuple[tuple[int, ...], ...]
    by_class: Mapping[str, ClassResult]
    pairs: tuple[ClassPair, ...]
    sets: Mapping[str, Interval]


def class_scores(images: Sequence[MulticlassScoredImage], classes: Sequence[str]) -> ClassScores:
    """Return scored images as arrays.

    Args:
        images: The images; their labels are among the classes.
        classes: Names of the classes.
    """
    return ClassScores(
        np.array([image.probabilities for image in images], dtype=np.float64),
        np.array([classes.index(image.label) for image in images], dtype=np.int64),
        np.array([classes.index(image.predicted) for image in images], dtype=np.int64),
        tuple(image.patient for image in images),
    )


def multiclass_metrics(
    images: Sequence[MulticlassScoredImage], classes: Sequence[str], *, seed: int, fitted: int = 0
) -> MulticlassMetrics:
    """Return the metrics of scored images.

    Args:
        images: The images; at least one.
        classes: Names of the classes.
        seed: Seed of the bootstraps.
        fitted: Number of images used to fit calibration and prediction sets. If above 0, the metrics of these are
            undefined, and there are no reliability bins.
    """
    scores = class_scores(images, classes)
    p, y, patients = scores.probabilities, scores.targets, scores.patients
    sets = _sets(images, classes)
    confusion = confusion_matrix(y, scores.predicted, len(classes))
    by_class = {}
    for index, name in enumerate(classes):
        members = np.flatnonzero(y == index)
        of_class: Mapping[str, Interval] = {}
        if sets is not None and len(members):
            of_class = set_metrics(sets[members], y[members], [patients[i] for i in members.tolist()], seed=seed)
        by_class[name] = ClassResult(
            n=len(members),
            metrics=class_metrics(p, y, index, name, patients, seed=seed),
            sets=of_class,
            reliability=() if fitted else reliability_bins(p[:, index], y == index),
        )
    pairs = []
    for first, second in combinations(range(len(classes)), 2):
        names = (classes[first], classes[second])
        n = int(((y == first) | (y == second)).sum())
        pairs.append(ClassPair(*names, n, pair_metrics(p, y, (first, second), names, patients)))
    metrics = MulticlassMetrics(
        metrics=overall_metrics(p, y, classes, patients, seed=seed),
        confusion=tuple(map(tuple, confusion.tolist())),
        by_class=by_class,
        pairs=tuple(pairs),
        sets={} if sets is None else set_metrics(sets, y, patients, seed=seed),
    )
    return _without_fitted(metrics, fitted, len(images)) if fitted else metrics


def _without_fitted(metrics: MulticlassMetrics, fitted: int, n: int) -> MulticlassMetrics:
    """Return the metrics with those of calibration and prediction sets undefined."""

    def undefined(intervals: Mapping[str, Interval], names: Collection[str], what: str) -> dict[str, Interval]:
        reason = f"{what} fitted on {fitted} of these {n} images"
        return {
            name: dataclasses.replace(interval, value=None, low=None, high=None, reason=reason)
            if name in names
            else interval
            for name, interval in intervals.items()
        }

    def without(intervals: Mapping[str, Interval]) -> dict[str, Interval]:
        return undefined(intervals, _CALIBRATED, "the calibration was")

    def without_sets(sets: Mapping[str, Interval]) -> dict[str, Interval]:
        return undefined(sets, sets, "the prediction sets were")

    return metrics._replace(
        metrics=without(metrics.metrics),
        by_class={
            name: dataclasses.replace(result, metrics=without(result.metrics), sets=without_sets(result.sets))
            for name, result in metrics.by_class.items()
        },
        sets=without_sets(metrics.sets),
    )


def _sets(images: Sequence[MulticlassScoredImage], classes: Sequence[str]) -> BoolArray | None:
    """Return a mask of the classes in each image's prediction set, shape (n, K); None without sets."""
    if any(image.prediction_set is None for image in images):
        return None
    possible = [(image.prediction_set or "").split("|") for image in images]
    return np.array([[name in names for name in classes] for names in possible])

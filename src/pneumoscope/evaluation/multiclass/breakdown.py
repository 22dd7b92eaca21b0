"""Subgroups of multiclass evaluations, and differences from other images; see `evaluation.breakdown`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.core.multiclass_results import MulticlassEvaluation, MulticlassScoredImage
from pneumoscope.core.results import SetDifference
from pneumoscope.evaluation.breakdown import Reference, set_difference
from pneumoscope.evaluation.multiclass.metrics import ClassScores, class_scores
from pneumoscope.evaluation.subgroups import AUROC_TEST, GroupMetric, rate_metric
from pneumoscope.statistics.heterogeneity import (
    area_heterogeneity,
    unpaired_area_difference,
    unpaired_auroc_difference,
)
from pneumoscope.statistics.inputs import IntArray, patient_groups
from pneumoscope.statistics.intervals import difference, undefined
from pneumoscope.statistics.multiclass import macro_auroc_interval, too_few_patients
from pneumoscope.statistics.multiclass_paired import MACRO_AUROC_METHOD, macro_auroc_area, macro_auroc_covariance
from pneumoscope.statistics.probabilities import log_odds

__all__ = ["class_group_metrics", "class_set_difference"]

# One-against-rest decision metrics that are compared between image sets.
_RATES = ("sensitivity", "specificity")


def class_group_metrics(
    images: Sequence[MulticlassScoredImage], classes: Sequence[str], *, seed: int
) -> list[GroupMetric]:
    """Return the metrics of subgroups: macro AUROC, accuracy, and the sensitivity of each class.

    Accuracy is not tested: it is the mean of the sensitivities weighted by the class frequencies of the group. The
    macro AUROC also depends on class frequencies, through the rest that each class is compared with; the sensitivities
    do not.

    Args:
        images: The images; their labels are among the classes.
        classes: Names of the classes.
        seed: Seed of bootstraps and permutation tests.
    """
    scores = class_scores(images, classes)
    y, patients = scores.targets, scores.patients
    correct = scores.predicted == y

    def inside(rows: IntArray) -> list[str]:
        return [patients[i] for i in rows.tolist()]

    def macro_auroc(rows: IntArray) -> Interval:
        return macro_auroc_interval(scores.probabilities[rows], y[rows], classes, inside(rows), seed=seed)

    def macro_auroc_test(groups: Sequence[IntArray], names: Sequence[str]) -> float:
        _check_patients([(y[rows], inside(rows)) for rows in groups], classes, names)
        chosen = [ClassScores(scores.probabilities[rows], y[rows], y[rows], tuple(inside(rows))) for rows in groups]
        areas, variances = zip(*(_macro_auroc(each, classes) for each in chosen), strict=True)
        return area_heterogeneity(areas, variances)

    return [
        GroupMetric(
            name="macro_auroc",
            title="macro AUROC",
            interval=macro_auroc,
            needed=tuple(y == index for index in range(len(classes))),
            needed_text=f"{', '.join(classes[:-1])} and {classes[-1]}",
            test=AUROC_TEST,
            p=macro_auroc_test,
        ),
        rate_metric("accuracy", correct, np.ones_like(correct), patients, images=""),
        *(
            rate_metric(
                f"sensitivity, {name}",
                correct,
                y == index,
                patients,
                images=name,
                title=f"sensitivity for {name}",
                seed=seed,
            )
            for index, name in enumerate(classes)
        ),
    ]


def class_set_difference(
    evaluation: MulticlassEvaluation,
    images: Sequence[MulticlassScoredImage],
    reference: Reference[MulticlassEvaluation, MulticlassScoredImage],
) -> SetDifference:
    """Return the differences between evaluations of the same model on two sets of images.

    Args:
        evaluation: The evaluation.
        images: Its images.
        reference: The evaluation on other images, with the same classes.
    """
    classes, other = evaluation.classes, reference.evaluation
    sides = (class_scores(images, classes), class_scores(reference.images, classes))
    n, named = evaluation.n + other.n, ("these images", reference.name)
    try:
        macro_auroc = unpaired_area_difference(
            *(macro_auroc_area(log_odds(each.probabilities), each.targets, classes, each.patients) for each in sides)
        )
    except UndefinedMetricError as error:
        macro_auroc = undefined(error.message, n=n, method=f"{MACRO_AUROC_METHOD}, mover, unpaired")
    metrics = {
        "accuracy": difference(evaluation.metrics["accuracy"], other.metrics["accuracy"]),
        "macro_auroc": macro_auroc,
        **{f"auroc, {name}": _auroc_difference(sides, named, index, name) for index, name in enumerate(classes)},
        **{
            f"{rate}, {name}": difference(evaluation.by_class[name].metrics[rate], other.by_class[name].metrics[rate])
            for rate in _RATES
            for name in classes
        },
    }
    return set_difference(images, reference, metrics, {})


def _check_patients(
    groups: Sequence[tuple[IntArray, Sequence[str]]], classes: Sequence[str], names: Sequence[str]
) -> None:
    """Raise if a class of a group has too few patients for a test; the message names the smallest one.

    Args:
        groups: Targets and patients of each group.
        classes: Names of the classes.
        names: Names of the groups.
    """
    keys = [patient_groups(patients, len(y)) for y, patients in groups]
    smallest = [
        min(len(np.unique(of[y == index])) for index in range(len(classes)))
        for (y, _), of in zip(groups, keys, strict=True)
    ]
    number = smallest.index(min(smallest))
    where = f" in the group {names[number]}"
    if few := too_few_patients(groups[number][0], classes, keys[number], "a test of macro AUROCs", where):
        raise UndefinedMetricError(few)


def _macro_auroc(scores: ClassScores, classes: Sequence[str]) -> tuple[float, float]:
    """Return the macro AUROC and its variance."""
    groups = patient_groups(scores.patients, len(scores.targets))
    areas, covariance = macro_auroc_covariance(log_odds(scores.probabilities)[None], scores.targets, classes, groups)
    return float(areas[0]), float(covariance[0, 0])


def _auroc_difference(
    sides: tuple[ClassScores, ClassScores], names: tuple[str, str], index: int, name: str
) -> Interval:
    """Return the difference in the AUROC of one class against the rest between two named sets of images."""
    first, second = ((log_odds(each.probabilities)[:, index], each.targets == index, each.patients) for each in sides)
    try:
        return unpaired_auroc_difference(first, second, sides=(f"the class {name}", "the other classes"), names=names)
    except UndefinedMetricError as error:
        n = sum(len(each.targets) for each in sides)
        return undefined(error.message, n=n, method="delong, mover, unpaired")

"""Metrics of subgroups of images of several classes; see `evaluation.subgroups`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pneumoscope.core.interval import Interval
from pneumoscope.core.multiclass_results import MulticlassScoredImage
from pneumoscope.evaluation.multiclass.metrics import class_scores
from pneumoscope.evaluation.subgroups import AUROC_TEST, GroupMetric, rate_metric
from pneumoscope.statistics.heterogeneity import area_heterogeneity
from pneumoscope.statistics.inputs import IntArray, patient_groups
from pneumoscope.statistics.multiclass import macro_auroc_interval
from pneumoscope.statistics.multiclass_paired import macro_auroc_covariance
from pneumoscope.statistics.probabilities import log_odds

__all__ = ["class_group_metrics"]


def class_group_metrics(
    images: Sequence[MulticlassScoredImage], classes: Sequence[str], *, seed: int
) -> list[GroupMetric]:
    """Return the metrics of subgroups: macro AUROC, accuracy, and the sensitivity of each class.

    The accuracy is not tested: it also depends on how many images of each class a group has. The sensitivities do not.

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

    def macro_auroc_test(groups: Sequence[IntArray]) -> float:
        areas, variances = [], []
        for rows in groups:
            numbers = patient_groups(inside(rows), len(rows))
            ranking = log_odds(scores.probabilities[rows])[None]
            area, variance = macro_auroc_covariance(ranking, y[rows], classes, numbers)
            areas.append(area[0])
            variances.append(variance[0, 0])
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

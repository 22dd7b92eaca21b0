"""Paired tests of multiclass models on the same images, by accuracy and macro AUROC."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from pneumoscope.core.comparison import PairedTest
from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.evaluation.comparison.paired_findings import PairedResult, corrected_tests
from pneumoscope.evaluation.multiclass.metrics import ClassScores
from pneumoscope.statistics.inputs import patient_groups
from pneumoscope.statistics.intervals import paired_difference, undefined
from pneumoscope.statistics.multiclass_paired import MACRO_AUROC_METHOD, macro_auroc_test
from pneumoscope.statistics.paired import mcnemar_exact, mcnemar_method
from pneumoscope.statistics.probabilities import log_odds

__all__ = ["TESTED_CLASS_METRICS", "paired_class_result", "paired_class_tests"]

TESTED_CLASS_METRICS = ("accuracy", "macro_auroc")


def paired_class_tests(
    names: Sequence[str], scores: Sequence[ClassScores], classes: Sequence[str]
) -> tuple[PairedTest, ...]:
    """Return tests of accuracy and macro AUROC for each pair of runs, Holm-corrected over the pairs of each metric.

    Args:
        names: Names of the runs.
        scores: Their scores, on the same images in the same order.
        classes: Names of the classes.
    """
    tests: list[PairedTest] = []
    for metric in TESTED_CLASS_METRICS:
        results = [paired_class_result(metric, a, b, classes) for a, b in combinations(scores, 2)]
        tests += corrected_tests(metric, list(combinations(names, 2)), results)
    return tuple(tests)


def paired_class_result(metric: str, a: ClassScores, b: ClassScores, classes: Sequence[str]) -> PairedResult:
    """Return the test of one pair of runs by accuracy or macro AUROC, uncorrected."""
    targets, patients = a.targets, a.patients
    if metric == "accuracy":
        correct = a.predicted == targets, b.predicted == targets
        test = mcnemar_method(patient_groups(patients, len(targets)))
        return PairedResult(paired_difference(*correct, patients), mcnemar_exact(*correct, patients), test)
    rankings = log_odds(a.probabilities), log_odds(b.probabilities)
    try:
        return PairedResult(*macro_auroc_test(*rankings, targets, classes, patients), MACRO_AUROC_METHOD)
    except UndefinedMetricError as error:
        difference = undefined(error.message, n=len(targets), method=MACRO_AUROC_METHOD)
        return PairedResult(difference, None, MACRO_AUROC_METHOD)

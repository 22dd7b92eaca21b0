"""Multiclass metrics for groups of runs that differ only in their seed; see `comparison.run_groups`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.evaluation.comparison.paired_findings import PairedResult
from pneumoscope.evaluation.comparison.run_groups import Measured, MetricScoring
from pneumoscope.evaluation.multiclass.metrics import ClassScores
from pneumoscope.evaluation.multiclass.paired_tests import TESTED_CLASS_METRICS, paired_class_result
from pneumoscope.statistics.inputs import FloatArray, patient_groups
from pneumoscope.statistics.intervals import undefined
from pneumoscope.statistics.multiclass_paired import macro_auroc_covariance
from pneumoscope.statistics.probabilities import log_odds
from pneumoscope.statistics.replicates import proportion_covariance, replicates_method
from pneumoscope.statistics.roc import weighted_macro_auroc

__all__ = ["ClassScoring"]


class ClassScoring(MetricScoring):
    """Accuracy and macro AUROC of multiclass runs.

    Args:
        runs: Scores of the runs, on the same images in the same order.
        classes: Names of the classes.
    """

    tested = TESTED_CLASS_METRICS

    def __init__(self, runs: Sequence[ClassScores], classes: Sequence[str]) -> None:
        super().__init__()
        self._runs = runs
        self._classes = classes

    def paired(self, metric: str, a: int, b: int) -> PairedResult:
        """Return McNemar's test, or DeLong's test of the macro AUROC, of two single runs."""
        return paired_class_result(metric, self._runs[a], self._runs[b], self._classes)

    def _values(self, metric: str) -> FloatArray | None:
        targets, one = self._runs[0].targets, np.ones((1, len(self._runs[0].targets)))
        if metric != "macro_auroc":
            return np.array([(run.predicted == targets).mean() for run in self._runs])
        areas = [weighted_macro_auroc(log_odds(run.probabilities), targets, one)[0] for run in self._runs]
        return np.array(areas) if np.isfinite(areas).all() else None

    def _measure(self, metric: str) -> Measured | Interval:
        targets = self._runs[0].targets
        groups = patient_groups(self._runs[0].patients, len(targets))
        method = replicates_method(groups)
        try:
            if metric == "macro_auroc":
                rankings = np.stack([log_odds(run.probabilities) for run in self._runs])
                found = macro_auroc_covariance(rankings, targets, self._classes, groups)
            else:
                found = proportion_covariance(np.stack([run.predicted == targets for run in self._runs]), groups)
        except UndefinedMetricError as error:
            return undefined(error.message, n=len(targets), method=method)
        return *found, len(targets), method

"""Compare cross-validations of multiclass models; see `comparison.cross_validation`."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from pneumoscope import __version__
from pneumoscope.core.comparison import RunGroup
from pneumoscope.core.multiclass_results import MulticlassComparison, MulticlassRunSummary
from pneumoscope.core.with_figures import attach_source
from pneumoscope.evaluation.comparison.cross_validation import (
    OUT_OF_FOLD,
    Folds,
    find_differences,
    group_folds,
    read_folds,
)
from pneumoscope.evaluation.multiclass.inputs import (
    ComparedClasses,
    check_classes,
    read_class_run,
    summarize_class_run,
)
from pneumoscope.evaluation.multiclass.paired_tests import TESTED_CLASS_METRICS

__all__ = ["compare_class_folds", "read_class_folds", "summarize_class_folds"]


def summarize_class_folds(folder: Path, evaluation: str) -> RunGroup:
    """Return the mean and spread of each metric of an evaluated cross-validation.

    Args:
        folder: Folder of the folds.
        evaluation: Name of the evaluation of each fold on its validation images.

    Raises:
        RunError: See `comparison.cross_validation.read_folds`.
    """
    (folds,) = _read([folder], evaluation)
    return group_folds(folds, folds.runs[0].evaluation.name, TESTED_CLASS_METRICS)


def compare_class_folds(targets: Sequence[Path], command: str = "") -> MulticlassComparison:
    """Compare cross-validations on the same folds.

    Args:
        targets: Folders of folds.
        command: The command line, for the record.

    Raises:
        UsageError, RunError: See `read_folds` and `find_differences` in `comparison.cross_validation`; or the classes
            differ.
    """
    folds = _read(targets, OUT_OF_FOLD)
    found = find_differences(folds, TESTED_CLASS_METRICS)
    comparison = MulticlassComparison(
        images=found.images,
        classes=folds[0].runs[0].evaluation.classes,
        runs=tuple(summary for each in folds for summary in each.summaries),
        pairs=found.pairs,
        sentences=found.sentences,
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        evaluation=OUT_OF_FOLD,
        groups=found.groups,
        notice=found.notice,
    )
    return attach_source(comparison, [run for each in folds for run in each.runs])


def read_class_folds(targets: Sequence[Path]) -> list[ComparedClasses]:
    """Return the evaluations of all folds of cross-validations, in the order of `MulticlassComparison.runs`.

    Raises:
        UsageError, RunError: See `compare_class_folds`.
    """
    runs = [run for each in _read(targets, OUT_OF_FOLD) for run in each.runs]
    return [run for run in runs if isinstance(run, ComparedClasses)]


def _read(targets: Sequence[Path], evaluation: str) -> list[Folds[MulticlassRunSummary]]:
    folds = read_folds(targets, lambda paths: [read_class_run(path, evaluation) for path in paths], summarize_class_run)
    check_classes([run for each in folds for run in each.runs])
    return folds

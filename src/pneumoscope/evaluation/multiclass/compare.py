"""Compare multiclass models on the same test images, by accuracy and macro AUROC; see `comparison.compare`."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

from pneumoscope import __version__
from pneumoscope.core.comparison import PairedTest, RunGroup
from pneumoscope.core.multiclass_results import (
    MulticlassComparison,
    MulticlassRunSummary,
)
from pneumoscope.core.with_figures import attach_source
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.predictions_file import PredictionColumns
from pneumoscope.evaluation.comparison.comparability import (
    class_difference_sentences,
    joint_notice,
    ledger_sentence,
    rejection_sentences,
)
from pneumoscope.evaluation.comparison.compare import write_comparison
from pneumoscope.evaluation.comparison.cross_validation import is_cross_validation
from pneumoscope.evaluation.comparison.paired_findings import findings, training_sentence
from pneumoscope.evaluation.comparison.run_groups import group_findings, group_runs
from pneumoscope.evaluation.multiclass.cross_validation import compare_class_folds
from pneumoscope.evaluation.multiclass.inputs import ComparedClasses, compared_classes, summarize_class_run
from pneumoscope.evaluation.multiclass.metrics import class_scores
from pneumoscope.evaluation.multiclass.paired_tests import paired_class_tests
from pneumoscope.evaluation.multiclass.run_groups import ClassScoring

__all__ = ["compare_multiclass", "multiclass_comparison"]


def compare_multiclass(
    runs: Sequence[str | Path],
    *,
    evaluation: str = "test",
    data: str | Path | None = None,
    labels: LabelMapping | None = None,
    split: str = "test",
    columns: PredictionColumns = PredictionColumns(),  # noqa: B008  immutable
    ledger: str | Path | None = None,
    out: str | Path | None = None,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> MulticlassComparison:
    """Compare multiclass runs, bundles and predictions of other tools on the same test images.

    Accuracy is compared by McNemar's exact test with the images of a patient kept together, and macro AUROC by DeLong's
    test for the mean over classes; p-values are Holm-corrected over the pairs of each metric. Runs of one recipe with
    different seeds are compared by their means; see `comparison.run_groups`. Cross-validations are only compared with
    each other; see `comparison.cross_validation`.

    Args:
        runs: Run folders with `evaluation/NAME/`, or folders of such runs; folders of an evaluation; bundles, and CSV
            files with the predictions of other tools. Bundles and CSV files are evaluated first, on `data`.
        evaluation: Name of the evaluation of each run.
        data, labels, split, ledger: Labeled images and test ledger for bundles and CSV files; see
            `evaluate_multiclass`.
        columns: Names of the columns of the CSV files.
        out: Folder for comparison.json, comparison.csv and the evaluations of bundles and CSV files; None writes no
            files.
        command: The command line, for the record.
        progress, note: See `evaluate_multiclass`.

    Returns:
        The metrics of each run, a paired test of each pair, and the findings as sentences.
        `MulticlassComparison.to_dataframe()` returns the metrics as a pandas DataFrame, and
        `MulticlassComparison.figures` contains the figures.

    Raises:
        UsageError: No runs are given, or there is a bundle or file but no data.
        RunError: A file is missing or malformed, two runs have the same name, or the runs were evaluated on different
            images or classes.
        PneumoscopeError: A bundle or file cannot be evaluated; see `evaluate_multiclass` and
            `evaluate_multiclass_predictions`.
        StorageError: The results cannot be written.
    """
    folder, targets = None if out is None else Path(out), [Path(run) for run in runs]
    if any(map(is_cross_validation, targets)):
        comparison = compare_class_folds(targets, command)
    else:
        compared = compared_classes(
            targets,
            evaluation=evaluation,
            data=data,
            labels=labels,
            split=split,
            columns=columns,
            ledger=ledger,
            out=folder,
            progress=progress,
            note=note,
        )
        comparison = multiclass_comparison(compared, evaluation=evaluation, command=command)
    if folder is not None:
        write_comparison(comparison, folder)
    return comparison


def multiclass_comparison(
    runs: Sequence[ComparedClasses], *, evaluation: str = "test", command: str = ""
) -> MulticlassComparison:
    """Return the comparison of evaluated runs.

    Args:
        runs: The runs, with the same images and classes.
        evaluation: Name of the evaluation of each run.
        command: The command line, for the record.
    """
    first = runs[0].evaluation
    summaries = tuple(map(summarize_class_run, runs))
    groups, pairs, sentences = _findings(runs, summaries)
    comparison = MulticlassComparison(
        images={
            "sha256": first.images_sha256,
            "n": first.n,
            "patients": first.patients,
            "unknown_patients": first.unknown_patients,
            "counts": dict(first.counts),
        },
        classes=first.classes,
        runs=summaries,
        pairs=pairs,
        sentences=(
            *sentences,
            *class_difference_sentences(runs, groups),
            *rejection_sentences(runs),
            *ledger_sentence(runs),
        ),
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        evaluation=evaluation,
        groups=groups,
        notice=joint_notice(runs),
    )
    return attach_source(comparison, runs)


def _findings(
    runs: Sequence[ComparedClasses], summaries: Sequence[MulticlassRunSummary]
) -> tuple[tuple[RunGroup, ...], tuple[PairedTest, ...], tuple[str, ...]]:
    """Return the groups of seeds, the paired tests, and the findings as sentences."""
    classes = runs[0].evaluation.classes
    scores = [class_scores(run.images, classes) for run in runs]
    compared = group_runs(runs)
    if any(each.is_group for each in compared):
        return group_findings(compared, summaries, ClassScoring(scores, classes))
    names, accuracies = [run.name for run in runs], [run.metrics["accuracy"] for run in summaries]
    pairs = paired_class_tests(names, scores, classes)
    training = training_sentence([run.record is not None for run in runs])
    return (), pairs, findings(names, accuracies, pairs, training)

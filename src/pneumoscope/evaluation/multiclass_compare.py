"""Compare models of several classes on the same test images, by accuracy and macro AUROC; see `compare`."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from pneumoscope import __version__
from pneumoscope.bundle.bundle_folder import read_multiclass_bundle
from pneumoscope.core.comparison import PairedTest
from pneumoscope.core.errors import RunError, UndefinedMetricError, UsageError
from pneumoscope.core.multiclass_results import (
    MulticlassComparison,
    MulticlassEvaluation,
    MulticlassRunSummary,
    MulticlassScoredImage,
)
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.evaluation.comparability import (
    check_comparable,
    check_names,
    joint_notice,
    rejection_sentences,
    with_unique_names,
)
from pneumoscope.evaluation.compare import write_comparison
from pneumoscope.evaluation.compared import (
    ComparedRun,
    check_folders,
    expand_runs,
    in_order,
    result_folders,
    unique_name,
)
from pneumoscope.evaluation.multiclass_evaluate import evaluate_multiclass
from pneumoscope.evaluation.multiclass_metrics import ClassScores, class_scores
from pneumoscope.evaluation.paired_findings import corrected_tests, findings, training_sentence
from pneumoscope.runs.multiclass_evaluations import (
    has_multiclass_evaluation,
    read_multiclass_evaluation_folder,
)
from pneumoscope.runs.record import read_run
from pneumoscope.runs.run_folder import (
    evaluation_folder,
    evaluation_names,
    find_bundle,
    is_run_folder,
)
from pneumoscope.statistics.inputs import patient_groups
from pneumoscope.statistics.intervals import paired_difference, undefined
from pneumoscope.statistics.multiclass import log_odds
from pneumoscope.statistics.multiclass_paired import MACRO_AUROC_METHOD, macro_auroc_test
from pneumoscope.statistics.paired import mcnemar_exact, mcnemar_method

__all__ = ["ComparedClasses", "compare_multiclass", "compared_classes", "multiclass_comparison"]


@dataclasses.dataclass(frozen=True)
class ComparedClasses(ComparedRun[MulticlassEvaluation, MulticlassScoredImage]):
    """The evaluation of a run or bundle of several classes; see `ComparedRun`."""


def compare_multiclass(
    runs: Sequence[str | Path],
    *,
    evaluation: str = "test",
    data: str | Path | None = None,
    labels: LabelMapping | None = None,
    split: str = "test",
    ledger: str | Path | None = None,
    out: str | Path | None = None,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> MulticlassComparison:
    """Compare runs and bundles of several classes on the same test images.

    Accuracy is compared by McNemar's exact test, which keeps the images of a patient together, and macro AUROC by DeLong's test
    for the mean over classes; p-values are Holm-corrected over the pairs of each.

    Args:
        runs: Run folders with `evaluation/NAME/`, or folders of such runs; folders of an evaluation; and bundles, which are
            evaluated first, on `data`.
        evaluation: Name of the evaluation of each run.
        data, labels, split, ledger: Labeled images for bundles; see `evaluate_multiclass`.
        out: Folder of comparison.json, comparison.csv and the evaluations of bundles; None writes no files.
        command: The command line, for the record.
        progress, note: See `evaluate_multiclass`.

    Returns:
        The metrics of each run, a paired test of each pair, and the findings as sentences.

    Raises:
        UsageError: There is no run, or a bundle and no data.
        RunError: A file is missing or malformed, two runs have the same name, or the runs were evaluated on different images or
            classes.
        PneumoscopeError: A bundle cannot be evaluated; see `evaluate_multiclass`.
        StorageError: The results cannot be written.
    """
    folder = None if out is None else Path(out)
    compared = compared_classes(
        runs,
        evaluation=evaluation,
        data=data,
        labels=labels,
        split=split,
        ledger=ledger,
        out=folder,
        progress=progress,
        note=note,
    )
    comparison = multiclass_comparison(compared, evaluation=evaluation, command=command)
    if folder is not None:
        write_comparison(comparison, folder)
    return comparison


def compared_classes(
    runs: Sequence[str | Path],
    *,
    evaluation: str = "test",
    data: str | Path | None = None,
    labels: LabelMapping | None = None,
    split: str = "test",
    ledger: str | Path | None = None,
    out: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> list[ComparedClasses]:
    """Return the evaluations of runs, evaluation folders and bundles, checked to be of the same images and classes.

    Everything that can be read is read and checked before a bundle is evaluated, which the test ledger records.

    Args:
        runs, evaluation, data, labels, split, ledger, out, progress, note: See `compare_multiclass`.

    Raises:
        UsageError, RunError, PneumoscopeError: See `compare_multiclass`.
    """
    if not runs:
        raise UsageError("there are no runs to compare", hint="Give at least one run folder")
    targets = expand_runs([Path(run) for run in runs])
    check_folders(targets)
    known = with_unique_names([_read(target, evaluation, data) for target in targets])
    check_names(known)
    _check_classes(known)
    if read := [run for run in known if isinstance(run, ComparedClasses)]:
        check_comparable(read)
    evaluated = []
    for target, run in zip(targets, known, strict=True):
        if not isinstance(run, ComparedClasses):
            assert data is not None  # checked by `_read`
            result, images = evaluate_multiclass(
                target,
                data,
                labels=labels,
                split=split,
                out=None if out is None else result_folders([target], out)[0],
                replace=True,
                ledger=ledger,
                progress=progress,
                note=note,
            )
            run = ComparedClasses(run.name, run.folder_name, target, None, result, in_order(images))
        evaluated.append(run)
    check_comparable(evaluated)
    return evaluated


def _read(target: Path, evaluation: str, data: str | Path | None) -> ComparedRun[Any, Any]:
    """Return the evaluation of a run, or that in an evaluation folder; for a bundle its card in place of an evaluation."""
    record, results = None, target
    if is_run_folder(target):
        record, results = read_run(target, finished=True), evaluation_folder(target, evaluation)
    if has_multiclass_evaluation(results):
        result, images = read_multiclass_evaluation_folder(results)
        name = result.name if record is None else record.name
        return ComparedClasses(name, unique_name(target, record), target, record, result, in_order(images))
    if record is not None:
        others = evaluation_names(target)
        raise RunError(
            f"run {str(target)!r} has no evaluation {evaluation!r} of several classes"
            f"{' (it has ' + ', '.join(others) + ')' if others else ''}",
            hint=f"Evaluate it: pneumoscope evaluate {target} --data DATA",
        )
    if data is None:
        raise UsageError(
            f"{str(target)!r} has no evaluation of several classes",
            hint="Give `compare` the labeled images with --data, or evaluate first: pneumoscope evaluate --out FOLDER",
        )
    card, _ = read_multiclass_bundle(find_bundle(target))
    return ComparedRun(card.name, unique_name(target, None), target, None, card, ())


def _check_classes(runs: Sequence[ComparedRun[Any, Any]]) -> None:
    """Raise unless the classes of all runs and bundles are the same."""
    first = runs[0]
    for run in runs[1:]:
        if run.evaluation.classes != first.evaluation.classes:
            raise RunError(
                f"run {run.name!r} has the classes {', '.join(run.evaluation.classes)}, and {first.name!r} has"
                f" {', '.join(first.evaluation.classes)}",
                hint="Compare models of the same classes, in the same order",
            )


def multiclass_comparison(
    runs: Sequence[ComparedClasses], *, evaluation: str = "test", command: str = ""
) -> MulticlassComparison:
    """Return the comparison of evaluated runs.

    Args:
        runs: The runs, of the same images and classes.
        evaluation: Name of the evaluation of each run.
        command: The command line, for the record.
    """
    first = runs[0].evaluation
    scores = [class_scores(run.images, first.classes) for run in runs]
    pairs = _paired_tests([run.name for run in runs], scores)
    training = training_sentence([run.record is not None for run in runs])
    sentences = findings(
        [run.name for run in runs], [run.evaluation.metrics["accuracy"] for run in runs], pairs, training
    )
    return MulticlassComparison(
        images={
            "sha256": first.images_sha256,
            "n": first.n,
            "patients": first.patients,
            "unknown_patients": first.unknown_patients,
            "counts": dict(first.counts),
        },
        classes=first.classes,
        runs=tuple(map(_summary, runs)),
        pairs=pairs,
        sentences=(*sentences, *rejection_sentences(runs)),
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        evaluation=evaluation,
        notice=joint_notice(runs),
    )


def _paired_tests(names: Sequence[str], scores: Sequence[ClassScores]) -> tuple[PairedTest, ...]:
    """Test every pair of runs by accuracy and macro AUROC; p-values are Holm-corrected over the pairs of each metric."""
    targets, patients = scores[0].targets, scores[0].patients
    correct = [each.predicted == targets for each in scores]
    pairs = list(combinations(range(len(scores)), 2))
    accuracy = [
        (paired_difference(correct[a], correct[b], patients), mcnemar_exact(correct[a], correct[b], patients))
        for a, b in pairs
    ]
    ranking = [log_odds(each.probabilities) for each in scores]
    macro = []
    for a, b in pairs:
        try:
            macro.append(macro_auroc_test(ranking[a], ranking[b], targets, patients))
        except UndefinedMetricError as error:
            macro.append((undefined(error.message, n=len(targets), method=MACRO_AUROC_METHOD), None))
    test = mcnemar_method(patient_groups(patients, len(targets)))
    named = [(names[a], names[b]) for a, b in pairs]
    return (
        *corrected_tests("accuracy", named, accuracy, test),
        *corrected_tests("macro_auroc", named, macro, MACRO_AUROC_METHOD),
    )


def _summary(run: ComparedClasses) -> MulticlassRunSummary:
    fields = ("network", "image_size", "epochs", "seed", "weights", "seconds")
    return MulticlassRunSummary(
        name=run.name,
        **{field: getattr(run.record, field, None) for field in fields},
        metrics=run.evaluation.metrics,
        confusion=run.evaluation.confusion,
    )

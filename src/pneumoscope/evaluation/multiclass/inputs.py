"""Read or compute the multiclass evaluations to compare; see `comparison.inputs`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pneumoscope.bundle.bundle_folder import CARD_FILE, read_any_card, read_multiclass_bundle
from pneumoscope.bundle.card import Card
from pneumoscope.core.errors import RunError, UsageError
from pneumoscope.core.multiclass_results import (
    MulticlassEvaluation,
    MulticlassRunSummary,
    MulticlassScoredImage,
)
from pneumoscope.data.column_classes import check_column_classes, match_class_names
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.predictions_file import PredictionColumns, missing_class_error, read_class_predictions_file
from pneumoscope.evaluation.comparison.comparability import (
    check_comparable,
    check_names,
    with_unique_names,
)
from pneumoscope.evaluation.comparison.input_columns import explain_columns
from pneumoscope.evaluation.comparison.inputs import (
    ComparedRun,
    check_folders,
    expand_runs,
    in_order,
    is_file,
    result_folders,
    unique_name,
)
from pneumoscope.evaluation.multiclass.evaluate import evaluate_multiclass
from pneumoscope.evaluation.multiclass.external_predictions import (
    check_class_predictions,
    evaluate_multiclass_predictions,
)
from pneumoscope.runs.multiclass_evaluations import (
    has_multiclass_evaluation,
    read_multiclass_evaluation_folder,
)
from pneumoscope.runs.record import read_run
from pneumoscope.runs.run_folder import (
    EVALUATION_FILE,
    evaluation_folder,
    evaluation_names,
    find_bundle,
    is_run_folder,
)

__all__ = ["ComparedClasses", "check_classes", "compared_classes", "read_class_run", "summarize_class_run"]

_CASE_HINT = "The names differ in case only: evaluate one of the two again, with CLASS spelled as in the other"


@dataclasses.dataclass(frozen=True)
class ComparedClasses(ComparedRun[MulticlassEvaluation, MulticlassScoredImage]):
    """The multiclass evaluation of a run, bundle or file; see `ComparedRun`."""


def compared_classes(
    runs: Sequence[str | Path],
    *,
    evaluation: str = "test",
    data: str | Path | None = None,
    labels: LabelMapping | None = None,
    split: str = "test",
    columns: PredictionColumns = PredictionColumns(),  # noqa: B008  immutable
    ledger: str | Path | None = None,
    out: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> list[ComparedClasses]:
    """Return the evaluations of runs, folders, bundles and files, checked to have the same images and classes.

    All inputs are read and checked before any bundle or file is evaluated, because the test ledger records each
    evaluation.

    Args:
        runs, evaluation, data, labels, split, columns, ledger, out, progress, note: See `compare_multiclass`.

    Raises:
        UsageError, RunError, PneumoscopeError: See `compare_multiclass`.
    """
    if not runs:
        raise UsageError("there are no runs to compare", hint="Give at least one run folder")
    targets = expand_runs([Path(run) for run in runs])
    check_folders(targets)
    files = [target for target in targets if is_file(target)]
    read = []
    for target in targets:
        with explain_columns(target, files, Path(data or "DATA"), "CLASS=COLUMN"):
            read.append(read_class_run(target, evaluation, data, columns))
    known = with_unique_names(read)
    check_names(known)
    if model := next((run for run in known if not is_file(run.path)), None):
        check_column_classes(columns, model.evaluation.classes)
    classes = check_classes(known)
    if data is not None and len(files) > 1:
        for file in files:
            check_class_predictions(file, Path(data), split=split, columns=columns, labels=labels, classes=classes)
    if finished := [run for run in known if isinstance(run, ComparedClasses)]:
        check_comparable(finished)
    options: dict[str, Any] = {"labels": labels, "split": split, "replace": True, "ledger": ledger, "note": note}
    evaluated: dict[Path, ComparedClasses] = {}
    # Files are evaluated before bundles, so that an error in a file is found without scoring images.
    for target, run in sorted(zip(targets, known, strict=True), key=lambda each: not is_file(each[0])):
        if isinstance(run, ComparedClasses):
            evaluated[target] = run
            continue
        assert data is not None  # checked by `read_class_run`
        options["out"] = None if out is None else result_folders([target], out)[0]
        if is_file(target):
            result, images = evaluate_multiclass_predictions(target, data, columns=columns, classes=classes, **options)
        else:
            result, images = evaluate_multiclass(target, data, progress=progress, **options)
        evaluated[target] = ComparedClasses(run.name, run.folder_name, target, None, result, in_order(images))
    compared = [evaluated[target] for target in targets]
    check_comparable(compared)
    return compared


def read_class_run(
    target: Path,
    evaluation: str,
    data: str | Path | None = None,
    columns: PredictionColumns = PredictionColumns(),  # noqa: B008
) -> ComparedRun[Any, Any]:
    """Return the evaluation of a run or in an evaluation folder.

    For a bundle or a file of predictions, its card or content, which defines the classes, replaces the evaluation.

    Args:
        target: The run, folder, bundle or file.
        evaluation: Name of the evaluation of a run.
        data: Labeled images for a bundle or file.
        columns: Names of the columns of a file.

    Raises:
        RunError: The run has no such evaluation, or a file is damaged.
        UsageError: There is no data for a bundle or file.
        PneumoscopeError: The bundle or file cannot be read.
    """
    _check_several_classes(target, evaluation)
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
    if is_file(target):
        predictions = read_class_predictions_file(target, columns)
        return ComparedRun(target.stem, target.stem, target, None, predictions, ())
    card, _ = read_multiclass_bundle(find_bundle(target))
    return ComparedRun(card.name, unique_name(target, None), target, None, card, ())


def _check_several_classes(target: Path, evaluation: str) -> None:
    """Raise if a run's evaluation, an evaluation folder or a bundle is binary (NORMAL and PNEUMONIA)."""
    is_run = is_run_folder(target)
    results = evaluation_folder(target, evaluation) if is_run else target
    if (results / EVALUATION_FILE).is_file():
        is_binary = not has_multiclass_evaluation(results)
    elif is_run or is_file(target):
        return
    else:
        bundle = find_bundle(target)
        is_binary = (bundle / CARD_FILE).is_file() and isinstance(read_any_card(bundle / CARD_FILE), Card)
    if is_binary:
        raise RunError(
            f"{str(target)!r} is of NORMAL and PNEUMONIA; several classes are compared here",
            hint="Compare models of one kind: leave it out, or compare it with other models for NORMAL and PNEUMONIA",
        )


def check_classes(runs: Sequence[ComparedRun[Any, Any]]) -> tuple[str, ...]:
    """Return the classes; raise unless all runs have the same classes. Files may list them in any order.

    Raises:
        RunError: The classes of two runs differ.
        DatasetError: A file has no column for a class of another run.
    """
    first = next((run for run in runs if not is_file(run.path)), runs[0])
    expected: tuple[str, ...] = first.evaluation.classes
    for run in runs:
        # Class names of a file are matched to the spelling of a model.
        found = (
            tuple(match_class_names(expected, run.evaluation.classes)) if is_file(run.path) else run.evaluation.classes
        )
        for a, of_a, of_b in ((run, found, expected), (first, expected, found)):
            if is_file(a.path) and {*of_a} < {*of_b}:
                missing = next(each for each in of_b if each not in of_a)
                raise missing_class_error(str(a.path), missing, a.evaluation.columns, a.evaluation.scale)
        if sorted(found) != sorted(expected) if is_file(run.path) else found != expected:
            raise RunError(
                f"run {run.name!r} has the classes {', '.join(found)}, and {first.name!r} has {', '.join(expected)}",
                hint=_CASE_HINT
                if match_class_names(expected, found) == [*expected]
                else "Compare models of the same classes, in the same order",
            )
    return expected


def summarize_class_run(run: ComparedClasses) -> MulticlassRunSummary:
    """Return the row of a run in a comparison."""
    fields = ("network", "image_size", "epochs", "seed", "weights", "seconds")
    return MulticlassRunSummary(
        name=run.name,
        **{field: getattr(run.record, field, None) for field in fields},
        metrics=run.evaluation.metrics,
        confusion=run.evaluation.confusion,
    )

"""Read or compute the evaluations to compare: of runs, bundles, and files with predictions of other tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from pneumoscope.bundle.bundle_folder import CARD_FILE
from pneumoscope.core.errors import RunError, UsageError
from pneumoscope.core.results import Evaluation, ScoredImage
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.predictions_file import PredictionColumns
from pneumoscope.evaluation.comparison.input_columns import explain_columns
from pneumoscope.evaluation.comparison.operating_points import check_operating_point
from pneumoscope.evaluation.custom_points import needs_validation, parse_custom_point
from pneumoscope.evaluation.evaluate import OPERATING_POINTS, evaluate
from pneumoscope.evaluation.external_predictions import (
    FIXED_POINT,
    check_predictions,
    evaluate_predictions,
    with_path_column,
)
from pneumoscope.runs.evaluations import read_evaluation_folder
from pneumoscope.runs.record import RunRecord, read_run
from pneumoscope.runs.run_folder import (
    BUNDLE_FOLDER,
    EVALUATION_FILE,
    evaluation_folder,
    evaluation_names,
    find_bundle,
    is_run_folder,
    run_folder_name,
    run_folders,
)
from pneumoscope.statistics.inputs import BoolArray

__all__ = [
    "ComparedRun",
    "EvaluatedRun",
    "ScoringOptions",
    "check_evaluated",
    "check_folders",
    "decisions",
    "expand_runs",
    "in_order",
    "is_file",
    "is_unscored",
    "read_evaluated",
    "result_folders",
    "unique_name",
]

_EVALUATIONS = "evaluations"  # folder for evaluations of bundles and files


class ComparedImage(Protocol):
    """Common properties of compared images."""

    @property
    def path(self) -> str:
        """Path of the file."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""

    @property
    def patient(self) -> str:
        """Identifier of the patient."""

    @property
    def label(self) -> str:
        """Name of the class."""


class ComparedEvaluation(Protocol):
    """Common properties of compared evaluations."""

    @property
    def images_sha256(self) -> str:
        """Hash of the image hashes."""

    @property
    def n(self) -> int:
        """Number of images."""

    @property
    def notice(self) -> str:
        """Notice with the population of the model."""


_Evaluation = TypeVar("_Evaluation", bound=ComparedEvaluation)
_Image = TypeVar("_Image", bound=ComparedImage)


@dataclasses.dataclass(frozen=True)
class ComparedRun(Generic[_Evaluation, _Image]):
    """The evaluation of a run, bundle or file. Evaluations of the same images list them in the same order.

    Attributes:
        name: Name of the run, bundle or file.
        folder_name: Name used if `name` is not unique: the folder name or file stem; for a seed or fold, prefixed by
            the name of the parent folder.
        path: As given by the caller.
        record: Record of the run; None if it is not a run.
        evaluation: The evaluation.
        images: The images with their scores.
    """

    name: str
    folder_name: str
    path: Path
    record: RunRecord | None
    evaluation: _Evaluation
    images: tuple[_Image, ...]


@dataclasses.dataclass(frozen=True)
class EvaluatedRun(ComparedRun[Evaluation, ScoredImage]):
    """The binary evaluation (NORMAL and PNEUMONIA) of a run, bundle or file; see `ComparedRun`."""


@dataclasses.dataclass(frozen=True)
class ScoringOptions:
    """Options for evaluating bundles and files; see `evaluate` and `evaluate_predictions`.

    Attributes:
        data: Labeled images; None without any.
        labels, split, columns, ledger, progress, note: See these functions.
    """

    data: Path | None = None
    labels: LabelMapping | None = None
    split: str = "test"
    columns: PredictionColumns = PredictionColumns()  # noqa: RUF009  immutable
    ledger: Path | None = None
    progress: Callable[[int, int], None] | None = None
    note: Callable[[str], None] | None = None


def read_evaluated(
    targets: Sequence[Path], name: str, operating_point: str, options: ScoringOptions, out: Path | None
) -> list[EvaluatedRun]:
    """Return the evaluations of runs, evaluation folders, bundles and files of predictions, in the order of `targets`.

    Existing evaluations are read before new ones are computed, and files are evaluated before bundles, so that an error
    in a file is found without scoring images.

    Args:
        targets: The folders and files.
        name: Name of the evaluation of each run.
        operating_point: Operating point that each evaluation must have.
        options: Options for evaluating bundles and files.
        out: Folder for the results; None writes no files.

    Raises:
        UsageError: There are bundles or files but no data, or the threshold of a file needs validation predictions.
        RunError: A file is missing or malformed, or two evaluations would be written to one folder.
        UnknownNameError: An evaluation or a bundle lacks the operating point.
    """
    check_folders(targets)
    unscored = [target for target in targets if is_unscored(target)]
    if unscored and options.data is None:
        raise UsageError(
            f"{str(unscored[0])!r} has no labels and no evaluation",
            hint="Give `compare` the labeled images with --data, or evaluate first: pneumoscope evaluate --out FOLDER",
        )
    evaluated = {target: _read(target, name) for target in targets if target not in unscored}
    check_operating_point(
        {str(target): run.evaluation.operating_points for target, run in evaluated.items()}, operating_point
    )
    _check_files([target for target in unscored if is_file(target)], options)
    for target in sorted(unscored, key=lambda each: not is_file(each)):
        evaluated[target] = _evaluate(target, operating_point, options, out)
    return [evaluated[target] for target in targets]


def check_evaluated(targets: Sequence[Path]) -> None:
    """Raise if the targets of a report include bundles or files, which have no evaluation.

    Args:
        targets: Runs, folders of runs, and folders of evaluations.

    Raises:
        UsageError: A target is a bundle or file; the hint is the command that evaluates it.
    """
    for target in filter(is_unscored, expand_runs(targets)):
        option = "--predictions " if is_file(target) else ""
        what = "a file of predictions" if is_file(target) else "a model"
        raise UsageError(
            f"{str(target)!r} is {what} without an evaluation, and a report is of evaluations",
            hint=f"Evaluate it first: pneumoscope evaluate {option}{target} --data DATA --out FOLDER; then report FOLDER",
        )


def expand_runs(targets: Sequence[Path]) -> list[Path]:
    """Return the targets, with folders of runs (as created by `train --seeds`) replaced by their runs."""
    return [each for target in targets for each in (run_folders(target) or [target])]


def result_folders(targets: Sequence[Path], out: Path) -> list[Path]:
    """Return the folder with the results of each compared run, bundle or file: the run, or a folder below `out`."""
    return [
        out / _EVALUATIONS / _folder_name(target) if is_unscored(target) else target for target in expand_runs(targets)
    ]


def decisions(images: Sequence[ScoredImage], threshold: float) -> BoolArray:
    """Return a mask of the images with the decision pneumonia, shape (n,)."""
    return np.array([image.score for image in images]) >= threshold


def is_unscored(target: Path) -> bool:
    """Return whether a target is a bundle or a file, which must be evaluated first."""
    if is_file(target):
        return True
    if is_run_folder(target) or (target / EVALUATION_FILE).is_file():
        return False
    return (find_bundle(target) / CARD_FILE).is_file()


def is_file(target: Path) -> bool:
    """Return whether a target is a file of predictions, even one that does not exist."""
    return target.is_file() or (target.suffix.lower() == ".csv" and not target.exists())


def _folder_name(target: Path) -> str:
    if is_file(target):
        return target.stem
    folder = target.resolve()
    return folder.parent.name if folder.name == BUNDLE_FOLDER else folder.name


def check_folders(targets: Sequence[Path]) -> None:
    """Raise if the evaluations of two bundles or files would be written to the same folder.

    Raises:
        RunError: Two targets have the same folder name.
    """
    first: dict[str, Path] = {}
    for target in filter(is_unscored, targets):
        name = _folder_name(target)
        if name in first:
            raise RunError(
                f"{str(first[name])!r} and {str(target)!r} have the same name {name!r}", hint="Rename one of them"
            )
        first[name] = target


def _check_files(files: Sequence[Path], options: ScoringOptions) -> None:
    """Raise if any of several files cannot be evaluated, before the test ledger records the first."""
    if len(files) < 2:
        return
    assert options.data is not None  # checked in read_evaluated
    for file in files:
        with explain_columns(file, files, options.data):
            check_predictions(file, options.data, split=options.split, columns=options.columns, labels=options.labels)


def _read(target: Path, name: str) -> EvaluatedRun:
    """Return the evaluation of a run or in an evaluation folder."""
    is_run = not (target / EVALUATION_FILE).is_file()
    if is_run and not is_run_folder(target):
        raise RunError(
            f"there is no run, bundle, evaluation folder or CSV file {str(target)!r}",
            hint="Check the path: a run folder has run.json, and the folder of `evaluate --out` has evaluation.json",
        )
    record = read_run(target, finished=True) if is_run else None
    results = evaluation_folder(target, name) if is_run else target
    if not (results / EVALUATION_FILE).is_file():
        others = evaluation_names(target)
        raise RunError(
            f"run {str(target)!r} has no evaluation {name!r} ({str(results / EVALUATION_FILE)!r} is missing"
            f"{'; it has ' + ', '.join(others) if others else ''})",
            hint=f"Evaluate it: pneumoscope evaluate {target} --data DATA"
            + ("; or choose another evaluation with --evaluation" if others else ""),
        )
    return _evaluated(target, record, *read_evaluation_folder(results))


def _evaluate(target: Path, operating_point: str, options: ScoringOptions, out: Path | None) -> EvaluatedRun:
    """Return the evaluation of a bundle or a file, and write it below `out`."""
    assert options.data is not None  # checked in read_evaluated
    folder = None if out is None else result_folders([target], out)[0]
    if is_file(target):
        is_chosen = operating_point in OPERATING_POINTS and operating_point != FIXED_POINT
        is_chosen = is_chosen or needs_validation(parse_custom_point(operating_point))
        if is_chosen and not options.columns.split:
            raise UsageError(
                f"the threshold of the operating point {operating_point!r} is chosen on validation images, and"
                f" {str(target)!r} has no predictions for any",
                hint=f"Evaluate the file first: pneumoscope evaluate --predictions {target} --data {options.data}"
                " --validation-predictions FILE --out FOLDER; then compare FOLDER",
            )
        evaluation, images = evaluate_predictions(
            target,
            options.data,
            split=options.split,
            columns=options.columns,
            labels=options.labels,
            operating_points=None if operating_point == FIXED_POINT else (operating_point,),
            out=folder,
            replace=True,
            ledger=options.ledger,
            note=options.note,
        )
    else:
        bundle = find_bundle(target)
        if needs_validation(parse_custom_point(operating_point)):
            raise UsageError(
                f"the threshold of the operating point {operating_point!r} is chosen on validation images, and a comparison has"
                " none",
                hint=f"Evaluate the bundle first: pneumoscope evaluate {target} --data {options.data} --operating-point"
                f" {operating_point} --validation-data DATA --out FOLDER; then compare FOLDER",
            )
        evaluation, images = evaluate(
            bundle,
            options.data,
            split=options.split,
            labels=with_path_column(options.labels, options.data, options.columns),
            operating_points=tuple(dict.fromkeys((*OPERATING_POINTS, operating_point))),
            out=folder,
            replace=True,
            ledger=options.ledger,
            progress=options.progress,
            note=options.note,
        )
    return _evaluated(target, None, evaluation, images)


def _evaluated(
    target: Path, record: RunRecord | None, evaluation: Evaluation, images: Sequence[ScoredImage]
) -> EvaluatedRun:
    name = evaluation.name if record is None else record.name
    return EvaluatedRun(name, unique_name(target, record), target, record, evaluation, in_order(images))


def unique_name(target: Path, record: RunRecord | None) -> str:
    """Return `ComparedRun.folder_name` of a target.

    Args:
        target: The run, bundle, file, or folder of an evaluation.
        record: Record of the run; None if it is not a run.
    """
    return run_folder_name(target) if record else _folder_name(target)


def in_order(images: Sequence[_Image]) -> tuple[_Image, ...]:
    """Return the images sorted by content, and identical files by path.

    Content comes first, because the data folder may differ between runs.
    """
    return tuple(sorted(images, key=lambda image: (image.sha256, image.path)))

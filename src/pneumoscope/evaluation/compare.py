"""Compare finished runs on the same test images. Only their result files are needed, not their weights."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from pneumoscope import __version__
from pneumoscope.core.comparison import Comparison, RunSummary
from pneumoscope.core.errors import RunError, UnknownNameError, UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.results import Evaluation, ScoredImage, to_json
from pneumoscope.data.manifest import images_sha256
from pneumoscope.evaluation.metrics import positives
from pneumoscope.evaluation.paired import RunScores, findings, paired_tests
from pneumoscope.runs.evaluations import read_evaluation, read_predictions
from pneumoscope.runs.record import RunRecord, read_run
from pneumoscope.runs.run_folder import EVALUATION_FILE, PREDICTIONS_FILE, evaluation_folder, evaluation_names
from pneumoscope.statistics.inputs import BoolArray

__all__ = ["COMPARISON_FILE", "COMPARISON_TABLE", "compare", "write_comparison"]

COMPARISON_FILE = "comparison.json"
COMPARISON_TABLE = "comparison.csv"
_TABLE_COLUMNS = ("run", "metric", "value", "low", "high", "method", "n")


@dataclasses.dataclass(frozen=True)
class _EvaluatedRun:
    """The result files of one run; images are in the same order for all runs."""

    folder: Path
    record: RunRecord
    evaluation: Evaluation
    images: tuple[ScoredImage, ...]


def compare(
    runs: Sequence[str | Path],
    *,
    operating_point: str = "half",
    evaluation: str = "test",
    out: str | Path | None = None,
    command: str = "",
) -> Comparison:
    """Compare runs that were evaluated on the same test images.

    Args:
        runs: Run folders with `run.json` and `evaluation/NAME/`. Runs with the same name get the names of their folders.
        operating_point: Operating point of the threshold metrics and of the McNemar test.
        evaluation: Name of the evaluation of each run.
        out: Folder of comparison.json and comparison.csv; None writes no files.
        command: The command line, for the record.

    Returns:
        The metrics of each run, a paired test of each pair, and the findings as sentences. In a notebook the comparison is
        shown as a table; `Comparison.to_dataframe()` returns the metrics as a pandas DataFrame.

    Raises:
        UsageError: There is no run.
        RunError: A file is missing or malformed, two runs have the same name, or the runs were evaluated on different images.
        UnknownNameError: A run was not evaluated at this operating point.
        StorageError: The results cannot be written.
    """
    if not runs:
        raise UsageError(
            "there are no runs to compare", hint="Give at least one run folder: pneumoscope compare RUN... --out DIR"
        )
    evaluated = _with_unique_names([_read(Path(folder), evaluation, operating_point) for folder in runs])
    _check_comparable(evaluated)
    images = evaluated[0].images
    labels, patients = positives(images), [image.patient for image in images]
    scores = [
        RunScores(
            run.record.name,
            _decisions(run.images, run.evaluation.operating_points[operating_point].threshold) == labels,
            np.array([image.logit for image in run.images]),
        )
        for run in evaluated
    ]
    pairs = paired_tests(scores, labels, patients)
    summaries = tuple(_summary(run.record, run.evaluation, operating_point) for run in evaluated)
    names, accuracies = [row.name for row in summaries], [row.test["accuracy"] for row in summaries]
    first = evaluated[0].evaluation
    comparison = Comparison(
        images={
            "sha256": first.images_sha256,
            "n": first.n,
            "patients": first.patients,
            "counts": dict(first.counts),
        },
        operating_point=operating_point,
        runs=summaries,
        pairs=pairs,
        sentences=(*findings(names, accuracies, pairs), *_ledger_sentence(evaluated)),
        evaluation=evaluation,
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        notice=_notice(evaluated),
    )
    if out is not None:
        write_comparison(comparison, Path(out))
    return comparison


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write comparison.json and comparison.csv to a folder; create the folder if it is missing.

    Raises:
        StorageError: A file cannot be written.
    """
    write_atomically(out / COMPARISON_TABLE, _table(comparison))
    write_atomically(out / COMPARISON_FILE, to_json(comparison))


def _read(folder: Path, name: str, operating_point: str) -> _EvaluatedRun:
    record = read_run(folder, finished=True)
    results = evaluation_folder(folder, name)
    if not (results / EVALUATION_FILE).is_file():
        others = evaluation_names(folder)
        raise RunError(
            f"run {str(folder)!r} has no evaluation {name!r} ({str(results / EVALUATION_FILE)!r} is missing"
            f"{'; it has ' + ', '.join(others) if others else ''})",
            hint=f"Evaluate it: pneumoscope evaluate {folder} --data DATA"
            + ("; or choose another evaluation with --evaluation" if others else ""),
        )
    evaluation = read_evaluation(results / EVALUATION_FILE)
    if operating_point not in evaluation.operating_points:
        raise UnknownNameError(
            f"operating point in {str(results / EVALUATION_FILE)!r}", operating_point, evaluation.operating_points
        )
    images = read_predictions(results / PREDICTIONS_FILE)
    result = evaluation.operating_points[operating_point]
    correct = int(np.count_nonzero(_decisions(images, result.threshold) == positives(images)))
    if (
        images_sha256([image.sha256 for image in images]) != evaluation.images_sha256
        or correct != result.confusion.tp + result.confusion.tn
    ):
        raise RunError(
            f"{EVALUATION_FILE} and {PREDICTIONS_FILE} in {str(results)!r} are from different evaluations",
            hint=f"Repeat the evaluation: pneumoscope evaluate {folder} --data DATA",
        )
    # By content, and by path for identical files only, because the data folder may differ between runs.
    ordered = tuple(sorted(images, key=lambda image: (image.sha256, image.path)))
    return _EvaluatedRun(folder, record, evaluation, ordered)


def _with_unique_names(runs: Sequence[_EvaluatedRun]) -> list[_EvaluatedRun]:
    """Rename runs that have the same name after their folders."""
    count = Counter(run.record.name for run in runs)
    return [
        run
        if count[run.record.name] == 1
        else dataclasses.replace(run, record=msgspec.structs.replace(run.record, name=run.folder.resolve().name))
        for run in runs
    ]


def _decisions(images: Sequence[ScoredImage], threshold: float) -> BoolArray:
    """Return True for each image with the decision pneumonia."""
    return np.array([image.score for image in images]) >= threshold


def _check_comparable(runs: Sequence[_EvaluatedRun]) -> None:
    """Raise unless names are unique and images, labels and patients are the same in all runs."""
    name, count = Counter(run.record.name for run in runs).most_common(1)[0]
    if count > 1:
        folders = ", ".join(str(run.folder) for run in runs if run.record.name == name)
        raise RunError(
            f"{count} runs have the name {name!r} ({folders})",
            hint="Rename the folders: runs of one recipe are distinguished by the names of their folders",
        )
    first = runs[0]
    for run in runs[1:]:
        if run.evaluation.images_sha256 != first.evaluation.images_sha256:
            raise RunError(
                f"run {run.record.name!r} was evaluated on other images than {first.record.name!r}"
                f" ({run.evaluation.n} and {first.evaluation.n} images, SHA-256 {run.evaluation.images_sha256[:12]} and"
                f" {first.evaluation.images_sha256[:12]})",
                hint="Evaluate both runs on the same data",
            )
        for image, reference in zip(run.images, first.images, strict=True):
            if (image.label, image.patient) != (reference.label, reference.patient):
                raise RunError(
                    f"image {image.path!r} is {image.label} of patient {image.patient!r} in {run.record.name!r}"
                    f" and {reference.label} of patient {reference.patient!r} in {first.record.name!r}",
                    hint="Evaluate both runs on the same data",
                )


def _summary(record: RunRecord, evaluation: Evaluation, operating_point: str) -> RunSummary:
    result = evaluation.operating_points[operating_point]
    assert record.seconds is not None
    return RunSummary(
        name=record.name,
        network=record.network,
        optimizer=record.optimizer,
        batch=record.batch,
        image_size=record.image_size,
        epochs=record.epochs,
        seed=record.seed,
        device=record.device,
        weights=record.weights,
        average_train_accuracy=record.average_train_accuracy,
        average_validation_accuracy=record.average_validation_accuracy,
        best_epoch=record.best_epoch,
        seconds=record.seconds,
        test={"n": evaluation.n, **result.metrics, **evaluation.metrics},
        confusion=result.confusion,
    )


def _notice(runs: Sequence[_EvaluatedRun]) -> str:
    """Return the notice of the evaluations; the populations by run if they differ."""
    if len({run.evaluation.notice for run in runs}) == 1:
        return runs[0].evaluation.notice
    populations = (f"{run.record.name}: {run.evaluation.notice.removeprefix(NOTICE).strip()}" for run in runs)
    return " ".join((NOTICE, *populations))


def _ledger_sentence(runs: Sequence[_EvaluatedRun]) -> tuple[str, ...]:
    """Return a warning if there were more test-set evaluations than runs; a model may have been selected by them."""
    evaluations = max(run.evaluation.test_evaluation or 0 for run in runs)
    if evaluations <= len(runs):
        return ()
    return (
        f"The test ledger has {evaluations} evaluations on these images, for {len(runs)} compared runs: results are"
        " optimistic if a model was selected by an earlier evaluation.",
    )


def _table(comparison: Comparison) -> str:
    """Return one CSV row per run and metric."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _TABLE_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(comparison.rows())
    return out.getvalue()

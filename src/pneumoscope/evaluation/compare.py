"""Compare finished runs on the same test images. Needs their result files, and no weights."""

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
from pneumoscope.core.errors import RunError, UnknownNameError, UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.results import Comparison, Evaluation, Interval, RunSummary, ScoredImage, to_json
from pneumoscope.data.manifest import images_sha256
from pneumoscope.evaluation.metrics import positives
from pneumoscope.evaluation.paired import RunScores, findings, paired_tests
from pneumoscope.runs.evaluations import read_evaluation, read_predictions
from pneumoscope.runs.record import RunRecord, read_run
from pneumoscope.runs.run_folder import EVALUATION_FILE, PREDICTIONS_FILE, evaluation_folder

__all__ = ["COMPARISON_FILE", "COMPARISON_TABLE", "compare", "write_comparison"]

COMPARISON_FILE = "comparison.json"
COMPARISON_TABLE = "comparison.csv"


@dataclasses.dataclass(frozen=True)
class _Run:
    """The result files of one run; images in the order that all runs share."""

    folder: Path
    record: RunRecord
    evaluation: Evaluation
    images: tuple[ScoredImage, ...]


def compare(
    runs: Sequence[Path], *, operating_point: str = "half", out: Path | None = None, command: str = ""
) -> Comparison:
    """Compare runs that were evaluated on the same test images.

    Args:
        runs: run folders with `run.json` and `evaluation/test/`.
        operating_point: operating point of the threshold metrics and of McNemar's test.
        out: where comparison.json and comparison.csv are written; nowhere where None.
        command: what was run, for the record.
    Raises:
        UsageError: no run.
        RunError: a file is missing or malformed, two runs have one name, or they were judged on other images.
        UnknownNameError: a run was not evaluated at this operating point.
        StorageError: the results cannot be written.
    """
    if not runs:
        raise UsageError("there is no run to compare", hint="Name run folders: pneumoscope compare RUN... --out DIR")
    read = _told_apart([_read(folder, operating_point) for folder in runs])
    _refuse_others(read)
    images = read[0].images
    labels, patients = positives(images), [image.patient for image in images]
    judged = [
        RunScores(
            run.record.name,
            _called(run.images, run.evaluation.operating_points[operating_point].threshold) == labels,
            np.array([image.logit for image in run.images]),
        )
        for run in read
    ]
    pairs = paired_tests(judged, labels, patients)
    rows = tuple(_summary(run.record, run.evaluation, operating_point) for run in read)
    first = read[0].evaluation
    comparison = Comparison(
        images={
            "sha256": first.images_sha256,
            "n": first.n,
            "patients": first.patients,
            "counts": dict(first.counts),
        },
        operating_point=operating_point,
        runs=rows,
        pairs=pairs,
        sentences=(*findings([row.name for row in rows], [row.test["accuracy"] for row in rows], pairs), *_looks(read)),
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
    )
    if out is not None:
        write_comparison(comparison, out)
    return comparison


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write comparison.json and comparison.csv into a folder, which is made where missing.

    Raises:
        StorageError: A file cannot be written.
    """
    write_atomically(out / COMPARISON_TABLE, _table(comparison))
    write_atomically(out / COMPARISON_FILE, to_json(comparison))


def _read(folder: Path, operating_point: str) -> _Run:
    record = read_run(folder, finished=True)
    results = evaluation_folder(folder)
    if not (results / EVALUATION_FILE).is_file():
        raise RunError(
            f"run {str(folder)!r} has not been evaluated on test images (no {str(results / EVALUATION_FILE)!r})",
            hint=f"Do: pneumoscope evaluate {folder} --data DATA",
        )
    evaluation = read_evaluation(results / EVALUATION_FILE)
    if operating_point not in evaluation.operating_points:
        raise UnknownNameError(
            f"operating point in {str(results / EVALUATION_FILE)!r}", operating_point, evaluation.operating_points
        )
    images = read_predictions(results / PREDICTIONS_FILE)
    judged = evaluation.operating_points[operating_point]
    correct = int(np.count_nonzero(_called(images, judged.threshold) == positives(images)))
    if (
        images_sha256([image.sha256 for image in images]) != evaluation.images_sha256
        or correct != judged.confusion.tp + judged.confusion.tn
    ):
        raise RunError(
            f"{EVALUATION_FILE} and {PREDICTIONS_FILE} in {str(results)!r} are not of one evaluation",
            hint=f"Do it again: pneumoscope evaluate {folder} --data DATA",
        )
    # Content, and the path only among images of the same bytes: the folder above them may have another name elsewhere.
    ordered = tuple(sorted(images, key=lambda image: (image.sha256, image.path)))
    return _Run(folder, record, evaluation, ordered)


def _told_apart(runs: Sequence[_Run]) -> list[_Run]:
    """Runs of one recipe go by the names of their folders."""
    times = Counter(run.record.name for run in runs)
    return [
        run
        if times[run.record.name] == 1
        else dataclasses.replace(run, record=msgspec.structs.replace(run.record, name=run.folder.resolve().name))
        for run in runs
    ]


def _called(images: Sequence[ScoredImage], threshold: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array([image.score for image in images]) >= threshold


def _refuse_others(runs: Sequence[_Run]) -> None:
    """Names must differ; images, labels and patients must not."""
    name, times = Counter(run.record.name for run in runs).most_common(1)[0]
    if times > 1:
        where = ", ".join(str(run.folder) for run in runs if run.record.name == name)
        raise RunError(
            f"{times} runs are called {name!r} ({where})",
            hint="A comparison speaks of runs by name: give their folders different names",
        )
    first = runs[0]
    for run in runs[1:]:
        if run.evaluation.images_sha256 != first.evaluation.images_sha256:
            raise RunError(
                f"run {run.record.name!r} was judged on other images than {first.record.name!r}"
                f" ({run.evaluation.n} and {first.evaluation.n}, hashes {run.evaluation.images_sha256[:12]} and"
                f" {first.evaluation.images_sha256[:12]})",
                hint="Evaluate both on the same data",
            )
        for image, same in zip(run.images, first.images, strict=True):
            if (image.label, image.patient) != (same.label, same.patient):
                raise RunError(
                    f"image {image.path!r} is {image.label} of patient {image.patient!r} in {run.record.name!r}"
                    f" and {same.label} of patient {same.patient!r} in {first.record.name!r}",
                    hint="Evaluate both on the same data",
                )


def _summary(record: RunRecord, evaluation: Evaluation, operating_point: str) -> RunSummary:
    judged = evaluation.operating_points[operating_point]
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
        test={"n": evaluation.n, **judged.metrics, **evaluation.metrics},
        confusion=judged.confusion,
    )


def _looks(runs: Sequence[_Run]) -> tuple[str, ...]:
    """Said only where there were more looks than runs: something may have been chosen by looking."""
    looks = max(run.evaluation.test_evaluation or 0 for run in runs)
    if looks <= len(runs):
        return ()
    return (
        f"The test ledger held {looks} looks at these images for the {len(runs)} compared here: what was chosen after a"
        " look is judged too kindly.",
    )


def _table(comparison: Comparison) -> str:
    """A row a run and metric, for spreadsheets."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "metric", "value", "low", "high", "method", "n"])
    for run in comparison.runs:
        for metric, found in run.test.items():
            if isinstance(found, Interval):
                writer.writerow([run.name, metric, found.value, found.low, found.high, found.method, found.n])
    return out.getvalue()

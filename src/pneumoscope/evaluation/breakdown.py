"""Break an evaluation down: subgroups by manifest columns with interaction tests, and differences from other images.

All groups and the reference are scored by the same model. Columns and reference are read and checked before any image
is scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from pneumoscope.core.errors import DatasetError, RunError, UndefinedMetricError, UsageError
from pneumoscope.core.interval import Interval
from pneumoscope.core.messages import counted
from pneumoscope.core.multiclass_results import MulticlassEvaluation, MulticlassScoredImage
from pneumoscope.core.results import Evaluation, OperatingPointResult, ScoredImage, SetDifference
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.evaluation.custom_points import FIXED_POINT, is_probability
from pneumoscope.evaluation.metrics import positives
from pneumoscope.evaluation.recording import ScoreSource
from pneumoscope.evaluation.subgroups import (
    AUROC_TEST,
    GroupMetric,
    find_subgroups,
    rate_metric,
    read_columns,
    shared_patients,
)
from pneumoscope.inference.decision import DEFAULT_OPERATING_POINT
from pneumoscope.runs.evaluations import read_evaluation_folder
from pneumoscope.runs.run_folder import EVALUATION_FILE
from pneumoscope.statistics.heterogeneity import ScoredGroup, auroc_heterogeneity, unpaired_auroc_difference
from pneumoscope.statistics.inputs import IntArray
from pneumoscope.statistics.intervals import difference, undefined
from pneumoscope.statistics.roc import auroc_interval

__all__ = ["Breakdown", "Reference", "add_breakdown", "read_breakdown", "read_reference", "set_difference"]

_Evaluation = TypeVar("_Evaluation", Evaluation, MulticlassEvaluation)
_Image = TypeVar("_Image", ScoredImage, MulticlassScoredImage)

# Decision metrics that are compared between image sets.
_RATES = ("accuracy", "sensitivity", "specificity")


@dataclasses.dataclass(frozen=True)
class Reference(Generic[_Evaluation, _Image]):
    """An evaluation of the same model on other images.

    Attributes:
        name: Name of its folder.
        evaluation: The evaluation.
        images: Its images.
    """

    name: str
    evaluation: _Evaluation
    images: tuple[_Image, ...]


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Columns and reference of a breakdown.

    Attributes:
        columns: Value for each evaluated image, by column.
        reference: The evaluation on other images; None without one.
    """

    columns: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    reference: Reference[Evaluation, ScoredImage] | None = None


def read_breakdown(
    data: Path,
    by: Sequence[str],
    reference: Path | None,
    images: Sequence[LabeledImage],
    source: ScoreSource,
    path_column: str = "path",
    *,
    points: Sequence[str] = (),
    note: Callable[[str], None] | None = None,
) -> Breakdown:
    """Return the columns of the subgroups, and the reference.

    Args:
        data: Labeled data set.
        by: Columns of the manifest CSV, or "etiology".
        reference: Folder of the evaluation on other images; None without one.
        images: The images to evaluate.
        source: Source of their scores.
        path_column: Column of the manifest CSV with the paths.
        points: Operating points to evaluate.
        note: Called with a remark if decisions cannot be compared with the reference, because no operating point is in
            both evaluations.

    Raises:
        UsageError, UnknownNameError: See `subgroups.read_columns`; or the reference evaluates another model.
        DatasetError: An image is also in the reference.
        RunError: The folder has no evaluation, or its files are from different evaluations.
    """
    columns = read_columns(data, by, images, path_column)
    if reference is None:
        return Breakdown(columns)
    found = read_reference(reference, images, source.name, source.bundle_sha256, read_evaluation_folder)
    if note and (remark := _without_common_point(found.name, found.evaluation.operating_points, source, points)):
        note(remark)
    return Breakdown(columns, found)


def _without_common_point(
    reference: str, others: Mapping[str, OperatingPointResult], source: ScoreSource, points: Sequence[str]
) -> str:
    """Return why decisions are not compared with a reference, and what to do; "" if they are at an operating point.

    Args:
        reference: Name of the reference.
        others: Its operating points.
        source: Source of the scores of the evaluated images.
        points: Operating points at which they are evaluated.
    """
    known = source.operating_points
    if any(name in others and others[name].threshold == known[name].threshold for name in points):
        return ""
    not_compared = "accuracy, sensitivity and specificity are not compared"
    if same := [name for name in points if name in others]:
        return (
            f"{not_compared}: the thresholds of {', '.join(same)} differ from those of {reference}; evaluate both with the"
            " same site profile and the same validation images"
        )
    possible = [
        name
        for name in sorted(others, key=lambda each: (each != DEFAULT_OPERATING_POINT, each != FIXED_POINT))
        if (others[name].threshold == known[name].threshold if name in known else is_probability(name))
    ]
    what_to_do = (
        f"Evaluate these images again with --operating-point {possible[0]}"
        if possible
        else "Evaluate both with the same --operating-point"
    )
    return (
        f"{not_compared}: no operating point is in both evaluations (these images: {', '.join(points)}; {reference}:"
        f" {', '.join(others)}). {what_to_do}"
    )


def read_reference(
    folder: Path,
    images: Sequence[LabeledImage],
    name: str,
    bundle_sha256: str,
    read: Callable[[Path], tuple[_Evaluation, tuple[_Image, ...]]],
) -> Reference[_Evaluation, _Image]:
    """Return the evaluation in a folder, checked to have the same model and other images.

    Args:
        folder: The folder.
        images: The images to evaluate.
        name: Name of their model.
        bundle_sha256: SHA-256 of its network file; "" for predictions in a file.
        read: Function that returns the evaluation in a folder with its images.

    Raises:
        UsageError: The reference evaluates another model.
        DatasetError: An image is also in the reference.
        RunError: The folder has no evaluation, or its files are from different evaluations.
    """
    if not (folder / EVALUATION_FILE).is_file():
        raise RunError(
            f"{str(folder)!r} has no {EVALUATION_FILE}",
            hint="Give the name of an evaluation of the run, or a folder that `evaluate` wrote",
        )
    evaluation, others = read(folder)
    # Prediction files identify their model only by name.
    are_files = not (bundle_sha256 or evaluation.bundle_sha256)
    if bundle_sha256 != evaluation.bundle_sha256 or (are_files and name != evaluation.name):
        same_name = "Give both evaluations of predictions of one model the same --name. " if are_files else ""
        raise UsageError(
            f"{str(folder)!r} has an evaluation of another model ({evaluation.name})",
            hint=f"{same_name}To compare models on the same images, use: pneumoscope compare",
        )
    hashes = {image.sha256 for image in others}
    shared = [image.path for image in images if image.sha256 in hashes]
    if shared:
        raise DatasetError(
            f"{len(shared)} of {counted(len(images), 'image')} are also in {str(folder)!r}; the first is {shared[0]}",
            hint="A difference between sets needs different images",
        )
    return Reference(folder.resolve().name, evaluation, others)


def add_breakdown(evaluation: Evaluation, images: Sequence[ScoredImage], breakdown: Breakdown, seed: int) -> Evaluation:
    """Return the evaluation with subgroups, interaction tests and differences.

    Subgroups are evaluated at the operating point "balanced", or at the first one if that was not evaluated.

    Args:
        evaluation: The evaluation.
        images: Its images.
        breakdown: Columns of these images, and reference.
        seed: Seed of the permutation tests.
    """
    point = "balanced" if "balanced" in evaluation.operating_points else next(iter(evaluation.operating_points))
    metrics = _metrics(images, point, evaluation.operating_points[point].threshold, seed)
    subgroups, interactions = find_subgroups(breakdown.columns, images, metrics, point)
    compared = None if breakdown.reference is None else _difference(evaluation, images, breakdown.reference)
    return dataclasses.replace(evaluation, subgroups=subgroups, interactions=interactions, difference=compared)


def _metrics(images: Sequence[ScoredImage], point: str, threshold: float, seed: int) -> list[GroupMetric]:
    """Return the metrics of subgroups; accuracy is not tested, because it depends on the prevalence."""
    labels, patients = positives(images), [image.patient for image in images]
    correct = (np.array([image.score for image in images]) >= threshold) == labels

    def scored(rows: IntArray) -> ScoredGroup:
        return _scored([images[i] for i in rows.tolist()])

    return [
        GroupMetric(
            name="auroc",
            title="AUROC",
            interval=lambda rows: auroc_interval(*scored(rows)),
            needed=(labels, ~labels),
            needed_text="NORMAL and PNEUMONIA",
            test=AUROC_TEST,
            p=lambda groups, names: auroc_heterogeneity([scored(rows) for rows in groups], names),
        ),
        rate_metric("accuracy", correct, np.ones_like(labels), patients, images=""),
        rate_metric("sensitivity", correct, labels, patients, images="PNEUMONIA", operating_point=point, seed=seed),
        rate_metric("specificity", correct, ~labels, patients, images="NORMAL", operating_point=point, seed=seed),
    ]


def _scored(images: Sequence[ScoredImage]) -> ScoredGroup:
    return [image.logit for image in images], positives(images), [image.patient for image in images]


# --- other images ----------------------------------------------------------------------------------------------------


def _difference(
    evaluation: Evaluation, images: Sequence[ScoredImage], reference: Reference[Evaluation, ScoredImage]
) -> SetDifference:
    """Return the differences of this evaluation from the reference."""
    others = reference.images
    try:
        auroc = unpaired_auroc_difference(_scored(images), _scored(others), names=("these images", reference.name))
    except UndefinedMetricError as error:
        auroc = undefined(error.message, n=len(images) + len(others), method="delong, mover, unpaired")
    # With another threshold (from another site profile), the difference would not be due to the images alone.
    points = {
        name: {metric: difference(point.metrics[metric], other.metrics[metric]) for metric in _RATES}
        for name, point in evaluation.operating_points.items()
        if (other := reference.evaluation.operating_points.get(name)) and other.threshold == point.threshold
    }
    return set_difference(images, reference, {"auroc": auroc}, points)


def set_difference(
    images: Sequence[ScoredImage] | Sequence[MulticlassScoredImage],
    reference: Reference[Any, Any],
    metrics: Mapping[str, Interval],
    operating_points: Mapping[str, Mapping[str, Interval]],
) -> SetDifference:
    """Return the record of differences from other images.

    Args:
        images: The evaluated images.
        reference: The evaluation of the other images.
        metrics, operating_points: The differences; see `SetDifference`.
    """
    patients = [{image.patient for image in each} for each in (images, reference.images)]
    return SetDifference(
        reference=reference.name,
        reference_images_sha256=reference.evaluation.images_sha256,
        reference_n=reference.evaluation.n,
        metrics=metrics,
        operating_points=operating_points,
        remark=_patients_in_both(shared_patients(patients)),
    )


def _patients_in_both(number: int) -> str:
    """Return a sentence on patient identifiers that occur in both sets; "" if there are none."""
    if not number:
        return ""
    counts = "is in both sets and counts" if number == 1 else "are in both sets and count"
    return f"{counted(number, 'patient identifier')} {counts} as a different patient in each."

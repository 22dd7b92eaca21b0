"""Break an evaluation down: subgroups by columns of the manifest with tests of interaction, and differences from other images.

All groups and the reference are images of the same model. Columns and reference are read and checked before anything is
scored.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pneumoscope.core.errors import DatasetError, RunError, UndefinedMetricError, UsageError
from pneumoscope.core.messages import counted
from pneumoscope.core.results import Evaluation, InteractionTest, Interval, ScoredImage, SetDifference, Subgroup
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.data.prediction_matching import read_manifest_column
from pneumoscope.evaluation.metrics import positives
from pneumoscope.evaluation.recording import ScoreSource
from pneumoscope.runs.evaluations import read_evaluation_folder
from pneumoscope.runs.run_folder import EVALUATION_FILE
from pneumoscope.statistics.heterogeneity import (
    PERMUTATIONS,
    ScoredGroup,
    auroc_heterogeneity,
    proportion_heterogeneity,
    unpaired_auroc_difference,
)
from pneumoscope.statistics.inputs import BoolArray
from pneumoscope.statistics.intervals import difference, proportion, undefined
from pneumoscope.statistics.paired import holm
from pneumoscope.statistics.roc import auroc_interval

__all__ = ["Breakdown", "add_breakdown", "read_breakdown"]

ALPHA = 0.05
_MAX_GROUPS = 20
_NOT_STATED = "not stated"
_BUILT_IN = ("etiology",)
# Metrics of decisions that are compared between groups and sets.
_RATES = ("accuracy", "sensitivity", "specificity")
# Images without which a group is not part of a test.
_NEEDED = {"auroc": "NORMAL and PNEUMONIA", "sensitivity": "PNEUMONIA", "specificity": "NORMAL"}


@dataclasses.dataclass(frozen=True)
class Reference:
    """An evaluation of the same model on other images.

    Attributes:
        name: Name of its folder.
        evaluation: The evaluation.
        images: Its images.
    """

    name: str
    evaluation: Evaluation
    images: tuple[ScoredImage, ...]


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Columns and reference of a breakdown.

    Attributes:
        columns: Value of each evaluated image, by column.
        reference: The evaluation on other images; None without one.
    """

    columns: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    reference: Reference | None = None


def read_breakdown(
    data: Path,
    by: Sequence[str],
    reference: Path | None,
    images: Sequence[LabeledImage],
    source: ScoreSource,
    path_column: str = "path",
) -> Breakdown:
    """Return the columns of the subgroups and the reference.

    Args:
        data: Labeled data set.
        by: Columns of the manifest CSV, or "etiology".
        reference: Folder of the evaluation on other images; None without one.
        images: The images to evaluate.
        source: Source of their scores.
        path_column: Column of the manifest CSV with the paths.

    Raises:
        UsageError: The data are not a manifest CSV, a column has too many values, or the reference is of another model.
        UnknownNameError: There is no such column.
        DatasetError: An image is also in the reference.
        RunError: The folder has no evaluation, or its files are from different ones.
    """
    columns: dict[str, list[str]] = {}
    for name in by:
        by_path = (
            {image.path: image.etiology for image in images}
            if name in _BUILT_IN
            else read_manifest_column(data, name, path_column)
        )
        columns[name] = [by_path[image.path] for image in images]
        values = {*columns[name]}
        if len(values) > _MAX_GROUPS:
            raise UsageError(
                f"the column {name!r} has {len(values)} values among the evaluated images, such as {min(values - {''})!r}",
                hint=f"Group them in another column; at most {_MAX_GROUPS} groups are possible",
            )
    return Breakdown(columns, None if reference is None else _read_reference(reference, images, source))


def _read_reference(folder: Path, images: Sequence[LabeledImage], source: ScoreSource) -> Reference:
    """Return the evaluation in a folder; raise unless it is of the same model and of other images."""
    if not (folder / EVALUATION_FILE).is_file():
        raise RunError(
            f"{str(folder)!r} has no {EVALUATION_FILE}",
            hint="Give the name of an evaluation of the run, or a folder that `evaluate` wrote",
        )
    evaluation, others = read_evaluation_folder(folder)
    # Predictions in files of one model are known by its name only.
    are_files = not (source.bundle_sha256 or evaluation.bundle_sha256)
    if source.bundle_sha256 != evaluation.bundle_sha256 or (are_files and source.name != evaluation.name):
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
    """Return the evaluation with its subgroups, tests of interaction and differences.

    Subgroups are evaluated at the operating point "balanced", or at the first if that is not evaluated.

    Args:
        evaluation: The evaluation.
        images: Its images.
        breakdown: Columns of these images, and reference.
        seed: Seed of the permutation tests.
    """
    subgroups: list[Subgroup] = []
    tests: list[InteractionTest] = []
    for column, values in breakdown.columns.items():
        groups, interactions = _subgroups(column, evaluation, images, values, seed)
        subgroups += groups
        tests += interactions
    corrected = holm([test.p for test in tests])
    tests = [
        dataclasses.replace(test, p_holm=p, sentence=_sentence(test, p, sum(each is not None for each in corrected)))
        for test, p in zip(tests, corrected, strict=True)
    ]
    compared = None if breakdown.reference is None else _set_difference(evaluation, images, breakdown.reference)
    return dataclasses.replace(evaluation, subgroups=tuple(subgroups), interactions=tuple(tests), difference=compared)


# --- subgroups -------------------------------------------------------------------------------------------------------


def _subgroups(
    column: str, evaluation: Evaluation, images: Sequence[ScoredImage], values: Sequence[str], seed: int
) -> tuple[list[Subgroup], list[InteractionTest]]:
    names = [*sorted({*values} - {""}), *([""] if "" in values else [])]
    point = "balanced" if "balanced" in evaluation.operating_points else next(iter(evaluation.operating_points))
    threshold = evaluation.operating_points[point].threshold
    decisions, labels = np.array([image.score for image in images]) >= threshold, positives(images)
    members = {name: np.array([value == name for value in values]) for name in names}
    subgroups = [
        _subgroup(column, name or _NOT_STATED, point, images, rows, decisions, labels) for name, rows in members.items()
    ]
    stated = {name: rows for name, rows in members.items() if name}
    return subgroups, _interactions(column, point, images, stated, decisions, labels, seed)


def _subgroup(
    column: str,
    value: str,
    point: str,
    images: Sequence[ScoredImage],
    rows: BoolArray,
    decisions: BoolArray,
    labels: BoolArray,
) -> Subgroup:
    def rate(among: BoolArray, reason: str) -> Interval:
        indices = np.flatnonzero(rows & among)
        return proportion((decisions == labels)[indices], [images[i].patient for i in indices.tolist()], reason=reason)

    inside = [image for image, member in zip(images, rows.tolist(), strict=True) if member]
    return Subgroup(
        column=column,
        value=value,
        n=len(inside),
        counts=dict(Counter(image.label for image in inside)),
        operating_point=point,
        metrics={
            "auroc": auroc_interval(*_scored(inside)),
            "accuracy": rate(np.ones_like(labels), "there are no images"),
            "sensitivity": rate(labels, "there is no PNEUMONIA image"),
            "specificity": rate(~labels, "there is no NORMAL image"),
        },
    )


def _scored(images: Sequence[ScoredImage]) -> ScoredGroup:
    return [image.logit for image in images], positives(images), [image.patient for image in images]


def _interactions(
    column: str,
    point: str,
    images: Sequence[ScoredImage],
    members: Mapping[str, BoolArray],
    decisions: BoolArray,
    labels: BoolArray,
    seed: int,
) -> list[InteractionTest]:
    tests = []
    for metric in ("auroc", "sensitivity", "specificity"):
        needed = {"auroc": (labels, ~labels), "sensitivity": (labels,), "specificity": (~labels,)}[metric]
        groups = [name for name, rows in members.items() if all((rows & each).any() for each in needed)]
        p, reason, seeded = None, "", None
        tested = np.any(needed, axis=0)
        shared = _shared_patients(
            [{images[i].patient for i in np.flatnonzero(members[name] & tested).tolist()} for name in groups]
        )
        if metric == "auroc":
            test = "Cochran's Q, DeLong"
        else:
            test, seeded = f"permutation of patients, {PERMUTATIONS:,} draws", seed
        try:
            if len(groups) < 2:
                raise UndefinedMetricError(f"there are no two groups with {_NEEDED[metric]} images")
            if metric == "auroc":
                parts = [[image for image, row in zip(images, members[name], strict=True) if row] for name in groups]
                p = auroc_heterogeneity([_scored(part) for part in parts])
            else:
                indices = np.flatnonzero(needed[0] & np.any([members[name] for name in groups], axis=0))
                numbers = np.argmax([members[name][indices] for name in groups], axis=0)
                patients = [images[i].patient for i in indices.tolist()]
                p = proportion_heterogeneity((decisions == labels)[indices], numbers, patients, seed=seed)
        except UndefinedMetricError as error:
            reason = error.message
        tests.append(
            InteractionTest(
                column=column,
                metric=metric,
                operating_point=None if metric == "auroc" else point,
                groups=tuple(groups),
                test=test,
                p=p,
                p_holm=None,
                seed=seeded,
                reason=reason,
                shared_patients=shared,
            )
        )
    return tests


def _sentence(test: InteractionTest, p_holm: float | None, number: int) -> str:
    name = "AUROC" if test.metric == "auroc" else test.metric
    if p_holm is None:
        return f"A difference in {name} between the groups of {test.column} cannot be tested: {test.reason}."
    p = "< 0.001" if p_holm < 0.001 else f"= {p_holm:.3f}"
    differs = "differs significantly" if p_holm < ALPHA else "does not differ significantly"
    sentence = (
        f"The {name} {differs} between the {len(test.groups)} groups of {test.column} (p {p}, Holm-corrected for"
        f" {counted(number, 'test')}; {test.test})."
    )
    if not test.shared_patients:
        return sentence
    one = test.shared_patients == 1
    return (
        f"{sentence} {counted(test.shared_patients, 'patient')} {'is' if one else 'are'} in several groups; the test takes"
        f" {'it' if one else 'them'} to be different."
    )


def _shared_patients(sets: Sequence[set[str]]) -> int:
    """Return the number of known patients who are in several sets."""
    counts = Counter(patient for patients in sets for patient in patients if patient)
    return sum(count > 1 for count in counts.values())


# --- other images ----------------------------------------------------------------------------------------------------


def _set_difference(evaluation: Evaluation, images: Sequence[ScoredImage], reference: Reference) -> SetDifference:
    """Return the differences of this evaluation from that of other images."""
    others = reference.images
    try:
        auroc = unpaired_auroc_difference(_scored(images), _scored(others))
    except UndefinedMetricError as error:
        auroc = undefined(error.message, n=len(images) + len(others), method="delong, unpaired")
    # Another site profile has other thresholds, at which a difference would not be one between the images.
    points = {
        name: {metric: difference(point.metrics[metric], other.metrics[metric]) for metric in _RATES}
        for name, point in evaluation.operating_points.items()
        if (other := reference.evaluation.operating_points.get(name)) and other.threshold == point.threshold
    }
    return SetDifference(
        reference=reference.name,
        reference_images_sha256=reference.evaluation.images_sha256,
        reference_n=reference.evaluation.n,
        metrics={"auroc": auroc},
        operating_points=points,
        remark=_patients_in_both(_shared_patients([{image.patient for image in each} for each in (images, others)])),
    )


def _patients_in_both(number: int) -> str:
    """Return a sentence on the number of patient identifiers in both sets; "" if it is 0."""
    if not number:
        return ""
    same = (
        "is in both sets; the intervals take it to be two patients"
        if number == 1
        else ("are in both sets; the intervals take them to be different patients")
    )
    return f"{counted(number, 'patient identifier')} {same}."

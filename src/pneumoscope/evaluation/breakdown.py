"""Break an evaluation down: subgroups by columns of the manifest with tests of interaction, and differences from other images.

All groups and the reference are images of the same model. Columns and reference are read before anything is scored.
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
from pneumoscope.data.prediction_matching import read_manifest_column
from pneumoscope.evaluation.metrics import positives
from pneumoscope.runs.evaluations import read_evaluation, read_predictions
from pneumoscope.runs.run_folder import EVALUATION_FILE, PREDICTIONS_FILE
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
class Breakdown:
    """Columns and reference of a breakdown.

    Attributes:
        columns: Values by path, for each column of the manifest.
        reference: Folder of the evaluation on other images; None without one.
    """

    columns: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    reference: Path | None = None


def read_breakdown(data: Path, by: Sequence[str], reference: Path | None) -> Breakdown:
    """Return the columns of the subgroups and the reference.

    Args:
        data: Labeled data set.
        by: Columns of the manifest CSV, or "etiology".
        reference: Folder of the evaluation on other images; None without one.

    Raises:
        UsageError: The data are no manifest CSV.
        UnknownNameError: There is no such column.
        RunError: The folder has no evaluation.
    """
    columns = {name: read_manifest_column(data, name) for name in by if name not in _BUILT_IN}
    if reference is not None and not (reference / EVALUATION_FILE).is_file():
        raise RunError(
            f"{str(reference)!r} has no {EVALUATION_FILE}",
            hint="Give the name of an evaluation of the run, or a folder that `evaluate` wrote",
        )
    return Breakdown({name: columns.get(name, {}) for name in by}, reference)


def add_breakdown(evaluation: Evaluation, images: Sequence[ScoredImage], breakdown: Breakdown, seed: int) -> Evaluation:
    """Return the evaluation with its subgroups, tests of interaction and differences.

    Subgroups are evaluated at the operating point "balanced", or at the first if that is not evaluated.

    Args:
        evaluation: The evaluation.
        images: Its images.
        breakdown: Columns and reference.
        seed: Seed of the permutation tests.

    Raises:
        UsageError: A column has too many values, or the reference is of another model.
        DatasetError: An image is in both sets.
    """
    subgroups: list[Subgroup] = []
    tests: list[InteractionTest] = []
    for column, values in breakdown.columns.items():
        by_path = values or {image.path: image.etiology for image in images}
        groups, interactions = _subgroups(column, evaluation, images, [by_path[image.path] for image in images], seed)
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
    names = [*sorted({value for value in values if value}), *([""] if "" in values else [])]
    if len(names) > _MAX_GROUPS:
        raise UsageError(
            f"the column {column!r} has {len(names)} values among the evaluated images, such as {names[0]!r}",
            hint=f"Group them in another column; {_MAX_GROUPS} groups are possible",
        )
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
                column, metric, None if metric == "auroc" else point, tuple(groups), test, p, None, seeded, reason
            )
        )
    return tests


def _sentence(test: InteractionTest, p_holm: float | None, number: int) -> str:
    name = "AUROC" if test.metric == "auroc" else test.metric
    if p_holm is None:
        return f"Whether the {name} depends on {test.column} cannot be tested: {test.reason}."
    p = "< 0.001" if p_holm < 0.001 else f"= {p_holm:.3f}"
    differs = "differs significantly" if p_holm < ALPHA else "does not differ significantly"
    return (
        f"The {name} {differs} between the {len(test.groups)} groups of {test.column} (p {p}, Holm-corrected for"
        f" {counted(number, 'test')}; {test.test})."
    )


# --- other images ----------------------------------------------------------------------------------------------------


def _set_difference(evaluation: Evaluation, images: Sequence[ScoredImage], folder: Path) -> SetDifference:
    """Return the differences of this evaluation from that in a folder, which has other images."""
    reference = read_evaluation(folder / EVALUATION_FILE)
    others = read_predictions(folder / PREDICTIONS_FILE)
    if reference.bundle_sha256 != evaluation.bundle_sha256:
        raise UsageError(
            f"{str(folder)!r} has an evaluation of another model ({reference.name})",
            hint="To compare models on the same images, use: pneumoscope compare",
        )
    hashes = {image.sha256 for image in others}
    shared = [image.path for image in images if image.sha256 in hashes]
    if shared:
        raise DatasetError(
            f"{len(shared)} of {counted(len(images), 'image')} are also in {str(folder)!r}; the first is {shared[0]}",
            hint="A difference between sets needs different images",
        )
    try:
        auroc = unpaired_auroc_difference(_scored(images), _scored(others))
    except UndefinedMetricError as error:
        auroc = undefined(error.message, n=len(images) + len(others), method="delong, unpaired")
    # Another site profile has other thresholds, at which a difference would not be one between the images.
    points = {
        name: {metric: difference(point.metrics[metric], other.metrics[metric]) for metric in _RATES}
        for name, point in evaluation.operating_points.items()
        if (other := reference.operating_points.get(name)) and other.threshold == point.threshold
    }
    return SetDifference(
        reference=folder.resolve().name,
        reference_images_sha256=reference.images_sha256,
        reference_n=reference.n,
        metrics={"auroc": auroc},
        operating_points=points,
    )

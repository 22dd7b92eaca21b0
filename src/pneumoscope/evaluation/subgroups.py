"""Metrics of subgroups of evaluated images, by columns of the manifest, and tests of whether they differ.

An interaction test compares the groups of one column. Its p-values are Holm-corrected over all tests of an evaluation.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.core.errors import UndefinedMetricError, UsageError
from pneumoscope.core.interval import Interval
from pneumoscope.core.messages import counted
from pneumoscope.core.results import InteractionTest, Subgroup
from pneumoscope.data.label_mapping import ETIOLOGY_COLUMN
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.data.prediction_matching import manifest_columns, read_manifest_column
from pneumoscope.statistics.heterogeneity import PERMUTATIONS, proportion_heterogeneity
from pneumoscope.statistics.inputs import BoolArray, IntArray
from pneumoscope.statistics.intervals import proportion
from pneumoscope.statistics.multiple_testing import holm

__all__ = ["AUROC_TEST", "GroupMetric", "find_subgroups", "rate_metric", "read_columns", "shared_patients"]

AUROC_TEST = "Cochran's Q, DeLong"
_ALPHA = 0.05
_MAX_GROUPS = 20
_NOT_STATED = "not stated"
_LABEL_NAMES = {"label", "labels", "class", "classes"}  # for data without columns


@dataclasses.dataclass(frozen=True)
class GroupMetric:
    """A metric of subgroups.

    Attributes:
        name: Key in `Subgroup.metrics`.
        title: Name in a sentence.
        interval: Maps the indices of a group's images to the interval.
        needed: Masks of the kinds of images that a group must contain to be tested, each of shape (n,).
        needed_text: Description of these images.
        test: Name of the test of whether groups differ; "" if the metric is not tested.
        p: Maps the indices of each group's images, and the names of the groups, to the p-value; may raise
            `UndefinedMetricError`.
        operating_point: Operating point of the decisions; None if the metric has none.
        seed: Seed of the test; None if it uses no random numbers.
    """

    name: str
    title: str
    interval: Callable[[IntArray], Interval]
    needed: tuple[BoolArray, ...] = ()
    needed_text: str = ""
    test: str = ""
    p: Callable[[Sequence[IntArray], Sequence[str]], float] | None = None
    operating_point: str | None = None
    seed: int | None = None


def rate_metric(
    name: str,
    correct: BoolArray,
    among: BoolArray,
    patients: Sequence[str],
    *,
    images: str,
    title: str = "",
    operating_point: str | None = None,
    seed: int | None = None,
) -> GroupMetric:
    """Return a metric that is a fraction of images of one kind, such as the sensitivity.

    Args:
        name: See `GroupMetric`.
        correct: True for images in the numerator, shape (n,).
        among: True for images in the denominator, shape (n,).
        patients: Patient identifier of each image.
        images: Description of the images of this kind, such as "NORMAL"; "" for all images.
        title: Name in a sentence; `name` if empty.
        operating_point: See `GroupMetric`.
        seed: Seed of the test of whether groups differ; None for no test.
    """

    def interval(rows: IntArray) -> Interval:
        chosen = rows[among[rows]]
        reason = f"there is no {images} image" if images else "there are no images"
        return proportion(correct[chosen], [patients[i] for i in chosen.tolist()], reason=reason)

    def p(groups: Sequence[IntArray], names: Sequence[str]) -> float:
        numbers = np.full(len(correct), -1)
        for number, rows in enumerate(groups):
            numbers[rows] = number
        chosen = np.flatnonzero(among & (numbers >= 0))
        inside = [patients[i] for i in chosen.tolist()]
        return proportion_heterogeneity(correct[chosen], numbers[chosen], inside, seed=seed or 0)

    is_tested = seed is not None
    return GroupMetric(
        name=name,
        title=title or name,
        interval=interval,
        needed=(among,),
        needed_text=images,
        test=f"permutation of patients, {PERMUTATIONS:,} draws" if is_tested else "",
        p=p if is_tested else None,
        operating_point=operating_point,
        seed=seed,
    )


def read_columns(
    data: Path, names: Sequence[str], images: Sequence[LabeledImage], path_column: str = "path"
) -> dict[str, list[str]]:
    """Return the value for each image, by column.

    Args:
        data: Labeled data set.
        names: Columns of the manifest CSV, or "etiology".
        images: The images to evaluate.
        path_column: Column of the manifest CSV with the paths.

    Raises:
        UsageError: The data is not a manifest CSV, or a column has too many values or is equivalent to the label.
        UnknownNameError: There is no such column.
    """
    columns: dict[str, list[str]] = {}
    labels = [image.label for image in images]
    for name in names:
        if name.casefold() in _LABEL_NAMES and not _is_csv(data):
            raise _label_column_error(name, images, data, path_column)
        by_path = (
            {image.path: image.etiology for image in images}
            if name == ETIOLOGY_COLUMN
            else read_manifest_column(data, name, path_column)
        )
        columns[name] = [by_path[image.path] for image in images]
        values = {*columns[name]}
        if len(values) > _MAX_GROUPS:
            raise UsageError(
                f"the column {name!r} has {len(values)} values among the evaluated images, such as {min(values - {''})!r}",
                hint=f"Group them in another column; at most {_MAX_GROUPS} groups are possible",
            )
        if _are_labels(columns[name], labels):
            raise _label_column_error(name, images, data, path_column)
    return columns


def _are_labels(values: Sequence[str], labels: Sequence[str]) -> bool:
    """Return whether the subgroups of a column are the images of each label."""
    found = {*labels}
    one_to_one = len({*zip(values, labels, strict=True)}) == len({*values}) == len(found)
    return one_to_one and (len(found) > 1 or {*values} == found)


def _label_column_error(name: str, images: Sequence[LabeledImage], data: Path, path_column: str) -> UsageError:
    """Return the error for a column whose subgroups are the images of each label."""
    if _is_csv(data):
        others = [each for each in manifest_columns(data) if each not in (name, path_column)]
        hint = (
            "Name a column that divides the images of a label, such as sex or site; the other columns of"
            f" {str(data)!r} are {', '.join(others)}"
            if others
            else f"Add a column that divides the images of a label, such as sex or site, to {str(data)!r}"
        )
    else:
        hint = (
            "Columns that divide the images of a label, such as sex or site, need a manifest CSV: pneumoscope split"
            f" {data} --out FILE"
        )
        if len({image.etiology for image in images if image.positive} - {""}) > 1:
            hint += f". For the sensitivity by etiology, give --by {ETIOLOGY_COLUMN}"
    labels = ", ".join(sorted({image.label for image in images}))
    return UsageError(
        f"the subgroups of the column {name!r} are the images of each label ({labels}), and most metrics are undefined within"
        " one label",
        hint=hint,
    )


def _is_csv(data: Path) -> bool:
    return data.suffix.lower() == ".csv"


def find_subgroups(
    columns: Mapping[str, Sequence[str]], images: Sequence[Any], metrics: Sequence[GroupMetric], operating_point: str
) -> tuple[tuple[Subgroup, ...], tuple[InteractionTest, ...]]:
    """Return the subgroups of all columns, and the tests of whether their metrics differ.

    Args:
        columns: Value for each image, by column.
        images: The images, with a label and a patient.
        metrics: Metrics of the images.
        operating_point: Operating point of the subgroups; "" without one.
    """
    labels, patients = [image.label for image in images], [image.patient for image in images]
    subgroups: list[Subgroup] = []
    tests: list[InteractionTest] = []
    titles = {metric.name: metric.title for metric in metrics}
    for column, values in columns.items():
        names = [*sorted({*values} - {""}), *([""] if "" in values else [])]
        rows = {name: np.flatnonzero([value == name for value in values]) for name in names}
        subgroups += [
            Subgroup(
                column=column,
                value=name or _NOT_STATED,
                n=len(inside),
                counts=dict(Counter(labels[i] for i in inside.tolist())),
                operating_point=operating_point,
                metrics={metric.name: metric.interval(inside) for metric in metrics},
            )
            for name, inside in rows.items()
        ]
        stated = {name: inside for name, inside in rows.items() if name}
        tests += [_interaction(column, metric, stated, patients) for metric in metrics if metric.p]
    corrected = holm([test.p for test in tests])
    number = sum(p is not None for p in corrected)
    return tuple(subgroups), tuple(
        dataclasses.replace(test, p_holm=p, sentence=_sentence(test, titles[test.metric], p, number))
        for test, p in zip(tests, corrected, strict=True)
    )


def _interaction(
    column: str, metric: GroupMetric, members: Mapping[str, IntArray], patients: Sequence[str]
) -> InteractionTest:
    assert metric.p is not None
    groups = [name for name, rows in members.items() if all(kind[rows].any() for kind in metric.needed)]
    tested = np.any(metric.needed, axis=0)
    shared = shared_patients([{patients[i] for i in members[name][tested[members[name]]].tolist()} for name in groups])
    p, reason = None, ""
    try:
        if len(groups) < 2:
            raise UndefinedMetricError(_few_groups(members, len(patients), metric.needed_text))
        p = metric.p([members[name] for name in groups], groups)
    except UndefinedMetricError as error:
        reason = error.message
    return InteractionTest(
        column=column,
        metric=metric.name,
        operating_point=metric.operating_point,
        groups=tuple(groups),
        test=metric.test,
        p=p,
        p_holm=None,
        seed=metric.seed,
        reason=reason,
        shared_patients=shared,
    )


def _few_groups(members: Mapping[str, IntArray], n: int, needed: str) -> str:
    """Return why fewer than two groups have the images that a test needs."""
    missing = n - sum(map(len, members.values()))
    if not missing:
        return f"there are no two groups with {needed} images"
    if missing == n:
        return f"the value is missing for all {counted(n, 'image')}"
    rest = "the others have one value" if len(members) == 1 else f"no two values have {needed} images"
    return f"the value is missing for {missing:,} of {counted(n, 'image')}, and {rest}"


def _sentence(test: InteractionTest, title: str, p_holm: float | None, number: int) -> str:
    if p_holm is None:
        return f"A difference in {title} between the groups of {test.column} cannot be tested: {test.reason}."
    p = "< 0.001" if p_holm < 0.001 else f"= {p_holm:.3f}"
    differs = "differs significantly" if p_holm < _ALPHA else "does not differ significantly"
    sentence = (
        f"The {title} {differs} between the {len(test.groups)} groups of {test.column} (p {p}, Holm-corrected for"
        f" {counted(number, 'test')}; {test.test})."
    )
    if not test.shared_patients:
        return sentence
    one = test.shared_patients == 1
    counts = "is in several groups and counts as a" if one else "are in several groups and count as a"
    return f"{sentence} {counted(test.shared_patients, 'patient')} {counts} different patient in each."


def shared_patients(sets: Iterable[set[str]]) -> int:
    """Return the number of known patients who occur in several sets."""
    counts = Counter(patient for patients in sets for patient in patients if patient)
    return sum(count > 1 for count in counts.values())

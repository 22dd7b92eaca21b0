"""Groups of runs that differ only in their seed: means, spread, and tests that account for seeds and patients."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from pneumoscope.core.comparison import MEAN_METHODS, PairedTest, RunGroup, SeedSpread
from pneumoscope.core.errors import RecipeError, UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.core.messages import counted
from pneumoscope.evaluation.comparison.inputs import ComparedRun
from pneumoscope.evaluation.comparison.paired_findings import (
    AUROCS,
    PairedResult,
    RunScores,
    corrected_tests,
    findings,
    paired_result,
)
from pneumoscope.runs.recipe_files import parse_recipe
from pneumoscope.statistics.inputs import BoolArray, FloatArray, patient_groups
from pneumoscope.statistics.intervals import undefined
from pneumoscope.statistics.replicates import (
    proportion_covariance,
    replicates_difference,
    replicates_mean,
    replicates_method,
)
from pneumoscope.statistics.roc import auroc, delong_covariance

__all__ = [
    "TESTED",
    "ComparedModel",
    "Measured",
    "MetricScoring",
    "RunScoring",
    "SummarizedRun",
    "group_findings",
    "group_runs",
    "group_sentences",
    "group_summaries",
    "group_tests",
    "training_sentence",
    "without_interval",
]

_FEW_RUNS = 3
TESTED = ("accuracy", "auroc", "sensitivity", "specificity")


class SummarizedRun(Protocol):
    """Common properties of the rows of a comparison."""

    @property
    def name(self) -> str:
        """Name of the run."""

    @property
    def seed(self) -> int | None:
        """Seed of the run; None for a bundle or file."""

    def intervals(self) -> Mapping[str, Interval]:
        """Return the metrics."""


# Values of all runs, their covariance over patients, number of images, and method.
Measured = tuple[FloatArray, FloatArray, int, str]


class MetricScoring(abc.ABC):
    """Metrics of all runs on the same images, with their covariance over patients."""

    tested: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        self._found: dict[str, Measured | Interval] = {}

    def mean(self, metric: str, members: Sequence[int]) -> Interval:
        """Return the mean of a metric over runs.

        Without a covariance over patients the mean has no interval, with the reason. If the metric is undefined, so is
        the mean.
        """
        found = self._metric(metric)
        if isinstance(found, Interval):
            values = self._values(metric)
            return found if values is None else dataclasses.replace(found, value=float(values[[*members]].mean()))
        values, covariance, n, method = found
        return replicates_mean(values[[*members]], covariance[np.ix_(members, members)], n=n, method=method)

    def difference(self, metric: str, a: Sequence[int], b: Sequence[int]) -> tuple[Interval, float | None]:
        """Return the difference of the means of two groups (a minus b) and its p-value; see `replicates_difference`."""
        found = self._metric(metric)
        if isinstance(found, Interval):
            return found, None
        values, covariance, n, method = found
        both = [*a, *b]
        return replicates_difference(values[[*a]], values[[*b]], covariance[np.ix_(both, both)], n=n, method=method)

    @abc.abstractmethod
    def paired(self, metric: str, a: int, b: int) -> PairedResult:
        """Return the test of two single runs, which have no variance of seeds."""

    def _metric(self, metric: str) -> Measured | Interval:
        if metric not in self._found:
            self._found[metric] = self._measure(metric)
        return self._found[metric]

    @abc.abstractmethod
    def _values(self, metric: str) -> FloatArray | None:
        """Return the metric of each run; None if undefined."""

    @abc.abstractmethod
    def _measure(self, metric: str) -> Measured | Interval:
        """Return the values, their covariance, n and the method; or an undefined interval."""


class RunScoring(MetricScoring):
    """Metrics of binary runs (NORMAL and PNEUMONIA).

    Args:
        runs: Scores of the runs.
        labels: True for pneumonia, shape (n,).
        patients: Patient identifier of each image.
    """

    tested = TESTED

    def __init__(self, runs: Sequence[RunScores], labels: BoolArray, patients: Sequence[str]) -> None:
        super().__init__()
        self._runs, self._labels, self._patients = runs, labels, patients

    def paired(self, metric: str, a: int, b: int) -> PairedResult:
        """Return McNemar's test, or DeLong's test of the AUROC, of two single runs."""
        return paired_result(metric, self._runs[a], self._runs[b], self._labels, self._patients)

    def _among(self, metric: str) -> BoolArray:
        """Return a mask of the images that a metric includes, shape (n,)."""
        return {"sensitivity": self._labels, "specificity": ~self._labels}.get(metric, np.ones_like(self._labels))

    def _values(self, metric: str) -> FloatArray | None:
        if metric == "auroc":
            if self._labels.all() or not self._labels.any():
                return None
            return np.array([auroc(run.logits, self._labels) for run in self._runs])
        among = self._among(metric)
        return np.array([run.correct[among].mean() for run in self._runs]) if among.any() else None

    def _measure(self, metric: str) -> Measured | Interval:
        labels = self._labels
        among = self._among(metric)
        inside = [self._patients[i] for i in np.flatnonzero(among).tolist()]
        groups = patient_groups(inside, len(inside))
        method = replicates_method(groups)
        try:
            if metric == "auroc":
                found = delong_covariance(np.stack([run.logits for run in self._runs]), labels, groups)
            else:
                found = proportion_covariance(np.stack([run.correct for run in self._runs])[:, among], groups)
        except UndefinedMetricError as error:
            return undefined(error.message, n=len(inside), method=method)
        return *found, len(inside), method


@dataclasses.dataclass(frozen=True)
class ComparedModel:
    """The runs of one recipe with several seeds, or a single run, bundle or file.

    Attributes:
        name: Name of the recipe, run, bundle or file.
        members: Indices of its runs.
        is_run: Whether the training is recorded; False for a bundle or file.
    """

    name: str
    members: tuple[int, ...]
    is_run: bool = True

    @property
    def is_group(self) -> bool:
        """Whether there are several seeds."""
        return len(self.members) > 1


def group_runs(runs: Sequence[ComparedRun[Any, Any]]) -> list[ComparedModel]:
    """Return the groups and single runs, in the order of their first run.

    Runs of one recipe form a group if their seeds differ and they have the same number of images of each label. Runs
    with the same seed are not grouped: they repeat one training, or were trained on other images.
    """
    by_recipe: dict[str, list[int]] = defaultdict(list)
    for position, run in enumerate(runs):
        by_recipe[_recipe_key(run) or f"run {position}"].append(position)
    members: list[tuple[int, ...]] = []
    for positions in by_recipe.values():
        seeds = Counter(record.seed for position in positions if (record := runs[position].record))
        is_group = len(positions) > 1 and max(seeds.values()) == 1
        members += [tuple(positions)] if is_group else [(position,) for position in positions]
    names = _group_names(runs, members)
    return [
        ComparedModel(name, each, is_run=runs[each[0]].record is not None)
        for each, name in sorted(zip(members, names, strict=True))
    ]


def _recipe_key(run: ComparedRun[Any, Any]) -> str:
    """Return a key of the recipe without its seed, and the number of images by label; "" without a training record.

    Fields added to recipes later get their default. The hash of the manifest is not part of the key, because the splits
    depend on the seed.
    """
    if run.record is None:
        return ""
    recipe = dict(run.record.recipe)
    with contextlib.suppress(RecipeError):  # a recipe of a newer version is compared unparsed
        recipe = parse_recipe(recipe, run.name).model_dump(mode="json")
    recipe["training"] = {**recipe.get("training", {}), "seed": None}
    images: Counter[str] = Counter()
    for by_label in run.record.counts.values():
        images.update(by_label)
    return json.dumps([recipe, images], sort_keys=True)


def _group_names(runs: Sequence[ComparedRun[Any, Any]], members: Sequence[tuple[int, ...]]) -> list[str]:
    """Return the name of each group: the recipe name, or the folder name if the recipe name is not unique."""
    names = [_recipe_name(runs, each) if len(each) > 1 else runs[each[0]].name for each in members]
    count = Counter(names)
    return [
        _folder_name(runs, each) if len(each) > 1 and count[name] > 1 else name
        for name, each in zip(names, members, strict=True)
    ]


def _recipe_name(runs: Sequence[ComparedRun[Any, Any]], members: tuple[int, ...]) -> str:
    record = runs[members[0]].record
    assert record  # only runs are grouped
    return record.name


def _folder_name(runs: Sequence[ComparedRun[Any, Any]], members: tuple[int, ...]) -> str:
    """Return the name of the closest common parent folder of the runs."""
    paths = [str(runs[position].path.resolve().parent) for position in members]
    return Path(os.path.commonpath(paths)).name


def group_summaries(
    compared: Sequence[ComparedModel], summaries: Sequence[SummarizedRun], scoring: MetricScoring
) -> tuple[RunGroup, ...]:
    """Return the mean and spread of each metric for each group of seeds.

    Args:
        compared: Groups and single runs.
        summaries: Summaries of all runs.
        scoring: Metrics of all runs.
    """
    return tuple(
        RunGroup(
            name=each.name,
            runs=tuple(summaries[position].name for position in each.members),
            seeds=tuple(summaries[position].seed or 0 for position in each.members),
            metrics=_spreads([summaries[position] for position in each.members], each.members, scoring),
        )
        for each in compared
        if each.is_group
    )


def _spreads(
    summaries: Sequence[SummarizedRun], members: Sequence[int], scoring: MetricScoring
) -> Mapping[str, SeedSpread]:
    found = {}
    for metric, first in summaries[0].intervals().items():
        intervals = [summary.intervals()[metric] for summary in summaries]
        values = [interval.value for interval in intervals if interval.value is not None]
        if len(values) < len(intervals):
            continue  # undefined for some runs; a mean over the others would not cover all seeds
        if metric in scoring.tested:
            mean = scoring.mean(metric, members)
        else:
            mean = without_interval(values, MEAN_METHODS["seeds"], first.n, scoring.tested)
        found[metric] = SeedSpread(mean, float(np.std(values, ddof=1)), min(values), max(values))
    return found


def without_interval(values: Sequence[float], method: str, n: int, tested: Sequence[str]) -> Interval:
    """Return the mean of a metric over runs, without an interval because no method provides one.

    Args:
        values: The metric of each run.
        method: One of `MEAN_METHODS`.
        n: Number of images.
        tested: Metrics whose means have intervals.
    """
    names = [AUROCS.get(metric, metric) for metric in tested]
    reason = f"means have intervals for {', '.join(names[:-1])} and {names[-1]} only"
    return Interval(float(np.mean(values)), None, None, method, n, reason=reason)


def group_findings(
    compared: Sequence[ComparedModel], summaries: Sequence[SummarizedRun], scoring: MetricScoring
) -> tuple[tuple[RunGroup, ...], tuple[PairedTest, ...], tuple[str, ...]]:
    """Return the groups of seeds, the paired tests, and the findings as sentences; see `group_summaries`."""
    groups = group_summaries(compared, summaries, scoring)
    pairs = group_tests(compared, scoring)
    training = training_sentence(compared)
    accuracies = [scoring.mean("accuracy", each.members) for each in compared]
    found = findings([each.name for each in compared], accuracies, pairs, training, noun="models")
    return groups, pairs, (*group_sentences(groups), *(found or (training,)))


def group_tests(compared: Sequence[ComparedModel], scoring: MetricScoring) -> tuple[PairedTest, ...]:
    """Return a test for each pair of groups or single runs and each tested metric.

    Two single runs are tested as without groups; see `statistics.replicates` for the test of the other pairs. p-values
    are Holm-corrected over the pairs of each metric.
    """
    pairs = list(combinations(compared, 2))
    names = [(a.name, b.name) for a, b in pairs]
    tests: list[PairedTest] = []
    for metric in scoring.tested:
        tests += corrected_tests(metric, names, [_test(scoring, metric, a, b) for a, b in pairs])
    return tuple(tests)


def _test(scoring: MetricScoring, metric: str, a: ComparedModel, b: ComparedModel) -> PairedResult:
    if not (a.is_group or b.is_group):
        return scoring.paired(metric, a.members[0], b.members[0])
    difference, p = scoring.difference(metric, a.members, b.members)
    return PairedResult(difference, p, difference.method)


def group_sentences(groups: Sequence[RunGroup]) -> tuple[str, ...]:
    """Return a sentence with the mean and spread of each group, and a remark if a group has only 2 or 3 seeds or folds."""
    few = [
        group
        for group in groups
        if len(group.runs) <= _FEW_RUNS and any(spread.mean.low is not None for spread in group.metrics.values())
    ]
    if not few:
        return tuple(map(_sentence, groups))
    fewest = min(few, key=lambda group: len(group.runs))
    n, unit = len(fewest.runs), fewest.unit
    same = [group.name for group in few if len(group.runs) == n]
    named = f" of {_joined(same)}" if len(same) < len(groups) else ""
    more = "use more folds" if fewest.folds else "train more seeds"
    remark = (
        f"With {n} {unit}{named}, the variance between {unit} has {counted(n - 1, 'degree')} of freedom, and intervals can be"
        f" very wide; {more}."
    )
    return (*map(_sentence, groups), remark)


def training_sentence(compared: Sequence[ComparedModel]) -> str:
    """Return a sentence on the scope of the intervals of groups and single runs."""
    text = "Means over seeds have intervals for other seeds and other patients; a single run of a recipe may be better or worse."
    runs, others = (
        [each.name for each in compared if not each.is_group and each.is_run is is_run] for is_run in (True, False)
    )
    if runs:
        text += (
            f" {_joined(runs)} is one training: a difference applies to this training, not to its recipe."
            if len(runs) == 1
            else f" {_joined(runs)} are one training each: a difference applies to these trainings, not to their recipes."
        )
    if others:
        text += (
            f" {_joined(others)} {'has one evaluation' if len(others) == 1 else 'have one evaluation each'}: a difference"
            " applies to these predictions."
        )
    if singles := len(runs) + len(others):
        text += " A test of a group of seeds against a single model includes the variation between these seeds"
        text += "; a test of two single models includes none." if singles > 1 else "."
    return text


def _joined(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _sentence(group: RunGroup) -> str:
    parts = []
    for metric in ("accuracy", *AUROCS):
        if spread := group.metrics.get(metric):
            name = AUROCS.get(metric, metric)
            parts.append(
                f"mean {name} {spread.mean}, standard deviation {spread.sd:.4f}, range {spread.minimum:.3f} to"
                f" {spread.maximum:.3f}"
            )
    return f"{group.name}, {group.members_text()}: {'; '.join(parts)}."

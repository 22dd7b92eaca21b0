"""Compare cross-validations: mean and spread of each metric over folds, and tests that account for the folds.

Every metric is computed within each fold and averaged. Predictions are not pooled: each fold has a different network
and calibration, and logits of different networks are not on one scale, so a pooled AUROC would depend on which network
scored an image (Forman & Scholz 2010, SIGKDD Explor 12:49). Metrics of probabilities are excluded, because the
validation images of a fold also fitted its calibration. `evaluate` rejects thresholds that were chosen on them.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from pneumoscope import __version__
from pneumoscope.bundle.bundle_folder import CARD_FILE, read_any_card
from pneumoscope.bundle.card import short_hash
from pneumoscope.core.comparison import MEAN_METHODS, Comparison, PairedTest, RunGroup, RunSummary, SeedSpread
from pneumoscope.core.errors import RunError, UsageError
from pneumoscope.core.interval import Interval
from pneumoscope.core.messages import counted
from pneumoscope.core.with_figures import attach_source
from pneumoscope.data.manifest import Manifest, images_sha256
from pneumoscope.evaluation.comparison.comparability import (
    check_comparable,
    joint_notice,
    prevalence_sentences,
    summarize_run,
    with_unique_names,
)
from pneumoscope.evaluation.comparison.inputs import ComparedRun, ScoringOptions, read_evaluated
from pneumoscope.evaluation.comparison.paired_findings import PairedResult, corrected_tests, findings
from pneumoscope.evaluation.comparison.run_groups import TESTED, SummarizedRun, group_sentences, without_interval
from pneumoscope.runs.record import RunRecord, read_run
from pneumoscope.runs.run_folder import BUNDLE_FOLDER, MANIFEST_FILE, run_folders
from pneumoscope.statistics.inputs import count_unknown, patient_groups
from pneumoscope.statistics.intervals import undefined
from pneumoscope.statistics.resampled import FOLDS_METHOD, folds_difference, folds_mean

__all__ = [
    "OUT_OF_FOLD",
    "Folds",
    "compare_folds",
    "find_differences",
    "find_folds",
    "group_folds",
    "is_cross_validation",
    "read_folds",
    "summarize_folds",
]

OUT_OF_FOLD = "validation"  # split, and name of the evaluation, of each fold
_OF_PROBABILITIES = {
    "brier",
    "expected_calibration_error",
    "calibration_slope",
    "calibration_intercept",
    "observed_expected_ratio",
}


_Summary = TypeVar("_Summary", bound=SummarizedRun)


@dataclasses.dataclass(frozen=True)
class Folds(Generic[_Summary]):
    """The evaluated folds of one recipe, in fold order.

    Attributes:
        path: Folder of the folds.
        runs: The evaluations.
        summaries: Their rows in the comparison.
        records: Their records.
    """

    path: Path
    runs: tuple[ComparedRun[Any, Any], ...]
    summaries: tuple[_Summary, ...]
    records: tuple[RunRecord, ...]

    @property
    def ratio(self) -> float:
        """Ratio of validation to training images, averaged over the folds."""
        return float(np.mean([_count(record, "validation") / _count(record, "train") for record in self.records]))

    @property
    def n(self) -> int:
        """Number of validation images of all folds."""
        return sum(run.evaluation.n for run in self.runs)

    def values(self, metric: str) -> list[float] | str:
        """Return a metric by fold, or the reason why it is undefined in one of them."""
        intervals = [summary.intervals()[metric] for summary in self.summaries]
        for summary, interval in zip(self.summaries, intervals, strict=True):
            if interval.value is None:
                return f"{summary.name}: {interval.reason}"
        return [interval.value for interval in intervals if interval.value is not None]


def _count(record: RunRecord, split: str) -> int:
    return sum(record.counts[split].values())


def is_cross_validation(folder: Path) -> bool:
    """Return whether a folder contains a fold of a cross-validation; see `training.run_series.train_folds`."""
    return any(read_run(run).folds is not None for run in run_folders(folder))


def find_folds(folder: Path) -> list[Path]:
    """Return the runs of a cross-validation, in fold order.

    Raises:
        RunError: A fold is missing or unfinished, or the folder contains other runs.
    """
    runs = run_folders(folder)
    records = [read_run(run, finished=True) for run in runs]
    wanted = records[0].folds or len(records)
    for run, record in zip(runs, records, strict=True):
        if record.folds != wanted:
            raise RunError(
                f"{str(folder)!r} has other runs than those of {counted(wanted, 'fold')}: {str(run)!r}",
                hint="Keep each cross-validation in its own folder",
            )
    if missing := sorted({*range(1, wanted + 1)} - {record.fold for record in records}):
        raise RunError(
            f"{str(folder)!r} has {len(runs)} of {counted(wanted, 'fold')}; fold {missing[0]} is missing",
            hint=f"Finish it: pneumoscope train RECIPE --folds {wanted} --out {folder} --resume",
        )
    return [run for _, run in sorted(zip([record.fold or 0 for record in records], runs, strict=True))]


def summarize_folds(folder: Path, evaluation: str, operating_point: str) -> RunGroup:
    """Return the mean and spread of each metric of an evaluated cross-validation.

    Args:
        folder: Folder of the folds.
        evaluation: Name of the evaluation of each fold on its validation images.
        operating_point: Operating point of the threshold metrics.

    Raises:
        RunError: A fold is missing, unfinished, not evaluated, or not evaluated on its own validation images.
        UnknownNameError: A fold was not evaluated at this operating point.
    """
    (folds,) = _read([folder], evaluation, operating_point)
    return group_folds(folds, folds.runs[0].evaluation.name, TESTED)


def compare_folds(
    targets: Sequence[Path], operating_point: str, command: str = "", prevalence: float | None = None
) -> Comparison:
    """Compare cross-validations on the same folds.

    Args:
        targets: Folders of folds.
        operating_point: Operating point of the threshold metrics.
        command: The command line, for the record.
        prevalence: See `compare.compare`.

    Raises:
        UsageError: A target is not a cross-validation.
        RunError: A fold is missing, unfinished, not evaluated, or not evaluated on its own validation images; or the
            folds of two targets have different images.
        UnknownNameError: A fold was not evaluated at this operating point.
    """
    folds = _read(targets, OUT_OF_FOLD, operating_point, prevalence)
    found = find_differences(folds, TESTED)
    comparison = Comparison(
        images=found.images,
        operating_point=operating_point,
        runs=tuple(summary for each in folds for summary in each.summaries),
        pairs=found.pairs,
        sentences=(*found.sentences, *prevalence_sentences((), found.groups, operating_point, prevalence)),
        evaluation=OUT_OF_FOLD,
        groups=found.groups,
        prevalence=prevalence,
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        notice=found.notice,
    )
    return attach_source(comparison, [run for each in folds for run in each.runs])


class FoldFindings(NamedTuple):
    """Results of comparing cross-validations; see `Comparison` for the fields."""

    images: Mapping[str, Any]
    groups: tuple[RunGroup, ...]
    pairs: tuple[PairedTest, ...]
    sentences: tuple[str, ...]
    notice: str


def find_differences(folds: Sequence[Folds[Any]], tested: Sequence[str]) -> FoldFindings:
    """Compare cross-validations on the same folds.

    Args:
        folds: The cross-validations.
        tested: Metrics to compare.

    Raises:
        RunError: The folds of two cross-validations have different images.
    """
    _check_same_folds(folds)
    names = _names(folds)
    groups = tuple(group_folds(each, name, tested) for each, name in zip(folds, names, strict=True))
    pairs = _tests(folds, names, tested)
    training = _training_sentence(folds)
    found = findings(names, [group.metrics["accuracy"].mean for group in groups], pairs, training, noun="recipes")
    images = [image for run in folds[0].runs for image in run.images]
    return FoldFindings(
        images={
            "sha256": images_sha256([image.sha256 for image in images]),
            "n": len(images),
            "patients": int(patient_groups([image.patient for image in images], len(images)).max()) + 1,
            "unknown_patients": count_unknown(image.patient for image in images),
            "counts": dict(sum((Counter(run.evaluation.counts) for run in folds[0].runs), Counter())),
        },
        groups=groups,
        pairs=pairs,
        sentences=(*group_sentences(groups), *(found or (training,))),
        notice=joint_notice([run for each in folds for run in each.runs]),
    )


def read_folds(
    targets: Sequence[Path],
    read: Callable[[Sequence[Path]], Sequence[ComparedRun[Any, Any]]],
    summarize: Callable[[Any], _Summary],
) -> list[Folds[_Summary]]:
    """Return evaluated cross-validations.

    Args:
        targets: Folders of folds.
        read: Returns the evaluations of runs.
        summarize: Returns the row of an evaluation in a comparison.

    Raises:
        UsageError: A target is not a cross-validation.
        RunError: A fold is missing, unfinished, not evaluated, or not evaluated on its own validation images.
    """
    for target in targets:
        if not is_cross_validation(target):
            raise UsageError(
                f"{str(target)!r} is not a cross-validation, and a cross-validation is compared with another one only",
                hint="The validation images of a cross-validation are training images of other models: give folders of"
                " `train --folds` only, or compare other runs on test images",
            )
    paths = [find_folds(target) for target in targets]
    runs = iter(with_unique_names(read([path for each in paths for path in each])))
    found = []
    for target, each in zip(targets, paths, strict=True):
        members = tuple(next(runs) for _ in each)
        for run in members:
            _check_out_of_fold(run)
        found.append(Folds(target, members, tuple(map(summarize, members)), tuple(map(read_run, each))))
    return found


def _read(
    targets: Sequence[Path], evaluation: str, operating_point: str, prevalence: float | None = None
) -> list[Folds[RunSummary]]:
    return read_folds(
        targets,
        lambda paths: read_evaluated(paths, evaluation, operating_point, ScoringOptions(), None),
        lambda run: summarize_run(run, operating_point, prevalence),
    )


def _check_out_of_fold(run: ComparedRun[Any, Any]) -> None:
    """Raise if the evaluated images are not the fold's validation images, according to its card and manifest."""
    evaluate_again = (
        f"Evaluate it again, on the data that it was trained on: pneumoscope evaluate {run.path} --data DATA"
    )
    evaluate_again += f" --split {OUT_OF_FOLD} --force"
    manifest, card = run.path / MANIFEST_FILE, run.path / BUNDLE_FOLDER / CARD_FILE
    if card.is_file():
        seen = set(read_any_card(card).seen.get("train", ()))
        trained = [image.path for image in run.images if short_hash(image.sha256) in seen]
        if trained:
            raise RunError(
                f"{str(run.path)!r} was evaluated on {len(trained)} of its own training images (compared by content);"
                f" the first is {trained[0]}",
                hint=evaluate_again,
            )
    if manifest.is_file():
        images = Manifest.from_csv(manifest.read_text(encoding="utf-8"), run.path, str(manifest)).split(OUT_OF_FOLD)
        if run.evaluation.images_sha256 != images_sha256([image.sha256 for image in images]):
            raise RunError(
                f"{str(run.path)!r} was evaluated on {counted(run.evaluation.n, 'image')} that are not the"
                f" {counted(len(images), 'validation image')} of its fold",
                hint=evaluate_again,
            )


def _check_same_folds(folds: Sequence[Folds[Any]]) -> None:
    """Raise unless corresponding folds of all cross-validations have the same validation images."""
    first = folds[0]
    for other in folds[1:]:
        if len(other.runs) != len(first.runs):
            raise RunError(
                f"{str(other.path)!r} has {counted(len(other.runs), 'fold')}, and {str(first.path)!r} {len(first.runs)}",
                hint="Train both with the same --folds",
            )
        for a, b in zip(first.runs, other.runs, strict=True):
            try:
                check_comparable([a, b])
            except RunError as error:
                error.hint = "Folds are paired: train both recipes with the same data, --folds and training.seed"
                raise


def _names(folds: Sequence[Folds[Any]]) -> list[str]:
    """Return the name of each recipe, or of its folder if several recipes have the same name."""
    names = [each.records[0].name for each in folds]
    count = Counter(names)
    return [name if count[name] == 1 else each.path.resolve().name for name, each in zip(names, folds, strict=True)]


def group_folds(folds: Folds[Any], name: str, tested: Sequence[str]) -> RunGroup:
    """Return the mean and spread of each metric over folds.

    Args:
        folds: The folds.
        name: Name of the recipe.
        tested: Metrics whose means have intervals.
    """
    return RunGroup(
        name=name,
        runs=tuple(summary.name for summary in folds.summaries),
        seeds=tuple(record.seed for record in folds.records),
        metrics=_spreads(folds, tested),
        folds=tuple(record.fold or 0 for record in folds.records),
    )


def _spreads(folds: Folds[Any], tested: Sequence[str]) -> Mapping[str, SeedSpread]:
    found = {}
    for metric in folds.summaries[0].intervals():
        if metric in _OF_PROBABILITIES:
            continue
        values = folds.values(metric)
        if isinstance(values, str):
            continue  # a mean over the other folds would not cover all images
        mean = folds_mean(values, folds.ratio, n=folds.n)
        if metric not in tested:  # not all of these are between 0 and 1
            mean = without_interval(values, MEAN_METHODS["folds"], folds.n, tested)
        found[metric] = SeedSpread(mean, float(np.std(values, ddof=1)), min(values), max(values))
    return found


def _tests(folds: Sequence[Folds[Any]], names: Sequence[str], tested: Sequence[str]) -> tuple[PairedTest, ...]:
    """Return tests of each pair by each metric, Holm-corrected over the pairs of each metric."""
    pairs = list(combinations(names, 2))
    tests: list[PairedTest] = []
    for metric in tested:
        results = [PairedResult(*_difference(metric, a, b), FOLDS_METHOD) for a, b in combinations(folds, 2)]
        tests += corrected_tests(metric, pairs, results)
    return tuple(tests)


def _difference(metric: str, a: Folds[Any], b: Folds[Any]) -> tuple[Interval, float | None]:
    of_a, of_b = a.values(metric), b.values(metric)
    for values in (of_a, of_b):
        if isinstance(values, str):
            return undefined(values, n=a.n, method=FOLDS_METHOD), None
    return folds_difference(of_a, of_b, a.ratio, n=a.n)


def _training_sentence(folds: Sequence[Folds[Any]]) -> str:
    share = 1 / (1 + folds[0].ratio)
    # Older records lack the field; their epoch was selected by accuracy.
    selecting = [
        name
        for name, each in zip(_names(folds), folds, strict=True)
        if any(record.recipe["training"].get("select") != "last" for record in each.records)
    ]
    optimism = ""
    if selecting:
        of_recipes = "" if len(selecting) == len(folds) else f" of {', '.join(selecting)}"
        optimism = (
            f" The validation images of a fold selected its epoch, so the means{of_recipes} are slightly too high."
        )
    return (
        f"Means over {counted(len(folds[0].runs), 'fold')} are those of networks trained on {share:.0%} of the images, and their"
        f" intervals are for other training images and patients.{optimism} Test images were not used."
    )

"""Frozen records of multiclass evaluations and comparisons; see `results`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pneumoscope.core.calibration_record import CalibrationRecord
from pneumoscope.core.comparison import PairedTest, RunGroup
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.image_flow import ImageFlow
from pneumoscope.core.interval import Interval
from pneumoscope.core.result_forms import interval_rows, rows_dataframe
from pneumoscope.core.results import (
    SCHEMA,
    InteractionTest,
    RejectionSummary,
    ReliabilityBin,
    SetDifference,
    Subgroup,
)
from pneumoscope.core.with_figures import WithFigures

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ClassPair",
    "ClassResult",
    "MulticlassComparison",
    "MulticlassEvaluation",
    "MulticlassRunSummary",
    "MulticlassScoredImage",
]


@dataclasses.dataclass(frozen=True, slots=True)
class MulticlassScoredImage:
    """A labeled image with its class probabilities.

    Attributes:
        path, sha256, patient, etiology: See `results.ScoredImage`.
        label: Name of the true class.
        predicted: The class with the highest probability.
        prediction_set: Names of the classes in the prediction set, joined by "|"; None if the model has no prediction
            sets.
        probabilities: Calibrated probabilities, in the order of the classes.
    """

    path: str
    sha256: str
    patient: str
    label: str
    etiology: str
    predicted: str
    prediction_set: str | None
    probabilities: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ClassResult:
    """Performance for one class against the rest.

    Attributes:
        n: Number of images of the class.
        metrics: auroc, auprc, sensitivity, specificity, precision, negative_predictive_value, f1,
            positive_likelihood_ratio, negative_likelihood_ratio, expected_calibration_error, calibration_slope,
            calibration_intercept, observed_expected_ratio. Earlier evaluations lack likelihood ratios, slope, intercept
            and O/E.
        sets: coverage, single, empty and mean_size of the prediction sets of the class's images; empty without sets.
        reliability: Observed rate of the class by predicted probability, in the bins of the calibration error; empty if
            some of the images were used to fit the calibration.
    """

    n: int
    metrics: Mapping[str, Interval]
    sets: Mapping[str, Interval]
    reliability: tuple[ReliabilityBin, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ClassPair:
    """Performance for one class against another, on the images of these two classes.

    Attributes:
        first, second: Names of the classes.
        n: Number of images of both classes.
        metrics: auroc, accuracy, sensitivity (for the first class) and specificity, from the probability of the first
            class given that the image belongs to one of the two.
    """

    first: str
    second: str
    n: int
    metrics: Mapping[str, Interval]

    def named_metrics(self) -> dict[str, Interval]:
        """Return the metrics under names that include the class, such as "sensitivity, virus"."""
        names = {
            "sensitivity": f"sensitivity, {self.first}",
            "specificity": f"sensitivity, {self.second} (specificity)",
        }
        return {names.get(metric, metric): interval for metric, interval in self.metrics.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class MulticlassEvaluation(WithFigures):
    """The evaluation of one multiclass bundle on one split.

    Attributes:
        classes: Names of the classes, in the order of all tables.
        metrics: accuracy, balanced_accuracy, macro_auroc, macro_auprc, macro_f1, macro_specificity, macro_precision,
            brier, log_loss, expected_calibration_error.
        confusion: Number of images by true class (rows) and predicted class (columns).
        by_class: Each class against the rest.
        pairs: Each pair of classes.
        coverage: Target coverage of each class for the prediction sets; None without sets.
        sets: coverage, single, empty and mean_size of the prediction sets of all images; empty without sets.
        name, split, images_sha256, n, patients, counts, bundle_sha256, recipe, test_evaluation, seconds, created,
            version, rejected, flow, subgroups, interactions, predictions_sha256, remarks, unknown_patients, difference,
            calibration: See `results.Evaluation`.
    """

    name: str
    split: str
    images_sha256: str
    n: int
    patients: int
    counts: Mapping[str, int]
    classes: tuple[str, ...]
    bundle_sha256: str
    recipe: Mapping[str, Any]
    metrics: Mapping[str, Interval]
    confusion: tuple[tuple[int, ...], ...]
    by_class: Mapping[str, ClassResult]
    pairs: tuple[ClassPair, ...]
    coverage: float | None
    sets: Mapping[str, Interval]
    rejected: RejectionSummary | None
    test_evaluation: int | None
    seconds: float
    created: str
    version: str
    flow: ImageFlow | None = None
    subgroups: tuple[Subgroup, ...] = ()
    interactions: tuple[InteractionTest, ...] = ()
    predictions_sha256: str = ""
    remarks: tuple[str, ...] = ()
    unknown_patients: int | None = None
    difference: SetDifference | None = None
    calibration: CalibrationRecord | None = None
    schema: int = SCHEMA
    notice: str = NOTICE

    def __repr__(self) -> str:
        """Return the name, the split and the overall metrics."""
        metrics = ", ".join(f"{name}={interval}" for name, interval in self.metrics.items())
        return f"MulticlassEvaluation({self.name!r}, split={self.split!r}, n={self.n}, patients={self.patients}, {metrics})"

    def _repr_html_(self) -> str:
        from pneumoscope.core.display import multiclass_evaluation_html

        return multiclass_evaluation_html(self)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per metric, with its interval.

        The keys class and other name the class and, for pairs, the class it is compared with; reference names the
        evaluation that a difference refers to. They are None where they do not apply. Metrics of prediction sets have
        names such as "set coverage".
        """
        none: dict[str, str | None] = {"class": None, "other": None, "reference": None}
        rows = interval_rows((*self.metrics.items(), *_set_metrics(self.sets)), **none)
        for name, result in self.by_class.items():
            of_class = none | {"class": name}
            rows += interval_rows((*result.metrics.items(), *_set_metrics(result.sets)), **of_class)
        for pair in self.pairs:
            rows += interval_rows(pair.metrics.items(), **none | {"class": pair.first, "other": pair.second})
        if self.difference:
            for key, interval in self.difference.metrics.items():
                metric, _, name = key.partition(", ")
                keys = none | {"class": name or None, "reference": self.difference.reference}
                rows += interval_rows([(metric, interval)], **keys)
        return rows

    def to_dataframe(self) -> pd.DataFrame:
        """Return `rows` as a pandas DataFrame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return rows_dataframe(self.rows(), "MulticlassEvaluation.to_dataframe()")

    def confusion_dataframe(self) -> pd.DataFrame:
        """Return the confusion matrix as a pandas DataFrame: rows are true classes, columns predicted classes.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        frame = rows_dataframe(self.confusion, "MulticlassEvaluation.confusion_dataframe()", self.classes)
        return frame.set_axis(list(self.classes), axis=0)


def _set_metrics(sets: Mapping[str, Interval]) -> list[tuple[str, Interval]]:
    return [(f"set {name}", interval) for name, interval in sets.items()]


@dataclasses.dataclass(frozen=True, slots=True)
class MulticlassRunSummary:
    """One run of a comparison; for a bundle, the fields of a run are None.

    Attributes:
        metrics: As in `MulticlassEvaluation`.
        confusion: As in `MulticlassEvaluation`.
        seconds: Training time, wall clock.
    """

    name: str
    network: str | None
    image_size: int | None
    epochs: int | None
    seed: int | None
    weights: str | None
    seconds: float | None
    metrics: Mapping[str, Interval]
    confusion: tuple[tuple[int, ...], ...]

    def intervals(self) -> Mapping[str, Interval]:
        """Return the metrics."""
        return self.metrics


@dataclasses.dataclass(frozen=True, slots=True)
class MulticlassComparison(WithFigures):
    """A comparison of multiclass runs on the same images, or of cross-validations on the same folds.

    Attributes:
        images: {"sha256", "n", "patients", "unknown_patients", "counts"}.
        classes: Names of the classes.
        runs: One entry per run, in the order given.
        pairs: Tests of accuracy and macro AUROC for each pair of runs; a group replaces its runs.
        sentences: The findings as sentences, generated from `pairs`.
        command: The command line.
        created: Time of the comparison, UTC, ISO 8601.
        version: Version of pneumoscope.
        evaluation: Name of the evaluation that is compared in each run.
        groups: Runs of one recipe with several seeds, or folds.
    """

    images: Mapping[str, Any]
    classes: tuple[str, ...]
    runs: tuple[MulticlassRunSummary, ...]
    pairs: tuple[PairedTest, ...]
    sentences: tuple[str, ...]
    command: str
    created: str
    version: str
    evaluation: str = "test"
    groups: tuple[RunGroup, ...] = ()
    schema: int = SCHEMA
    notice: str = NOTICE

    def __repr__(self) -> str:
        """Return the number of images and the accuracy of each run."""
        runs = ", ".join(f"{run.name}: accuracy={run.metrics.get('accuracy')}" for run in self.runs)
        return f"MulticlassComparison(n={self.images.get('n')}, {runs})"

    @property
    def is_cross_validation(self) -> bool:
        """True if the runs are folds, each with its own images."""
        return any(group.folds for group in self.groups)

    def _repr_html_(self) -> str:
        from pneumoscope.core.display import multiclass_comparison_html

        return multiclass_comparison_html(self)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per run and metric (run, metric, interval), then the means of each group of runs."""
        rows = [row for run in self.runs for row in interval_rows(run.metrics.items(), run=run.name)]
        return rows + [row for group in self.groups for row in group.rows()]

    def to_dataframe(self) -> pd.DataFrame:
        """Return `rows` as a pandas DataFrame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return rows_dataframe(self.rows(), "MulticlassComparison.to_dataframe()")

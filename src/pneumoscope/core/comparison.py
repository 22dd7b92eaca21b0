"""The comparison of several runs on the same images as frozen records; see `results`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.interval import Interval
from pneumoscope.core.result_forms import interval_rows, rows_dataframe
from pneumoscope.core.results import SCHEMA, Confusion
from pneumoscope.core.with_figures import WithFigures

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MEAN_METHODS",
    "Comparison",
    "PairedTest",
    "ReferenceRow",
    "ReferenceTable",
    "RunGroup",
    "RunSummary",
    "SeedSpread",
]

MEAN_METHODS = {"seeds": "mean of seeds", "folds": "mean of folds"}  # methods of means without an interval


@dataclasses.dataclass(frozen=True, slots=True)
class RunSummary:
    """One run of a comparison, or a bundle or file of predictions, for which the fields of a run are None.

    Attributes:
        average_train_accuracy, average_validation_accuracy: Means over the epochs, as in the report.
        seconds: Training time, wall clock.
        test: n, and each metric as an `Interval` at the operating point of the comparison.
        confusion: Confusion matrix at that operating point.
    """

    name: str
    network: str | None
    optimizer: str | None
    batch: int | None
    image_size: int | None
    epochs: int | None
    seed: int | None
    device: str | None
    weights: str | None
    average_train_accuracy: float | None
    average_validation_accuracy: float | None
    best_epoch: int | None
    seconds: float | None
    test: Mapping[str, Any]
    confusion: Confusion

    def intervals(self) -> dict[str, Interval]:
        """Return the metrics."""
        return {name: value for name, value in self.test.items() if isinstance(value, Interval)}


@dataclasses.dataclass(frozen=True, slots=True)
class SeedSpread:
    """A metric of several runs of one recipe: with different seeds, or the folds of a cross-validation.

    Attributes:
        mean: Mean of the runs, with an interval for other seeds and other patients, or other training images and patients, if
            there is a method for the metric.
        sd: Standard deviation of the runs.
        minimum, maximum: Lowest and highest value.
    """

    mean: Interval
    sd: float
    minimum: float
    maximum: float

    @property
    def lacks_method(self) -> bool:
        """True if the mean has no interval because no method provides one for the metric; notes state it once."""
        return self.mean.method in MEAN_METHODS.values()

    def text(self) -> str:
        """Return the mean, its interval if there is one, and the standard deviation."""
        mean = dataclasses.replace(self.mean, reason="") if self.lacks_method else self.mean
        return f"{mean} (standard deviation {self.sd:.4f})"


@dataclasses.dataclass(frozen=True, slots=True)
class RunGroup:
    """The runs of one recipe with several seeds, or the folds of a cross-validation.

    Attributes:
        name: Name of the recipe, or of the folder of the runs if another group has the same name.
        runs, seeds: Names and seeds of the runs, in the same order.
        metrics: Spread of each metric that is defined for all runs.
        folds: Numbers of the folds, in the same order; empty for several seeds.
    """

    name: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: Mapping[str, SeedSpread]
    folds: tuple[int, ...] = ()

    @property
    def unit(self) -> str:
        """Noun for the runs: "seeds" or "folds"."""
        return "folds" if self.folds else "seeds"

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per metric: run, metric, and the interval of the mean."""
        means = [(name, spread.mean) for name, spread in self.metrics.items()]
        return interval_rows(means, run=self.title)

    @property
    def title(self) -> str:
        """Name with the number of runs, such as "quick (mean of 3 seeds)"."""
        return f"{self.name} (mean of {len(self.runs)} {self.unit})"

    def members_text(self) -> str:
        """Return what the runs are, such as "3 seeds (0, 1, 2)" or "5 folds (seed 0)"."""
        which = f"seed {self.seeds[0]}" if self.folds else ", ".join(map(str, self.seeds))
        return f"{len(self.runs)} {self.unit} ({which})"


@dataclasses.dataclass(frozen=True, slots=True)
class PairedTest:
    """A paired test of two runs, or groups of runs, on the same images.

    Attributes:
        a, b: Names of the runs or groups.
        metric: "accuracy", "sensitivity" or "specificity" (exact McNemar test), or "auroc" (DeLong test); with several seeds each
            by the test of Obuchowski and Rockette, with folds by that of Nadeau and Bengio.
        difference: Metric of a minus metric of b.
        test: Name of the test, which states whether it keeps the images of a patient together.
        p: Two-sided p-value before correction; None if undefined (no discordant image, equal rankings).
        p_holm: p-value after Holm correction over all pairs of the same metric.
        verdict: "a" or "b" if `p_holm` is below 0.05 and the interval of the difference does not contain 0, otherwise
            "not distinguishable".
        sentence: The finding as a sentence.
    """

    a: str
    b: str
    metric: str
    difference: Interval
    test: str
    p: float | None
    p_holm: float | None
    verdict: str
    sentence: str


@dataclasses.dataclass(frozen=True, slots=True)
class ReferenceRow:
    """One row of a published table, as printed and as computed from the counts behind it.

    Attributes:
        name: Name of the row; it is compared with the run of the same name.
        printed: The columns of the table under their printed names.
        confusion: Counts reconstructed from the printed numbers.
        metrics: Metrics by their standard definitions, computed from the counts.
        average_train_accuracy, average_validation_accuracy: As printed.
        difference: Accuracy of the run minus the published accuracy, with an unpaired interval; None without such a run on
            the same images.
        sentence: The finding as a sentence.
    """

    name: str
    printed: Mapping[str, float]
    confusion: Confusion
    metrics: Mapping[str, Interval]
    average_train_accuracy: float
    average_validation_accuracy: float
    difference: Interval | None
    sentence: str


@dataclasses.dataclass(frozen=True, slots=True)
class ReferenceTable:
    """A published table that the runs of a comparison are compared with.

    Attributes:
        note: Explanation of the columns and their errors.
        rows: Rows of the table; at least one.
    """

    note: str
    rows: tuple[ReferenceRow, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison(WithFigures):
    """A comparison of several runs on the same images, or of cross-validations on the same folds.

    Attributes:
        images: {"sha256", "n", "patients", "unknown_patients", "counts"}.
        operating_point: Operating point of the threshold metrics.
        runs: One entry per run, in the order given.
        pairs: Tests of each pair of runs, by accuracy, AUROC, sensitivity and specificity; a group takes the place of its runs.
        sentences: The findings as sentences, generated from `pairs`.
        command: The command line.
        created: Time of the comparison, UTC, ISO 8601.
        version: Version of pneumoscope.
        reference: Published table that the runs are compared with; None without one.
        evaluation: Name of the compared evaluation of each run.
        groups: Runs of one recipe with several seeds, or folds.
        prevalence: Prevalence that predictive values are stated for as well; None if none was stated.
    """

    images: Mapping[str, Any]
    operating_point: str
    runs: tuple[RunSummary, ...]
    pairs: tuple[PairedTest, ...]
    sentences: tuple[str, ...]
    command: str
    created: str
    version: str
    reference: ReferenceTable | None = None
    evaluation: str = "test"
    groups: tuple[RunGroup, ...] = ()
    prevalence: float | None = None
    schema: int = SCHEMA
    notice: str = NOTICE

    def __repr__(self) -> str:
        """Return the number of images, and the accuracy of each model: of several seeds or folds the mean."""
        grouped = {name for group in self.groups for name in group.runs}
        accuracies = {run.name: run.test.get("accuracy") for run in self.runs if run.name not in grouped}
        for group in self.groups:
            spread = group.metrics.get("accuracy")
            accuracies[f"{group.name}, mean of {group.members_text()}"] = spread.mean if spread else None
        listed = ", ".join(f"{name}: accuracy={accuracy}" for name, accuracy in accuracies.items())
        return f"Comparison(n={self.images.get('n')}, operating_point={self.operating_point!r}, {listed})"

    @property
    def is_cross_validation(self) -> bool:
        """True if the runs are folds, each with its own images."""
        return any(group.folds for group in self.groups)

    def _repr_html_(self) -> str:
        from pneumoscope.core.display import comparison_html

        return comparison_html(self)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per run and metric: run, metric, and its interval; then the means of each group of runs."""
        rows = [row for run in self.runs for row in interval_rows(run.intervals().items(), run=run.name)]
        return rows + [row for group in self.groups for row in group.rows()]

    def to_dataframe(self) -> pd.DataFrame:
        """Return `rows` as a pandas DataFrame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return rows_dataframe(self.rows(), "Comparison.to_dataframe()")

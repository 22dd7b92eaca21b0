"""What every command returns, as plain frozen data that becomes JSON with a schema number.

Nothing here computes: the numbers come from `statistics`, the sentences from `evaluation`. A number never travels alone:
`Interval` carries the value, its interval, the method, the images behind it and the seed, or why it does not exist.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from pneumoscope.core.i18n import NOTICE

__all__ = [
    "SCHEMA",
    "Comparison",
    "Confusion",
    "Evaluation",
    "Interval",
    "OperatingPointResult",
    "PairedTest",
    "ReferenceRow",
    "ReferenceTable",
    "RejectionSummary",
    "RunSummary",
    "ScoredImage",
    "to_json",
]

SCHEMA = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """A number with its uncertainty, or the reason why it does not exist.

    Attributes:
        value: the point estimate; None where undefined.
        low, high: the ends of the interval at `level`; None where undefined.
        method: how the interval was made: "wilson", "patient bootstrap", "delong", ...
        n: images behind the number (for sensitivity, the pneumonias; for precision, the images called so).
        level: Coverage aimed at, 0 to 1; None for a Venn-Abers interval, which has no confidence level.
        seed: of the bootstrap; None where no random number was drawn.
        reason: why the value is None; empty otherwise.
    """

    value: float | None
    low: float | None
    high: float | None
    method: str
    n: int
    level: float | None = 0.95
    seed: int | None = None
    reason: str = ""

    def __str__(self) -> str:
        """Return the value with its ends, such as "0.912 [0.880, 0.940]", or the reason why it is undefined."""
        if self.value is None:
            return f"undefined ({self.reason})"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclasses.dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of decisions against labels; pneumonia is the positive class."""

    tp: int
    fn: int
    tn: int
    fp: int


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredImage:
    """One image and what the network said of it.

    Attributes:
        path: of the image, relative to the data folder.
        sha256: of the image's bytes: how runs are paired.
        patient: the patient key; bootstraps draw patients, not images.
        label: "NORMAL" or "PNEUMONIA".
        etiology: "normal", "bacteria", "virus" or "" where unknown.
        logit: the network's output, unbounded; rankings use it, since scores tie at 0 and 1.
        score: sigmoid of the logit, 0 to 1, before calibration.
        probability: after calibration, 0 to 1.
    """

    path: str
    sha256: str
    patient: str
    label: str
    etiology: str
    logit: float
    score: float
    probability: float


@dataclasses.dataclass(frozen=True, slots=True)
class OperatingPointResult:
    """What happens at one operating point.

    Attributes:
        threshold: on the score (before calibration); an image at or above it is called pneumonia.
        rule: how the threshold was chosen, in words, and on which images.
        confusion: the four counts.
        metrics: accuracy, sensitivity, specificity, precision, negative_predictive_value, f1, balanced_accuracy, mcc.
        by_etiology: share called correctly among normal, bacteria and virus images.
        band: of a point that leaves images uncertain, for "normal" and "pneumonia" each the share "uncertain" and the share
            "covered", called rightly or uncertain; the other numbers judge those images by the threshold.
    """

    threshold: float
    rule: str
    confusion: Confusion
    metrics: Mapping[str, Interval]
    by_etiology: Mapping[str, Interval]
    uncertainty_band: Mapping[str, Mapping[str, Interval]] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RejectionSummary:
    """Images that a bundle would say nothing of.

    Attributes:
        share: of all images of the split.
        reasons: how many images for each reason, the numbers in its words left out.
    """

    share: Interval
    reasons: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    """One bundle judged on one split.

    Attributes:
        name: of the run or bundle.
        split: "train", "validation" or "test".
        images_sha256: of the sorted image hashes: two evaluations with the same one are of the same images.
        n, patients: images and patients.
        counts: images by label.
        bundle_sha256: of the network file that scored.
        recipe: the recipe as data.
        metrics: what needs no threshold: auroc, auprc, brier, expected_calibration_error.
        auroc_by_etiology: bacteria against normal, virus against normal.
        points: operating points by name: "half", "balanced", "rule_out", "rule_in".
        rejected: images that `predict` would reject. All other numbers judge them too: no bundle looks better for refusing.
        test_evaluation: how many evaluations of these test images the ledger holds, this one included; None for other splits.
        seconds: scoring time, wall clock.
        created: UTC, ISO 8601.
        version: of pneumoscope.
    """

    name: str
    split: str
    images_sha256: str
    n: int
    patients: int
    counts: Mapping[str, int]
    bundle_sha256: str
    recipe: Mapping[str, Any]
    metrics: Mapping[str, Interval]
    auroc_by_etiology: Mapping[str, Interval]
    operating_points: Mapping[str, OperatingPointResult]
    test_evaluation: int | None
    seconds: float
    created: str
    version: str
    rejected: RejectionSummary | None = None
    schema: int = SCHEMA
    notice: str = NOTICE


@dataclasses.dataclass(frozen=True, slots=True)
class RunSummary:
    """One row of a comparison.

    Attributes:
        average_train_accuracy, average_validation_accuracy: means over the epochs.
        test: n, and each metric as an `Interval`, at the operating point that the comparison names.
        confusion: at that operating point.
        seconds: of training, wall clock.
    """

    name: str
    network: str
    optimizer: str
    batch: int
    image_size: int
    epochs: int
    seed: int
    device: str
    weights: str
    average_train_accuracy: float | None
    average_validation_accuracy: float | None
    best_epoch: int | None
    seconds: float
    test: Mapping[str, Any]
    confusion: Confusion


@dataclasses.dataclass(frozen=True, slots=True)
class PairedTest:
    """Two runs on the same images.

    Attributes:
        a, b: the runs; a difference is a minus b.
        metric: "accuracy" (McNemar, exact) or "auroc" (DeLong).
        difference: with its interval.
        test: name of the test.
        p: two-sided, before correction; None where undefined (no discordant image, equal rankings).
        p_holm: after Holm's correction over all pairs of the same metric.
        verdict: "a", "b" or "not distinguishable".
        sentence: the same in words.
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
    """One row of a table published elsewhere, as printed and as computed from its counts.

    Attributes:
        name: of the row; a run of the same name is set beside it.
        printed: the table's columns under their own names.
        confusion: the counts behind them.
        metrics: standard definitions computed from the counts, each an `Interval`.
        average_train_accuracy, average_validation_accuracy: as printed.
        difference: accuracy of the run minus that of the row, unpaired; None where there is no such run on the same images.
        sentence: the difference in words.
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
    """A table published elsewhere, beside the runs of a comparison.

    Attributes:
        note: what a reader must know of its columns.
        rows: of the table, at least one.
    """

    note: str
    rows: tuple[ReferenceRow, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Several runs on the same images.

    Attributes:
        images: {"sha256", "n", "patients", "counts"}.
        operating_point: name of the operating point of the threshold metrics.
        runs: a row a run, in the order given.
        pairs: each pair of runs, by accuracy and by AUROC.
        sentences: the findings in words, generated from `pairs`.
        command: what was run.
        reference: a published table beside the runs; None where there is none.
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
    schema: int = SCHEMA
    notice: str = NOTICE


def to_json(result: object) -> str:
    """A result as one JSON document, indented, without NaN.

    Raises:
        ValueError: a number is not finite: undefined must be None with a reason.
    """
    data = dataclasses.asdict(result) if dataclasses.is_dataclass(result) else result  # type: ignore[arg-type]
    return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

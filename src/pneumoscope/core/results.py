"""Frozen records of the evaluation of a bundle or a file; see `result_forms` for JSON and table rows.

The records compute nothing: numbers come from `statistics`, sentences from `evaluation`. Every number has an
`Interval`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pneumoscope.core.calibration_record import CalibrationRecord
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.image_flow import ImageFlow
from pneumoscope.core.interval import Interval
from pneumoscope.core.result_forms import interval_rows, rows_dataframe
from pneumoscope.core.with_figures import WithFigures

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "SCHEMA",
    "Confusion",
    "DecisionCurvePoint",
    "Evaluation",
    "InteractionTest",
    "OperatingPointResult",
    "PredictiveValues",
    "RejectionSummary",
    "ReliabilityBin",
    "ScoredImage",
    "SetDifference",
    "Subgroup",
]

SCHEMA = 1
_ROW_KEYS = ("operating_point", "etiology", "subgroup", "reference", "prevalence", "threshold_probability")


@dataclasses.dataclass(frozen=True, slots=True)
class Confusion:
    """Confusion matrix; pneumonia is the positive class."""

    tp: int
    fn: int
    tn: int
    fp: int


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredImage:
    """A labeled image with the network's output.

    Attributes:
        path: Path relative to the data folder.
        sha256: SHA-256 of the file, used to pair runs.
        patient: Patient identifier; bootstraps resample patients, not images. Empty if unknown.
        label: "NORMAL" or "PNEUMONIA".
        etiology: "normal", "bacteria", "virus", or "" if unknown.
        logit: Output of the network, used for ranking because scores tie at 0 and 1.
        score: Sigmoid of the logit before calibration, 0 to 1.
        probability: Calibrated probability of pneumonia, 0 to 1.
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
    """Performance at one operating point.

    Attributes:
        threshold: Threshold on the score (before calibration); at or above it the decision is pneumonia.
        rule: How the threshold was chosen, and on which images.
        confusion: Confusion matrix.
        metrics: accuracy, sensitivity, specificity, precision, negative_predictive_value, f1, balanced_accuracy, mcc,
            positive_likelihood_ratio, negative_likelihood_ratio.
        by_etiology: Fraction of correct decisions among normal, bacteria and virus images.
        uncertainty_band: For "normal" and "pneumonia", the fraction of images that are "uncertain", and the fraction
            "covered": correct or uncertain. All other numbers apply the threshold to uncertain images too. None if the
            operating point has no uncertainty band.
        threshold_probability: The threshold as a calibrated probability; None in evaluations that did not record it.
        predictive_values: At a user-specified prevalence; None without one.
    """

    threshold: float
    rule: str
    confusion: Confusion
    metrics: Mapping[str, Interval]
    by_etiology: Mapping[str, Interval]
    uncertainty_band: Mapping[str, Mapping[str, Interval]] | None = None
    threshold_probability: float | None = None
    predictive_values: PredictiveValues | None = None

    def threshold_text(self) -> str:
        """Return the threshold on both scales, such as "probability 0.610, score before calibration 0.8312".

        Without calibration both are equal, and only the probability is given.
        """
        if self.threshold == self.threshold_probability:
            return f"probability {self.threshold:.4g}"
        score = f"score before calibration {self.threshold:.4g}"
        return score if self.threshold_probability is None else f"probability {self.threshold_probability:.3f}, {score}"


@dataclasses.dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Images of similar probability.

    Attributes:
        low, high: Lowest and highest probability in the bin.
        mean_probability: Mean probability in the bin.
        observed_rate: Fraction of images with pneumonia in the bin, with Wilson's interval.
    """

    low: float
    high: float
    mean_probability: float
    observed_rate: Interval


@dataclasses.dataclass(frozen=True, slots=True)
class DecisionCurvePoint:
    """Net benefit at one threshold probability; treating no one has a net benefit of 0.

    Attributes:
        threshold_probability: Patients at or above it are treated, 0 to below 1.
        net_benefit: True positives per image, minus false positives per image times the odds of the threshold.
        treat_all: Net benefit of treating everyone.
        gain: Net benefit minus the larger of the net benefits of treating everyone and no one.
    """

    threshold_probability: float
    net_benefit: Interval
    treat_all: Interval
    gain: Interval

    def named_intervals(self) -> dict[str, Interval]:
        """Return net_benefit, net_benefit_treat_all and net_benefit_gain."""
        return {
            "net_benefit": self.net_benefit,
            "net_benefit_treat_all": self.treat_all,
            "net_benefit_gain": self.gain,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class PredictiveValues:
    """Predictive values at a user-specified prevalence, from the sensitivity and specificity of an evaluation.

    Attributes:
        prevalence: Fraction of images with pneumonia, above 0 and below 1.
        precision, negative_predictive_value: At this prevalence.
    """

    prevalence: float
    precision: Interval
    negative_predictive_value: Interval

    def named_intervals(self) -> dict[str, Interval]:
        """Return precision and negative_predictive_value."""
        return {"precision": self.precision, "negative_predictive_value": self.negative_predictive_value}


@dataclasses.dataclass(frozen=True, slots=True)
class RejectionSummary:
    """Images that the model rejects.

    Attributes:
        share: Fraction of all images of the split.
        reasons: Number of images by rejection code.
    """

    share: Interval
    reasons: Mapping[str, int]

    def sentence(self) -> str:
        """Return the fraction of rejected images and the reasons, without a full stop; "" if none is rejected."""
        if not self.reasons:
            return ""
        reasons = ", ".join(f"{count} {code}" for code, count in self.reasons.items())
        share = f"{self.share.value:.1%} ({self.share.low:.1%} to {self.share.high:.1%}, n = {self.share.n})"
        return f"`predict` rejects {share} of these images ({reasons}); they are evaluated anyway"


@dataclasses.dataclass(frozen=True, slots=True)
class Subgroup:
    """The images of an evaluation with the same value in a manifest column.

    Attributes:
        column, value: Column and value; "not stated" if missing.
        n: Number of images.
        counts: Number of images by label.
        operating_point: Operating point of accuracy, sensitivity and specificity; "" for multiclass evaluations.
        metrics: auroc, accuracy, sensitivity, specificity. For multiclass evaluations, macro_auroc, accuracy, and the
            sensitivity of each class, such as "sensitivity, virus".
    """

    column: str
    value: str
    n: int
    counts: Mapping[str, int]
    operating_point: str
    metrics: Mapping[str, Interval]


@dataclasses.dataclass(frozen=True, slots=True)
class InteractionTest:
    """A test of whether a metric differs between the subgroups of a column.

    Attributes:
        column: Column of the manifest.
        metric: "auroc", "sensitivity" or "specificity"; for multiclass evaluations "macro_auroc", or a sensitivity as
            in `Subgroup`.
        operating_point: Operating point; None for the AUROC and for multiclass evaluations.
        groups: Values of the compared subgroups; images without a value are excluded.
        test: Name of the test.
        p: p-value before correction; None if undefined.
        p_holm: p-value after Holm correction over all tests of the evaluation.
        seed: Seed of the permutations; None if the test uses no random numbers.
        reason: Why p is None; empty otherwise.
        sentence: The finding as a sentence.
        shared_patients: Number of patients with tested images in several groups; the test treats them as different
            patients.
    """

    column: str
    metric: str
    operating_point: str | None
    groups: tuple[str, ...]
    test: str
    p: float | None
    p_holm: float | None
    seed: int | None = None
    reason: str = ""
    sentence: str = ""
    shared_patients: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class SetDifference:
    """Unpaired differences between evaluations of one model on two sets of images.

    Attributes:
        reference: Name of the reference evaluation.
        reference_images_sha256, reference_n: Hash and number of its images.
        metrics: auroc of this evaluation minus that of the reference. For multiclass evaluations, accuracy and
            macro_auroc, and auroc, sensitivity and specificity of each class against the rest, such as "auroc, virus".
        operating_points: Differences of accuracy, sensitivity and specificity, by operating point, if the thresholds
            are equal; empty for multiclass evaluations.
        remark: A sentence on an assumption of the intervals that may not hold; empty if there is none.
    """

    reference: str
    reference_images_sha256: str
    reference_n: int
    metrics: Mapping[str, Interval]
    operating_points: Mapping[str, Mapping[str, Interval]]
    remark: str = ""

    def named_intervals(self) -> dict[str, Interval]:
        """Return all differences by name, such as "auroc" and "accuracy at half"."""
        at_points = {
            f"{metric} at {name}": interval
            for name, metrics in self.operating_points.items()
            for metric, interval in metrics.items()
        }
        return {**self.metrics, **at_points}


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation(WithFigures):
    """The evaluation of one bundle, or of the predictions in a file, on one split.

    Attributes:
        name: Name of the run, bundle or file.
        split: "train", "validation", "test" or "all".
        images_sha256: Hash of the sorted image hashes; equal for evaluations on the same images.
        n, patients: Number of images and of patients.
        counts: Number of images by label.
        bundle_sha256: SHA-256 of the network file; "" for predictions in a file.
        recipe: The recipe that trained the network; empty for predictions in a file.
        metrics: Threshold-free metrics: auroc, auprc, brier, expected_calibration_error, calibration_slope,
            calibration_intercept, observed_expected_ratio.
        auroc_by_etiology: AUROC of bacteria against normal and of virus against normal.
        operating_points: Results by operating point: "half", "balanced", "rule_out", "rule_in", and custom ones such as
            "0.3" or "sens=0.95".
        test_evaluation: Number of test-set evaluations of these images in the ledger, including this one; None for
            other splits.
        seconds: Scoring time, wall clock.
        created: Time of the evaluation, UTC, ISO 8601.
        version: Version of pneumoscope.
        rejected: Images that `predict` would reject. All other numbers include them, so that rejecting images does not
            improve a result. None for predictions in a file.
        site: Name and short hash of the site profile; "" without one.
        reliability: Observed rate of pneumonia by probability, in the bins of the expected calibration error.
        predictions_sha256: SHA-256 of the file of predictions; "" if a bundle scored the images.
        remarks: Sentences on what is unknown or was not evaluated, such as thresholds without validation images.
        subgroups: Subgroups by columns of the manifest.
        interactions: Tests of whether metrics differ between subgroups.
        difference: Differences from an evaluation on other images; None without one.
        decision_curve: Net benefit by threshold probability; empty in evaluations that did not record it.
        flow: Source of the images and the numbers excluded; None in evaluations that did not record it.
        unknown_patients: Number of images of unknown patients, each of which counts as a patient; None in evaluations
            that did not record it.
        calibration: How the probabilities were calibrated; None in evaluations that did not record it.
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
    site: str = ""
    reliability: tuple[ReliabilityBin, ...] = ()
    predictions_sha256: str = ""
    remarks: tuple[str, ...] = ()
    subgroups: tuple[Subgroup, ...] = ()
    interactions: tuple[InteractionTest, ...] = ()
    difference: SetDifference | None = None
    decision_curve: tuple[DecisionCurvePoint, ...] = ()
    flow: ImageFlow | None = None
    unknown_patients: int | None = None
    calibration: CalibrationRecord | None = None
    schema: int = SCHEMA
    notice: str = NOTICE

    def __repr__(self) -> str:
        """Return the name, the split and the threshold-free metrics."""
        metrics = ", ".join(f"{name}={interval}" for name, interval in self.metrics.items())
        return f"Evaluation({self.name!r}, split={self.split!r}, n={self.n}, patients={self.patients}, {metrics})"

    def _repr_html_(self) -> str:
        from pneumoscope.core.display import evaluation_html

        return evaluation_html(self)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per metric, with its interval.

        The keys operating_point, etiology, subgroup (such as "sex: F"), reference (the evaluation that a difference
        refers to), prevalence (of predictive values) and threshold_probability (of the decision curve) are None where
        they do not apply.
        """
        none: dict[str, str | float | None] = dict.fromkeys(_ROW_KEYS)
        rows = interval_rows(self.metrics.items(), **none)
        for etiology, interval in self.auroc_by_etiology.items():
            rows += interval_rows([("auroc", interval)], **none | {"etiology": etiology})
        for name, point in self.operating_points.items():
            at_point = none | {"operating_point": name}
            rows += interval_rows(point.metrics.items(), **at_point)
            for etiology, interval in point.by_etiology.items():
                rows += interval_rows([("accuracy", interval)], **at_point | {"etiology": etiology})
            if at := point.predictive_values:
                rows += interval_rows(at.named_intervals().items(), **at_point | {"prevalence": at.prevalence})
        for step in self.decision_curve:
            threshold = none | {"threshold_probability": step.threshold_probability}
            rows += interval_rows(step.named_intervals().items(), **threshold)
        for group in self.subgroups:
            for metric, interval in group.metrics.items():
                name_at = None if metric == "auroc" else group.operating_point
                keys = none | {"subgroup": f"{group.column}: {group.value}", "operating_point": name_at}
                rows += interval_rows([(metric, interval)], **keys)
        if self.difference:
            minus = none | {"reference": self.difference.reference}
            rows += interval_rows(self.difference.metrics.items(), **minus)
            for name, metrics in self.difference.operating_points.items():
                rows += interval_rows(metrics.items(), **minus | {"operating_point": name})
        return rows

    def to_dataframe(self) -> pd.DataFrame:
        """Return `rows` as a pandas DataFrame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return rows_dataframe(self.rows(), "Evaluation.to_dataframe()")

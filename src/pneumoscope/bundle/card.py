"""The card of a model bundle.

A bundle is a folder with two files, `network.onnx` and `card.json`. The network maps gray levels from `imaging.preprocess`
(uint8, shape (n, size, size)) to the outputs described by `inference.session.Outputs`. The card contains everything else:
preprocessing, calibration, operating points, rejection limits and provenance.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from pneumoscope.core.errors import BundleError
from pneumoscope.core.messages import operating_point_rule
from pneumoscope.core.population import Population
from pneumoscope.imaging.preprocess import Preprocessing

__all__ = [
    "COVERAGE",
    "FORMAT",
    "INPUT_CLASSES",
    "LABELS",
    "Calibration",
    "Card",
    "InputCheck",
    "InputClass",
    "Intervals",
    "OperatingPoint",
    "OutlierSummary",
    "Parity",
    "Proportion",
    "ReferenceDistribution",
    "RejectionLimits",
    "UncertaintyBand",
    "card_json",
    "short_hash",
]

FORMAT = 2

# Minimum fraction, per label, of images with a correct or uncertain decision; per class, of images whose prediction set
# contains the class.
COVERAGE = 0.95

LABELS: tuple[Literal["NORMAL"], Literal["PNEUMONIA"]] = ("NORMAL", "PNEUMONIA")

# Classes of the input classifier.
InputClass = Literal[
    "upright", "inverted", "upside_down", "rotated_90", "mirrored", "cropped", "not_a_chest_radiograph"
]
INPUT_CLASSES: tuple[InputClass, ...] = get_args(InputClass)

InputCheck = Literal["input_classifier", "age_classifier", "ood_detector"]

_Fraction = Annotated[float, Meta(ge=0, le=1)]
_Count = Annotated[int, Meta(ge=0)]


class Proportion(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fraction of images with its 95% interval.

    Attributes:
        value, low, high: Fraction and interval limits, 0 to 1.
        n: Number of images.
        method: Name of the interval method.
    """

    value: _Fraction
    low: _Fraction
    high: _Fraction
    n: Annotated[int, Meta(ge=1)]
    method: str


class UncertaintyBand(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Range of scores classified as uncertain (see `statistics.conformal`).

    Attributes:
        low, high: Inclusive limits of the band, on the scale of `OperatingPoint.threshold`.
        coverage: Minimum fraction of images of each label whose decision is correct or uncertain, for images like the
            validation images.
        n_normal, n_pneumonia: Number of validation images of each label used to fit the band.
    """

    low: _Fraction
    high: _Fraction
    coverage: _Fraction
    n_normal: _Count
    n_pneumonia: _Count


class OperatingPoint(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Decision threshold and how it was chosen.

    Attributes:
        threshold: Threshold on the score (sigmoid of the logit, before calibration), 0 to 1. At or above it the decision is
            pneumonia.
        rule: "fixed" (a constant), "youden" (highest Youden index), "sensitivity" (highest threshold that reaches the target
            sensitivity) or "specificity" (lowest threshold that reaches the target specificity).
        target: Target sensitivity or specificity, 0 to 1; None for the other rules.
        n: Number of validation images used to choose the threshold; None if it is fixed.
        augmented: True if those images were augmented. Targets are reached on both augmented and original images.
        site: True if those images come from a site profile instead of the validation split.
        sensitivity, specificity: Measured on the original validation images, applying the threshold to uncertain images as
            well. Optimistic unless the threshold is fixed, because it was chosen on these images or augmented copies. If
            `site`, measured on the images of the site: see `site_profile.SiteProfile`.
        uncertainty_band: Range of scores classified as uncertain; None if the threshold decides every image.
    """

    threshold: _Fraction
    rule: Literal["fixed", "youden", "sensitivity", "specificity"]
    target: _Fraction | None = None
    n: _Count | None = None
    augmented: bool = False
    site: bool = False
    sensitivity: Proportion
    specificity: Proportion
    uncertainty_band: UncertaintyBand | None = None

    def rule_text(self, language: str = "en") -> str:
        """Return a phrase that describes how the threshold was chosen."""
        return operating_point_rule(self.rule, self.target, self.n, self.augmented, language, site=self.site)


class Calibration(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Calibration of the probability: sigmoid(slope x logit + intercept).

    Attributes:
        slope, intercept: Parameters of the logistic curve.
        prevalence: Prevalence of pneumonia assumed by the probability and its interval.
        method: "platt" (fitted on validation images) or "none" (slope 1, intercept 0).
        n: Number of validation images used for fitting.
    """

    slope: Annotated[float, Meta(gt=0)]
    intercept: float
    prevalence: Annotated[float, Meta(gt=0, lt=1)]
    method: Literal["platt", "none"]
    n: _Count


class Intervals(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Venn-Abers intervals of the probability as step functions of the logit (see `statistics`).

    Attributes:
        edges: Logits of the steps, ascending.
        low, high: Lower and upper probability of each step, one more than there are edges.
        method: "venn-abers".
        n: Number of validation images used for fitting.
    """

    edges: tuple[float, ...]
    low: tuple[_Fraction, ...]
    high: tuple[_Fraction, ...]
    method: Literal["venn-abers"]
    n: _Count

    def __post_init__(self) -> None:
        """Check the lengths of the step functions."""
        if not len(self.low) == len(self.high) == len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges, {len(self.low)} lower and {len(self.high)} upper probabilities")


class Parity(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Agreement of the exported network with the trained network.

    Attributes:
        images: Number of images compared at export.
        largest: Largest difference of logits, relative to their magnitude if above 1.
    """

    images: int
    largest: float


class OutlierSummary(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Summary of one source of images of patients outside the age range.

    Attributes:
        n_train: Number of images that trained the age classifier.
        passed: Fraction of the held-out patients' images that pass all checks of the network; None if there are none.
        passed_alone: Fraction that would pass each check on its own; empty if there are none.
    """

    n_train: _Count
    passed: Proportion | None
    passed_alone: dict[InputCheck, Proportion] = {}


class RejectionLimits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits beyond which an image is rejected, fitted on mildly augmented validation images.

    Attributes:
        input_classes: Classes of the network's output "input_classes", in order.
        min_upright: Minimum probability of the class "upright".
        max_age_score: Maximum score of the age classifier; None if the network has none.
        max_distance: Maximum distance from the training images (see `models.input_checks.MahalanobisDetector`).
        classifier_share, age_share, distance_share: Target fraction of validation images rejected by each limit; `age_share` is
            None if the network has no age classifier.
        rejected: Fraction of the original validation images rejected by all limits together; for a site profile that changes
            limits, fraction of the site's images.
        outliers: Summary of images of patients outside the age range by source; empty if the network has no age classifier.
        outliers_sha256: Hash of the list of these images; "" if there are none.
    """

    input_classes: tuple[InputClass, ...]
    min_upright: _Fraction
    max_age_score: _Fraction | None = None
    max_distance: float
    classifier_share: _Fraction
    age_share: _Fraction | None = None
    distance_share: _Fraction
    rejected: Proportion
    outliers: dict[str, OutlierSummary] = {}
    outliers_sha256: str = ""


class ReferenceDistribution(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Distribution of the probabilities of accepted validation images, used as the reference for drift detection.

    Attributes:
        deciles: The nine deciles of the probability, ascending.
        n: Number of images.
        n_pneumonia: Number of images with pneumonia.
    """

    deciles: Annotated[tuple[_Fraction, ...], Meta(min_length=9, max_length=9)]
    n: Annotated[int, Meta(ge=1)]
    n_pneumonia: _Count


class Card(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Content of `card.json`.

    Attributes:
        format, version, created: Bundle format, pneumoscope version, and time of the export (UTC, ISO 8601).
        name, seed, recipe: Name, seed and recipe of the run that trained the network.
        network, parameters: Name of the architecture in `models.registry`, and its number of parameters, frozen ones included.
        onnx_sha256, onnx_bytes: Hash and size of the network file.
        self_test_logit: Logit of the self-test image (see `bundle.network_checks`).
        labels: Negative and positive label.
        preprocessing: Preprocessing of images for the network.
        calibration, intervals: Map from the logit to the probability and to its interval; `intervals` may be None.
        rejection_limits: Limits beyond which images are rejected; None if the network has no input checks.
        reference_distribution: Distribution of the probabilities; None if all validation images are rejected.
        population: Patients and images that the network was trained on.
        age_range: Minimum and maximum patient age in years, inclusive; other images are rejected. None if the model is for all
            ages.
        operating_points: Operating points by name: "half" (0.5), "balanced" (highest Youden index), "rule_out" (sensitivity
            0.99), "rule_in" (specificity 0.99).
        manifest_sha256: Hash of the images, labels, patients and splits.
        split_by: Unit of the split into training and validation images: "patient", "block", "image" or "given".
        counts: Number of images by split and label.
        seen: Sorted `short_hash` values, by split, of the images that influenced the network or its thresholds.
        best_epoch: Epoch of the weights, starting at 1.
        machine: Processor, operating system and library versions.
    """

    format: Annotated[int, Meta(ge=FORMAT, le=FORMAT)]
    name: str
    network: str
    parameters: int
    version: str
    created: str
    onnx_sha256: str
    onnx_bytes: int
    self_test_logit: float
    labels: tuple[Literal["NORMAL"], Literal["PNEUMONIA"]]
    preprocessing: Preprocessing
    calibration: Calibration
    intervals: Intervals | None
    rejection_limits: RejectionLimits | None
    reference_distribution: ReferenceDistribution | None
    population: Population
    age_range: tuple[Annotated[float, Meta(ge=0)], Annotated[float, Meta(ge=0)]] | None
    operating_points: dict[str, OperatingPoint]
    parity: Parity
    recipe: dict[str, Any]
    seed: int
    manifest_sha256: str
    split_by: str
    counts: dict[str, dict[str, int]]
    seen: dict[str, list[str]]
    best_epoch: int
    machine: dict[str, str]

    def __post_init__(self) -> None:
        """Check that a card with an age classifier has an age range."""
        if self.rejection_limits and self.rejection_limits.max_age_score is not None and self.age_range is None:
            raise ValueError("rejection_limits.max_age_score needs age_range")

    def sha256(self) -> str:
        """Return the hash of `card.json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the content of `card.json`.

        Raises:
            BundleError: A field has a value that `read_bundle` would reject.
        """
        return card_json(self, self.name)


def card_json(card: Struct, name: str) -> str:
    """Return the content of `card.json` for a card.

    Args:
        card: Card to serialize.
        name: Name of the model for the error message.

    Raises:
        BundleError: A field has a value that would be rejected when reading the card.
    """
    try:
        checked = msgspec.convert(msgspec.to_builtins(card), type(card))
        return json.dumps(msgspec.to_builtins(checked), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (msgspec.ValidationError, ValueError) as error:
        raise BundleError(f"the card of {name!r} cannot be written: {error}") from error


def short_hash(sha256: str) -> str:
    """Return the first 16 hexadecimal digits (64 bits) of a hash, enough to identify an image."""
    return sha256[:16]

"""The card of a model bundle.

A bundle is a folder with two files: `network.onnx` and `card.json`. The network takes gray levels from
`imaging.preprocess` (uint8, shape (n, size, size)) and returns the outputs that `inference.session.Outputs` describes.
The card holds everything else: preprocessing, calibration, operating points, rejection limits and provenance.
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

# Fraction of images of each label with a correct or uncertain decision; of each class, whose prediction set contains it.
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
    """A fraction of images with its 95% interval.

    Attributes:
        value, low, high: Fraction and ends of the interval, 0 to 1.
        n: Number of images.
        method: Method of the interval.
    """

    value: _Fraction
    low: _Fraction
    high: _Fraction
    n: Annotated[int, Meta(ge=1)]
    method: str


class UncertaintyBand(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Range of scores that are classified as uncertain (see `statistics.conformal`).

    Attributes:
        low, high: Ends of the band, both included, on the scale of `OperatingPoint.threshold`.
        coverage: Minimum fraction of images of each label whose decision is correct or uncertain, for images like those
            of validation.
        n_normal, n_pneumonia: Number of validation images of each label that determined the band.
    """

    low: _Fraction
    high: _Fraction
    coverage: _Fraction
    n_normal: _Count
    n_pneumonia: _Count


class OperatingPoint(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A decision threshold and how it was chosen.

    Attributes:
        threshold: Threshold on the score (sigmoid of the logit, before calibration), 0 to 1. At or above it the decision
            is pneumonia.
        rule: "fixed" (a constant), "youden" (highest Youden index), "sensitivity" (highest threshold with at least this
            sensitivity) or "specificity" (lowest threshold with at least this specificity).
        target: Target sensitivity or specificity, 0 to 1; None for the other rules.
        n: Number of validation images that determined the threshold; None if it is fixed.
        augmented: True if those images were augmented. Targets are reached on augmented and on unmodified images.
        site: True if those images are of a site profile, not validation images.
        sensitivity, specificity: On the unmodified validation images, with the threshold applied to uncertain images.
            Optimistic unless the threshold is fixed, because these images, or augmented copies, determined it. If `site`, on
            the images of the site: see `site_profile.SiteProfile`.
        uncertainty_band: Scores that are classified as uncertain; None if the threshold decides every image.
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
        """Return how the threshold was chosen, as a phrase."""
        return operating_point_rule(self.rule, self.target, self.n, self.augmented, language, site=self.site)


class Calibration(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Calibration of the probability: sigmoid(slope x logit + intercept).

    Attributes:
        slope, intercept: Parameters of the logistic curve.
        prevalence: Prevalence of pneumonia that the probability and its interval refer to.
        method: "platt" (fitted on validation images) or "none" (slope 1, intercept 0).
        n: Number of validation images that it was fitted on.
    """

    slope: Annotated[float, Meta(gt=0)]
    intercept: float
    prevalence: Annotated[float, Meta(gt=0, lt=1)]
    method: Literal["platt", "none"]
    n: _Count


class Intervals(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Venn-Abers intervals of the probability, as step functions of the logit (see `statistics`).

    Attributes:
        edges: Logits at which the steps lie, ascending.
        low, high: Lower and upper probability on each side of the edges; one more than there are edges.
        method: "venn-abers".
        n: Number of validation images that they were fitted on.
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
    """Agreement of the exported network with the trained one.

    Attributes:
        images: Number of images compared at export.
        largest: Largest difference of logits, relative to their magnitude if that is above 1.
    """

    images: int
    largest: float


class OutlierSummary(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Images of patients outside the age range, by source.

    Attributes:
        n_train: Number of images that the age classifier was trained on.
        passed: Fraction of the images of other patients that pass all checks of the network; None without such images.
        passed_alone: The fraction that would pass if the network had this check only; empty without such images.
    """

    n_train: _Count
    passed: Proportion | None
    passed_alone: dict[InputCheck, Proportion] = {}


class RejectionLimits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits beyond which an image is rejected, set on mildly augmented validation images.

    Attributes:
        input_classes: Classes of the network's output "input_classes", in its order.
        min_upright: Minimum probability of the class "upright".
        max_age_score: Maximum score of the age classifier; None if the network has none.
        max_distance: Maximum distance from the training images (see `models.input_checks.MahalanobisDetector`).
        classifier_share, age_share, distance_share: Fraction of the validation images that each limit was set to reject;
            `age_share` is None if the network has no age classifier.
        rejected: Fraction of the original validation images that all limits reject together; with a site profile that changes
            limits, of its images.
        outliers: Images of patients outside the age range, by source; empty if the network has no age classifier.
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
    """Distribution of the probabilities of accepted validation images, the reference for drift detection.

    Attributes:
        deciles: The nine probabilities that divide these images into tenths, ascending.
        n: Number of images.
        n_pneumonia: Number of these images with pneumonia.
    """

    deciles: Annotated[tuple[_Fraction, ...], Meta(min_length=9, max_length=9)]
    n: Annotated[int, Meta(ge=1)]
    n_pneumonia: _Count


class Card(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `card.json`.

    Attributes:
        format, version, created: Version of the bundle format, of pneumoscope, and time of the export (UTC, ISO 8601).
        name, seed, recipe: Name, seed and recipe of the run that trained the network.
        network, parameters: Architecture in `models.registry`, and its number of parameters, including frozen ones.
        onnx_sha256, onnx_bytes: Hash and size of the network file.
        self_test_logit: Logit of the self-test image (see `bundle.network_checks`).
        labels: Labels of the negative and the positive class.
        preprocessing: How an image becomes the network's input.
        calibration, intervals: From the logit to the probability and to its interval; intervals may be None.
        rejection_limits: Limits beyond which images are rejected; None if the network has no input checks.
        reference_distribution: Distribution of the probabilities; None if every validation image is rejected.
        population: The patients and images that the network was trained on.
        age_range: Minimum and maximum age of patients, years, both included: images of others are rejected; None if the
            model is for all ages.
        operating_points: Operating points by name: "half" (0.5), "balanced" (highest Youden index), "rule_out"
            (sensitivity 0.99), "rule_in" (specificity 0.99).
        manifest_sha256: Hash of the images, labels, patients and splits.
        split_by: How the validation images were selected: "patient", "block", "image" or "given".
        counts: Number of images by split and label.
        seen: `short_hash` of the images that influenced the network or its thresholds, by split, sorted.
        best_epoch: Epoch of the weights, counted from 1.
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
        """Check that an age classifier has an age range."""
        if self.rejection_limits and self.rejection_limits.max_age_score is not None and self.age_range is None:
            raise ValueError("rejection_limits.max_age_score needs age_range")

    def sha256(self) -> str:
        """Return the hash of `card.json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the content of `card.json`.

        Raises:
            BundleError: A field has a value that `read_bundle` would not accept.
        """
        return card_json(self, self.name)


def card_json(card: Struct, name: str) -> str:
    """Return a card as the content of `card.json`.

    Args:
        card: The card.
        name: Name of its model, for the message.

    Raises:
        BundleError: A field has a value that would not be accepted when the card is read.
    """
    try:
        checked = msgspec.convert(msgspec.to_builtins(card), type(card))
        return json.dumps(msgspec.to_builtins(checked), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (msgspec.ValidationError, ValueError) as error:
        raise BundleError(f"the card of {name!r} cannot be written: {error}") from error


def short_hash(sha256: str) -> str:
    """Return the first 16 hexadecimal digits (64 bits), enough to identify an image."""
    return sha256[:16]

"""Read, write and check model bundles.

A bundle is a folder with two files: `network.onnx` and `card.json`. The network takes gray levels from
`imaging.preprocess` (uint8, shape (n, size, size)) and returns the outputs that `inference.session.Outputs` describes.
The card holds everything else: preprocessing, calibration, operating points, rejection limits and provenance.

To change the format after the first release, raise `FORMAT`, keep a bundle of the previous format for the tests, and
convert it in `read_bundle`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from pneumoscope.bundle.network_checks import MAX_BYTES, check_onnx
from pneumoscope.core.errors import BundleError, UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.messages import operating_point_rule
from pneumoscope.core.population import Population
from pneumoscope.imaging.preprocess import PREPROCESSING_VERSION, Preprocessing

__all__ = [
    "CARD_FILE",
    "DEFAULT_BUNDLE",
    "FORMAT",
    "INPUT_CLASSES",
    "LABELS",
    "NETWORK_FILE",
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
    "export_bundle",
    "read_bundle",
    "short_hash",
]

FORMAT = 2
CARD_FILE = "card.json"
NETWORK_FILE = "network.onnx"
DEFAULT_BUNDLE = Path(__file__).parent / "default"
_MAX_CARD_BYTES = 10_000_000

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
            Optimistic unless the threshold is fixed, because these images, or augmented copies, determined it.
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
        rejected: Fraction of the original validation images that all limits reject together.
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

    format: Annotated[int, Meta(ge=1, le=FORMAT)]
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
        try:
            checked = msgspec.convert(msgspec.to_builtins(self), Card)
            return json.dumps(msgspec.to_builtins(checked), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        except (msgspec.ValidationError, ValueError) as error:
            raise BundleError(f"the card of {self.name!r} cannot be written: {error}") from error


def short_hash(sha256: str) -> str:
    """Return the first 16 hexadecimal digits (64 bits), enough to identify an image."""
    return sha256[:16]


def export_bundle(source: Path, out: Path, population: Population | None = None) -> Card:
    """Check a bundle, copy it to a new folder and return its card, which is written in the current format.

    The card is written last, so that an interrupted copy is not a bundle.

    Args:
        source: Folder of the bundle.
        out: The new folder; it may exist if it is empty.
        population: Population to state on the new card instead of that on the card of the bundle.

    Raises:
        BundleError: See `read_bundle`.
        UsageError: `out` exists and is not an empty folder.
        StorageError: `out` cannot be written.
    """
    card, network = read_bundle(source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{str(out)!r} exists and is not an empty folder", hint="Choose another folder with --out")
    if population is not None:
        card = msgspec.structs.replace(card, population=population)
    write_atomically(out / NETWORK_FILE, network)
    write_atomically(out / CARD_FILE, card.to_json())
    return card


def read_bundle(folder: Path) -> tuple[Card, bytes]:
    """Read and check a bundle; return its card and the content of its network file.

    Raises:
        BundleError: A file is missing; the card is malformed or of a newer format; the preprocessing has another version;
            the network does not match the size and hash on the card, or is unsafe (see `bundle.network_checks`).
    """
    try:
        text = _read_file(folder / CARD_FILE, _MAX_CARD_BYTES).decode()
        network = _read_file(folder / NETWORK_FILE, MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{str(folder)!r} is not a bundle: {_describe(error)}",
            hint=f"A bundle is a folder with {CARD_FILE} and {NETWORK_FILE}; a finished run has one in RUN/bundle",
        ) from error
    card = _parse_card(text, folder)
    if card.preprocessing.version != PREPROCESSING_VERSION:
        raise BundleError(
            f"{str(folder)!r} needs version {card.preprocessing.version} of the preprocessing; this is version"
            f" {PREPROCESSING_VERSION}",
            hint="Train and export the model with this version of pneumoscope",
        )
    if len(network) != card.onnx_bytes or hashlib.sha256(network).hexdigest() != card.onnx_sha256:
        raise BundleError(
            f"{str(folder / NETWORK_FILE)!r} does not match its card: it has {len(network)} bytes, expected"
            f" {card.onnx_bytes}, or another hash",
            hint="It was altered or truncated: copy the bundle again",
        )
    check_onnx(network, card.name)
    return card, network


def _read_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file of limited size."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, at most {max_bytes:,} are allowed", str(path))
    return path.read_bytes()


def _parse_card(text: str, folder: Path) -> Card:
    try:
        data = msgspec.json.decode(text)
        version = data.get("format") if isinstance(data, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise BundleError(
                f"{str(folder)!r} has format {version}; this version reads formats up to {FORMAT}",
                hint="Upgrade: pip install -U pneumoscope",
            )
        if version == 1:
            data = _convert_format_1(data)
        card = msgspec.convert(data, Card)
    except (ValueError, RecursionError) as error:  # not JSON, invalid fields, or too deeply nested
        raise _malformed(folder, str(error)) from error
    # Terminals and pages show these strings; control characters could forge their output.
    if not all(string.isprintable() for string in _strings(data)):
        raise _malformed(folder, "it contains characters that are not printable")
    if card.rejection_limits and card.rejection_limits.input_classes != INPUT_CLASSES:
        expected = ", ".join(INPUT_CLASSES)
        raise _malformed(folder, f"expected {expected}, in this order - at `$.rejection_limits.input_classes`")
    # The defaults of Preprocessing are for new models; a card must state every field.
    for name in Preprocessing.__struct_fields__:
        if name not in data["preprocessing"]:
            raise _malformed(folder, f"Object missing required field `{name}` - at `$.preprocessing`")
    return card


def _convert_format_1(data: dict[str, Any]) -> dict[str, Any]:
    """Return a card of format 1 in format 2. It states the ages of the training patients, and nothing else about them."""
    return {**data, "format": 2, "population": {"ages": data.get("age_range")}}


def _strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from _strings(value)
    elif isinstance(data, list):
        for value in data:
            yield from _strings(value)


def _describe(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename).name}: {error.strerror}" if error.filename and error.strerror else str(error)
    return f"{CARD_FILE} is not UTF-8 text"


def _malformed(folder: Path, reason: str) -> BundleError:
    return BundleError(f"{str(folder / CARD_FILE)!r} is malformed: {reason}", hint="Export the bundle again")

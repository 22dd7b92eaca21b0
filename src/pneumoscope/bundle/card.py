"""The card of a bundle: everything that must be known to score with a network and to judge what it says.

A bundle is a folder of two files, `network.onnx` and `card.json`. The network takes grey levels made by `radiograph.preprocess`
(uint8, shape (n, size, size)) and gives what `session.Outputs` holds; the rest is on the card. Until the first release the
format changes without notice, and is 1. Then, to change it: raise `FORMAT`, keep a bundle of the old one under `tests/bundle/`,
and say in `read_bundle` what becomes of it.
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

from pneumoscope.bundle.onnx_checks import MAX_BYTES, check_onnx
from pneumoscope.core.errors import BundleError
from pneumoscope.core.messages import operating_point_rule
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
    "InputClass",
    "Intervals",
    "OperatingPoint",
    "Parity",
    "ReferenceDistribution",
    "RejectionLimits",
    "Share",
    "UncertaintyBand",
    "read_bundle",
    "short_hash",
]

FORMAT = 1
CARD_FILE = "card.json"
NETWORK_FILE = "network.onnx"
DEFAULT_BUNDLE = Path(__file__).parent / "default"
_MOST_CARD = 10_000_000  # bytes


LABELS: tuple[Literal["NORMAL"], Literal["PNEUMONIA"]] = ("NORMAL", "PNEUMONIA")

# What a picture can be, for a bundle that refuses what is no image as it should be.
InputClass = Literal[
    "upright", "inverted", "upside_down", "rotated_90", "mirrored", "cropped", "not_a_chest_radiograph"
]
INPUT_CLASSES: tuple[InputClass, ...] = get_args(InputClass)

_Share = Annotated[float, Meta(ge=0, le=1)]
_Count = Annotated[int, Meta(ge=0)]


class Share(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A share of images with its interval.

    Attributes:
        value, low, high: 0 to 1; the interval holds 95%.
        n: images.
        method: how the interval was made.
    """

    value: _Share
    low: _Share
    high: _Share
    n: Annotated[int, Meta(ge=1)]
    method: str


class UncertaintyBand(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Scores at which neither label can be told from the other (see `statistics.conformal`).

    Attributes:
        low, high: ends, both included, on the score as `OperatingPoint.threshold` is.
        coverage: least share of images of each label that are not called by the other one, if they are like those of validation.
        n_normal, n_pneumonia: validation images that it was made from.
    """

    low: _Share
    high: _Share
    coverage: _Share
    n_normal: _Count
    n_pneumonia: _Count


class OperatingPoint(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A threshold and how it came about.

    Attributes:
        threshold: on the score (sigmoid of the logit, before calibration), 0 to 1; an image at or above it is called pneumonia.
        rule: "fixed" (a constant), "youden" (highest Youden index), "sensitivity" (highest threshold with at least this
            sensitivity) or "specificity" (lowest threshold with at least this specificity).
        target: Sensitivity or specificity aimed at, 0 to 1; None for the other rules.
        n: Validation images that determined the threshold; None if it is fixed.
        augmented: True if those images were augmented.
        sensitivity, specificity: on validation images, uncertain ones judged by the threshold; kind to a threshold that they
            chose.
        band: scores that are called "uncertain"; None where the threshold decides every image.
    """

    threshold: _Share
    rule: Literal["fixed", "youden", "sensitivity", "specificity"]
    target: _Share | None = None
    n: _Count | None = None
    augmented: bool = False
    sensitivity: Share
    specificity: Share
    uncertainty_band: UncertaintyBand | None = None

    def rule_text(self, language: str = "en") -> str:
        """Return how the threshold was chosen, as a phrase."""
        return operating_point_rule(self.rule, self.target, self.n, self.augmented, language)


class Calibration(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Probability = sigmoid(slope x logit + intercept).

    Attributes:
        method: "platt" (both fitted on validation images) or "none" (1 and 0).
        n: validation images that it was fitted on.
        prevalence: share of pneumonia for which the probability and its interval are stated.
    """

    slope: Annotated[float, Meta(gt=0)]
    intercept: float
    prevalence: Annotated[float, Meta(gt=0, lt=1)]
    method: Literal["platt", "none"]
    n: _Count


class Intervals(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Lower and upper probability as steps over the logit (see `statistics.venn_abers`).

    Attributes:
        edges: logits at which a step is, rising.
        low, high: probabilities on each side of the edges: one more than these.
        method: "venn-abers".
        n: validation images that they were fitted on.
    """

    edges: tuple[float, ...]
    low: tuple[_Share, ...]
    high: tuple[_Share, ...]
    method: Literal["venn-abers"]
    n: _Count

    def __post_init__(self) -> None:
        """Refuse steps that do not fit together."""
        if not len(self.low) == len(self.high) == len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges, {len(self.low)} lower and {len(self.high)} upper probabilities")


class Parity(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far the exported network is from the trained one.

    Attributes:
        images: compared at export.
        largest: difference of logits, relative to their size where that is above 1.
    """

    images: int
    largest: float


class RejectionLimits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Beyond what an image is refused, set on validation images, each once a little askew and lit otherwise.

    Attributes:
        input_classes: what the network's output "input_classes" gives probabilities of, in its order.
        min_upright: probability that a picture is an image as it should be; below it, it is refused.
        max_distance: from the training images (see `networks.population`); above it, an image is refused.
        classifier_share, distance_share: of those images that each of the two limits was to refuse at most.
        rejected: of validation images as they are, by both together.
    """

    input_classes: tuple[InputClass, ...]
    min_upright: _Share
    max_distance: float
    classifier_share: _Share
    distance_share: _Share
    rejected: Share


class ReferenceDistribution(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the probabilities of validation images that are not refused are spread, for later images to be compared with.

    Attributes:
        deciles: the nine probabilities that cut these images into tenths, rising.
        n: images.
        pneumonias: of them.
    """

    deciles: tuple[_Share, _Share, _Share, _Share, _Share, _Share, _Share, _Share, _Share]
    n: Annotated[int, Meta(ge=1)]
    n_pneumonia: _Count


class Card(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stands in `card.json`.

    Attributes:
        name: of the run that made it.
        network: name in the registry of networks.
        parameters: all of them, frozen ones too.
        onnx_sha256, onnx_bytes: of the network file.
        self_test_logit: of `self_test_image`, which is scored again wherever the bundle is loaded.
        preprocessing: how an image becomes its input.
        intervals: of the probability; None where the bundle states none.
        rejection_limits: limits beyond which nothing is said; None where the network has no gate.
        reference_distribution: of the probabilities; None where all validation images are refused.
        age_range: least and greatest of the patients that it learned from, years, each year whole; None where they are not known.
        operating_points: operating points by name: "half" (0.5), "balanced" (highest Youden index), "rule_out" (sensitivity of 0.99),
            "rule_in" (specificity of 0.99).
        recipe: what trained it, as data.
        seed: of the run.
        manifest_sha256: of the images, labels, patients and splits it was trained with.
        split_by: how validation images were set apart: "patient", "block", "image" or "given".
        counts: images by split and label.
        seen: images that decided anything, by split ("train", "validation"): `short_hash` of each, sorted.
        best_epoch: counted from 1.
        machine: processor, operating system, versions.
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

    def to_json(self) -> str:
        """The card as written to disk.

        Raises:
            BundleError: a field is not what `read_bundle` would take.
        """
        try:
            checked = msgspec.convert(msgspec.to_builtins(self), Card)
            return json.dumps(msgspec.to_builtins(checked), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        except (msgspec.ValidationError, ValueError) as error:
            raise BundleError(f"the card of {self.name!r} cannot be written: {error}") from error


def short_hash(sha256: str) -> str:
    """The first 16 hexadecimal digits: 64 bits, enough to tell images apart."""
    return sha256[:16]


def read_bundle(folder: Path) -> tuple[Card, bytes]:
    """Read a bundle and check it before it is used.

    Args:
        folder: with `card.json` and `network.onnx`.
    Returns:
        The card and the network file's bytes, whose size and hash are those on the card.
    Raises:
        BundleError: a file is missing, the card is malformed or of a newer format, the images are prepared in another way than
            here, the network is not the one that the card describes, or it holds more than a network (see
            `bundle.network_file`).
    """
    try:
        text = _read(folder / CARD_FILE, _MOST_CARD).decode()
        network = _read(folder / NETWORK_FILE, MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{str(folder)!r} is no bundle: {_why(error)}",
            hint=f"A bundle is a folder with {CARD_FILE} and {NETWORK_FILE}; a finished run has one in RUN/bundle",
        ) from error
    card = _read_card(text, folder)
    if card.preprocessing.version != PREPROCESSING_VERSION:
        raise BundleError(
            f"{str(folder)!r} expects images prepared by version {card.preprocessing.version}, here it is {PREPROCESSING_VERSION}",
            hint="Train and export it again with this version",
        )
    if len(network) != card.onnx_bytes or hashlib.sha256(network).hexdigest() != card.onnx_sha256:
        raise BundleError(
            f"{str(folder / NETWORK_FILE)!r} is not the network that its card describes"
            f" ({len(network)} bytes, expected {card.onnx_bytes}, or another hash)",
            hint="It was altered or cut short: copy the bundle again",
        )
    check_onnx(network, card.name)
    return card, network


def _read(path: Path, most: int) -> bytes:
    """A file's bytes, once it is known to be one, and to end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # a pipe or a device may never end
        raise OSError(errno.EINVAL, "it is no file", str(path))
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"{found.st_size:,} bytes are more than {most:,}", str(path))
    return path.read_bytes()


def _read_card(text: str, folder: Path) -> Card:
    try:
        data = msgspec.json.decode(text)
        found = data.get("format") if isinstance(data, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise BundleError(
                f"{str(folder)!r} has format {found}; this version reads up to {FORMAT}",
                hint="Upgrade: pip install -U pneumoscope",
            )
        card = msgspec.convert(data, Card)
    except (
        ValueError,
        RecursionError,
    ) as error:  # no JSON, another type, a number of too many digits, too many brackets
        raise _malformed(folder, str(error)) from error
    # It is shown on terminals and pages as it is.
    if not all(words.isprintable() for words in _words(data)):
        raise _malformed(folder, "characters that cannot be printed")
    if card.rejection_limits and card.rejection_limits.input_classes != INPUT_CLASSES:
        raise _malformed(
            folder,
            f"kinds of pictures other than {', '.join(INPUT_CLASSES)}, in this order - at `$.rejection_limits.input_classes`",
        )
    # Its defaults are for whoever makes one. What a card leaves out may have been another.
    for name in Preprocessing.__struct_fields__:
        if name not in data["preprocessing"]:
            raise _malformed(folder, f"Object missing required field `{name}` - at `$.preprocessing`")
    return card


def _words(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from _words(value)
    elif isinstance(data, list):
        for value in data:
            yield from _words(value)


def _why(error: OSError | UnicodeDecodeError) -> str:
    """In words, without Python's."""
    if isinstance(error, OSError):
        return f"{Path(error.filename).name}: {error.strerror}" if error.filename and error.strerror else str(error)
    return f"{CARD_FILE} is no text in UTF-8"


def _malformed(folder: Path, why: str) -> BundleError:
    return BundleError(f"{str(folder / CARD_FILE)!r} is malformed: {why}", hint="Export it again")

"""The card of a multiclass bundle, such as one for bacteria, normal and virus.

The card has format 3. The network returns logits of shape (n, K), which a softmax maps to probabilities. See `card.Card` for
fields not described here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from pneumoscope.bundle.card import COVERAGE, Parity, RejectionLimits, card_json
from pneumoscope.core.population import Population
from pneumoscope.imaging.preprocess import Preprocessing
from pneumoscope.statistics.conformal import few_images_text
from pneumoscope.statistics.probabilities import TEMPERATURE_RANGE

__all__ = ["MULTICLASS_FORMAT", "ClassThreshold", "MulticlassCard", "PredictionSets", "TemperatureScaling"]

MULTICLASS_FORMAT: Literal[3] = 3

_Count = Annotated[int, Meta(ge=0)]
_AT_BOUND = 1.001  # the optimizer stops within this factor of a bound


class TemperatureScaling(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Calibration of the probabilities: softmax(logits / temperature).

    Attributes:
        temperature: Single temperature for all classes.
        method: "temperature" (fitted on validation images) or "none" (temperature 1).
        n: Number of validation images used for fitting.
    """

    temperature: Annotated[float, Meta(gt=0)]
    method: Literal["temperature", "none"]
    n: _Count

    def remark(self) -> str:
        """Return a warning if the fitted temperature is at a bound and does not calibrate, otherwise ""."""
        low, high = TEMPERATURE_RANGE
        if self.method == "none" or low * _AT_BOUND < self.temperature < high / _AT_BOUND:
            return ""
        if self.temperature > 1:
            return (
                f"The temperature is at its upper bound ({high:g}): the logits do not rank the classes of the validation images"
                " correctly, or are very large. The probabilities are not calibrated."
            )
        return (
            f"The temperature is at its lower bound ({low:g}): the logits of the validation images hardly differ. The"
            " probabilities are not calibrated."
        )


class ClassThreshold(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Minimum probability of a class to be in an image's prediction set.

    Attributes:
        threshold: Inclusive threshold on the probability.
        n: Number of validation images of the class used to choose it.
    """

    threshold: Annotated[float, Meta(ge=0, le=1)]
    n: _Count


class PredictionSets(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Class-conditional conformal prediction (see `statistics.conformal`).

    Attributes:
        coverage: Target fraction of images of each class whose prediction set contains that class, fitted on validation images.
            The coverage on other images must be measured.
        classes: Threshold of each class.
    """

    coverage: Annotated[float, Meta(gt=0, lt=1)]
    classes: dict[str, ClassThreshold]


class MulticlassCard(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Content of `card.json` in a multiclass bundle.

    Attributes:
        self_test_logits: Logits of the self-test image.
        classes: Class names, in the order of the logits.
        activation: Function that maps logits to probabilities.
        calibration: Calibration of the probabilities.
        prediction_sets: Thresholds of the prediction sets; None if a class has too few validation images.
    """

    format: Literal[3]
    name: str
    network: str
    parameters: int
    version: str
    created: str
    onnx_sha256: str
    onnx_bytes: int
    self_test_logits: tuple[float, ...]
    classes: Annotated[tuple[str, ...], Meta(min_length=2)]
    activation: Literal["softmax"]
    preprocessing: Preprocessing
    calibration: TemperatureScaling
    prediction_sets: PredictionSets | None
    rejection_limits: RejectionLimits | None
    population: Population
    age_range: tuple[Annotated[float, Meta(ge=0)], Annotated[float, Meta(ge=0)]] | None
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
        """Check that the class fields agree and that an age classifier has an age range."""
        if len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise ValueError("classes: the names must be unique")
        if len(self.self_test_logits) != len(self.classes):
            raise ValueError(f"self_test_logits: {len(self.self_test_logits)} logits of {len(self.classes)} classes")
        if self.prediction_sets and set(self.prediction_sets.classes) != set(self.classes):
            raise ValueError("prediction_sets.classes: expected one threshold for each class")
        if self.rejection_limits and self.rejection_limits.max_age_score is not None and self.age_range is None:
            raise ValueError("rejection_limits.max_age_score needs age_range")

    def to_json(self) -> str:
        """Return the content of `card.json`.

        Raises:
            BundleError: A field has a value that `read_multiclass_bundle` would reject.
        """
        return card_json(self, self.name)

    def thresholds(self) -> tuple[float, ...] | None:
        """Return the prediction set thresholds in class order, or None without prediction sets."""
        if self.prediction_sets is None:
            return None
        return tuple(self.prediction_sets.classes[name].threshold for name in self.classes)

    def reason_without_sets(self) -> str:
        """Return a clause that explains missing prediction sets: which classes have too few validation images."""
        counts = self.counts.get("validation", {})
        few = few_images_text({name: counts.get(name, 0) for name in self.classes}, COVERAGE) if counts else ""
        return few or "a class has too few validation images"

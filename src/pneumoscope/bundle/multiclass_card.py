"""The card of a bundle with a network of several classes, such as bacteria, normal and virus.

It is format 3. The network returns logits of shape (n, K), from which a softmax makes probabilities. Fields that are not
described here are those of `card.Card`.
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
        temperature: One for all classes.
        method: "temperature" (fitted on validation images) or "none" (temperature 1).
        n: Number of validation images that it was fitted on.
    """

    temperature: Annotated[float, Meta(gt=0)]
    method: Literal["temperature", "none"]
    n: _Count

    def remark(self) -> str:
        """Return a sentence if the temperature is at a bound of its fit, so that it does not calibrate; "" otherwise."""
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
    """Probability of a class at or above which it is in the prediction set of an image.

    Attributes:
        threshold: The probability, included.
        n: Number of validation images of the class that determined it.
    """

    threshold: Annotated[float, Meta(ge=0, le=1)]
    n: _Count


class PredictionSets(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Class-conditional conformal prediction (see `statistics.conformal`).

    Attributes:
        coverage: Fraction of the validation images of each class whose set has this class; the thresholds were fitted for it. On
            other images it has to be measured.
        classes: Threshold of each class.
    """

    coverage: Annotated[float, Meta(gt=0, lt=1)]
    classes: dict[str, ClassThreshold]


class MulticlassCard(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `card.json` of a network of several classes.

    Attributes:
        self_test_logits: Logits of the self-test image.
        classes: Names of the classes, in the order of the logits.
        activation: From logits to probabilities.
        calibration: Calibration of the probabilities.
        prediction_sets: Sets of possible classes; None if a class has too few validation images.
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
        """Check that the fields about classes agree, and that an age classifier has an age range."""
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
            BundleError: A field has a value that `read_multiclass_bundle` would not accept.
        """
        return card_json(self, self.name)

    def thresholds(self) -> tuple[float, ...] | None:
        """Return the thresholds of the prediction sets in the order of the classes; None without sets."""
        if self.prediction_sets is None:
            return None
        return tuple(self.prediction_sets.classes[name].threshold for name in self.classes)

    def reason_without_sets(self) -> str:
        """Return why there are no prediction sets, as a clause: which classes have too few validation images."""
        counts = self.counts.get("validation", {})
        few = few_images_text({name: counts.get(name, 0) for name in self.classes}, COVERAGE) if counts else ""
        return few or "a class has too few validation images"

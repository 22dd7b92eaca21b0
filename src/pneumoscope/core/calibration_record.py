"""Record of how the probabilities of an evaluation were calibrated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

__all__ = ["CalibrationRecord"]

_METHODS = {"platt": "Platt scaling", "temperature": "temperature scaling"}


@dataclasses.dataclass(frozen=True, slots=True)
class CalibrationRecord:
    """How the probabilities of an evaluation were calibrated.

    Attributes:
        method: "platt": sigmoid(slope x logit + intercept); "temperature": softmax(logits / temperature); or "none".
        n: Number of images used to fit the calibration; 0 without calibration.
        parameters: slope and intercept, or temperature; empty without calibration.
    """

    method: str
    n: int = 0
    parameters: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def text(self) -> str:
        """Return the method and number of images, such as "Platt scaling, n = 782"; "none" without calibration."""
        return f"{_METHODS[self.method]}, n = {self.n}" if self.method in _METHODS else self.method

"""Prediction of a multiclass model: a `Prediction` with the probability of each class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pneumoscope.core.prediction import Prediction

__all__ = ["MulticlassPrediction"]

_CLASS_COLUMN = "probability_"  # prefix of the columns of a row, before the class name
_SEPARATOR = "|"  # between the classes of a prediction set in a row; not allowed in class names


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class MulticlassPrediction(Prediction):
    """The prediction of a multiclass model for one image.

    The decision is "classified", "uncertain" or "rejected". The pneumonia fields (probability, interval, threshold and
    uncertainty) are None, and the operating point is "".

    Attributes:
        classes: Names of all classes.
        class_probabilities: Calibrated probability of each class. This and the following attributes are None if the
            image is rejected or unreadable.
        predicted_class: The class with the highest probability.
        prediction_set: Classes in the class-conditional conformal prediction set. The decision is "classified" if the
            set contains only the predicted class, else "uncertain". None if the bundle has no prediction sets.
    """

    classes: tuple[str, ...]
    class_probabilities: Mapping[str, float] | None = None
    predicted_class: str | None = None
    prediction_set: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        """Return the path, the decision and the probabilities."""
        parts = [repr(self.path), str(self.decision or (self.failure and self.failure.code))]
        if self.class_probabilities is not None:
            parts.append(f"predicted_class={self.predicted_class!r}")
            parts += [f"{name}={value:.3f}" for name, value in self.class_probabilities.items()]
        if self.rejection:
            parts.append(f"rejection={self.rejection.code}")
        return f"Prediction({', '.join(parts)})"

    def _repr_html_(self) -> str:
        from pneumoscope.core.display import multiclass_prediction_html

        return multiclass_prediction_html(self)

    def to_row(self) -> dict[str, Any]:
        """Return the row of `Prediction.to_row` with the class columns.

        They are `predicted_class`, `prediction_set` (names joined by "|"), and one column such as `probability_virus`
        per class.
        """
        probabilities = self.class_probabilities or {}
        # super() without arguments fails in a dataclass with slots.
        return Prediction.to_row(self) | {
            "predicted_class": self.predicted_class,
            "prediction_set": None if self.prediction_set is None else _SEPARATOR.join(self.prediction_set),
            **{f"{_CLASS_COLUMN}{name}": probabilities.get(name) for name in self.classes},
        }

    @classmethod
    def fields_from_row(cls, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor arguments for a row of `to_row`."""
        columns = [name for name in row if name.startswith(_CLASS_COLUMN)]
        classes = tuple(name.removeprefix(_CLASS_COLUMN) for name in columns)
        values, possible = [row[name] for name in columns], row["prediction_set"]
        return Prediction.fields_from_row(row) | {
            "classes": classes,
            "class_probabilities": None if None in values else dict(zip(classes, values, strict=True)),
            "predicted_class": row["predicted_class"],
            "prediction_set": None if possible is None else tuple(filter(None, possible.split(_SEPARATOR))),
        }

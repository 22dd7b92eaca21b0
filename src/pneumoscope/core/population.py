"""The population that a model was trained on, set in its recipe and recorded in its card."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

__all__ = ["MAX_SENTENCE_LENGTH", "Population", "View"]

View = Literal["frontal", "PA", "AP"]

MAX_SENTENCE_LENGTH = 300  # characters; the notice must fit below a heatmap

_Age = Annotated[float, Meta(ge=0)]


class Population(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The patients and images that a model was trained on; unknown values are None or "".

    `core.prediction_messages.population_sentence` renders it as a sentence.

    Attributes:
        ages: Minimum and maximum age, years, both included.
        sites: Number of hospitals.
        view: "PA", "AP", or "frontal" for either.
        sentence: Custom sentence, displayed instead of the one generated from the other fields.
    """

    ages: tuple[_Age, _Age] | None = None
    sites: Annotated[int, Meta(ge=1)] | None = None
    view: View | None = None
    sentence: Annotated[str, Meta(max_length=MAX_SENTENCE_LENGTH)] = ""

    @property
    def is_unknown(self) -> bool:
        """Whether all fields are unset."""
        return self == Population()

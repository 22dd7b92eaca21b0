"""The population that a model was trained on, as its recipe states it and its card records it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

__all__ = ["MAX_SENTENCE_LENGTH", "Population", "View"]

View = Literal["frontal", "PA", "AP"]

MAX_SENTENCE_LENGTH = 300  # characters; the notice also has to fit below a heatmap

_Age = Annotated[float, Meta(ge=0)]


class Population(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The patients and images that a model was trained on; None and "" where that is unknown.

    `core.prediction_messages.population_sentence` renders it for people.

    Attributes:
        ages: Minimum and maximum age, years, both included.
        sites: Number of hospitals.
        view: "PA", "AP", or "frontal" if it is one of them.
        sentence: Sentence that is shown as it is instead of one that states the other fields.
    """

    ages: tuple[_Age, _Age] | None = None
    sites: Annotated[int, Meta(ge=1)] | None = None
    view: View | None = None
    sentence: Annotated[str, Meta(max_length=MAX_SENTENCE_LENGTH)] = ""

    @property
    def is_unknown(self) -> bool:
        """Whether nothing is known."""
        return self == Population()

"""Which films are refused, and in which words: the only place, as `decide` is for those that are not."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pneumoscope.bundle.card import KINDS, Card, Kind

__all__ = ["refusal", "refusal_of_age", "sort_of_refusal"]

_WORDS: dict[Kind, str] = {
    "inverted": "black and white seem to be exchanged",
    "upside down": "it seems to be upside down",
    "on its side": "it seems to lie on its side",
    "mirrored": "left and right seem to be exchanged",
    "cropped": "too little of the chest is on it",
    "other": "it does not look like a radiograph of a chest",
}


def refusal(card: Card, kinds: Sequence[float] | None, distance: float | None) -> str:
    """Why nothing is said of a film by what the network gives; empty where it can be judged.

    Args:
        card: of the bundle; its limits were set on validation films.
        kinds: probabilities of `KINDS`; None where the bundle has no gate.
        distance: from the training films, see `networks.population`; None where the bundle knows none.
    """
    limits = card.refusal
    if limits is None:
        return ""
    if kinds is not None and not kinds[0] >= limits.least_film:
        likely = max(range(1, len(KINDS)), key=lambda place: kinds[place])
        return _WORDS[KINDS[likely]]
    if distance is not None and not distance <= limits.greatest_distance:
        return (
            "unlike the films that the model was trained on: perhaps of another age, another view or another part of the"
            f" body (distance {distance:.2f}, at most {limits.greatest_distance:.2f} is known)"
        )
    return ""


def refusal_of_age(card: Card, age: float | None) -> str:
    """Why nothing is said of a film of a patient of this age; empty where it is not known, or one that the network learned from.

    Args:
        card: of the bundle.
        age: years, as the film's header states it.
    """
    if card.ages is None or age is None or card.ages[0] <= age < card.ages[1] + 1:
        return ""
    known = f"{age:.1f} years, and they were {card.ages[0]:g} to {card.ages[1]:g}"
    return f"of another age than the patients that the model learned from: {known}"


def sort_of_refusal(reason: str) -> str:
    """A reason without the film's own numbers, which stand behind a colon or in brackets: what can be counted."""
    return re.split(r":| \(", reason)[0]

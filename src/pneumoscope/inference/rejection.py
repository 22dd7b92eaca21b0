"""Which images are refused, and in which words: the only place, as `decide` is for those that are not."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pneumoscope.bundle.card import INPUT_CLASSES, Card, InputClass

__all__ = ["refusal", "refusal_of_age", "sort_of_refusal"]

_WORDS: dict[InputClass, str] = {
    "inverted": "black and white seem to be exchanged",
    "upside_down": "it seems to be upside down",
    "rotated_90": "it seems to lie on its side",
    "mirrored": "left and right seem to be exchanged",
    "cropped": "too little of the chest is on it",
    "other": "it does not look like a radiograph of a chest",
}


def refusal(card: Card, input_classes: Sequence[float] | None, distance: float | None) -> str:
    """Why nothing is said of an image by what the network gives; empty where it can be judged.

    Args:
        card: of the bundle; its limits were set on validation images.
        kinds: probabilities of `INPUT_CLASSES`; None where the bundle has no gate.
        distance: from the training images, see `networks.population`; None where the bundle knows none.
    """
    limits = card.rejection_limits
    if limits is None:
        return ""
    if input_classes is not None and not input_classes[0] >= limits.min_upright:
        likely = max(range(1, len(INPUT_CLASSES)), key=lambda place: input_classes[place])
        return _WORDS[INPUT_CLASSES[likely]]
    if distance is not None and not distance <= limits.max_distance:
        return (
            "unlike the images that the model was trained on: perhaps of another age, another view or another part of the"
            f" body (distance {distance:.2f}, at most {limits.max_distance:.2f} is known)"
        )
    return ""


def refusal_of_age(card: Card, age: float | None) -> str:
    """Why nothing is said of an image of a patient of this age; empty where it is not known, or one that the network learned from.

    Args:
        card: of the bundle.
        age: years, as the image's header states it.
    """
    if card.age_range is None or age is None or card.age_range[0] <= age < card.age_range[1] + 1:
        return ""
    known = f"{age:.1f} years, and they were {card.age_range[0]:g} to {card.age_range[1]:g}"
    return f"of another age than the patients that the model learned from: {known}"


def sort_of_refusal(reason: str) -> str:
    """A reason without the image's own numbers, which stand behind a colon or in brackets: what can be counted."""
    return re.split(r":| \(", reason)[0]

"""Model card texts on the purpose, use and outputs of a bundle."""

from __future__ import annotations

from collections.abc import Sequence

from pneumoscope.bundle.card import Card
from pneumoscope.bundle.multiclass_card import MulticlassCard

__all__ = [
    "INTENDED_USE",
    "INTENDED_USERS",
    "fitted_parts",
    "how_to_use",
    "out_of_scope",
    "outputs",
    "purpose",
    "safety_process",
    "topics",
]

INTENDED_USE = (
    "Research and education: comparing and studying classifiers of chest radiographs. It must not be used for decisions about"
    " patients."
)
INTENDED_USERS = "Researchers, engineers, and physicians who study such models."


def out_of_scope(card: Card | MulticlassCard) -> str:
    """Return a sentence on what the model must not be used for."""
    ages = "Other ages" if card.age_range else "Ages that the training data lack"
    others = "other diseases" if isinstance(card, Card) else "other classes"
    return (
        f"{ages}, other views, {others}, images that are not chest radiographs, and other hospitals until the model has been"
        " tested there."
    )


def purpose(card: Card | MulticlassCard) -> str:
    """Return a clause on what the model does."""
    if isinstance(card, Card):
        probability = "the probability of pneumonia"
        parts = ["a decision threshold", *(["an interval"] if card.intervals else [])]
    else:
        probability = f"the probability of each class ({', '.join(card.classes)})"
        parts = ["a set of possible classes"] if card.prediction_sets else []
    if card.rejection_limits:
        parts.append("rejection of unsuitable images")
    return f"estimates {probability} from one frontal chest radiograph{', with ' if parts else ''}{_listed(parts)}"


def _listed(parts: Sequence[str]) -> str:
    """Return the parts as an English list."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def topics(card: Card | MulticlassCard) -> list[str]:
    """Return the findings that the model covers."""
    return ["pneumonia"] if isinstance(card, Card) else list(card.classes)


def how_to_use(card: Card | MulticlassCard) -> str:
    """Return the instructions for use."""
    if isinstance(card, Card):
        return (
            "Score images with `pneumoscope predict` or the web interface. Before any study at a hospital, run"
            " `pneumoscope accept` on labeled images of that hospital."
        )
    return (
        "Score images with `pneumoscope predict`. Before any study at a hospital, run `pneumoscope evaluate` on labeled images of"
        " that hospital."
    )


def outputs(card: Card | MulticlassCard) -> str:
    """Describe the outputs of a prediction."""
    if isinstance(card, Card):
        return (
            f"Probability of pneumonia{' with an interval' if card.intervals else ''}, a decision (pneumonia, no pneumonia,"
            " uncertain or rejected with a reason), and a heatmap if the network has one."
        )
    names = ", ".join(card.classes)
    if card.prediction_sets is None:
        decision = "a decision (classified, or rejected with a reason)"
    else:
        decision = "the set of those that stay possible, a decision (classified, uncertain or rejected with a reason)"
    return f"Probabilities of the classes {names}, {decision}, and a heatmap if the network has one."


def fitted_parts(card: Card | MulticlassCard) -> str:
    """Return the parts fitted on validation images, such as "thresholds and calibration", or "" if there are none."""
    has_thresholds = isinstance(card, Card) or card.prediction_sets is not None
    parts = [
        *(["thresholds"] if has_thresholds else []),
        *(["calibration"] if card.calibration.method != "none" else []),
    ]
    return _listed(parts)


def safety_process(card: Card | MulticlassCard) -> str:
    """Describe how safety was measured."""
    sources = "images of other sources that were not used for training"
    if isinstance(card, Card):
        return f"`pneumoscope robustness`, and {sources}."
    return f"{sources.capitalize()}." if card.rejection_limits and card.rejection_limits.outliers else "Not measured."

"""Render codes as sentences for people, in every language of `core.i18n`."""

from __future__ import annotations

from pneumoscope.core.i18n import N_, NOTICE, translations
from pneumoscope.core.prediction import Decision, Prediction, Rejection, RejectionCode, Uncertainty

__all__ = [
    "decision_label",
    "notice",
    "operating_point_rule",
    "prediction_message",
    "rejection_message",
    "uncertainty_message",
]

_DECISIONS: dict[Decision, str] = {
    "pneumonia": N_("Pneumonia"),
    "no_pneumonia": N_("No pneumonia detected"),
    "uncertain": N_("Uncertain"),
    "rejected": N_("Rejected"),
}

_REJECTIONS: dict[RejectionCode, str] = {
    "outside_age_range": N_(
        "The stated age of {age:.1f} years is outside the model's range of {minimum:g} to {maximum:g} years"
    ),
    "out_of_distribution": N_(
        "The image is unlike the training images (distance {distance:.2f}, limit {limit:.2f}). The patient's age, the view"
        " or the body part may differ"
    ),
    "not_a_chest_radiograph": N_("The image does not look like a chest radiograph"),
    "inverted": N_("Black and white appear to be inverted"),
    "upside_down": N_("The image appears to be upside down"),
    "rotated_90": N_("The image appears to be rotated by 90 degrees"),
    "mirrored": N_("Left and right appear to be swapped"),
    "cropped": N_("The image shows too little of the chest"),
    "too_small": N_("The image is too small: {width} x {height} pixels; each side needs at least {minimum}"),
    "too_narrow": N_("The image is too narrow for a chest radiograph: {width} x {height} pixels"),
    "color": N_("The image is in color; a radiograph is grayscale"),
    "blank": N_("The image is blank: its gray levels span {levels} of 256"),
}

_RULES = {
    "fixed": N_("fixed score of 0.5"),
    "youden": N_("highest Youden index on {n} validation images"),
    "sensitivity": N_("highest threshold with sensitivity {target:g} on {n} validation images with pneumonia"),
    "specificity": N_("lowest threshold with specificity {target:g} on {n} validation images without pneumonia"),
}
_AUGMENTED = N_("{rule}, augmented")

_UNCERTAIN = N_("The score lies in the uncertainty band ({coverage:.0%} coverage)")


def notice(language: str = "en") -> str:
    """Return the notice that accompanies every result."""
    return translations(language).gettext(NOTICE)


def decision_label(decision: Decision, language: str = "en") -> str:
    """Return the display name of a decision, such as "No pneumonia detected"."""
    return translations(language).gettext(_DECISIONS[decision])


def rejection_message(rejection: Rejection, language: str = "en") -> str:
    """Return the reason of a rejection as a sentence without a full stop."""
    return translations(language).gettext(_REJECTIONS[rejection.code]).format(**rejection.parameters)


def uncertainty_message(uncertainty: Uncertainty, language: str = "en") -> str:
    """Return the reason of an uncertain decision as a sentence without a full stop."""
    return translations(language).gettext(_UNCERTAIN).format(coverage=uncertainty.coverage)


def operating_point_rule(rule: str, target: float | None, n: int | None, augmented: bool, language: str = "en") -> str:
    """Return how the threshold of an operating point was chosen, as a phrase; see `bundle.card.OperatingPoint`."""
    catalogue = translations(language)
    phrase = catalogue.gettext(_RULES[rule]).format(target=target, n=n)
    return catalogue.gettext(_AUGMENTED).format(rule=phrase) if augmented else phrase


def prediction_message(prediction: Prediction, language: str = "en") -> str:
    """Return the explanation of a rejected, uncertain or failed prediction; empty for the others."""
    if prediction.rejection:
        return rejection_message(prediction.rejection, language)
    if prediction.uncertainty:
        return uncertainty_message(prediction.uncertainty, language)
    return str(prediction.failure) if prediction.failure else ""

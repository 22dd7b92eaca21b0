"""Render rejections as sentences and labels in every language of `core.i18n`."""

from __future__ import annotations

from pneumoscope.core.i18n import N_, translations
from pneumoscope.core.messages import join_sentences
from pneumoscope.core.prediction import Rejection
from pneumoscope.core.prediction_codes import RejectionCode

__all__ = ["rejection_label", "rejection_message"]

_REJECTIONS: dict[RejectionCode, str] = {
    "outside_age_range": N_(
        "The age of {age:.3g} years is outside the model's range of {minimum:g} to {maximum:g} years"
    ),
    "outside_age_range_estimated": N_(
        "The image suggests that the patient is outside the model's age range of {minimum:g} to {maximum:g} years"
    ),
    "age_required": N_("The age is required and not stated; the model's range is {minimum:g} to {maximum:g} years"),
    "age_not_understood": N_("The age cannot be determined from the DICOM header ({stated})"),
    "out_of_distribution": N_(
        "The image is too unlike those that the model was trained on; for example, the patient's age, the view or the body"
        " part may differ"
    ),
    "not_a_chest_radiograph": N_("The image does not look like a chest radiograph"),
    "inverted": N_("Black and white appear to be inverted"),
    "upside_down": N_("The image appears to be upside down"),
    "rotated_90": N_("The image appears to be rotated by 90 degrees"),
    "mirrored": N_("Left and right appear to be swapped"),
    "cropped": N_("The image shows too little of the chest"),
    "modality_not_supported": N_(
        "The modality is {modality}; only projection radiography (such as CR and DX) is supported"
    ),
    "modality_not_understood": N_("The modality {modality} is unknown"),
    "body_part_not_chest": N_("The body part is {part}, not the chest"),
    "lateral_view": N_("The DICOM header specifies the view {view}; only frontal views (PA, AP) are supported"),
    "view_not_understood": N_("The view {view} in {element} is unknown"),
    "laterality_not_understood": N_("The laterality {laterality} is unknown"),
    "for_processing": N_(
        "The pixels are unprocessed detector values (FOR PROCESSING); send the processed image (FOR PRESENTATION)"
    ),
    "presentation_intent_not_understood": N_(
        "The presentation intent {intent} is unknown; send an image with the intent FOR PRESENTATION"
    ),
    "excluded_by_site_rule": N_("The site rule {rule} excludes the image"),
    "too_small": N_("The image is too small: {width} x {height} pixels; each side needs at least {minimum}"),
    "too_narrow": N_(
        "The image is too narrow for a chest radiograph: {width} x {height} pixels; the longer side may be at most"
        " {max_aspect:g} times the shorter one"
    ),
    "color": N_("The image is in color; a radiograph is grayscale"),
    "blank": N_("The image is blank: its gray levels span {levels} of 256; at least {minimum} are needed"),
}

_REJECTION_LABELS: dict[RejectionCode, str] = {
    "outside_age_range": N_("Age outside the model's range"),
    "outside_age_range_estimated": N_("Appears outside the model's age range"),
    "age_required": N_("Age not stated"),
    "age_not_understood": N_("Age not understood"),
    "out_of_distribution": N_("Unlike the training images"),
    "not_a_chest_radiograph": N_("Not a chest radiograph"),
    "inverted": N_("Inverted"),
    "upside_down": N_("Upside down"),
    "rotated_90": N_("Rotated"),
    "mirrored": N_("Mirrored"),
    "cropped": N_("Cropped"),
    "modality_not_supported": N_("Other modality"),
    "modality_not_understood": N_("Unknown modality"),
    "body_part_not_chest": N_("Other body part"),
    "lateral_view": N_("Not a frontal view"),
    "view_not_understood": N_("Unknown view"),
    "laterality_not_understood": N_("Unknown laterality"),
    "for_processing": N_("Unprocessed pixels"),
    "presentation_intent_not_understood": N_("Unknown presentation intent"),
    "excluded_by_site_rule": N_("Excluded by a site rule"),
    "too_small": N_("Too small"),
    "too_narrow": N_("Too narrow"),
    "color": N_("In color"),
    "blank": N_("Blank"),
}

# Measured values with a limit, by parameter name; other values are in the message of their code.
_MEASUREMENTS = {
    "probability": N_("Probability of an upright chest radiograph: {value}; rejected below {limit}"),
    "score": N_("Score of the age check (0 to 1): {value}; rejected above {limit}"),
    "distance": N_("Distance from the training images: {value}; rejected above {limit}"),
    "chroma": N_("Difference between the color channels (gray levels): {value}; rejected above {limit}"),
}
_DIGITS = (3, 6, 9)  # after the decimal point: the fewest that distinguish the value from its limit


def rejection_label(code: RejectionCode, language: str = "en") -> str:
    """Return a short label of the rejection reason, without numbers."""
    return translations(language).gettext(_REJECTION_LABELS[code])


def rejection_message(rejection: Rejection, language: str = "en") -> str:
    """Return the rejection reason with the measured value and its limit, without the last full stop."""
    reason = translations(language).gettext(_REJECTIONS[rejection.code]).format(**rejection.parameters)
    return join_sentences((reason, _measurement(rejection, language)), language)


def _measurement(rejection: Rejection, language: str) -> str:
    """Return the measured value and its limit; empty if they are not recorded or already in the reason."""
    for name, message in _MEASUREMENTS.items():
        if name in rejection.parameters and "limit" in rejection.parameters:
            value, limit = (float(rejection.parameters[each]) for each in (name, "limit"))
            shown = ((f"{value:.{digits}f}", f"{limit:.{digits}f}") for digits in _DIGITS)
            first, second = next((pair for pair in shown if pair[0] != pair[1]), (str(value), str(limit)))
            return translations(language).gettext(message).format(value=first, limit=second)
    return ""

"""Render codes as sentences in every language of `core.i18n`; see `error_messages` for errors."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pneumoscope.core.i18n import N_, translations
from pneumoscope.core.identity import ConflictCode
from pneumoscope.core.identity_check import FieldProblem
from pneumoscope.core.prediction import Failure
from pneumoscope.core.prediction_codes import ClassDecision, Decision, WarningCode
from pneumoscope.core.unreadable import reason_hint, reason_message

__all__ = [
    "age_text",
    "conflict_message",
    "counted",
    "decision_label",
    "failure_message",
    "field_problem_message",
    "full_stop",
    "identity_label",
    "join_sentences",
    "of_patients_text",
    "operating_point_label",
    "operating_point_rule",
    "patients_text",
    "punctuation",
    "review_label",
    "role_label",
    "sex_label",
    "unread_text",
    "warning_label",
    "warning_message",
]

_DECISIONS: dict[Decision | ClassDecision, str] = {
    "pneumonia": N_("Pneumonia"),
    "no_pneumonia": N_("No pneumonia detected"),
    "uncertain": N_("Uncertain"),
    "rejected": N_("Rejected"),
    "classified": N_("Classified"),
}

_WARNINGS: dict[WarningCode, str] = {
    "age_not_stated": N_("Age not stated: the prediction is invalid for patients outside the model's age range"),
    "modality_not_stated": N_("Modality not stated: the prediction is valid for radiographs only"),
    "body_part_not_stated": N_("Body part not stated: the prediction is valid for the chest only"),
    "view_not_stated": N_("View not stated: the prediction is valid for frontal views (PA, AP) only"),
    "one_side_stated": N_("One side of the body is stated: the prediction is valid only if both lungs are shown"),
    "window_ignored": N_(
        "The window or lookup table does not fit the pixels; gray levels were derived from the pixels"
    ),
    "bit_depth_measured": N_("The pixels do not have the stated bit depth; gray levels were derived from the pixels"),
    "padding_measured": N_("The border contains undeclared padding; gray levels were derived from the other pixels"),
    "assumed_chest": N_("DICOM header overridden: assumed to be a chest radiograph"),
    "assumed_frontal": N_("DICOM header overridden: assumed to be a frontal view of both lungs"),
}

_WARNING_LABELS: dict[WarningCode, str] = {
    "age_not_stated": N_("Age not stated"),
    "modality_not_stated": N_("Modality not stated"),
    "body_part_not_stated": N_("Body part not stated"),
    "view_not_stated": N_("View not stated"),
    "one_side_stated": N_("Only one side stated"),
    "window_ignored": N_("Window or LUT ignored"),
    "bit_depth_measured": N_("Bit depth measured"),
    "padding_measured": N_("Undeclared padding"),
    "assumed_chest": N_("Assumed: chest"),
    "assumed_frontal": N_("Assumed: frontal view"),
}

_CONFLICTS: dict[ConflictCode, str] = {
    "image_of_two_patients": N_(
        "The same image was received under two patients. Check whose it is, and choose the patient"
    ),
    "sop_instance_uid_reused": N_("Another image has the same SOP Instance UID. Check which one is right"),
    "study_instance_uid_reused": N_("Images of another patient have the same Study Instance UID. Check the patient"),
    "patient_id_reused": N_(
        "Another patient with a different name or birth date has the same patient ID. Check the patient"
    ),
    "age_contradicts_dates": N_("The age contradicts the birth date and the study date. Check the patient"),
}

_FIELD_PROBLEMS: dict[FieldProblem, str] = {
    "not_a_date": N_("This is not a date. Write it as 2021-01-31."),
    "in_the_future": N_("This date is in the future."),
    "before_the_birth_date": N_("The study is before the birth date."),
    "too_long_before_the_study": N_("This is more than 130 years before the study."),
    "not_a_sex": N_("Choose female, male or other."),
}
_SEXES = {"F": N_("Female"), "M": N_("Male"), "O": N_("Other")}

# Labels that readers assign; see `service.storage.reviews`.
_REVIEW_LABELS = {
    "pneumonia": N_("Pneumonia"),
    "other_finding": N_("Other finding"),
    "no_finding": N_("No finding"),
    "unusable": N_("Unusable image"),
}

# Display names of the fields of `core.identity.Identity`.
_IDENTITY = {
    "patient_id": N_("Patient ID"),
    "issuer_of_patient_id": N_("Issuer of the patient ID"),
    "patient_name": N_("Patient name"),
    "patient_birth_date": N_("Birth date"),
    "patient_sex": N_("Sex"),
    "accession_number": N_("Accession number"),
    "study_instance_uid": N_("Study Instance UID"),
    "study_date": N_("Study date"),
    "study_description": N_("Study description"),
    "series_instance_uid": N_("Series Instance UID"),
    "sop_instance_uid": N_("SOP Instance UID"),
    "station_name": N_("Station"),
}

_AGE_IN_MONTHS, _AGE_IN_YEARS, _AGE_IN_BOTH = N_("{months} mo"), N_("{years} y"), N_("{years} y {months} mo")
_YOUNGEST_IN_YEARS, _YOUNGEST_WITHOUT_MONTHS = 2, 18  # years
_ROUNDING = 1e-6  # months; twelfths of years are not exact in floating point

_OPERATING_POINTS = {
    "half": N_("half"),
    "balanced": N_("balanced"),
    "rule_out": N_("rule_out"),
    "rule_in": N_("rule_in"),
}

_RULES = {
    "fixed": N_("fixed score of 0.5"),
    "youden": N_("highest Youden index on {n} validation images"),
    "sensitivity": N_("highest threshold with sensitivity {target:g} on {n} validation images with pneumonia"),
    "specificity": N_("lowest threshold with specificity {target:g} on {n} validation images without pneumonia"),
}
_SITE_RULES = {
    "youden": N_("highest Youden index on {n} images of the site"),
    "sensitivity": N_("highest threshold with sensitivity {target:g} on {n} images of the site with pneumonia"),
    "specificity": N_("lowest threshold with specificity {target:g} on {n} images of the site without pneumonia"),
}
_AUGMENTED = N_("{rule}, augmented")
_BOTH = N_("{rule}, both unmodified and augmented")  # "rule_out" and "rule_in" reach their targets on both


_BETWEEN_SENTENCES = N_(". ")
_COLON, _COMMA, _OPENING, _CLOSING = (
    N_(": "),
    N_(", "),
    N_(" ("),
    N_(")"),
)  # Chinese punctuation differs and has no spaces


_ROLES = {"sender": N_("Sender"), "reader": N_("Reader"), "administrator": N_("Administrator")}


def counted(number: int, noun: str) -> str:
    """Return a number with an English noun, such as "1 image" or "1,200 images"; the plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def unread_text(failed: int, images: int) -> str:
    """Return how many images could not be read, such as "2 of 3 images could not be read"."""
    return "the image could not be read" if images == 1 else f"{failed:,} of {images:,} images could not be read"


def patients_text(patients: int, unknown: int | None, images: int) -> str:
    """Return the number of patients, such as "28 patients", or that they are unknown.

    Args:
        patients: Number of patients; an image of an unknown patient counts as one.
        unknown: Number of images of unknown patients; None in records of earlier versions, which lack it.
        images: Number of images.
    """
    if not unknown:
        return counted(patients, "patient")
    if unknown == images:
        return "patients unknown, each image counts as one"
    return f"{counted(patients - unknown, 'known patient')}; {_without_patient(unknown)}"


def of_patients_text(patients: int, unknown: int | None, images: int) -> str:
    """Return the patients as a modifier, such as "of 28 patients"; arguments as in `patients_text`."""
    if not unknown:
        return f"of {counted(patients, 'patient')}"
    if unknown == images:
        return "of unknown patients (each image counts as one)"
    return f"of {counted(patients - unknown, 'known patient')} ({_without_patient(unknown)})"


def _without_patient(images: int) -> str:
    return f"{counted(images, 'image')} {'has' if images == 1 else 'have'} no known patient"


def full_stop(language: str = "en") -> str:
    """Return the full stop of a language."""
    return translations(language).gettext(_BETWEEN_SENTENCES).rstrip()


def join_sentences(sentences: Iterable[str], language: str = "en") -> str:
    """Return the non-empty sentences as one text; neither the input nor the result ends in a full stop."""
    return translations(language).gettext(_BETWEEN_SENTENCES).join(filter(None, sentences))


def punctuation(language: str = "en") -> dict[str, str]:
    """Return the punctuation of a language, with its spaces: `colon`, `comma`, `opening` and `closing` parenthesis."""
    gettext = translations(language).gettext
    return {
        "colon": gettext(_COLON),
        "comma": gettext(_COMMA),
        "opening": gettext(_OPENING),
        "closing": gettext(_CLOSING),
    }


def decision_label(decision: Decision | ClassDecision, language: str = "en") -> str:
    """Return the display name of a decision, such as "No pneumonia detected"."""
    return translations(language).gettext(_DECISIONS[decision])


def failure_message(failure: Failure, language: str = "en") -> str:
    """Return why an image cannot be read and what to do next, as sentences without the last full stop.

    In English, or without a reason, this is the stored message, which also names the file.
    """
    if language == "en" or not failure.reason:
        return str(failure)
    return join_sentences((reason_message(failure.reason, language), reason_hint(failure.reason, language)), language)


def warning_label(warning: WarningCode, language: str = "en") -> str:
    """Return a short label of a warning, for lists."""
    return translations(language).gettext(_WARNING_LABELS[warning])


def warning_message(warning: WarningCode, language: str = "en") -> str:
    """Return a warning as a sentence without a full stop."""
    return translations(language).gettext(_WARNINGS[warning])


def conflict_message(conflict: ConflictCode, language: str = "en") -> str:
    """Return the explanation of an identifier conflict as a sentence without a full stop."""
    return translations(language).gettext(_CONFLICTS[conflict])


def field_problem_message(problem: FieldProblem, language: str = "en") -> str:
    """Return the problem with an entered identity field, as sentences."""
    return translations(language).gettext(_FIELD_PROBLEMS[problem])


def age_text(years: float, language: str = "en") -> str:
    """Return an age in years and months as physicians write it, such as "4 y 8 mo"; adults without months.

    Months are rounded down.
    """
    completed, months = divmod(math.floor(12 * years + _ROUNDING), 12)
    message = _AGE_IN_BOTH if months else _AGE_IN_YEARS
    if completed < _YOUNGEST_IN_YEARS:
        message, months = _AGE_IN_MONTHS, 12 * completed + months
    elif completed >= _YOUNGEST_WITHOUT_MONTHS:
        message = _AGE_IN_YEARS
    return translations(language).gettext(message).format(years=completed, months=months)


def sex_label(sex: str, language: str = "en") -> str:
    """Return the sex of a patient as a word; unchanged if it is not a DICOM code."""
    label = _SEXES.get(sex)
    return translations(language).gettext(label) if label else sex


def identity_label(field: str, language: str = "en") -> str:
    """Return the display name of a field of `core.identity.Identity`."""
    return translations(language).gettext(_IDENTITY[field])


def review_label(label: str, language: str = "en") -> str:
    """Return the display name of a reader's label."""
    return translations(language).gettext(_REVIEW_LABELS[label])


def role_label(role: str, language: str = "en") -> str:
    """Return the display name of a user role."""
    return translations(language).gettext(_ROLES[role])


def operating_point_label(name: str, language: str = "en") -> str:
    """Return the display name of an operating point; unchanged if it is not a standard one."""
    label = _OPERATING_POINTS.get(name)
    return translations(language).gettext(label) if label else name


def operating_point_rule(
    rule: str, target: float | None, n: int | None, augmented: bool, language: str = "en", *, site: bool = False
) -> str:
    """Return a phrase that describes how a threshold was chosen; see `bundle.card.OperatingPoint`."""
    catalog = translations(language)
    phrase = catalog.gettext((_SITE_RULES if site else _RULES)[rule]).format(target=target, n=n)
    if not augmented:
        return phrase
    return catalog.gettext(_AUGMENTED if target is None else _BOTH).format(rule=phrase)

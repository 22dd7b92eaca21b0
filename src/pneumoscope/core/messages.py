"""Render codes as sentences for people, in every language of `core.i18n`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pneumoscope.core import errors
from pneumoscope.core.errors import PneumoscopeError
from pneumoscope.core.i18n import N_, NOTICE, translations
from pneumoscope.core.identity import ConflictCode, age_at_study, contradicts
from pneumoscope.core.identity_check import FieldProblem
from pneumoscope.core.prediction import (
    Decision,
    ModelInfo,
    Prediction,
    Rejection,
    RejectionCode,
    Uncertainty,
    WarningCode,
)

if TYPE_CHECKING:
    from pneumoscope.core.population import Population, View  # needs msgspec, which --help does not import

__all__ = [
    "age_conflict_message",
    "conflict_message",
    "counted",
    "decision_label",
    "decision_message",
    "error_text",
    "error_titles",
    "field_problem_message",
    "full_stop",
    "heatmap_ends",
    "heatmap_message",
    "identity_label",
    "list_message",
    "model_message",
    "notice",
    "operating_point_label",
    "operating_point_rule",
    "population_sentence",
    "prediction_message",
    "prevalence_message",
    "probability_message",
    "probability_text",
    "punctuation",
    "rejection_label",
    "rejection_message",
    "result_message",
    "result_title",
    "review_label",
    "role_label",
    "scope_message",
    "sex_label",
    "site_note",
    "uncertainty_message",
    "warning_message",
]

_DECISIONS: dict[Decision, str] = {
    "pneumonia": N_("Pneumonia"),
    "no_pneumonia": N_("No pneumonia detected"),
    "uncertain": N_("Uncertain"),
    "rejected": N_("Rejected"),
}

_REJECTIONS: dict[RejectionCode, str] = {
    "outside_age_range": N_(
        "The age of {age:.3g} years is outside the model's range of {minimum:g} to {maximum:g} years"
    ),
    "outside_age_range_estimated": N_(
        "By the look of the image, the patient is outside the model's range of {minimum:g} to {maximum:g} years"
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
    "lateral_view": N_("The DICOM header states the view {view}; only frontal views (PA, AP) are supported"),
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
    "too_narrow": N_("The image is too narrow for a chest radiograph: {width} x {height} pixels"),
    "color": N_("The image is in color; a radiograph is grayscale"),
    "blank": N_("The image is blank: its gray levels span {levels} of 256"),
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
    "assumed_chest": N_("DICOM header overridden: assumed to be a chest radiograph"),
    "assumed_frontal": N_("DICOM header overridden: assumed to be a frontal view of both lungs"),
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
_AGE_CONTRADICTS_DATES = N_(
    "Contradictory age: {age:.3g} years stated, {by_dates:.3g} years by birth date and study date. The result may not apply;"
    " check the patient"
)

_FIELD_PROBLEMS: dict[FieldProblem, str] = {
    "not_a_date": N_("This is not a date. Write it as 2021-01-31."),
    "in_the_future": N_("This date is in the future."),
    "before_the_birth_date": N_("The study is before the birth date."),
    "too_long_before_the_study": N_("This is more than 130 years before the study."),
    "not_a_sex": N_("Choose female, male or other."),
}
_SEXES = {"F": N_("Female"), "M": N_("Male"), "O": N_("Other")}

# Labels that readers give an image; see `service.storage.reviews`.
_REVIEW_LABELS = {
    "pneumonia": N_("Pneumonia"),
    "other_finding": N_("Other finding"),
    "no_finding": N_("No finding"),
    "unusable": N_("Unusable image"),
}

# Labels of the fields of `core.identity.Identity`.
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
_BOTH = N_("{rule}, both unmodified and augmented")  # the targets of "rule_out" and "rule_in" are reached on both

_UNKNOWN_POPULATION = N_("The population that it was trained on is unknown.")
_POPULATION = N_("Trained on {images} of {patients} from {sites}.")
_POPULATION_VIEWS: dict[View | None, str] = {
    "AP": N_("AP radiographs"),
    "PA": N_("PA radiographs"),
    "frontal": N_("frontal radiographs"),
    None: N_("radiographs of unknown view"),
}
_POPULATION_AGES = {
    "children": N_("children of {minimum:g} to {maximum:g} years"),
    "adults": N_("adults of {minimum:g} to {maximum:g} years"),
    "patients": N_("patients of {minimum:g} to {maximum:g} years"),
}
_UNKNOWN_AGES = N_("patients of unknown age")
_ONE_SITE, _SITES, _UNKNOWN_SITES = N_("one hospital"), N_("{n} hospitals"), N_("unknown hospitals")
_ADULT_AGE = 18  # years
# The notice that holds for every model, and the sentence on the population of one.
_NOTICE_AND_POPULATION = N_("{notice} {population}")

_BETWEEN_SENTENCES = N_(". ")
_COLON, _COMMA, _OPENING, _CLOSING = (
    N_(": "),
    N_(", "),
    N_(" ("),
    N_(")"),
)  # Chinese has signs of its own, without spaces
_UNCERTAIN = N_(
    "The probability is in the uncertain range ({range}), where the model would be wrong too often. Read the image without the"
    " prediction"
)
_RANGE = N_("{low} to {high}")
_SCOPE = N_("Other findings are not assessed")
_SCOPE_OF_LIST = N_("“No pneumonia detected” does not exclude other findings; they are not assessed")
_PROBABILITY = N_("The probability of pneumonia is {probability}")
_PROBABILITY_AND_INTERVAL = N_(
    "The probability of pneumonia is {probability}. Calibration interval (Venn-Abers): {range}, the range that the calibration on"
    " {n} images leaves open. It is not a confidence interval, and the probability can lie at its end"
)
_DEFAULT_PREVALENCE = N_(
    "Probabilities are for a prevalence of {prevalence}; if pneumonia is less common among your patients, they are lower"
)
_STATED_PREVALENCE = N_("Probabilities are for a prevalence of {prevalence}")
_NOT_ASSESSED, _NOT_READ = N_("Not assessed: {reason}"), N_("Not assessed: the image cannot be read")
_RESULT_TITLE = N_("{decision}: probability of pneumonia {probability}")
_WITH_RANGE = N_("{probability} ({range})")
_MODEL = N_("Model {model}, operating point {point}")
_MODEL_AND_THRESHOLD = N_("Model {model}, operating point {point}: pneumonia at {threshold} or more")
_HEATMAP = N_(
    "Heatmap: contribution of each region to the score. It shows what the model relied on, not the location of disease"
)
_AGAINST, _TOWARDS = N_("against pneumonia"), N_("towards pneumonia")
_SITE_PROFILE, _SITE_PREVALENCE = N_("Site profile: {site}"), N_("Prevalence: {prevalence}")

_BELOW_1_PERCENT, _ABOVE_99_PERCENT = N_("below 1%"), N_("above 99%")

# Title and advice for a person at the browser; other errors have those of the nearest base class.
_ROLES = {"sender": N_("Sender"), "reader": N_("Reader"), "administrator": N_("Administrator")}
_ERRORS: dict[type[PneumoscopeError], tuple[str, str]] = {
    errors.PneumoscopeError: (
        N_("Internal error"),
        N_("Contact the administrator. The server log has the time and the cause."),
    ),
    errors.InputError: (N_("Invalid request"), N_("Go back to the worklist and try again.")),
    errors.UnknownNameError: (N_("Not found"), N_("The image was deleted, or the address is wrong.")),
    errors.AuthenticationError: (N_("Not signed in"), N_("Sign in again.")),
    errors.ForbiddenError: (N_("Not permitted"), N_("Your role does not allow this. Ask an administrator.")),
    errors.TooManyRequestsError: (N_("Too many failed attempts"), N_("Wait a minute, then try again.")),
    errors.TooLargeError: (N_("Too large"), N_("Send smaller files, or fewer at a time.")),
    errors.UnreadableImageError: (N_("Unreadable image"), N_("Export the image again, or choose another file.")),
    errors.InvalidIdentityError: (
        N_("Invalid patient or study data"),
        N_("Correct the marked fields. Nothing was saved."),
    ),
    errors.GoneError: (N_("Image removed"), N_("The retention period has ended. The prediction is kept.")),
    errors.ConflictError: (N_("Changed in the meantime"), N_("Open the image again. Nothing was saved.")),
    errors.ImageOfTwoPatientsError: (
        N_("Image of two patients"),
        N_("Open the image, and choose its patient. Nothing was deleted."),
    ),
    errors.BundleError: (N_("Model unavailable"), N_("Contact the administrator.")),
    errors.StorageError: (N_("Storage unavailable"), N_("Nothing was saved. Contact the administrator.")),
    errors.BusyError: (N_("Service busy"), N_("Try again in a few seconds.")),
}


def counted(number: int, noun: str) -> str:
    """Return a number with its English noun, such as "1 image" or "1,200 images"; the plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def full_stop(language: str = "en") -> str:
    """Return the full stop of a language."""
    return translations(language).gettext(_BETWEEN_SENTENCES).rstrip()


def punctuation(language: str = "en") -> dict[str, str]:
    """Return the signs between texts of a language: `colon`, `comma`, and the brackets `opening` and `closing`, with spaces."""
    gettext = translations(language).gettext
    return {
        "colon": gettext(_COLON),
        "comma": gettext(_COMMA),
        "opening": gettext(_OPENING),
        "closing": gettext(_CLOSING),
    }


def notice(population: Population | None = None, language: str = "en") -> str:
    """Return the notice that accompanies every result.

    Args:
        population: Population of the model, which the notice then states; None for a result without a model.
        language: A key of `LANGUAGES`.
    """
    gettext = translations(language).gettext
    if population is None:
        return gettext(NOTICE)
    return gettext(_NOTICE_AND_POPULATION).format(
        notice=gettext(NOTICE), population=population_sentence(population, language)
    )


def population_sentence(population: Population, language: str = "en") -> str:
    """Return the sentence that states the population; its own sentence is in the language in which it was written."""
    gettext = translations(language).gettext
    if population.sentence:
        return population.sentence
    if population.is_unknown:
        return gettext(_UNKNOWN_POPULATION)
    patients = gettext(_UNKNOWN_AGES)
    if population.ages:
        minimum, maximum = population.ages
        group = "children" if maximum < _ADULT_AGE else "adults" if minimum >= _ADULT_AGE else "patients"
        patients = gettext(_POPULATION_AGES[group]).format(minimum=minimum, maximum=maximum)
    sites = _UNKNOWN_SITES if population.sites is None else _ONE_SITE if population.sites == 1 else _SITES
    return gettext(_POPULATION).format(
        images=gettext(_POPULATION_VIEWS[population.view]),
        patients=patients,
        sites=gettext(sites).format(n=population.sites),
    )


def decision_label(decision: Decision, language: str = "en") -> str:
    """Return the display name of a decision, such as "No pneumonia detected"."""
    return translations(language).gettext(_DECISIONS[decision])


def error_text(error: PneumoscopeError, language: str = "en") -> tuple[str, str]:
    """Return the title of an error and what a person at the browser can do about it."""
    gettext = translations(language).gettext
    title, advice = next(_ERRORS[kind] for kind in type(error).__mro__ if kind in _ERRORS)
    return gettext(title), gettext(advice)


def error_titles(language: str = "en") -> dict[str, str]:
    """Return the title of every error by its code; an error without a title of its own has that of its nearest base class."""
    gettext = translations(language).gettext
    kinds = (getattr(errors, name) for name in errors.__all__)
    return {kind.code: gettext(next(_ERRORS[base][0] for base in kind.__mro__ if base in _ERRORS)) for kind in kinds}


def rejection_message(rejection: Rejection, language: str = "en") -> str:
    """Return the reason of a rejection as a sentence without a full stop."""
    return translations(language).gettext(_REJECTIONS[rejection.code]).format(**rejection.parameters)


def rejection_label(code: RejectionCode, language: str = "en") -> str:
    """Return the reason of rejections in a few words, without numbers."""
    return translations(language).gettext(_REJECTION_LABELS[code])


def warning_message(warning: WarningCode, language: str = "en") -> str:
    """Return a warning as a sentence without a full stop."""
    return translations(language).gettext(_WARNINGS[warning])


def conflict_message(conflict: ConflictCode, language: str = "en") -> str:
    """Return the explanation of a conflict of identifiers as a sentence without a full stop."""
    return translations(language).gettext(_CONFLICTS[conflict])


def age_conflict_message(prediction: Prediction, language: str = "en") -> str:
    """Return that the age of the patient contradicts the dates, as sentences without the last full stop; empty if it does not."""
    age = prediction.age.years if prediction.age else None
    if not contradicts(age, prediction.identity):
        return ""
    message = translations(language).gettext(_AGE_CONTRADICTS_DATES)
    return message.format(age=age, by_dates=age_at_study(prediction.identity))


def field_problem_message(problem: FieldProblem, language: str = "en") -> str:
    """Return what is wrong with an entered field of an identity, as sentences."""
    return translations(language).gettext(_FIELD_PROBLEMS[problem])


def sex_label(sex: str, language: str = "en") -> str:
    """Return the sex of a patient as a word; as stated if it is not one of DICOM's codes."""
    label = _SEXES.get(sex)
    return translations(language).gettext(label) if label else sex


def identity_label(field: str, language: str = "en") -> str:
    """Return the display name of a field of `core.identity.Identity`."""
    return translations(language).gettext(_IDENTITY[field])


def review_label(label: str, language: str = "en") -> str:
    """Return the display name of a reader's label."""
    return translations(language).gettext(_REVIEW_LABELS[label])


def role_label(role: str, language: str = "en") -> str:
    """Return the display name of a role of users."""
    return translations(language).gettext(_ROLES[role])


def uncertainty_message(uncertainty: Uncertainty, language: str = "en") -> str:
    """Return the reason of an uncertain decision as a sentence without a full stop."""
    band = _range_text(uncertainty.low, uncertainty.high, language)
    return translations(language).gettext(_UNCERTAIN).format(range=band)


def scope_message(language: str = "en") -> str:
    """Return what the decision "no_pneumonia" does not say, as a sentence without a full stop."""
    return translations(language).gettext(_SCOPE)


def probability_message(prediction: Prediction, language: str = "en") -> str:
    """Return the probability, and what its interval means, as sentences without the last full stop; empty without one."""
    if prediction.probability is None:
        return ""
    gettext, probability = translations(language).gettext, probability_text(prediction.probability, language)
    interval = prediction.interval
    if interval is None or interval.low is None or interval.high is None:
        return gettext(_PROBABILITY).format(probability=probability)
    values = _range_text(interval.low, interval.high, language)
    if values == probability:
        return gettext(_PROBABILITY).format(probability=probability)
    return gettext(_PROBABILITY_AND_INTERVAL).format(probability=probability, range=values, n=interval.n)


def prevalence_message(prevalence: float, language: str = "en", *, stated: bool) -> str:
    """Return the prevalence that probabilities refer to as a sentence without a full stop.

    Args:
        prevalence: Above 0 and below 1.
        language: Language of the sentence.
        stated: True if the site states it, False if it is the default of the model.
    """
    message = translations(language).gettext(_STATED_PREVALENCE if stated else _DEFAULT_PREVALENCE)
    return message.format(prevalence=_percent(prevalence))


def list_message(prevalence: float, language: str = "en", *, stated: bool) -> str:
    """Return what the decisions and probabilities of a list mean, as sentences; see `prevalence_message`."""
    scope = translations(language).gettext(_SCOPE_OF_LIST)
    return _joined((scope, prevalence_message(prevalence, language, stated=stated)), language) + full_stop(language)


def site_note(model: ModelInfo, language: str = "en") -> str:
    """Return the site profile or the stated prevalence of a model with its name; empty without either."""
    if not model.site:
        return ""
    gettext, prevalence = translations(language).gettext, model.prevalence
    if prevalence is None:
        return gettext(_SITE_PROFILE).format(site=model.site)
    return gettext(_SITE_PREVALENCE).format(prevalence=_percent(prevalence))


def result_title(prediction: Prediction, language: str = "en") -> str:
    """Return the decision with the probability and its interval, or why there is none, as a phrase."""
    gettext = translations(language).gettext
    if prediction.rejection:
        return gettext(_NOT_ASSESSED).format(reason=rejection_message(prediction.rejection, language))
    if prediction.decision is None or prediction.probability is None:
        return gettext(_NOT_READ)
    text, interval = probability_text(prediction.probability, language), prediction.interval
    if interval and interval.low is not None and interval.high is not None:
        limits = _range_text(interval.low, interval.high, language)
        text = text if limits == text else gettext(_WITH_RANGE).format(probability=text, range=limits)
    return gettext(_RESULT_TITLE).format(decision=decision_label(prediction.decision, language), probability=text)


def model_message(prediction: Prediction, language: str = "en") -> str:
    """Return the model and the operating point with its threshold as a sentence without a full stop."""
    gettext, model = translations(language).gettext, prediction.model
    facts = {
        "model": f"{model.name} {model.version}",
        "point": operating_point_label(prediction.operating_point, language),
    }
    if prediction.threshold is None:
        return gettext(_MODEL).format(**facts)
    return gettext(_MODEL_AND_THRESHOLD).format(**facts, threshold=probability_text(prediction.threshold, language))


def heatmap_message(language: str = "en") -> str:
    """Return what a heatmap shows as sentences without the last full stop."""
    return translations(language).gettext(_HEATMAP)


def heatmap_ends(language: str = "en") -> tuple[str, str]:
    """Return the labels of the ends of a heatmap's color scale, "against pneumonia" first."""
    gettext = translations(language).gettext
    return gettext(_AGAINST), gettext(_TOWARDS)


def operating_point_label(name: str, language: str = "en") -> str:
    """Return the display name of an operating point; the name itself if it is not one of the standard ones."""
    label = _OPERATING_POINTS.get(name)
    return translations(language).gettext(label) if label else name


def operating_point_rule(
    rule: str, target: float | None, n: int | None, augmented: bool, language: str = "en", *, site: bool = False
) -> str:
    """Return how the threshold of an operating point was chosen, as a phrase; see `bundle.card.OperatingPoint`."""
    catalog = translations(language)
    phrase = catalog.gettext((_SITE_RULES if site else _RULES)[rule]).format(target=target, n=n)
    if not augmented:
        return phrase
    return catalog.gettext(_AUGMENTED if target is None else _BOTH).format(rule=phrase)


def probability_text(probability: float, language: str = "en") -> str:
    """Return a probability of 0 to 1 in whole percent, never as 0% or 100%."""
    if 0.01 <= probability <= 0.99:
        return f"{probability:.0%}"
    return translations(language).gettext(_BELOW_1_PERCENT if probability < 0.01 else _ABOVE_99_PERCENT)


def _range_text(low: float, high: float, language: str) -> str:
    """Return a range of probabilities; one value if both ends look the same."""
    ends = probability_text(low, language), probability_text(high, language)
    return ends[0] if ends[0] == ends[1] else translations(language).gettext(_RANGE).format(low=ends[0], high=ends[1])


def _percent(fraction: float) -> str:
    """Return a fraction in percent with three significant digits, such as "0.5%"."""
    return f"{100 * fraction:.3g}%"


def decision_message(prediction: Prediction, language: str = "en") -> str:
    """Return the explanation of a rejected, uncertain or failed prediction; empty for other predictions.

    Failures are in English in every language: they quote the file and the decoder.
    """
    if prediction.rejection:
        return rejection_message(prediction.rejection, language)
    if prediction.uncertainty:
        return uncertainty_message(prediction.uncertainty, language)
    return str(prediction.failure) if prediction.failure else ""


def prediction_message(prediction: Prediction, language: str = "en") -> str:
    """Return the explanation of a prediction, see `decision_message` and `scope_message`, followed by its warnings.

    A contradictory age comes first: see `age_conflict_message`.
    """
    warnings = (warning_message(warning, language) for warning in prediction.warnings)
    return _joined(
        (age_conflict_message(prediction, language), _explanation(prediction, language), *warnings), language
    )


def result_message(
    prediction: Prediction, language: str = "en", *, prevalence: float | None = None, stated: bool = False
) -> tuple[str, ...]:
    """Return two paragraphs of sentences: the explanation of a decision, and its probability with the prevalence; none if empty.

    Args:
        prediction: The prediction.
        language: Language of the sentences.
        prevalence, stated: See `prevalence_message`; None if unknown.
    """
    probability = [probability_message(prediction, language)]
    if prevalence is not None and prediction.probability is not None:
        probability.append(prevalence_message(prevalence, language, stated=stated))
    paragraphs = _explanation(prediction, language), _joined(probability, language)
    return tuple(each + full_stop(language) for each in paragraphs if each)


def _explanation(prediction: Prediction, language: str) -> str:
    """Return why the decision was made, or what it does not say; empty for pneumonia."""
    if prediction.decision == "no_pneumonia":
        return scope_message(language)
    return decision_message(prediction, language)


def _joined(sentences: Iterable[str], language: str) -> str:
    return translations(language).gettext(_BETWEEN_SENTENCES).join(filter(None, sentences))

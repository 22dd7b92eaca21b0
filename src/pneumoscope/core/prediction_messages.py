"""Render predictions as sentences in every language of `core.i18n`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from pneumoscope.core.i18n import N_, NOTICE, translations
from pneumoscope.core.identity import age_at_study, contradicts
from pneumoscope.core.messages import (
    decision_label,
    failure_message,
    full_stop,
    join_sentences,
    operating_point_label,
    punctuation,
    warning_label,
    warning_message,
)
from pneumoscope.core.multiclass_prediction import MulticlassPrediction
from pneumoscope.core.prediction import Prediction, Uncertainty
from pneumoscope.core.rejection_messages import rejection_message
from pneumoscope.core.unreadable import reason_message

if TYPE_CHECKING:
    from pneumoscope.core.population import Population, View  # imports msgspec, which --help avoids

__all__ = [
    "age_conflict_message",
    "decision_message",
    "heatmap_ends",
    "heatmap_message",
    "list_message",
    "model_message",
    "notice",
    "notice_of_unknown_model",
    "population_sentence",
    "prediction_message",
    "prevalence_message",
    "probability_message",
    "probability_text",
    "range_text",
    "result_message",
    "result_title",
    "scope_message",
    "site_note",
    "uncertainty_message",
    "warning_messages",
    "warning_note",
]

_AGE_CONTRADICTS_DATES = N_(
    "Contradictory age: {age:.3g} years stated, {by_dates:.3g} years by birth date and study date. The result may not apply;"
    " check the patient"
)
_STATED_AGE = N_("The stated age of {age:.3g} years is in the model's range: check that the image is of this patient")
_UNKNOWN_POPULATION = N_("Its training population is unknown.")
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
# The general notice, followed by the population of one model.
_NOTICE_AND_POPULATION = N_("{notice} {population}")
_OTHER_MODEL = N_("This result comes from an earlier model; its training population is not recorded.")
_UNCERTAIN = N_(
    "The probability is in the uncertain range ({range}), where the model would be wrong too often. Read the image without the"
    " prediction"
)
_SEVERAL_CLASSES = N_("Several classes are possible: {classes}. Read the image without the prediction")
_NO_CLASS = N_("The image is atypical of every class. Read it without the prediction")
_OTHER_CLASS = N_(
    "Only {possible} is possible, but {predicted} is more probable. Read the image without the prediction"
)
_RANGE = N_("{low} to {high}")
_SCOPE = N_("Other findings are not assessed")
_SCOPE_OF_LIST = N_("“No pneumonia detected” does not exclude other findings; they are not assessed")
_PROBABILITY = N_("The probability of pneumonia is {probability}")
_PROBABILITY_AND_INTERVAL = N_(
    "The probability of pneumonia is {probability}. Calibration interval (Venn-Abers): {range}, the range consistent with the"
    " calibration on {n} images. It is not a confidence interval, and the probability can lie at its end"
)
_DEFAULT_PREVALENCE = N_(
    "Probabilities are for a prevalence of {prevalence}; if pneumonia is less common among your patients, they are too high"
)
_STATED_PREVALENCE = N_("Probabilities are for a prevalence of {prevalence}")
_NOT_ASSESSED, _NOT_READ = N_("Not assessed: {reason}"), N_("Not assessed: the image cannot be read")
_NOT_READ_BECAUSE = N_("Not assessed: the image cannot be read: {reason}")
_RESULT_TITLE = N_("{decision}: probability of pneumonia {probability}")
_WITH_RANGE = N_("{probability} ({range})")
_MODEL = N_("Model {model}, operating point {point}")
_MODEL_AND_THRESHOLD = N_("Model {model}, operating point {point}: pneumonia at {threshold} or more")
_HEATMAP = N_(
    "Heatmap: contribution of each region to the score. It shows what the model relied on, not the location of disease"
)
_AGAINST, _TOWARDS = N_("against pneumonia"), N_("towards pneumonia")
_SITE_PROFILE, _SITE_PREVALENCE = N_("Site profile: {site}"), N_("Prevalence: {prevalence}")
_WARNINGS = N_("Warning: {warnings}")
_SPACE_IN_CHINESE = re.compile(r"(?<=[\u4e00-\u9fff]) (?=[\u4e00-\u9fff])")
_BELOW_1_PERCENT, _ABOVE_99_PERCENT = N_("below 1%"), N_("above 99%")


def notice(population: Population | None = None, language: str = "en") -> str:
    """Return the notice that accompanies every result.

    Args:
        population: Population of the model, appended to the notice; None for a result without a model.
        language: A key of `LANGUAGES`.
    """
    gettext = translations(language).gettext
    if population is None:
        return gettext(NOTICE)
    return gettext(_NOTICE_AND_POPULATION).format(
        notice=gettext(NOTICE), population=population_sentence(population, language)
    )


def notice_of_unknown_model(language: str = "en") -> str:
    """Return the notice of a stored result whose model is not the current one and whose population is unknown."""
    gettext = translations(language).gettext
    return gettext(_NOTICE_AND_POPULATION).format(notice=gettext(NOTICE), population=gettext(_OTHER_MODEL))


def population_sentence(population: Population, language: str = "en") -> str:
    """Return a sentence that describes the population; a custom sentence is not translated."""
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


def age_conflict_message(prediction: Prediction, language: str = "en") -> str:
    """Return a warning that the age contradicts the dates, without the last full stop; empty if it does not."""
    age = prediction.age.years if prediction.age else None
    if not contradicts(age, prediction.identity):
        return ""
    message = translations(language).gettext(_AGE_CONTRADICTS_DATES)
    return message.format(age=age, by_dates=age_at_study(prediction.identity))


def uncertainty_message(uncertainty: Uncertainty, language: str = "en") -> str:
    """Return the reason for an uncertain decision as a sentence without a full stop."""
    band = range_text(uncertainty.low, uncertainty.high, language)
    return translations(language).gettext(_UNCERTAIN).format(range=band)


def scope_message(language: str = "en") -> str:
    """Return the limits of the decision "no_pneumonia" as a sentence without a full stop."""
    return translations(language).gettext(_SCOPE)


def probability_message(prediction: Prediction, language: str = "en") -> str:
    """Return the probability and the meaning of its interval, without the last full stop; empty without one."""
    if prediction.probability is None:
        return ""
    gettext, probability = translations(language).gettext, probability_text(prediction.probability, language)
    interval = prediction.interval
    if interval is None or interval.low is None or interval.high is None:
        return gettext(_PROBABILITY).format(probability=probability)
    values = range_text(interval.low, interval.high, language)
    if values == probability:
        return gettext(_PROBABILITY).format(probability=probability)
    return gettext(_PROBABILITY_AND_INTERVAL).format(probability=probability, range=values, n=interval.n)


def prevalence_message(prevalence: float, language: str = "en", *, stated: bool) -> str:
    """Return the prevalence that probabilities refer to, as a sentence without a full stop.

    Args:
        prevalence: Above 0 and below 1.
        language: Language of the sentence.
        stated: True if specified by the site, False for the default of the model.
    """
    message = translations(language).gettext(_STATED_PREVALENCE if stated else _DEFAULT_PREVALENCE)
    return message.format(prevalence=_percent(prevalence))


def list_message(prevalence: float, language: str = "en", *, stated: bool) -> str:
    """Return the explanation of the decisions and probabilities in a list, as sentences; see `prevalence_message`."""
    scope = translations(language).gettext(_SCOPE_OF_LIST)
    return join_sentences((scope, prevalence_message(prevalence, language, stated=stated)), language) + full_stop(
        language
    )


class _SiteSettings(Protocol):
    """Anything with `site` and `prevalence`: `core.prediction.ModelInfo`, or the settings of archived predictions."""

    @property
    def site(self) -> str: ...
    @property
    def prevalence(self) -> float | None: ...


def site_note(model: _SiteSettings, language: str = "en") -> str:
    """Return the site profile of a model or its user-specified prevalence; empty without either."""
    gettext = translations(language).gettext
    if model.site:
        return gettext(_SITE_PROFILE).format(site=model.site)
    if model.prevalence is None:
        return ""
    return gettext(_SITE_PREVALENCE).format(prevalence=_percent(model.prevalence))


def result_title(prediction: Prediction, language: str = "en") -> str:
    """Return the decision with the probability and its interval, or the reason why there is no prediction."""
    gettext = translations(language).gettext
    if prediction.rejection:
        return gettext(_NOT_ASSESSED).format(reason=rejection_message(prediction.rejection, language))
    if prediction.failure and prediction.failure.reason:
        return gettext(_NOT_READ_BECAUSE).format(reason=reason_message(prediction.failure.reason, language))
    if prediction.decision is None or prediction.probability is None:
        return gettext(_NOT_READ)
    text, interval = probability_text(prediction.probability, language), prediction.interval
    if interval and interval.low is not None and interval.high is not None:
        limits = range_text(interval.low, interval.high, language)
        text = text if limits == text else gettext(_WITH_RANGE).format(probability=text, range=limits)
    return gettext(_RESULT_TITLE).format(decision=decision_label(prediction.decision, language), probability=text)


def model_message(prediction: Prediction, language: str = "en") -> str:
    """Return the model and the operating point with its threshold, as a sentence without a full stop."""
    gettext, model = translations(language).gettext, prediction.model
    facts = {
        "model": f"{model.name} {model.version}",
        "point": operating_point_label(prediction.operating_point, language),
    }
    if prediction.threshold is None:
        return gettext(_MODEL).format(**facts)
    return gettext(_MODEL_AND_THRESHOLD).format(**facts, threshold=probability_text(prediction.threshold, language))


def heatmap_message(language: str = "en") -> str:
    """Return an explanation of heatmaps, as sentences without the last full stop."""
    return translations(language).gettext(_HEATMAP)


def heatmap_ends(language: str = "en") -> tuple[str, str]:
    """Return the labels of the low and high ends of a heatmap's color scale."""
    gettext = translations(language).gettext
    return gettext(_AGAINST), gettext(_TOWARDS)


def probability_text(probability: float, language: str = "en") -> str:
    """Return a probability of 0 to 1 in whole percent, never as 0% or 100%."""
    if 0.01 <= probability <= 0.99:
        return f"{probability:.0%}"
    return translations(language).gettext(_BELOW_1_PERCENT if probability < 0.01 else _ABOVE_99_PERCENT)


def range_text(low: float, high: float, language: str = "en") -> str:
    """Return a range of probabilities; a single value if both ends are displayed alike."""
    ends = probability_text(low, language), probability_text(high, language)
    if ends[0] == ends[1]:
        return ends[0]
    text = translations(language).gettext(_RANGE).format(low=ends[0], high=ends[1])
    return _SPACE_IN_CHINESE.sub("", text)


def _percent(fraction: float) -> str:
    """Return a fraction as a percentage with three significant digits, such as "0.5%"."""
    return f"{100 * fraction:.3g}%"


def decision_message(prediction: Prediction, language: str = "en") -> str:
    """Return the explanation of a rejected, uncertain or failed prediction; empty for other predictions."""
    if prediction.rejection:
        return join_sentences(
            (rejection_message(prediction.rejection, language), _stated_age_message(prediction, language)), language
        )
    if isinstance(prediction, MulticlassPrediction) and prediction.decision == "uncertain":
        return _possible_classes_message(prediction, language)
    if prediction.uncertainty:
        return uncertainty_message(prediction.uncertainty, language)
    return failure_message(prediction.failure, language) if prediction.failure else ""


def _possible_classes_message(prediction: MulticlassPrediction, language: str) -> str:
    """Return why the class is uncertain, as sentences without the last full stop."""
    possible, gettext = prediction.prediction_set or (), translations(language).gettext
    if len(possible) == 1:
        return gettext(_OTHER_CLASS).format(possible=possible[0], predicted=prediction.predicted_class)
    return gettext(_SEVERAL_CLASSES).format(classes=", ".join(possible)) if possible else gettext(_NO_CLASS)


def _stated_age_message(prediction: Prediction, language: str) -> str:
    """Return a warning that the stated age contradicts the age estimated from the image; empty if either is missing."""
    rejection, age = prediction.rejection, prediction.age
    if rejection is None or rejection.code != "outside_age_range_estimated" or age is None or age.years is None:
        return ""
    return translations(language).gettext(_STATED_AGE).format(age=age.years)


def prediction_message(prediction: Prediction, language: str = "en") -> str:
    """Return the explanation of a prediction followed by its warnings.

    A contradictory age comes first; see `age_conflict_message`, `decision_message` and `scope_message`.
    """
    warnings = (warning_message(warning, language) for warning in prediction.warnings)
    return join_sentences(
        (age_conflict_message(prediction, language), _explanation(prediction, language), *warnings), language
    )


def warning_messages(prediction: Prediction, language: str = "en") -> tuple[str, ...]:
    """Return the warnings as sentences without full stops, starting with a contradictory age."""
    warnings = (warning_message(warning, language) for warning in prediction.warnings)
    return tuple(filter(None, (age_conflict_message(prediction, language), *warnings)))


def warning_note(prediction: Prediction, language: str = "en") -> str:
    """Return the warnings as short labels, where sentences do not fit; empty without any."""
    if not prediction.warnings:
        return ""
    labels = punctuation(language)["comma"].join(warning_label(each, language) for each in prediction.warnings)
    return translations(language).gettext(_WARNINGS).format(warnings=labels)


def result_message(
    prediction: Prediction, language: str = "en", *, prevalence: float | None = None, stated: bool = False
) -> tuple[str, ...]:
    """Return up to two paragraphs: the explanation of the decision, and the probability with the prevalence.

    Args:
        prediction: The prediction.
        language: Language of the sentences.
        prevalence, stated: See `prevalence_message`; None if unknown.
    """
    probability = [probability_message(prediction, language)]
    if prevalence is not None and prediction.probability is not None:
        probability.append(prevalence_message(prevalence, language, stated=stated))
    paragraphs = _explanation(prediction, language), join_sentences(probability, language)
    return tuple(each + full_stop(language) for each in paragraphs if each)


def _explanation(prediction: Prediction, language: str) -> str:
    """Return the reason for the decision, or the limits of "no_pneumonia"; empty for pneumonia."""
    if prediction.decision == "no_pneumonia":
        return scope_message(language)
    return decision_message(prediction, language)

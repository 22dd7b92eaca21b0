"""Content of the viewer and the report: a prediction, its study, images for comparison, and the form for patient and study."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import Request, Response

from pneumoscope.core.error_messages import ErrorDetail, error_detail, error_text
from pneumoscope.core.errors import ConflictError, InvalidIdentityError, PneumoscopeError
from pneumoscope.core.identity import IDENTITY_FIELDS, Identity
from pneumoscope.core.identity_check import SEXES
from pneumoscope.core.prediction_codes import RejectionCode
from pneumoscope.service.api.exception_handlers import error_status, public_error
from pneumoscope.service.predictions import PredictionService, depends_on_entered_age
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.records import StoredPrediction
from pneumoscope.service.storage.studies import latest_images, sorted_studies, summarize_study
from pneumoscope.service.web.templating import render, request_language

__all__ = ["Comparisons", "IdentityForm", "identity_tag", "image_context", "is_hidden", "shown_state", "viewer_page"]

# Rejections caused by the header.
_HEADER_REJECTIONS: tuple[RejectionCode, ...] = (
    "outside_age_range",
    "age_not_understood",
    "modality_not_supported",
    "modality_not_understood",
    "body_part_not_chest",
    "lateral_view",
    "view_not_understood",
    "laterality_not_understood",
    "for_processing",
    "presentation_intent_not_understood",
)
# Rejections caused by the image itself, which must be corrected at the source.
_DISPLAY_REJECTIONS: tuple[RejectionCode, ...] = ("inverted", "upside_down", "rotated_90", "mirrored", "cropped")
# Identity fields that the form hides, because only headers contain them.
_HIDDEN_FIELDS = ("study_instance_uid", "series_instance_uid", "sop_instance_uid", "station_name")


class Comparisons(NamedTuple):
    """Images that the viewer can show beside an image.

    Attributes:
        priors: Images of the patient's other studies, latest study first.
        study: The other images of the same study.
        patient_known: Whether the patient is known; otherwise, there are no priors.
    """

    priors: list[StoredPrediction]
    study: list[StoredPrediction]
    patient_known: bool


def shown_state(context: dict[str, Any]) -> str:
    """Return a hash of the parts of the viewer that others can change; it excludes the reader's own review."""
    prediction: StoredPrediction = context["prediction"]
    shown = (
        prediction.identity and dataclasses.astuple(prediction.identity),
        prediction.conflicts,
        [dataclasses.astuple(each) for each in prediction.other_identities],
        prediction.image_removed,
        [dataclasses.astuple(each) for each in context["other_reviews"]],
        context["newer_id"],
        [(each.id, each.path) for each in context["study_images"]],
        [dataclasses.astuple(dataclasses.replace(prior, reviewed=0)) for prior, _ in context["priors"]],
    )
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:32]


def identity_tag(prediction: StoredPrediction) -> str:
    """Return a hash of the identities of an image that, unlike `StoredPrediction.etag`, does not change with reviews."""
    identities = prediction.identity or Identity(), *(each.identity for each in prediction.other_identities)
    fields = json.dumps([dataclasses.astuple(each) for each in identities])
    return hashlib.sha256(fields.encode()).hexdigest()[:32]


def is_hidden(settings: Settings, user: str, prediction: StoredPrediction) -> bool:
    """Return whether a prediction is hidden because readers label first and this reader has not labeled the image."""
    return settings.blind_first and prediction.review_of(user) is None


def image_context(service: PredictionService, settings: Settings, user: str, id: str) -> dict[str, Any]:
    """Return the template variables of the viewer and the report.

    Raises:
        UnknownNameError: There is no prediction with this id.
    """
    prediction = service.repository.get(id)
    own_review = prediction.review_of(user)
    is_blinded = functools.partial(is_hidden, settings, user)
    blinded = is_blinded(prediction)
    current_model = prediction.model.matches(service.model.facts)
    image_available = prediction.image_removed is None
    is_age_unknown = (
        prediction.rejection.code == "age_required" if prediction.rejection else "age_not_stated" in prediction.warnings
    )
    is_age_entered = prediction.age is not None and prediction.age.source == "entered"
    return {
        "prediction": prediction,
        "own_review": own_review,
        "other_reviews": [] if blinded else [each for each in prediction.reviews if each != own_review],
        "blinded": blinded,
        "image_available": image_available,
        "stores_pseudonyms": service.pseudonymizer is not None,
        "can_enter_age": image_available
        and (is_age_unknown or (is_age_entered and depends_on_entered_age(prediction))),
        "header_rejects": prediction.rejection is not None
        and prediction.rejection.code in _HEADER_REJECTIONS
        and not is_age_entered,
        "display_rejects": prediction.rejection is not None and prediction.rejection.code in _DISPLAY_REJECTIONS,
        "heatmap_available": current_model and image_available and prediction.decision != "rejected" and not blinded,
        "current_model": current_model,
        **_study_context(service, prediction, is_blinded),
        "prevalence": service.model.card.calibration.prevalence if current_model else prediction.model.prevalence,
        "prevalence_stated": prediction.model.is_site_specific,
    }


def _study_context(
    service: PredictionService, prediction: StoredPrediction, is_blinded: Callable[[StoredPrediction], bool]
) -> dict[str, Any]:
    """Return the study of a prediction, its other images with their latest predictions, and the patient's priors.

    `newer_id` is the id of a later prediction of the same image, such as one with a corrected age; empty if there is
    none. A study is hidden until the reader has labeled all of its images.
    """
    key = prediction.study_key
    if key is None:
        return {
            "study": None, "study_blinded": False, "study_images": [], "priors": [], "newer_id": "", "is_blinded": is_blinded,
            "comparisons": Comparisons([], [], patient_known=False),
        }  # fmt: skip
    studies = service.study(key)
    latest = latest_images(studies[key])
    study_images = [each for each in latest if each.image_key != prediction.image_key]
    newer = [
        each.id
        for each in latest
        if each.image_key == prediction.image_key and each.last_predicted > prediction.last_predicted
    ]
    others = {other: stored for other, stored in studies.items() if other != key}
    return {
        "study": summarize_study(studies[key]),
        "study_blinded": any(map(is_blinded, studies[key])),
        "study_images": study_images,
        "newer_id": newer[0] if newer else "",
        "priors": [(prior, any(map(is_blinded, studies[prior.study_key]))) for prior in sorted_studies(others)],
        "is_blinded": is_blinded,
        "comparisons": _comparisons(prediction, study_images, others),
    }


def _comparisons(
    prediction: StoredPrediction,
    study_images: Sequence[StoredPrediction],
    others: Mapping[str, Sequence[StoredPrediction]],
) -> Comparisons:
    """Return the images for comparison whose files are still stored.

    Args:
        prediction: The viewed prediction.
        study_images: The other images of its study.
        others: Predictions of the patient's other studies, by study key.
    """
    priors = [image for prior in sorted_studies(others) for image in latest_images(others[prior.study_key])]
    priors, images = ([each for each in found if each.image_removed is None] for found in (priors, study_images))
    return Comparisons(priors, images, patient_known=prediction.patient_key is not None)


class IdentityForm(NamedTuple):
    """An unsaved form for patient and study: the fields as filled in, and the error."""

    values: dict[str, str]
    error: PneumoscopeError

    @property
    def problems(self) -> dict[str, str]:
        """Problem codes by field name; empty if the error does not concern a field."""
        return self.error.fields if isinstance(self.error, InvalidIdentityError) else {}


def viewer_page(
    request: Request,
    service: PredictionService,
    settings: Settings,
    user: str,
    id: str,
    revision: int,
    form: IdentityForm | None = None,
) -> Response:
    """Return the viewer of an image at a revision of `ChangeStreams`, optionally with an unsaved form."""
    context = image_context(service, settings, user, id)
    identity = context["prediction"].identity or Identity()
    language = request_language(request)
    text = error_text(form.error, language) if form else ("", "")
    detail = (
        error_detail(public_error(form.error), language) if form and not form.problems else ErrorDetail("", language)
    )
    return render(
        request, "viewer.html", error_status(form.error) if form else 200,
        identity_fields=IDENTITY_FIELDS, hidden_identity_fields=_HIDDEN_FIELDS, sexes=SEXES,
        form_values=form.values if form else dataclasses.asdict(identity), form_problems=form.problems if form else {},
        form_error=text, form_detail=detail,
        form_conflict=form is not None and isinstance(form.error, ConflictError),
        identity_tag=identity_tag(context["prediction"]),
        revision=revision, state=shown_state(context),
        notice=service.notice(language, context["prediction"]), **context,
    )  # fmt: skip

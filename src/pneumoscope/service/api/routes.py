"""Routes of the HTTP API, except those for pixels and DICOM objects. The docstrings are the descriptions in OpenAPI."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from pneumoscope.core.errors import UnknownNameError
from pneumoscope.core.identity import Identity, normalize_field
from pneumoscope.core.identity_check import check_entered
from pneumoscope.core.messages import failure_message
from pneumoscope.core.prediction import Failure
from pneumoscope.service.api.dependencies import (
    AppAccessLog,
    AppReadiness,
    AppService,
    AppSettings,
    CardParameters,
    FindParameters,
    Id,
    Language,
    NoParameters,
    PredictParameters,
    UnreadableParameters,
    User,
    api_router,
    require_json,
)
from pneumoscope.service.api.exception_handlers import problem_response, problem_responses, record_error
from pneumoscope.service.api.schemas import (
    HealthDocument,
    IdentityRequest,
    PatientDocument,
    PredictionListDocument,
    PredictionPageDocument,
    ReleaseDocument,
    ReleaseRequest,
    ReviewRequest,
    SearchRequest,
    SinglePredictionDocument,
    StudyDocument,
    UnreadableListDocument,
    list_document,
    page_document,
    patient_document,
    single_document,
    study_document,
)
from pneumoscope.service.api.uploads import UPLOAD_BODY, read_upload, wait_for_disconnect
from pneumoscope.service.metrics import CONTENT_TYPE_LATEST
from pneumoscope.service.predictions import PredictionService
from pneumoscope.service.storage.queries import Filter
from pneumoscope.service.storage.records import StoredPrediction
from pneumoscope.service.time_zone import today

__all__ = ["operation_router", "reader_router", "sender_router"]

_ETAG_HEADER = {
    "ETag": {"schema": {"type": "string"}, "description": "Changes with the review, the identity and the image"}
}
_TEXT_RESPONSE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

_IfMatch = Annotated[str | None, Header(description="`ETag` of the prediction as the user saw it")]


operation_router = APIRouter(tags=["operation"], responses=problem_responses(403))
sender_router, reader_router = api_router("predictions", "sender"), api_router("predictions", "reader")


@operation_router.get("/healthz", summary="Liveness check")
async def healthz() -> HealthDocument:
    """Succeed while the process is running."""
    return HealthDocument()


@operation_router.get("/readyz", summary="Readiness check", responses=problem_responses(503))
def readyz(readiness: AppReadiness) -> HealthDocument:
    """Run the model's self-test and try to write to the storage. The result is cached for a second."""
    readiness.check()
    return HealthDocument()


@operation_router.get("/metrics", summary="Metrics for Prometheus", response_class=Response, responses=_TEXT_RESPONSE)
def metrics(service: AppService) -> Response:
    """Return request counts and durations, new images by decision, and the number of images waiting for a prediction."""
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@sender_router.post(
    "/predictions", status_code=201, summary="Predict images", response_model=PredictionListDocument,
    responses=problem_responses(400, 413, 415), openapi_extra={"requestBody": UPLOAD_BODY},
)  # fmt: skip
async def predict(
    request: Request,
    service: AppService,
    settings: AppSettings,
    user: User,
    language: Language,
    query: Annotated[PredictParameters, Query()],
) -> PredictionListDocument | Response:
    """Send images as form parts named `images`, or one image as the body. Other form fields are the identity of those
    images whose files contain none.

    The response is sent once images and predictions are on disk. An unreadable image has a `failure` and no id, and is
    listed in `GET /v1/unreadable`; the other images are processed. If all images are unreadable, the response is a
    problem document.
    """
    upload = await read_upload(request, query.name, settings.max_images)
    if upload.identity:
        check_entered(upload.identity, today=today(settings.time_zone))
    disconnected = functools.partial(wait_for_disconnect, request)
    predictions = await service.predict(upload.images, user, disconnected, age=query.age, identity=upload.identity)
    failures = [each.failure for each in predictions if each.failure]
    if len(failures) == len(predictions):
        return _unreadable_response(request, failures, language)
    return list_document(predictions, language, service.notice(language))


@reader_router.get("/predictions", summary="List predictions")
def find(service: AppService, language: Language, query: Annotated[FindParameters, Query()]) -> PredictionPageDocument:
    """Return one page. For the next page, send its `next` as `after`."""
    page = service.repository.find(_filter(query), order=query.order, limit=query.limit, after=query.after)
    return page_document(page, language, service.notice(language, *page.predictions))


@reader_router.post(
    "/predictions/search", summary="Search for patients and accession numbers", responses=problem_responses(400, 413, 415),
    dependencies=[Depends(require_json)],
)  # fmt: skip
def search(
    service: AppService, language: Language, query: Annotated[FindParameters, Query()], body: SearchRequest
) -> PredictionPageDocument:
    """Return the predictions that match both the text and the query parameters, in pages as `GET /v1/predictions` does."""
    where = dataclasses.replace(_filter(query), search=service.search_words(body.text))
    page = service.repository.find(where, order=query.order, limit=query.limit, after=query.after)
    return page_document(page, language, service.notice(language, *page.predictions))


def _filter(query: FindParameters) -> Filter:
    names = {field.name for field in dataclasses.fields(Filter)} & FindParameters.model_fields.keys()
    return Filter(**{name: getattr(query, name) for name in names})


@sender_router.get(
    "/predictions/{id}",
    summary="Get a prediction",
    responses={200: {"headers": _ETAG_HEADER}, **problem_responses(404)},
)
def get(
    response: Response,
    service: AppService,
    access_log: AppAccessLog,
    user: User,
    language: Language,
    id: Id,
    _: NoParameters,
) -> SinglePredictionDocument:
    """Return the prediction as in the response to `POST /v1/predictions`, with the latest review of each reader."""
    stored = service.repository.get(id)
    access_log.viewed(user, [id])
    return _document_with_etag(response, stored, language, service)


@sender_router.post(
    "/inbox/release", summary="Predict received instances now", responses=problem_responses(400, 413, 415),
    dependencies=[Depends(require_json)],
)  # fmt: skip
def release(service: AppService, _: NoParameters, body: ReleaseRequest) -> ReleaseDocument:
    """End the quiet period of one study, or of all studies. Instances that arrive later wait again."""
    return ReleaseDocument(service.repository.inbox.release(body.study_instance_uid))


@reader_router.put(
    "/predictions/{id}/review", summary="Store a review",
    responses={200: {"headers": _ETAG_HEADER}, **problem_responses(400, 404, 412, 413, 415)},
    dependencies=[Depends(require_json)],
)  # fmt: skip
def review(
    response: Response,
    service: AppService,
    user: User,
    language: Language,
    id: Id,
    _: NoParameters,
    body: ReviewRequest,
    if_match: _IfMatch = None,
) -> SinglePredictionDocument:
    """Store the user's label for the image. It replaces the user's earlier review; reviews of other users are kept.
    With `If-Match`, the request fails if the prediction has changed since the user read it.
    """
    stored = service.repository.review(
        id, body.label, finding=body.finding.strip(), note=body.note, user=user, etags=_etags(if_match)
    )
    return _document_with_etag(response, stored, language, service)


@reader_router.delete(
    "/predictions/{id}/review", summary="Withdraw a review",
    responses={200: {"headers": _ETAG_HEADER}, **problem_responses(404)},
)  # fmt: skip
def withdraw_review(
    response: Response, service: AppService, user: User, language: Language, id: Id, _: NoParameters
) -> SinglePredictionDocument:
    """Withdraw the user's review. The audit log keeps an entry for each version."""
    stored = service.repository.withdraw_review(id, user=user)
    return _document_with_etag(response, stored, language, service)


@reader_router.put(
    "/predictions/{id}/identity", summary="Correct the identity of an image",
    responses={200: {"headers": _ETAG_HEADER}, **problem_responses(400, 404, 412, 413, 415)},
    dependencies=[Depends(require_json)],
)  # fmt: skip
async def set_identity(
    request: Request,
    response: Response,
    service: AppService,
    settings: AppSettings,
    user: User,
    language: Language,
    id: Id,
    _: NoParameters,
    body: IdentityRequest,  # type: ignore[valid-type]
    if_match: _IfMatch = None,
) -> SinglePredictionDocument:
    """Replace the patient, study, series and instance of the image, for all its predictions. With `If-Match`, the
    request fails if the prediction has changed since the user read it. For an image that was received under two
    patients, send the identity of the right one. If an age was entered for a different patient, the image is predicted
    again without it. An impossible new date or sex is the problem `invalid_identity`; its `fields` contains a code for
    each field.
    """
    values = {name: normalize_field(name, value) for name, value in body.model_dump().items()}  # type: ignore[attr-defined]
    entered = Identity(**values)
    before = (await run_in_threadpool(service.repository.get, id)).identity_before(entered)
    check_entered(entered, before, today=today(settings.time_zone))
    stored = await run_in_threadpool(service.set_identity, id, entered, user=user, etags=_etags(if_match))
    await service.predict_without_entered_age(id, user, functools.partial(wait_for_disconnect, request))
    return _document_with_etag(response, stored, language, service)


@reader_router.get("/studies/{study_key}", summary="Get a study with its priors", responses=problem_responses(404))
def study(
    service: AppService, access_log: AppAccessLog, user: User, language: Language, study_key: Id, _: NoParameters
) -> StudyDocument:
    """Return the study, its predictions and the patient's other studies. The most suspicious frontal image decides."""
    studies = service.study(study_key)
    predictions = [prediction for stored in studies.values() for prediction in stored]
    access_log.viewed(user, [each.id for each in predictions])
    return study_document(study_key, studies, language, service.notice(language, *predictions))


@reader_router.get(
    "/patients/{patient_key}", summary="Get a patient with all studies", responses=problem_responses(404)
)
def patient(
    service: AppService, access_log: AppAccessLog, user: User, language: Language, patient_key: Id, _: NoParameters
) -> PatientDocument:
    """List the latest study first."""
    studies = service.repository.studies_of_patient(patient_key)
    if not studies:
        raise UnknownNameError("patient", patient_key, (), hint="It was deleted, or never existed here")
    predictions = [prediction for stored in studies.values() for prediction in stored]
    access_log.viewed(user, [each.id for each in predictions])
    return patient_document(patient_key, studies, service.notice(language, *predictions))


@reader_router.get("/unreadable", summary="List files that could not be read")
def unreadable(service: AppService, query: Annotated[UnreadableParameters, Query()]) -> UnreadableListDocument:
    """List the newest first. The files themselves are not stored. A file that is sent again is listed once."""
    return UnreadableListDocument(*service.repository.unreadable_files.find(query.limit))


@sender_router.get("/model", summary="Get the model card", tags=["model"])
def card(service: AppService, query: Annotated[CardParameters, Query()]) -> dict[str, Any]:
    """Return `card.json` of the bundle, adjusted to the site profile `site` or to `prevalence`; `seen` only on request."""
    facts = service.model.facts
    stated = {"site": facts.site, "prevalence": facts.prevalence}
    document: dict[str, Any] = msgspec.to_builtins(service.model.card) | stated
    if not query.seen:
        del document["seen"]
    return document


def _document_with_etag(
    response: Response, stored: StoredPrediction, language: str, service: PredictionService
) -> SinglePredictionDocument:
    """Set the response's entity tag and return the prediction document."""
    response.headers["ETag"] = stored.etag
    return single_document(stored, language, service.notice(language, stored))


def _etags(if_match: str | None) -> list[str]:
    return [] if if_match is None or if_match.strip() == "*" else [each.strip() for each in if_match.split(",")]


def _unreadable_response(request: Request, failures: list[Failure], language: str) -> Response:
    """Return the problem document for a request whose images are all unreadable; it describes the first failure."""
    first = failures[0]
    record_error(request, first.code)
    detail = first.message if len(failures) == 1 else f"{first.message} (none of {len(failures)} images can be read)"
    reason, message = first.reason and dataclasses.asdict(first.reason), failure_message(first, language)
    return problem_response(422, first.code, detail, first.hint, reason=reason, message=message)

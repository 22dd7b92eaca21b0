"""Routes of the web UI: worklist, viewer, report, dashboard, model card and sign-in."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import itertools
import math
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, RedirectResponse, StreamingResponse
from fastapi.security.utils import get_authorization_scheme_param
from fastapi.sse import EventSourceResponse, ServerSentEvent

from pneumoscope.bundle.model_card import model_card
from pneumoscope.core.errors import PneumoscopeError, UsageError
from pneumoscope.core.identity import IDENTITY_FIELDS, Identity, age_at_study, normalize_text
from pneumoscope.core.messages import population_sentence
from pneumoscope.core.prediction import DECISIONS, MAX_AGE, REJECTION_CODES, RejectionCode
from pneumoscope.inference.decision import threshold_probability
from pneumoscope.service.api.dependencies import (
    AppAccessLog,
    AppAuthenticator,
    AppService,
    AppSettings,
    CurrentUser,
    User,
    from_app_state,
)
from pneumoscope.service.api.exception_handlers import record_error
from pneumoscope.service.api.uploads import read_identity, wait_for_disconnect
from pneumoscope.service.predictions import PredictionService, check_age_by_dates, depends_on_entered_age
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.records import StoredPrediction, format_time
from pneumoscope.service.storage.studies import sorted_studies, summarize_study
from pneumoscope.service.time_zone import start_of_day
from pneumoscope.service.web.changes import ChangeStreams
from pneumoscope.service.web.dashboard import (
    FALSE_ALARM_PROBABILITY,
    MIN_DRIFT_IMAGES,
    MonthlyDrift,
    latest_months,
    monitor_month,
    summarize,
)
from pneumoscope.service.web.model_page import read_measurements
from pneumoscope.service.web.page_route import PageRoute, read_form
from pneumoscope.service.web.templating import render, request_language
from pneumoscope.service.web.worklist import BLIND_ORDERS, ORDERS, SearchStore, WorklistQuery, export_csv, parse_query

__all__ = ["page_router"]

AppChanges = Annotated[ChangeStreams, from_app_state("changes")]
AppSearches = Annotated[SearchStore, from_app_state("searches")]
_MAX_UNREADABLE = 200
_PAGE_SIZE = 50  # images on a page of the worklist
_MAX_DASHBOARD_IMAGES = 10_000
_MAX_MONTHLY_IMAGES = 5000
_MONTHS = 12  # of monitoring
# Fields of the identity that only a header states.
_HIDDEN_FIELDS = ("study_instance_uid", "series_instance_uid", "sop_instance_uid", "station_name")
_SEARCH_FILTERS = ("decision", "reviewed", "since", "until", "order")
_MAX_FILTERS = 16  # fields of the form of a search


# The application adds `dependencies.authentication`; see `app.create_app`.
page_router = APIRouter(route_class=PageRoute, include_in_schema=False)


async def _reserve_stream(changes: AppChanges, user: User) -> AsyncIterator[None]:
    """Count the stream of a request until it ends."""
    with changes.reserve(user):
        yield


@page_router.get("/events", response_class=EventSourceResponse, dependencies=[Depends(_reserve_stream)])
async def events(
    request: Request,
    changes: AppChanges,
    authenticator: AppAuthenticator,
    user: CurrentUser,
    revision: int | None = None,
) -> AsyncIterator[ServerSentEvent]:
    """Return a stream with an event for each change of what the pages show, for `EventSource` in a browser."""

    async def is_signed_in() -> bool:
        """Return whether the session has neither expired nor ended, and no token was revoked, since the stream was opened."""
        try:
            _, token = get_authorization_scheme_param(request.headers.get("Authorization"))
            return await authenticator.authenticate(request, token) == user
        except PneumoscopeError:
            return False

    async for event in changes.events(revision, is_signed_in):
        yield event


@page_router.get("/")
def worklist(
    request: Request, service: AppService, settings: AppSettings, searches: AppSearches, changes: AppChanges, user: User
) -> Response:
    """Return a page of the worklist."""
    revision = changes.revision  # before the list is read
    query = parse_query(
        request.query_params, searches, service.search_words, time_zone=settings.time_zone, blind=settings.blind_first
    )
    after = request.query_params.get("after", "")
    page = service.repository.find(query.filter, order=query.order, limit=_PAGE_SIZE, after=after, by_study=True)
    keys = {prediction.study_key for prediction in page.predictions if prediction.study_key}
    stored = service.repository.studies(keys)
    studies = {key: summarize_study(predictions) for key, predictions in stored.items()}
    is_blinded = functools.partial(_is_blinded, settings, user)
    groups = [
        (studies.get(key), images := list(group), any(map(is_blinded, stored.get(key, images))))
        for key, group in itertools.groupby(page.predictions, key=lambda each: each.study_key or each.id)
    ]
    return render(
        request, "worklist.html", revision=revision, page=page, groups=groups, query=query,
        orders=BLIND_ORDERS if settings.blind_first else ORDERS,
        blind_first=settings.blind_first, tabs=_tabs(service, query),
        decisions=[decision for decision in DECISIONS if decision != "rejected"],
        max_upload_bytes=settings.max_body_bytes, page_size=_PAGE_SIZE, max_age=MAX_AGE,
        model=service.model, is_blinded=is_blinded,
        visible_reviews=lambda each: () if is_blinded(each) else each.reviews,
    )  # fmt: skip


@page_router.post("/search")
async def search(request: Request, searches: AppSearches) -> Response:
    """Redirect to the worklist of the images that match the text of the form; the other fields are filters."""
    form = await read_form(request, max_fields=_MAX_FILTERS)
    text = normalize_text(form.pop("text", ""))
    parameters = {name: form[name] for name in _SEARCH_FILTERS if form.get(name)}
    if text:
        parameters["search"] = searches.add(text)
    return RedirectResponse(f"/?{urlencode(parameters)}" if parameters else "/", 303)


class _Tabs(NamedTuple):
    """The numbers on the tabs of the worklist: predicted images, rejected images by code, and unreadable files."""

    predicted: int
    rejections: dict[RejectionCode, int]
    unreadable: int


def _tabs(service: PredictionService, query: WorklistQuery) -> _Tabs:
    any_decision = dataclasses.replace(query.filter, decision=None, rejected=None)
    counts = service.repository.count_rejections(any_decision)
    rejections = {
        code: counts[code] for code in sorted(REJECTION_CODES, key=lambda code: -counts.get(code, 0)) if code in counts
    }
    return _Tabs(counts.get("", 0), rejections, service.repository.unreadable_files.find(limit=0)[1])


@page_router.get("/unreadable")
def unreadable(
    request: Request, service: AppService, settings: AppSettings, searches: AppSearches, changes: AppChanges
) -> Response:
    """Return the latest files that could not be read."""
    revision = changes.revision  # before the list is read
    files, total = service.repository.unreadable_files.find(limit=_MAX_UNREADABLE)
    query = parse_query({}, searches, service.search_words, time_zone=settings.time_zone)
    return render(
        request, "unreadable.html", revision=revision, files=files, total=total, query=query, tabs=_tabs(service, query),
        max_files=_MAX_UNREADABLE,
    )  # fmt: skip


@page_router.get("/worklist.csv")
def worklist_csv(
    request: Request,
    service: AppService,
    settings: AppSettings,
    searches: AppSearches,
    access_log: AppAccessLog,
    user: User,
) -> Response:
    """Return the worklist as a CSV file, unless readers may not see the predictions."""
    if settings.blind_first:
        raise UsageError(
            "the worklist has predictions that are hidden", hint="Get them from the API: GET /v1/predictions"
        )
    query = parse_query(request.query_params, searches, service.search_words, time_zone=settings.time_zone)
    total, lines = export_csv(service.repository, query, service.notice("en"))
    access_log.exported(user, total)
    name = f"pneumoscope-{datetime.datetime.now(settings.time_zone):%Y-%m-%d}.csv"
    return StreamingResponse(
        lines, media_type="text/csv", headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )


@page_router.get("/images/{id}")
def viewer(
    request: Request, service: AppService, settings: AppSettings, access_log: AppAccessLog, changes: AppChanges, user: User,
    id: str,
) -> Response:  # fmt: skip
    """Return the viewer of an image."""
    revision = changes.revision  # before the image is read
    context = _image_context(service, settings, user, id)
    access_log.viewed(user, [id])
    return render(
        request, "viewer.html", max_age=MAX_AGE, identity_fields=IDENTITY_FIELDS, hidden_identity_fields=_HIDDEN_FIELDS,
        revision=revision, state=_state(context), **context,
    )  # fmt: skip


@page_router.get("/images/{id}/state")
def image_state(service: AppService, settings: AppSettings, user: User, id: str) -> dict[str, str]:
    """Return what the viewer compares to know whether others have changed what it shows; this is no view of the image."""
    return {"state": _state(_image_context(service, settings, user, id))}


def _state(context: dict[str, Any]) -> str:
    """Return a hash of the parts of the viewer that others can change, not of the reader's own review."""
    prediction: StoredPrediction = context["prediction"]
    shown = (
        prediction.identity and dataclasses.astuple(prediction.identity),
        prediction.conflicts,
        prediction.image_removed,
        [dataclasses.astuple(each) for each in context["other_reviews"]],
        context["newer_id"],
        [(each.id, each.path) for each in context["study_images"]],
        [dataclasses.astuple(dataclasses.replace(prior, reviewed=0)) for prior, _ in context["priors"]],
    )
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:32]


@page_router.post("/images/{id}")
async def enter_age(request: Request, service: AppService, user: User, id: str) -> Response:
    """Predict the image again with the age of the form, and redirect to the new prediction."""
    age = _parse_age((await read_form(request)).get("age", ""))
    prediction = await service.predict_again(id, user, functools.partial(wait_for_disconnect, request), age=age)
    return RedirectResponse(f"/images/{prediction.id}", 303)


@page_router.post("/images/{id}/identity")
async def set_identity(request: Request, service: AppService, user: User, id: str) -> Response:
    """Replace patient and study of an image by those of the form, and redirect to its prediction.

    If the dates of the form state the age of the patient, and the prediction has none, the image is predicted again.
    """
    fields = await read_form(request, max_fields=len(IDENTITY_FIELDS) + 1)
    etag = fields.pop("etag", "")
    entered = read_identity(fields.items()) or Identity()
    age = age_at_study(entered)
    if age is not None:
        check_age_by_dates(age)
    stored = await run_in_threadpool(service.set_identity, id, entered, user=user, etags=[etag] if etag else [])
    if age is not None and stored.age is None and stored.image_removed is None and depends_on_entered_age(stored):
        disconnected = functools.partial(wait_for_disconnect, request)
        stored = await service.predict_again(id, user, disconnected, age=age)
    return RedirectResponse(f"/images/{stored.id}", 303)


@page_router.get("/images/{id}/report")
def report(
    request: Request, service: AppService, settings: AppSettings, access_log: AppAccessLog, user: User, id: str
) -> Response:
    """Return the report of an image, to be printed; redirect to the viewer if its prediction is still hidden."""
    context = _image_context(service, settings, user, id)
    if context["blinded"]:
        return RedirectResponse(f"/images/{id}", 303)
    access_log.viewed(user, [id])
    now = datetime.datetime.now(datetime.UTC).isoformat()
    return render(request, "report.html", printed=now, **context)


@page_router.get("/dashboard")
def dashboard(request: Request, service: AppService, settings: AppSettings) -> Response:
    """Return the dashboard of the current model and operating point."""
    model = service.model
    latest = service.repository.latest(model.facts, model.operating_point_name, _MAX_DASHBOARD_IMAGES)
    return render(
        request, "dashboard.html", dashboard=summarize(latest, model.card, settings.time_zone), model=model,
        monitoring=_monitor(service, settings.time_zone),
        blind_first=settings.blind_first,
        inbox=service.repository.inbox.status(), outbox=service.repository.outbox.status(),
        max_images=_MAX_DASHBOARD_IMAGES, min_drift_images=MIN_DRIFT_IMAGES, false_alarms=FALSE_ALARM_PROBABILITY,
    )  # fmt: skip


def _monitor(service: PredictionService, time_zone: ZoneInfo) -> list[MonthlyDrift] | None:
    """Return the complete months with images, newest first; None without a profile to compare them with."""
    model, profile = service.model, service.model.profile
    if profile is None or not (profile.monitoring and profile.monitored_patients):
        return None
    current, *months = latest_months(datetime.datetime.now(time_zone).date(), _MONTHS + 1)
    found = []
    for month, next_month in zip(months, [current, *months[:-1]], strict=True):
        since, until = (
            format_time(start_of_day(datetime.date.fromisoformat(f"{each}-01"), time_zone))
            for each in (month, next_month)
        )
        predictions = service.repository.latest(
            model.facts, model.operating_point_name, _MAX_MONTHLY_IMAGES, since=since, until=until
        )
        if predictions:
            found.append(monitor_month(month, predictions, profile, model.card))
    return found


@page_router.get("/model")
def model(request: Request, service: AppService) -> Response:
    """Return the page that tells readers what the model was trained on, how often it was right, and what is unknown."""
    card, profile = service.model.card, service.model.profile
    measurements = read_measurements(service.model)
    if measurements.unreadable:
        record_error(request, measurements.unreadable)
    return render(
        request,
        "model.html",
        card=card,
        population=population_sentence(card.population, request_language(request)),
        site=profile.label if profile else "",
        prevalence_stated=service.model.facts.prevalence is not None,
        measurements=measurements,
        has_full_card=service.model.folder is not None,
        operating_point_name=service.model.operating_point_name,
        thresholds={name: threshold_probability(card, point) for name, point in card.operating_points.items()},
    )


@page_router.get("/model/card")
def full_model_card(service: AppService) -> Response:
    """Return the model card of the bundle as Markdown.

    Raises:
        UsageError: The model has no folder.
        BundleError: See `model_card`.
    """
    if service.model.folder is None:
        raise UsageError("the model has no folder with a card", hint="Get the card from the API: GET /v1/model")
    return PlainTextResponse(model_card(service.model.folder), headers={"Content-Language": "en"})


def _parse_age(text: str) -> float:
    """Return an age in years.

    Raises:
        UsageError: It is not a number of years from 0 to 130.
    """
    try:
        age = float(text)
    except ValueError:
        age = math.nan
    if not 0 <= age <= MAX_AGE:
        raise UsageError(f"the age is not a number of years from 0 to {MAX_AGE}", hint="Go back, and enter it again")
    return age


def _is_blinded(settings: Settings, user: str, prediction: StoredPrediction) -> bool:
    """Return whether the prediction is hidden, because readers label first and this one has not."""
    return settings.blind_first and prediction.review_of(user) is None


def _image_context(service: PredictionService, settings: Settings, user: str, id: str) -> dict[str, Any]:
    """Return the template variables of the viewer and the report.

    Raises:
        UnknownNameError: There is no prediction with this id.
    """
    prediction = service.repository.get(id)
    own_review = prediction.review_of(user)
    blinded = _is_blinded(settings, user, prediction)
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
        "can_enter_age": image_available
        and (is_age_unknown or (is_age_entered and depends_on_entered_age(prediction))),
        "heatmap_available": current_model and image_available and prediction.decision != "rejected" and not blinded,
        "current_model": current_model,
        **_study_context(service, prediction, functools.partial(_is_blinded, settings, user)),
        "prevalence": service.model.card.calibration.prevalence if current_model else prediction.model.prevalence,
        "prevalence_stated": prediction.model.site != "",
    }


def _study_context(
    service: PredictionService, prediction: StoredPrediction, is_blinded: Callable[[StoredPrediction], bool]
) -> dict[str, Any]:
    """Return the study of a prediction, the other images of it, each with its latest prediction, and the patient's priors.

    `newer_id` is the id of a later prediction of the same image, such as that with a corrected age; empty if there is none.
    A study is hidden as long as the reader has not labeled all of its images.
    """
    key = prediction.study_key
    if key is None:
        return {
            "study": None, "study_blinded": False, "study_images": [], "priors": [], "newer_id": "", "is_blinded": is_blinded,
        }  # fmt: skip
    studies = service.study(key)
    latest = sorted(studies[key], key=lambda each: each.last_predicted)
    images = {each.image_key: each for each in latest}
    newest = images.pop(prediction.image_key, prediction)
    priors = sorted_studies({other: stored for other, stored in studies.items() if other != key})
    return {
        "study": summarize_study(studies[key]),
        "study_blinded": any(map(is_blinded, studies[key])),
        "study_images": list(images.values()),
        "newer_id": "" if newest.id == prediction.id else newest.id,
        "priors": [(prior, any(map(is_blinded, studies[prior.study_key]))) for prior in priors],
        "is_blinded": is_blinded,
    }

"""Pages of the web interface: worklist, unreadable files, dashboard and model card; `image_pages` has those for one image."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, NamedTuple
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from fastapi import Depends, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse, StreamingResponse
from fastapi.security.utils import get_authorization_scheme_param
from fastapi.sse import EventSourceResponse, ServerSentEvent

from pneumoscope.bundle.model_card import model_card
from pneumoscope.core.errors import PneumoscopeError, UsageError
from pneumoscope.core.identity import normalize_text
from pneumoscope.core.prediction_codes import DECISIONS, REJECTION_CODES, RejectionCode
from pneumoscope.core.prediction_messages import population_sentence
from pneumoscope.inference.decision import threshold_probability
from pneumoscope.runs.run_folder import evaluation_of_bundle
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
from pneumoscope.service.auth.users import LOCAL
from pneumoscope.service.predictions import PredictionService
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.records import StoredPrediction, format_time
from pneumoscope.service.storage.studies import Study, latest_images, summarize_study
from pneumoscope.service.time_zone import start_of_day, today
from pneumoscope.service.web.changes import AppChanges
from pneumoscope.service.web.dashboard import (
    FALSE_ALARM_PROBABILITY,
    MIN_DRIFT_IMAGES,
    MonthlyDrift,
    count_periods,
    is_shown,
    latest_months,
    monitor_month,
    summarize,
)
from pneumoscope.service.web.model_page import read_measurements
from pneumoscope.service.web.page_route import html_router, read_form
from pneumoscope.service.web.templating import render, request_language
from pneumoscope.service.web.viewer import (
    is_hidden,
)
from pneumoscope.service.web.worklist import BLIND_ORDERS, ORDERS, SearchStore, WorklistQuery, export_csv, parse_query

__all__ = ["page_router"]

AppSearches = Annotated[SearchStore, from_app_state("searches")]
_MAX_UNREADABLE = 200
_PAGE_SIZE = 50  # images per worklist page
_MAX_DASHBOARD_IMAGES = 10_000
_MAX_MONTHLY_IMAGES = 5000
_MONTHS = 12  # monitored months
_SEARCH_FILTERS = ("decision", "reviewed", "since", "until", "order")
_MAX_FILTERS = 16  # fields of the search form


page_router = html_router("reader")


async def _reserve_stream(changes: AppChanges, user: User) -> AsyncIterator[None]:
    """Count the request's stream until it ends."""
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
    """Return a stream with an event for each change visible on the pages, for `EventSource` in a browser."""

    async def is_signed_in() -> bool:
        """Return whether the user is still signed in, with a valid session and without a revoked token."""
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
    revision = changes.revision  # before reading the list, so that no change is missed
    blind_reader = _blind_reader(settings, user)
    query = parse_query(
        request.query_params, searches, service.search_words, time_zone=settings.time_zone, blind_reader=blind_reader
    )
    after = request.query_params.get("after", "")
    page = service.repository.find(query.filter, order=query.order, limit=_PAGE_SIZE, after=after, by_study=True)
    keys = {prediction.study_key for prediction in page.predictions if prediction.study_key}
    stored = service.repository.studies(keys)
    studies = {key: summarize_study(predictions) for key, predictions in stored.items()}
    is_blinded = functools.partial(is_hidden, settings, user)
    groups = [
        _Group(
            studies.get(key),
            images := list(group),
            any(map(is_blinded, stored.get(key, images))),
            _unlisted(query, stored.get(key, ())),
        )
        for key, group in itertools.groupby(page.predictions, key=lambda each: each.study_key or each.id)
    ]
    return render(
        request, "worklist.html", revision=revision, page=page, groups=groups, query=query,
        orders=BLIND_ORDERS if settings.blind_first else ORDERS,
        blind_first=settings.blind_first, tabs=_tabs(service, query, blind_reader),
        decisions=[decision for decision in DECISIONS if decision != "rejected"],
        max_upload_bytes=settings.max_body_bytes, page_size=_PAGE_SIZE,
        model=service.model, is_blinded=is_blinded, notice=service.notice(request_language(request), *page.predictions),
        visible_reviews=lambda each: () if is_blinded(each) else each.reviews,
    )  # fmt: skip


class _Group(NamedTuple):
    """A group of images in the worklist.

    Attributes:
        study: Study of the images; None if unknown.
        images: The listed images.
        blinded: Whether the decision for the study is hidden.
        unlisted: Rejected images of the study, which follow in the viewer.
    """

    study: Study | None
    images: list[StoredPrediction]
    blinded: bool
    unlisted: list[StoredPrediction]


def _unlisted(query: WorklistQuery, stored: Sequence[StoredPrediction]) -> list[StoredPrediction]:
    """Return the rejected images of a study, which the list omits in favor of their tab, subject to the filter by readings."""
    if query.filter.rejected is not False:
        return []
    reviewed = query.filter.reviewed
    return [
        each for each in latest_images(stored) if each.decision == "rejected" and reviewed in (None, bool(each.reviews))
    ]


@page_router.post("/search")
async def search(request: Request, searches: AppSearches) -> Response:
    """Redirect to the worklist of the images that match the text in the form; the other fields are filters."""
    form = await read_form(request, max_fields=_MAX_FILTERS)
    text = normalize_text(form.pop("text", ""))
    parameters = {name: form[name] for name in _SEARCH_FILTERS if form.get(name)}
    if text:
        parameters["search"] = searches.add(text)
    return RedirectResponse(f"/?{urlencode(parameters)}" if parameters else "/", 303)


class _Tabs(NamedTuple):
    """The numbers on the tabs of the worklist: predicted images, rejected images by code, and unreadable files.

    For a blind reader, the first tab counts all images, and the second one only those reviewed by this reader.
    """

    listed: int
    rejections: dict[RejectionCode, int]
    unreadable: int


def _tabs(service: PredictionService, query: WorklistQuery, blind_reader: str | None) -> _Tabs:
    any_decision = dataclasses.replace(query.filter, decision=None, rejected=None, reviewed_by=None)
    counts = service.repository.count_images(any_decision)
    unreadable = service.repository.unreadable_files.find(limit=0)[1]
    if blind_reader is None:
        return _Tabs(counts.predicted, _sorted_by_number(counts.rejections), unreadable)
    decided = service.repository.count_images(dataclasses.replace(any_decision, reviewed_by=blind_reader))
    return _Tabs(counts.images, _sorted_by_number(decided.rejections), unreadable)


def _sorted_by_number(rejections: Mapping[RejectionCode, int]) -> dict[RejectionCode, int]:
    codes = sorted(rejections, key=lambda code: (-rejections[code], REJECTION_CODES.index(code)))
    return {code: rejections[code] for code in codes}


def _blind_reader(settings: Settings, user: str) -> str | None:
    """Return the user if predictions are hidden until the reader labels the image; otherwise None."""
    return user if settings.blind_first else None


@page_router.get("/unreadable")
def unreadable(
    request: Request, service: AppService, settings: AppSettings, searches: AppSearches, changes: AppChanges, user: User
) -> Response:
    """Return the page with the latest unreadable files."""
    revision = changes.revision  # before reading the list, so that no change is missed
    files, total = service.repository.unreadable_files.find(limit=_MAX_UNREADABLE)
    query = parse_query({}, searches, service.search_words, time_zone=settings.time_zone)
    return render(
        request, "unreadable.html", revision=revision, files=files, total=total, query=query,
        max_files=_MAX_UNREADABLE, local_user=LOCAL,
        tabs=_tabs(service, query, _blind_reader(settings, user)), blind_first=settings.blind_first,
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
    """Return the worklist as a CSV file, unless predictions are hidden from readers."""
    if settings.blind_first:
        raise UsageError(
            "the worklist has predictions that are hidden", hint="Get them from the API: GET /v1/predictions"
        )
    query = parse_query(request.query_params, searches, service.search_words, time_zone=settings.time_zone)
    total, lines = export_csv(service.repository, query, functools.partial(service.notice, "en"))
    access_log.exported(user, total)
    name = f"pneumoscope-{datetime.datetime.now(settings.time_zone):%Y-%m-%d}.csv"
    return StreamingResponse(
        lines, media_type="text/csv", headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )


@page_router.get("/dashboard")
def dashboard(request: Request, service: AppService, settings: AppSettings, user: User) -> Response:
    """Return the dashboard: numbers of images, and statistics of the current model and operating point.

    For a blind reader, totals would reveal hidden decisions, so they omit images without this reader's label.
    """
    model, blind_reader = service.model, _blind_reader(settings, user)
    latest = service.repository.latest(model.facts, model.operating_point_name, _MAX_DASHBOARD_IMAGES)
    shown = [each for each in latest if is_shown(each, blind_reader)]
    periods = count_periods(service.repository, today(settings.time_zone), settings.time_zone, blind_reader)
    return render(
        request, "dashboard.html", dashboard=summarize(shown, model.card, settings.time_zone), model=model,
        periods=periods, rejections=_sorted_by_number(periods[-1].decided.rejections),
        monitoring=_monitor(service, settings.time_zone, blind_reader),
        blind_first=settings.blind_first, is_truncated=len(latest) == _MAX_DASHBOARD_IMAGES,
        inbox=service.repository.inbox.status(), outbox=service.repository.outbox.status(),
        min_drift_images=MIN_DRIFT_IMAGES, false_alarms=FALSE_ALARM_PROBABILITY,
    )  # fmt: skip


def _monitor(service: PredictionService, time_zone: ZoneInfo, blind_reader: str | None) -> list[MonthlyDrift] | None:
    """Return the complete months with images, newest first; None if there is no profile for comparison.

    A month with an image whose decision is hidden from the reader is omitted, because the remaining images would be a
    different sample.
    """
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
        if predictions and all(is_shown(each, blind_reader) for each in predictions):
            found.append(monitor_month(month, predictions, profile, model.card))
    return found


@page_router.get("/model")
def model(request: Request, service: AppService) -> Response:
    """Return the model page: training data, accuracy and limitations of the model."""
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
        profile=profile,
        prevalence_stated=service.model.facts.prevalence is not None,
        measurements=measurements,
        outliers=service.model.bundle_limits.outliers if service.model.bundle_limits else {},
        site_changes_limits=bool(profile and profile.limits),
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
    card = model_card(service.model.folder, evaluation_of_bundle(service.model.folder))
    return PlainTextResponse(card, headers={"Content-Language": "en"})

"""The ASGI application: HTTP API, web interface and middleware."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from starlette.staticfiles import StaticFiles

from pneumoscope import __version__
from pneumoscope.core.errors import MissingExtraError, StorageError
from pneumoscope.inference.model import Model
from pneumoscope.service.api.administration import administrator_router
from pneumoscope.service.api.exception_handlers import extend_openapi, install_exception_handlers
from pneumoscope.service.api.images import image_reader_router, image_sender_router
from pneumoscope.service.api.routes import operation_router, reader_router, sender_router
from pneumoscope.service.audit.access import AccessLog
from pneumoscope.service.auth.authenticator import Authenticator
from pneumoscope.service.auth.tokens import TokenRepository
from pneumoscope.service.dicom.processing import InstanceProcessor
from pneumoscope.service.dicom.stored_instances import StoredInstances
from pneumoscope.service.dicom.web import dicom_web_router
from pneumoscope.service.dicom.web_read import dicom_web_reader_router
from pneumoscope.service.fhir.routes import OutcomeMiddleware, fhir_router
from pneumoscope.service.inference_queue import InferenceQueue
from pneumoscope.service.metrics import Metrics
from pneumoscope.service.middleware import RequestMiddleware
from pneumoscope.service.predictions import PredictionService, Readiness
from pneumoscope.service.rendering import ImageRenderer
from pneumoscope.service.request_limits import BodyLimitMiddleware, DrainBodyMiddleware
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.commitments import Commitments
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import Retention
from pneumoscope.service.web.accounts import administrator_page_router, code_router, sign_in_router
from pneumoscope.service.web.changes import ChangeStreams
from pneumoscope.service.web.image_pages import image_page_router
from pneumoscope.service.web.page_route import PageRoute, error_page
from pneumoscope.service.web.routes import page_router
from pneumoscope.service.web.worklist import SearchStore

if TYPE_CHECKING:
    from pneumoscope.service.auth.openid_connect import OpenIdConnect
    from pneumoscope.service.dicom.delivery import ResultDelivery
    from pneumoscope.service.dicom.receiver import DicomReceiver

__all__ = ["CLOSE_SECONDS", "create_app"]

_ROUTERS: Sequence[APIRouter] = (
    operation_router,
    sender_router,
    image_sender_router,
    dicom_web_router,
    dicom_web_reader_router,
    reader_router,
    image_reader_router,
    fhir_router,
    administrator_router,
    sign_in_router,
    page_router,
    image_page_router,
    code_router,
    administrator_page_router,
)
_LOG = logging.getLogger("pneumoscope.service")
_SIGN_IN_SECONDS = 600  # time limit for signing in at the identity provider
CLOSE_SECONDS = 30  # limit on the shutdown after the last response


def create_app(
    model: Model,
    repository: PredictionRepository,
    settings: Settings | None = None,
    *,
    require_token: bool = False,
    openid_connect: OpenIdConnect | None = None,
    dicom_receiver: DicomReceiver | None = None,
    delivery: bool = False,
) -> FastAPI:
    """Return the application. It closes the repository on shutdown.

    Args:
        model: The model, loaded with one thread per call.
        repository: Storage of predictions and images.
        settings: Limits and addresses; defaults if None.
        require_token: Whether clients must authenticate with a token from the repository's database.
        openid_connect: Identity provider for the web interface. It makes authentication required for all clients.
        dicom_receiver: Receives images from DICOM nodes while the application runs.
        delivery: Whether to deliver the results and events in the outbox while the application runs; requires the extra
            [pacs].
    """
    settings = settings or Settings()
    queue = InferenceQueue(model, max_waiting=settings.max_waiting)
    changes = ChangeStreams()
    repository.storage.add_change_listener(changes.notify)
    repository.populations.record(model.facts.sha256, model.card.population)
    metrics = Metrics(lambda: queue.waiting, lambda: changes.open, repository.inbox.status, repository.outbox.status)
    renderer = ImageRenderer(model, repository, settings.dicom.results)
    access_log = AccessLog(repository.engine)
    tokens = TokenRepository(repository.engine) if require_token or openid_connect else None
    authenticator = Authenticator(tokens, access_log, openid_connect)
    service = PredictionService(model, repository, queue, metrics, settings.pseudonymizer)
    processor = InstanceProcessor(service, settings.dicom)
    background = _Background(
        repository=repository,
        settings=settings,
        queue=queue,
        changes=changes,
        processor=processor,
        retention=Retention(repository, settings.keep, settings.keep_identities),
        dicom_receiver=dicom_receiver,
        result_delivery=_result_delivery(settings, renderer, service) if delivery else None,
    )
    app = FastAPI(
        title="pneumoscope",
        version=__version__,
        summary="Pneumonia detection on chest radiographs.",
        description=model.notice,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,  # FastAPI's pages load scripts from another host
        redoc_url=None,
        # Traces and request logs would contain URLs and thereby image names.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        lifespan=background.lifespan,
    )
    app.state.settings = settings
    app.state.access_log = access_log
    app.state.authenticator = authenticator
    app.state.service = dataclasses.replace(
        service, adjust_again=processor.adjust_again, on_predicted_again=processor.outcomes.record_again
    )
    app.state.processor = processor
    app.state.changes = changes
    app.state.searches = SearchStore()
    app.state.readiness = Readiness(model, repository)
    app.state.renderer = renderer
    app.state.stored_instances = StoredInstances(
        model, repository, renderer, settings.dicom.results, is_pseudonymized=settings.pseudonymizer is not None
    )
    routes = _add_routes(app, authenticator)
    _add_middleware(app, settings, metrics, routes, has_sign_in=openid_connect is not None)
    return app


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Background:
    """The background tasks of the application, and the repository, which is closed last."""

    repository: PredictionRepository
    settings: Settings
    queue: InferenceQueue
    changes: ChangeStreams
    processor: InstanceProcessor
    retention: Retention
    dicom_receiver: DicomReceiver | None
    result_delivery: ResultDelivery | None

    @contextlib.asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Run the background tasks. On shutdown, finish the accepted work and close the repository."""
        await run_in_threadpool(_end_commitments, self.repository, self.settings)
        self.retention.start()
        if self.dicom_receiver:
            self.dicom_receiver.start(self.processor, Commitments(self.repository.engine))
        if self.result_delivery:
            self.result_delivery.start()
        processing = asyncio.create_task(self.processor.run())
        yield
        self.changes.close()
        if self.dicom_receiver:
            await run_in_threadpool(self.dicom_receiver.stop, CLOSE_SECONDS / 3)
        processing.cancel()
        await asyncio.wait([processing], timeout=CLOSE_SECONDS / 3)
        if self.result_delivery:
            await run_in_threadpool(self.result_delivery.stop, CLOSE_SECONDS / 3)
        for close in (self.retention.stop, self.queue.close, self.repository.close):
            await run_in_threadpool(close, CLOSE_SECONDS / 3)


def _add_routes(app: FastAPI, authenticator: Authenticator) -> list[APIRoute]:
    """Add routes, static files and exception handlers; return the routes."""
    routes: list[APIRoute] = []
    for router in _ROUTERS:
        for route in router.routes:
            assert isinstance(route, APIRoute)  # the middleware needs its path
            routes.append(route)
    # `include_router` would rebuild each route with router settings that this application does not use.
    app.router.routes.extend(routes)
    install_exception_handlers(app, routes)
    extend_openapi(app, has_authentication=authenticator.required)
    app.mount("/static", StaticFiles(packages=[("pneumoscope.service.web", "static")]), name="static")
    return routes


def _add_middleware(
    app: FastAPI, settings: Settings, metrics: Metrics, routes: Sequence[APIRoute], *, has_sign_in: bool
) -> None:
    """Add the middleware; the last one added handles a request first."""
    app.add_middleware(
        BodyLimitMiddleware, max_body_bytes=settings.max_body_bytes, max_total_bytes=settings.max_total_bytes
    )
    app.add_middleware(
        RequestMiddleware,
        metrics=metrics,
        loopback=settings.loopback,
        public_name=settings.public_name,
        known_paths={"/openapi.json", *map(_with_id, routes)},
        page_paths={_with_id(route) for route in routes if isinstance(route, PageRoute)},
        error_page=error_page,
    )
    app.add_middleware(OutcomeMiddleware)
    if has_sign_in:
        from starlette.middleware.sessions import SessionMiddleware  # needs an extra

        # Keeps the sign-in state until the provider redirects back; a SameSite=Strict cookie would not be sent then.
        app.add_middleware(
            SessionMiddleware,
            secret_key=secrets.token_urlsafe(32),
            session_cookie="pneumoscope-sign-in",
            path="/sign-in",
            max_age=_SIGN_IN_SECONDS,
            same_site="lax",
            https_only=bool(settings.public_name),
        )
    app.add_middleware(DrainBodyMiddleware, max_bytes=settings.max_body_bytes)


def _with_id(route: APIRoute) -> str:
    return re.sub(r"{\w+}", "{id}", route.path)


def _end_commitments(repository: PredictionRepository, settings: Settings) -> None:
    """Stop waiting for storage commitments from destinations for which it is no longer configured."""
    try:
        Commitments(repository.engine).end(settings.dicom.commitments)
    except StorageError as error:
        _LOG.warning("Storage commitments that are not requested any more remain: %s", error.message)


def _result_delivery(settings: Settings, renderer: ImageRenderer, service: PredictionService) -> ResultDelivery:
    try:
        from pneumoscope.service.dicom.delivery import ResultDelivery
    except ModuleNotFoundError as error:
        raise MissingExtraError("pacs", "delivering results", error.name or "pynetdicom") from error
    return ResultDelivery(settings.dicom, service.repository, renderer, functools.partial(service.notice, "en"))

"""The application: the HTTP API, the web UI and the middleware around them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from datetime import timedelta

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from starlette.staticfiles import StaticFiles

from pneumoscope import __version__
from pneumoscope.core.i18n import NOTICE
from pneumoscope.inference.model import Model
from pneumoscope.service.api.dependencies import authentication
from pneumoscope.service.api.exception_handlers import add_problem_schema, install_exception_handlers
from pneumoscope.service.api.routes import operation_router, prediction_router
from pneumoscope.service.auth.tokens import Authenticator
from pneumoscope.service.inference_queue import InferenceQueue
from pneumoscope.service.metrics import Metrics
from pneumoscope.service.middleware import RequestMiddleware
from pneumoscope.service.predictions import PredictionService
from pneumoscope.service.request_limits import BodyLimitMiddleware, DrainBodyMiddleware
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import Retention
from pneumoscope.service.web.routes import web_router

__all__ = ["CLOSE_SECONDS", "Settings", "create_app"]

CLOSE_SECONDS = 30  # limit on the shutdown after the last request is answered


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a service.

    Attributes:
        max_body_bytes: Size of a body with images.
        max_total_bytes: Size of all bodies with images in progress together.
        max_images: Images in one request.
        max_waiting: Images that are accepted and not answered.
        loopback: Whether only this machine can reach the service. Requests for other host names are then rejected.
        public_name: Host name under which a reverse proxy on this machine publishes the service; may be empty.
        keep: Age at which images are removed; None keeps them.
    """

    max_body_bytes: int = 256 * 2**20
    max_total_bytes: int = 2**30
    max_images: int = 64
    max_waiting: int = 256
    loopback: bool = True
    public_name: str = ""
    keep: timedelta | None = None


def create_app(
    model: Model, repository: PredictionRepository, authenticator: Authenticator, settings: Settings | None = None
) -> FastAPI:
    """Return the application, which closes the repository when it shuts down.

    Args:
        model: The model; load it with one thread per call.
        repository: Where predictions and images are stored.
        authenticator: Determines the user of a request.
        settings: Limits and addresses; the defaults if None.
    """
    settings = settings or Settings()
    queue = InferenceQueue(model, max_waiting=settings.max_waiting)
    retention = Retention(repository, settings.keep)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        retention.start()
        yield
        for close in (retention.stop, queue.close, repository.close):
            await run_in_threadpool(close, CLOSE_SECONDS / 3)

    app = FastAPI(
        title="pneumoscope",
        version=__version__,
        summary="Pneumonia detection on chest radiographs.",
        description=NOTICE,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,  # its pages load scripts from another host
        redoc_url=None,
        # Traces and logs of requests would contain URLs, and so names of images.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        lifespan=lifespan,
    )
    metrics = Metrics(lambda: queue.waiting)
    service = PredictionService(model, repository, queue, metrics)
    authenticate = authentication(authenticator)
    routers = (
        operation_router(service),
        prediction_router(service, settings.max_images, authenticate),
        web_router(service, settings.max_body_bytes, authenticate),
    )
    for router in routers:
        app.include_router(router)
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    install_exception_handlers(app, routes)
    add_problem_schema(app)
    app.mount("/static", StaticFiles(packages=[("pneumoscope.service.web", "static")]), name="static")
    app.state.authenticator = authenticator
    app.add_middleware(
        BodyLimitMiddleware, max_body_bytes=settings.max_body_bytes, max_total_bytes=settings.max_total_bytes
    )
    app.add_middleware(
        RequestMiddleware,
        metrics=metrics,
        loopback=settings.loopback,
        public_name=settings.public_name,
        known_paths={"/openapi.json", *(route.path for route in routes)},
    )
    app.add_middleware(DrainBodyMiddleware, max_bytes=settings.max_body_bytes)
    return app

"""The application: the HTTP API, the web UI and the middleware around them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI
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
from pneumoscope.service.predictions import PredictionService, Readiness
from pneumoscope.service.rendering import ImageRenderer
from pneumoscope.service.request_limits import BodyLimitMiddleware, DrainBodyMiddleware
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import Retention
from pneumoscope.service.web.routes import page_router, sign_in_router
from pneumoscope.service.web.worklist import SearchStore

__all__ = ["CLOSE_SECONDS", "create_app"]

CLOSE_SECONDS = 30  # limit on the shutdown after the last request is answered


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
    retention = Retention(repository, settings.keep, settings.keep_identities)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        """Remove old images while the application runs; at the end, finish what was accepted and close the repository."""
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
    app.state.settings = settings
    app.state.authenticator = authenticator
    app.state.service = PredictionService(model, repository, queue, metrics, settings.pseudonymizer)
    app.state.searches = SearchStore()
    app.state.readiness = Readiness(model, repository)
    app.state.renderer = ImageRenderer(model, repository)
    signed_in = [Depends(authentication(authenticator))]
    app.include_router(operation_router)
    app.include_router(prediction_router, dependencies=signed_in)
    app.include_router(page_router, dependencies=signed_in)
    app.include_router(sign_in_router)
    routers = operation_router, prediction_router, page_router, sign_in_router
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    install_exception_handlers(app, routes)
    add_problem_schema(app)
    app.mount("/static", StaticFiles(packages=[("pneumoscope.service.web", "static")]), name="static")
    app.add_middleware(
        BodyLimitMiddleware, max_body_bytes=settings.max_body_bytes, max_total_bytes=settings.max_total_bytes
    )
    app.add_middleware(
        RequestMiddleware,
        metrics=metrics,
        loopback=settings.loopback,
        public_name=settings.public_name,
        known_paths={"/openapi.json", *(re.sub(r"{\w+}", "{id}", route.path) for route in routes)},
    )
    app.add_middleware(DrainBodyMiddleware, max_bytes=settings.max_body_bytes)
    return app

"""Puts the service together, the API and the page over it, for a server to run."""

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
from pneumoscope.service.api.problems import describe_errors, install_exception_handlers
from pneumoscope.service.api.routes import paths, public_routes
from pneumoscope.service.auth.tokens import Authenticator
from pneumoscope.service.inference_queue import InferenceQueue
from pneumoscope.service.middleware import Metrics, RequestMiddleware
from pneumoscope.service.predictions import PredictionService
from pneumoscope.service.request_limits import DrainBody, Limits
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import Retention
from pneumoscope.service.web.routes import web_router

__all__ = ["Settings", "make_app"]


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What a service takes.

    Attributes:
        most_bytes: of a body that brings images.
        most_held: bytes of all such bodies that are under way at once.
        most_images: of one request.
        most_waiting: images that may be taken in and not answered.
        loopback: whether only this machine can reach it, so that another host's name in a request is a trick.
        public_name: by which a proxy on this machine makes it reachable; empty where there is none.
        keep: age at which images are removed; None keeps them.
    """

    most_bytes: int = 256 * 2**20
    most_held: int = 2**30
    most_images: int = 64
    most_waiting: int = 256
    loopback: bool = True
    public_name: str = ""
    keep: timedelta | None = None


def make_app(
    model: Model, records: PredictionRepository, access: Authenticator, settings: Settings | None = None
) -> FastAPI:
    """The application, for a server to run. It closes `records` at its end.

    Args:
        model: that judges; load it with one thread a call.
        records: where images are kept.
        access: who may ask.
        settings: limits.
    """
    chosen = settings or Settings()
    scoring = InferenceQueue(model, most_waiting=chosen.most_waiting)
    retention = Retention(records, chosen.keep)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        retention.start()
        yield
        await run_in_threadpool(retention.stop)
        await run_in_threadpool(scoring.close)
        await run_in_threadpool(records.close)

    app = FastAPI(
        title="pneumoscope",
        version=__version__,
        summary="Judges chest radiographs and keeps what it said.",
        description=NOTICE,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,  # its pages load scripts from another host
        redoc_url=None,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
        },  # it would hold addresses, and so names of images
        lifespan=lifespan,
    )
    metrics = Metrics(lambda: scoring.waiting)
    judging = PredictionService(model, records, scoring, metrics)
    identify = authentication(access)
    routers = (
        public_routes(judging),
        paths(judging, chosen.most_images, identify),
        web_router(judging, chosen.most_bytes, identify),
    )
    for router in routers:
        app.include_router(router)
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    install_exception_handlers(app, routes)
    describe_errors(app)
    app.mount("/static", StaticFiles(packages=[("pneumoscope.service.web", "static")]), name="static")
    app.state.access = access
    app.add_middleware(Limits, most_bytes=chosen.most_bytes, most_held=chosen.most_held)
    known = {"/openapi.json", *(route.path for route in routes)}
    app.add_middleware(
        RequestMiddleware, metrics=metrics, loopback=chosen.loopback, public_name=chosen.public_name, known=known
    )
    app.add_middleware(DrainBody, most_bytes=chosen.most_bytes)
    return app

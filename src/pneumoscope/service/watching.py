"""What stands around every request: it is counted, refused where another site's page makes it, and answered with its headers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import Request
from starlette.responses import Response

from pneumoscope.service.access import is_loopback
from pneumoscope.service.problems import problem

__all__ = ["Metrics", "watched"]

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Metrics:
    """Numbers for Prometheus; no name of a film or a patient is among their labels.

    Args:
        waiting: how many films wait to be scored.
    """

    def __init__(self, waiting: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.films = Counter("pneumoscope_films", "Films by what became of them", ["decision"], registry=self.registry)
        self.requests = Counter(
            "pneumoscope_requests", "Requests by method, path and status", ["method", "path", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram("pneumoscope_request_seconds", "Time to answer", ["path"], registry=self.registry)
        films = Gauge("pneumoscope_films_waiting", "Films that wait to be scored", registry=self.registry)
        films.set_function(waiting)


def watched(
    metrics: Metrics, loopback: bool
) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Counts requests, refuses those that another site's page makes, and adds the headers that all answers have."""

    async def watch(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        response = _refusal(request, loopback) or await go_on(request)
        route = request.scope.get("route")
        path = getattr(route, "path", "other")  # with {id} in the place of an id
        metrics.requests.labels(request.method if route else "other", path, response.status_code).inc()
        metrics.seconds.labels(path).observe(time.perf_counter() - start)
        for header, value in _HEADERS.items():
            response.headers.setdefault(header, value)
        return response

    return watch


def _refusal(request: Request, loopback: bool) -> Response | None:
    host = request.headers.get("Host", "")
    # A page of another site may send a form here, or have its own name point to this machine: neither may act.
    if loopback and not is_loopback(host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host):
        return problem(403, "AccessError", "the request names another host", "Ask http://127.0.0.1 or http://localhost")
    origin = request.headers.get("Origin", "")
    if request.method not in ("GET", "HEAD", "OPTIONS") and origin and origin.partition("://")[2] != host:
        return problem(
            403, "AccessError", "the request comes from another site's page", "Send it from this service's page"
        )
    return None

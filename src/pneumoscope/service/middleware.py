"""What stands around every request: it is counted, refused where another site's page makes it, and answered with its headers."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pneumoscope.service.api.problems import fault, problem, refused
from pneumoscope.service.auth.tokens import is_loopback

__all__ = ["Metrics", "RequestMiddleware"]

_LOG = logging.getLogger("pneumoscope.service")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # others are of a client's own making

_ID = re.compile(r"(?<=^/images)/[^/]+|(?<=^/v1/predictions)/[^/]+")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with none, a browser would not say from which page a form comes
    "X-Content-Type-Options": "nosniff",
}


class Metrics:
    """Numbers for Prometheus; no name of an image or a patient is among their labels.

    Args:
        waiting: how many images wait to be scored.
    """

    def __init__(self, waiting: Callable[[], float]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # series that nobody asks for, one beside each
        self.registry = CollectorRegistry()
        self.images = Counter(
            "pneumoscope_images", "Images by what became of them", ["decision"], registry=self.registry
        )
        self.requests = Counter(
            "pneumoscope_requests", "Requests by method, path and status", ["method", "path", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram("pneumoscope_request_seconds", "Time to answer", ["path"], registry=self.registry)
        images = Gauge("pneumoscope_images_waiting", "Images that wait to be scored", registry=self.registry)
        images.set_function(waiting)


class RequestMiddleware:
    """Middleware that counts requests, refuses those that another site's page makes, and adds the headers that all answers have.

    Args:
        app: behind it.
        metrics: that count.
        loopback, public_name: see `app.Settings`.
        known: paths that there are, with {id} in the place of an id.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, loopback: bool, public_name: str, known: Collection[str]
    ) -> None:
        self.app, self._metrics, self._loopback, self._public_name = app, metrics, loopback, public_name.lower()
        self._known = frozenset(known)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and see what becomes of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, request = time.perf_counter(), 0, Request(scope)
        scope.setdefault("state", {})  # of both scopes: what becomes of the request is told there

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for header, value in _HEADERS.items():
                    headers.setdefault(header, value)
            await send(message)

        try:
            response = self._refusal(request)
            if response is not None:
                refused(request, "AuthenticationError")
                await response(scope, receive, answered)
            else:
                # What may be had may be asked about; the server sends no body then.
                method = "GET" if scope["method"] == "HEAD" else scope["method"]
                await self.app({**scope, "method": method}, receive, answered)
        except Exception as error:  # noqa: BLE001  whatever it is, the client is told; what it says may hold anything
            _LOG.debug("a fault of ours", exc_info=error)
            # What befalls an answer that has begun comes with a RuntimeError of the framework's around it.
            told = fault(request, error.__cause__ if status and isinstance(error.__cause__, Exception) else error)
            if status:  # the answer breaks off, which the client sees: it has no end
                status = 500
            else:
                await told(scope, receive, answered)
        path = self._shape(scope["path"])
        method = request.method if request.method in _METHODS else "other"
        seconds = time.perf_counter() - start
        self._metrics.requests.labels(method, path, status).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        if status >= 400:
            _tell(request, f"{method} {path} {status}", seconds, status >= 500)

    def _shape(self, path: str) -> str:
        """A path with {id} in the place of an id; "other" for one that a client made up."""
        shape = _ID.sub("/{id}", path)
        return shape if shape in self._known else "other"

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("Host", "")
        name = (host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host).lower()
        # A page of another site may send a form here, or have its own name point to this machine: neither may act.
        if self._loopback and not is_loopback(name) and not (name and name == self._public_name):
            hint = "Ask http://127.0.0.1 or http://localhost, or start it with --public-name"
            return problem(403, "AuthenticationError", "the request names another host", hint)
        origin = request.headers.get("Origin", "")
        if request.method not in ("GET", "HEAD", "OPTIONS") and origin and origin.partition("://")[2] != host:
            return problem(
                403,
                "AuthenticationError",
                "the request comes from another site's page",
                "Send it from this service's page",
            )
        return None


def _tell(request: Request, what: str, seconds: float, ours: bool) -> None:
    """A line in the log for a request that was not done. Nothing that the client sent is in it, but the name of its token."""
    error, why = getattr(request.state, "rejected", ("-", ""))
    who = getattr(request.state, "who", "-")
    said = f": {' '.join(why.split())}" if ours and why else ""
    _LOG.log(logging.WARNING if ours else logging.INFO, "%s %s %s %.0f ms%s", what, error, who, 1000 * seconds, said)

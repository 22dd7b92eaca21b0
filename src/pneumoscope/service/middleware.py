"""Middleware for all requests: metrics, log lines, security headers, and protection against cross-site requests."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pneumoscope.core.addresses import is_loopback
from pneumoscope.core.errors import ForbiddenError, PneumoscopeError
from pneumoscope.core.i18n import N_
from pneumoscope.service.api.exception_handlers import error_response, internal_error_response, record_error
from pneumoscope.service.metrics import Metrics

__all__ = ["RequestMiddleware"]

_LOG = logging.getLogger("pneumoscope.service")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # clients may send arbitrary other methods
_EVENT_STREAM = "text/event-stream"
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_ID = re.compile(
    r"(?<=^/images)/[^/]+|(?<=^/v1/predictions)/(?!search$)[^/]+|(?<=^/unreadable)/[^/]+|(?<=^/v1/unreadable)/[^/]+"
    r"|(?<=^/fhir/DiagnosticReport)/[^/]+|(?<=^/fhir/Observation)/[^/]+|(?<=^/v1/studies)/[^/]+|(?<=^/v1/patients)/[^/]+|(?<=^/v1/tokens)/[^/]+|(?<=^/tokens)/[^/]+"
)
_DICOM_WEB = "/dicom-web/"
_DICOM_WEB_ID = re.compile(r"((?<=/studies)|(?<=/series)|(?<=/instances)|(?<=/frames))/[^/]+")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers would omit Origin when submitting forms
    "X-Content-Type-Options": "nosniff",
}


class RequestMiddleware:
    """Middleware that counts and logs requests, rejects cross-site requests, and adds security headers.

    Args:
        app: The inner application.
        metrics: Metrics of the service.
        loopback, public_name: See `settings.Settings`.
        known_paths: Paths of all routes, with {id} in place of ids.
        page_paths: Paths of the web pages, in the same form.
        error_page: Returns the page for an error.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        loopback: bool,
        public_name: str,
        known_paths: Collection[str],
        page_paths: Collection[str],
        error_page: Callable[[Request, PneumoscopeError], Response],
    ) -> None:
        self.app, self._metrics, self._loopback, self._public_name = app, metrics, loopback, public_name.lower()
        self._known_paths, self._page_paths = frozenset(known_paths), frozenset(page_paths)
        self._error_page = error_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, and record its outcome."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, request = time.perf_counter(), 0, Request(scope)
        seconds: float | None = None
        scope.setdefault("state", {})  # shared with the copy of the scope below; see `record_error`

        async def send_with_headers(message: Message) -> None:
            """Send a message with the common headers, and note the status."""
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                # The time that a stream stays open is not a response time.
                if headers.get("Content-Type", "").startswith(_EVENT_STREAM):
                    seconds = time.perf_counter() - start
                for header, value in _HEADERS.items():
                    headers.setdefault(header, value)
            await send(message)

        try:
            forbidden = self._cross_site_error(request)
            if forbidden is not None:
                record_error(request, forbidden.code)
                is_page = self._route_path(scope["path"]) in self._page_paths
                response = self._error_page(request, forbidden) if is_page else error_response(forbidden)
                await response(scope, receive, send_with_headers)
            else:
                # Route HEAD like GET; the server omits the body.
                method = "GET" if scope["method"] == "HEAD" else scope["method"]
                await self.app({**scope, "method": method}, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001  every error is answered; the message may contain anything
            _LOG.debug("Internal error", exc_info=error)
            # After the start of a response, Starlette wraps errors in a RuntimeError.
            cause = error.__cause__ if status and isinstance(error.__cause__, Exception) else error
            response = internal_error_response(request, cause)
            if status:  # the response is incomplete, which clients can detect
                status = 500
            else:
                await response(scope, receive, send_with_headers)
        path = self._route_path(scope["path"])
        method = request.method if request.method in _METHODS else "other"
        if seconds is None:
            seconds = time.perf_counter() - start
        self._metrics.requests.labels(method, path, status).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        if status >= 400:
            _log_error(request, f"{method} {path} {status}", seconds, is_server_error=status >= 500)

    def _route_path(self, path: str) -> str:
        """Return a path with {id} in place of ids; "other" for an unknown path."""
        pattern = _DICOM_WEB_ID if path.startswith(_DICOM_WEB) else _ID
        route_path = pattern.sub("/{id}", path)
        return route_path if route_path in self._known_paths else "other"

    def _cross_site_error(self, request: Request) -> ForbiddenError | None:
        """Return the error for a request that a page of another site may have caused, or None.

        Such a page can submit a form to this service, or make its own host name resolve to this machine (DNS
        rebinding).
        """
        host = request.headers.get("Host", "")
        name = (host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host).lower()
        if self._loopback and not is_loopback(name) and not (name and name == self._public_name):
            hint = N_("Use http://127.0.0.1 or http://localhost, or start the service with --public-name")
            return ForbiddenError(N_("the request is for another host"), hint=hint)
        origin = request.headers.get("Origin", "")
        if request.method not in _SAFE_METHODS and origin and origin.partition("://")[2] != host:
            hint = N_("Send it from a page of this service")
            detail = N_("the request was sent by a page of another site")
            return ForbiddenError(detail, hint=hint)
        return None


def _log_error(request: Request, outcome: str, seconds: float, *, is_server_error: bool) -> None:
    """Log a failed request.

    The line contains no client input except the user name of the token and, for server errors, the id of a prediction,
    which an operator needs to restore the image.
    """
    code, message = getattr(request.state, "error", ("-", ""))
    user = getattr(request.state, "user", "-")
    reason = f": {' '.join(message.split())}" if is_server_error and message else ""
    level = logging.WARNING if is_server_error else logging.INFO
    _LOG.log(level, "%s %s %s %.0f ms%s", outcome, code, user, 1000 * seconds, reason)

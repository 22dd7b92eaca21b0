"""Routes that respond with pages: error pages, redirects to the sign-in page, and forms."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute

from pneumoscope.core.error_messages import error_detail, error_text
from pneumoscope.core.errors import AuthenticationError, PneumoscopeError, TooManyRequestsError, UsageError
from pneumoscope.service.api.dependencies import authentication
from pneumoscope.service.api.exception_handlers import error_status, public_error, record_error
from pneumoscope.service.auth.users import Role
from pneumoscope.service.web.templating import render, request_language

__all__ = ["PageRoute", "error_page", "html_router", "read_form"]


class PageRoute(APIRoute):
    """A route that redirects to the sign-in page if there is no session, and renders other errors as pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of the route; see `APIRoute`."""
        handle = super().get_route_handler()

        async def handle_errors(request: Request) -> Response:
            """Handle a request; respond to an error with a page."""
            try:
                return await handle(request)
            except AuthenticationError:
                target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                return RedirectResponse(f"/sign-in?{urlencode({'next': target})}", 303)
            except PneumoscopeError as error:
                return error_page(request, error)

        return handle_errors


def html_router(role: Role) -> APIRouter:
    """Return a router for HTML pages that require a role."""
    return APIRouter(route_class=PageRoute, include_in_schema=False, dependencies=[authentication(role)])


def error_page(request: Request, error: PneumoscopeError) -> Response:
    """Return the page for an error, and record it for the log."""
    record_error(request, error.code, error.message)
    language = request_language(request)
    title, advice = error_text(error, language)
    detail = error_detail(public_error(error), language)
    response = render(request, "error.html", error_status(error), title=title, advice=advice, detail=detail)
    if isinstance(error, TooManyRequestsError):
        response.headers["Retry-After"] = str(error.retry_seconds)
    return response


async def read_form(request: Request, *, max_fields: int = 4) -> dict[str, str]:
    """Return the fields of a form.

    Raises:
        UsageError: The form has an unknown character encoding.
    """
    try:
        async with request.form(max_files=0, max_fields=max_fields) as form:
            return {name: str(value) for name, value in form.items()}
    except UnicodeError as error:
        raise UsageError("the form cannot be parsed", hint="Use the form on the page") from error

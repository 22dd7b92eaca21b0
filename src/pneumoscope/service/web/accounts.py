"""Pages for signing in and out, for sign-in codes, for tokens, and for deletion."""

from __future__ import annotations

import re
from typing import cast

import segno
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from markupsafe import Markup

from pneumoscope.core.errors import AuthenticationError, ForbiddenError, TooManyRequestsError
from pneumoscope.service.api.dependencies import AppAuthenticator, AppService, AppTokens, CurrentUser
from pneumoscope.service.api.exception_handlers import error_status, record_error
from pneumoscope.service.auth.sessions import CODE_SECONDS, COOKIE, SESSION_SECONDS
from pneumoscope.service.auth.users import ROLES, Role, is_loopback
from pneumoscope.service.web.page_route import PageRoute, read_form
from pneumoscope.service.web.templating import render

__all__ = ["administrator_page_router", "code_router", "sign_in_router", "start_session"]

# The application adds `dependencies.authentication` to the latter two; see `app.create_app`.
sign_in_router, code_router, administrator_page_router = (
    APIRouter(route_class=PageRoute, include_in_schema=False) for _ in range(3)
)


@sign_in_router.get("/sign-in")
def sign_in_form(request: Request) -> Response:
    """Return the sign-in page."""
    return _sign_in_page(request)


@sign_in_router.post("/sign-in")
async def sign_in(request: Request, authenticator: AppAuthenticator) -> Response:
    """Start a session with the token or the code of the form, and redirect to the page that asked for it."""
    form = await read_form(request)
    token, code = form.get("token", ""), form.get("code", "")
    try:
        cookie = await run_in_threadpool(authenticator.sign_in, request, token=token, code=code)
    except (AuthenticationError, ForbiddenError, TooManyRequestsError) as error:
        record_error(request, error.code)
        return _sign_in_page(request, error, used_code=bool(code))
    return start_session(request, cookie, request.query_params.get("next", ""))


@sign_in_router.post("/sign-out")
def sign_out(request: Request, authenticator: AppAuthenticator) -> Response:
    """End the session and redirect to the sign-in page."""
    authenticator.sign_out(request)
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


@code_router.get("/sign-in-code")
def sign_in_code_form(request: Request) -> Response:
    """Return the page that creates a code."""
    return render(request, "sign_in_code.html", code="", seconds=CODE_SECONDS)


@code_router.post("/sign-in-code")
def create_sign_in_code(request: Request, authenticator: AppAuthenticator, user: CurrentUser) -> Response:
    """Return a code that signs the user in on another device, as text and as a QR code."""
    code = authenticator.codes.create(user)
    # Browsers do not send the part after # to servers, so that no log contains the code.
    url = f"{request.base_url}sign-in#code={code}"
    qr_code = segno.make(url, micro=False).svg_inline(omitsize=True, svgclass="qr-code", lineclass=None, light="#fff")
    return render(
        request, "sign_in_code.html", code=code, seconds=CODE_SECONDS, qr_code=Markup(qr_code),  # noqa: S704  drawn, no text
        address=str(request.base_url), only_this_computer=is_loopback(request.url.hostname or ""),
    )  # fmt: skip


@administrator_page_router.get("/tokens")
def list_tokens(request: Request, tokens: AppTokens, user: CurrentUser) -> Response:
    """Return the list of tokens."""
    return _tokens_page(request, tokens, user)


@administrator_page_router.post("/tokens")
async def add_token(request: Request, tokens: AppTokens, user: CurrentUser) -> Response:
    """Add a token, and return the list with its secret, which is shown once."""
    form = await read_form(request)
    name, role = form.get("user", "").strip(), cast(Role, form.get("role", ""))  # `add` checks both
    token, secret = await run_in_threadpool(tokens.add, name, role, created_by=user.name)
    return await run_in_threadpool(_tokens_page, request, tokens, user, added=token.user, secret=secret)


@administrator_page_router.post("/tokens/{token_id}/revoke")
def revoke_token(tokens: AppTokens, user: CurrentUser, token_id: str) -> Response:
    """Revoke a token, and return to the list."""
    tokens.revoke(token_id, user=user.name)
    return RedirectResponse("/tokens", 303)


@administrator_page_router.post("/unreadable/{id}")
def remove_unreadable(service: AppService, user: CurrentUser, id: str) -> Response:
    """Delete the record of a file that could not be read, and return to the list."""
    service.repository.remove_unreadable(id, user=user.name)
    return RedirectResponse("/unreadable", 303)


def start_session(request: Request, cookie: str, next_url: str) -> Response:
    """Return a redirection to a page of this service, with the cookie of a session."""
    response = RedirectResponse(_local_url(next_url), 303)
    # SameSite=Strict: requests from other sites carry no session. Secure: set if the proxy terminates HTTPS.
    response.set_cookie(
        COOKIE, cookie, max_age=SESSION_SECONDS, secure=request.url.scheme == "https", httponly=True, samesite="strict"
    )
    return response


def _sign_in_page(
    request: Request,
    error: AuthenticationError | ForbiddenError | TooManyRequestsError | None = None,
    *,
    used_code: bool = False,
) -> Response:
    response = render(
        request, "sign_in.html", error_status(error) if error else 200, next=_local_url(request.query_params.get("next", "")),
        error_code=error.code if error else "", used_code=used_code, session_hours=SESSION_SECONDS // 3600,
        wait_seconds=getattr(error, "retry_seconds", 0),
    )  # fmt: skip
    if isinstance(error, TooManyRequestsError):
        response.headers["Retry-After"] = str(error.retry_seconds)
    return response


def _tokens_page(
    request: Request, tokens: AppTokens, user: CurrentUser, *, added: str = "", secret: str = ""
) -> Response:
    return render(
        request, "tokens.html", tokens=tokens.list(), roles=ROLES, own_token=user.token_id, added=added, secret=secret
    )


def _local_url(url: str) -> str:
    """Return the URL if it is a path on this server, else "/": sign-in never redirects to another site."""
    return url if re.fullmatch(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*", url) else "/"

"""Pages for signing in and out, sign-in codes, tokens, and deletion."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, cast

import segno
from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from markupsafe import Markup

from pneumoscope.core.addresses import is_loopback
from pneumoscope.core.error_messages import error_detail, error_text
from pneumoscope.core.errors import (
    AuthenticationError,
    BusyError,
    ForbiddenError,
    PneumoscopeError,
    TooManyRequestsError,
    UnknownNameError,
)
from pneumoscope.service.api.dependencies import AppAuthenticator, AppService, AppTokens, CurrentUser
from pneumoscope.service.api.exception_handlers import error_status, public_error, record_error
from pneumoscope.service.auth.authenticator import Authenticator
from pneumoscope.service.auth.sessions import CODE_SECONDS, COOKIE, SESSION_SECONDS
from pneumoscope.service.auth.users import ROLES, Role
from pneumoscope.service.web.page_route import PageRoute, html_router, read_form
from pneumoscope.service.web.templating import render, request_language

if TYPE_CHECKING:
    from pneumoscope.service.auth.openid_connect import OpenIdConnect

__all__ = ["administrator_page_router", "code_router", "sign_in_router"]

sign_in_router = APIRouter(route_class=PageRoute, include_in_schema=False)  # for everyone
code_router, administrator_page_router = html_router("reader"), html_router("administrator")


async def _provider(authenticator: AppAuthenticator) -> OpenIdConnect:
    """Return the identity provider.

    Raises:
        UnknownNameError: No identity provider is configured.
    """
    if authenticator.openid_connect is None:
        raise UnknownNameError("identity provider", "openid-connect", (), hint="Sign in with a token")
    return authenticator.openid_connect


# Not OpenIdConnect: FastAPI evaluates annotations, and the optional Authlib must not be imported.
_Provider = Annotated[Any, Depends(_provider)]


@sign_in_router.get("/sign-in")
def sign_in_form(request: Request) -> Response:
    """Return the sign-in page."""
    return _sign_in_page(request)


@sign_in_router.post("/sign-in")
async def sign_in(request: Request, authenticator: AppAuthenticator) -> Response:
    """Start a session with the token or code in the form, and redirect to the page opened before signing in."""
    form = await read_form(request)
    token, code = form.get("token", ""), form.get("code", "")
    try:
        cookie = await run_in_threadpool(authenticator.sign_in, request, token=token, code=code)
    except (AuthenticationError, ForbiddenError, TooManyRequestsError) as error:
        return _failed_sign_in(request, error, used_code=bool(code))
    return _set_session(request, RedirectResponse(_local_url(request.query_params.get("next", "")), 303), cookie)


@sign_in_router.get("/sign-in/openid-connect")
async def sign_in_with_openid_connect(request: Request, provider: _Provider) -> Response:
    """Redirect to the identity provider."""
    next_url = _local_url(request.query_params.get("next", ""))
    try:
        response: Response = await provider.redirect(
            request, f"{request.base_url}sign-in/openid-connect/callback", next_url
        )
    except BusyError as error:
        return _failed_sign_in(request, error)
    return response


@sign_in_router.get("/sign-in/openid-connect/callback")
async def finish_openid_connect(request: Request, provider: _Provider, authenticator: AppAuthenticator) -> Response:
    """Start a session for the user authenticated by the identity provider."""
    try:
        user, next_url = await provider.user(request)
        cookie = await run_in_threadpool(authenticator.begin_session, user, "openid_connect")
    except (AuthenticationError, BusyError, ForbiddenError) as error:
        return _failed_sign_in(request, error)
    # A redirect would continue the provider's navigation, in which browsers withhold the SameSite=Strict cookie.
    return _set_session(request, render(request, "signed_in.html", next=_local_url(next_url)), cookie)


@sign_in_router.post("/sign-out")
def sign_out(request: Request, authenticator: AppAuthenticator) -> Response:
    """End the session and redirect to the sign-in page."""
    authenticator.sign_out(request)
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


@code_router.get("/sign-in-code")
def sign_in_code_form(request: Request) -> Response:
    """Return the page for creating a code."""
    return render(request, "sign_in_code.html", code="", seconds=CODE_SECONDS)


@code_router.post("/sign-in-code")
def create_sign_in_code(request: Request, authenticator: AppAuthenticator) -> Response:
    """Return a code that signs the user in on another device, as text and as a QR code."""
    code = authenticator.create_code(request)
    # Browsers never send the part after # to servers, so the code does not appear in logs.
    url = f"{request.base_url}sign-in#code={code}"
    qr_code = segno.make(url, micro=False).svg_inline(omitsize=True, svgclass="qr-code", lineclass=None, light="#fff")
    return render(
        request, "sign_in_code.html", code=code, seconds=CODE_SECONDS, qr_code=Markup(qr_code),  # noqa: S704  a drawing, without text
        address=str(request.base_url), only_this_computer=is_loopback(request.url.hostname or ""),
    )  # fmt: skip


@administrator_page_router.get("/tokens")
def list_tokens(request: Request, tokens: AppTokens, user: CurrentUser) -> Response:
    """Return the list of tokens."""
    return _tokens_page(request, tokens, user)


@administrator_page_router.post("/tokens")
async def add_token(request: Request, tokens: AppTokens, user: CurrentUser) -> Response:
    """Add a token; return the list with the secret, which is shown only once."""
    form = await read_form(request)
    name, role = form.get("user", "").strip(), cast(Role, form.get("role", ""))  # `add` validates both
    token, secret = await run_in_threadpool(tokens.add, name, role, created_by=user.name)
    return await run_in_threadpool(_tokens_page, request, tokens, user, added=token.user, secret=secret)


@administrator_page_router.post("/tokens/{token_id}/revoke")
def revoke_token(tokens: AppTokens, user: CurrentUser, token_id: str) -> Response:
    """Revoke a token, and redirect to the list."""
    tokens.revoke(token_id, user=user.name)
    return RedirectResponse("/tokens", 303)


@administrator_page_router.post("/unreadable/{id}")
def remove_unreadable(service: AppService, user: CurrentUser, id: str) -> Response:
    """Delete the record of an unreadable file, and redirect to the list."""
    service.repository.unreadable_files.remove(id, user=user.name)
    return RedirectResponse("/unreadable", 303)


def _set_session(request: Request, response: Response, cookie: str) -> Response:
    """Set the session cookie in a response, and return the response."""
    # SameSite=Strict: cross-site requests carry no session. Secure: set if the proxy terminates HTTPS.
    response.set_cookie(
        COOKIE, cookie, max_age=SESSION_SECONDS, secure=request.url.scheme == "https", httponly=True, samesite="strict"
    )
    return response


def _failed_sign_in(request: Request, error: PneumoscopeError, *, used_code: bool = False) -> Response:
    """Return the sign-in page with an error."""
    record_error(request, error.code)
    response = _sign_in_page(request, error, used_code=used_code)
    if isinstance(error, TooManyRequestsError):
        response.headers["Retry-After"] = str(error.retry_seconds)
    return response


def _sign_in_page(request: Request, error: PneumoscopeError | None = None, *, used_code: bool = False) -> Response:
    authenticator: Authenticator = request.app.state.authenticator
    provider = authenticator.openid_connect
    language = request_language(request)
    title, advice = error_text(error, language) if error else ("", "")
    detail = error_detail(public_error(error), language) if error else None
    return render(
        request, "sign_in.html", error_status(error) if error else 200, next=_local_url(request.query_params.get("next", "")),
        error=error, error_title=title, error_advice=advice, error_detail=detail, used_code=used_code,
        session_hours=SESSION_SECONDS // 3600, provider_name=provider.display_name if provider else "",
    )  # fmt: skip


def _tokens_page(
    request: Request, tokens: AppTokens, user: CurrentUser, *, added: str = "", secret: str = ""
) -> Response:
    return render(
        request, "tokens.html", tokens=tokens.list(), roles=ROLES, own_token=user.token_id, added=added, secret=secret
    )


def _local_url(url: str) -> str:
    """Return the URL if it is a path on this server, else "/", so that sign-in never redirects to another site."""
    return url if re.fullmatch(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*", url) else "/"

"""Identify the user of a request by a bearer token or a session cookie; sign users in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request

from pneumoscope.core.errors import AuthenticationError
from pneumoscope.service.audit.access import AccessLog, SignInMethod
from pneumoscope.service.auth.sessions import COOKIE, Sessions, SignInCodes
from pneumoscope.service.auth.throttle import SignInThrottle
from pneumoscope.service.auth.tokens import TokenRepository
from pneumoscope.service.auth.users import LOCAL_USER, AuthenticatedUser

if TYPE_CHECKING:
    from pneumoscope.service.auth.openid_connect import OpenIdConnect

__all__ = ["Authenticator"]


class Authenticator:
    """Authentication of requests, sign-in and sign-out.

    Args:
        tokens: The tokens; None disables authentication: every client is `LOCAL_USER`.
        access_log: Records sign-ins and sign-outs.
        openid_connect: Identity provider for the web interface, if any.

    Attributes:
        tokens: The tokens.
        openid_connect: The identity provider.
        sessions: The open sessions.
        throttle: Slows down failed sign-ins.
    """

    def __init__(
        self, tokens: TokenRepository | None, access_log: AccessLog, openid_connect: OpenIdConnect | None = None
    ) -> None:
        self.tokens, self.openid_connect, self._access_log = tokens, openid_connect, access_log
        self._codes = SignInCodes()
        self.sessions = Sessions()
        self.throttle = SignInThrottle()

    @property
    def required(self) -> bool:
        """Whether clients must authenticate."""
        return self.tokens is not None

    async def authenticate(self, request: Request, token: str) -> AuthenticatedUser:
        """Return the user of a request's token or session cookie.

        Args:
            request: The request, whose cookie is used if it has no bearer token.
            token: Token in the Authorization header; empty if there is none.
        Raises:
            AuthenticationError: Neither is valid, or a modifying request has a cookie but no Origin header.
            TooManyRequestsError: The token is unknown, and several earlier tokens from this address were unknown as
                well.
            StorageError: The tokens cannot be read.
        """
        if self.tokens is None:
            return LOCAL_USER
        if self.tokens.is_stale:
            await run_in_threadpool(self.tokens.refresh)
        cookie = request.cookies.get(COOKIE, "")
        # Other schemes, such as Basic, are meant for a reverse proxy.
        if not cookie or request.headers.get("Authorization", "").lower().startswith("bearer"):
            return self._token_user(self.tokens, request, token)
        # Browsers also send the cookie with cross-site requests; `RequestMiddleware` compares the origin.
        if request.method not in ("GET", "HEAD") and not request.headers.get("Origin"):
            raise AuthenticationError(
                "a request with a session cookie needs the header Origin", hint="Send a token instead"
            )
        user = self.sessions.user(cookie)
        if not self._is_valid(user):
            self.sessions.end(cookie)
            raise AuthenticationError("the token of the session was revoked", hint="Sign in with another token")
        return user

    def _token_user(self, tokens: TokenRepository, request: Request, token: str) -> AuthenticatedUser:
        """Return the user of a token. Valid tokens are never throttled, because several users may share an address."""
        user = tokens.find(token)
        if user is None:
            if token:
                self.throttle.check(_address(request))
                self.throttle.record_failure(_address(request))
            raise AuthenticationError(
                "unknown token" if token else "a token is required",
                hint="Send the header: Authorization: Bearer TOKEN",
            )
        return user

    def sign_in(self, request: Request, *, token: str = "", code: str = "") -> str:
        """Start a session with a token or a code, and return its cookie.

        Valid tokens are never throttled, because several users may share an address.

        Raises:
            AuthenticationError: The token or the code is unknown or expired.
            ForbiddenError: The user is a sender and may only use the API.
            TooManyRequestsError: Too many attempts from this address have failed.
            StorageError: The tokens cannot be read.
        """
        if self.tokens is None:
            raise AuthenticationError("the service has no authentication", hint="Open the worklist")
        self.tokens.refresh()
        address = _address(request)
        user = None if code else self.tokens.find(token)
        if user is not None:
            self.throttle.record_success(address)
            return self.begin_session(user, "token")
        self.throttle.check(address)
        origin = self._codes.redeem(code) if code else None
        session = self.sessions.get(origin) if origin else None
        if session is None or not self._is_valid(session.user):
            self.throttle.record_failure(address)
            raise AuthenticationError("unknown or expired code" if code else "unknown token", hint="Try again")
        self.throttle.record_success(address)
        self._access_log.signed_in(session.user.name, session.user.role, "code")
        return self.sessions.begin(session.user, until=session.expiry)

    def create_code(self, request: Request) -> str:
        """Return a code that signs the user in on another device; that session ends together with this one.

        Raises:
            AuthenticationError: The request has no session.
        """
        cookie = request.cookies.get(COOKIE, "")
        if self.sessions.get(cookie) is None:
            raise AuthenticationError("only a user who is signed in can create a code", hint="Sign in again")
        return self._codes.create(cookie)

    def _is_valid(self, user: AuthenticatedUser) -> bool:
        """Return whether the user's token, if any, has not been revoked."""
        return not user.token_id or (self.tokens is not None and self.tokens.is_active(user.token_id))

    def begin_session(self, user: AuthenticatedUser, method: SignInMethod) -> str:
        """Start a session for an authenticated user, and return its cookie.

        Raises:
            ForbiddenError: The user is a sender and may only use the API.
        """
        user.require_role("reader")
        self._access_log.signed_in(user.name, user.role, method)
        return self.sessions.begin(user)

    def sign_out(self, request: Request) -> None:
        """End the request's session, if any."""
        user = self.sessions.end(request.cookies.get(COOKIE, ""))
        if user:
            self._access_log.signed_out(user.name)


def _address(request: Request) -> str:
    return request.client.host if request.client else ""

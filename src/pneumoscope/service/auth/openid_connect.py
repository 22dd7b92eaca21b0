"""OpenID Connect: an identity provider authenticates users of the web interface and determines their roles.

Authlib implements the authorization code flow with PKCE and verifies the ID token.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client import OAuth
from joserfc.errors import JoseError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from pneumoscope.core.addresses import require_encrypted
from pneumoscope.core.errors import AuthenticationError, BusyError, ForbiddenError, UsageError
from pneumoscope.core.files import read_error_reason
from pneumoscope.core.i18n import N_
from pneumoscope.service.auth.users import ROLES, AuthenticatedUser, validate_name

__all__ = ["OpenIdConnect", "OpenIdConnectConfiguration", "read_configuration"]

_TIMEOUT_SECONDS = 10
_NEXT = "next"  # session key of the page to open after signing in


class OpenIdConnectConfiguration(BaseModel):
    """Configuration of an identity provider, from a TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    issuer: Annotated[str, AfterValidator(require_encrypted)]
    client_id: str = Field(min_length=1)
    client_secret: str = Field(min_length=1)
    display_name: str = Field(default="OpenID Connect", min_length=1, max_length=64)
    scope: str = "openid profile email"
    user_claim: str = Field(default="preferred_username", min_length=1)
    role_claim: str = Field(default="roles", min_length=1)
    roles: dict[Literal["reader", "administrator"], Annotated[str, Field(min_length=1)]] = Field(min_length=1)


def read_configuration(file: Path) -> OpenIdConnectConfiguration:
    """Return the configuration in a file.

    Raises:
        UsageError: The file cannot be read, is readable by other users, or is invalid. The message omits the secret.
    """
    name = f"the OpenID Connect configuration {str(file)!r}"
    try:
        mode, text = file.stat().st_mode, file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {name}: {read_error_reason(error)}") from error
    if mode & 0o077:
        raise UsageError(f"{name} is readable by other users", hint=f"chmod 600 {file}")
    try:
        return OpenIdConnectConfiguration.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{name}: {place}: {first['msg']}", hint="See `Operate the service`, OpenID Connect"
        ) from error


class OpenIdConnect:
    """An identity provider.

    Args:
        configuration: Its configuration.
    """

    def __init__(self, configuration: OpenIdConnectConfiguration) -> None:
        self._configuration = configuration
        self._client = OAuth().register(
            "provider",
            server_metadata_url=f"{configuration.issuer}/.well-known/openid-configuration",
            client_id=configuration.client_id,
            client_secret=configuration.client_secret,
            client_kwargs={
                "scope": configuration.scope,
                "code_challenge_method": "S256",
                "timeout": _TIMEOUT_SECONDS,
            },
        )

    @property
    def display_name(self) -> str:
        """Name of the provider on the sign-in page."""
        return self._configuration.display_name

    async def redirect(self, request: Request, callback: str, next_url: str) -> Response:
        """Return a redirect to the provider.

        Args:
            request: Its session stores the sign-in state until the provider redirects back.
            callback: URL to which the provider redirects.
            next_url: Page to open after signing in.
        Raises:
            BusyError: The provider cannot be reached.
        """
        try:
            response: Response = await self._client.authorize_redirect(request, callback)
        except (httpx2.HTTPError, ValueError, RuntimeError) as error:
            raise _unavailable() from error
        request.session[_NEXT] = next_url
        return response

    async def user(self, request: Request) -> tuple[AuthenticatedUser, str]:
        """Return the user authenticated by the provider, and the page to open.

        Args:
            request: The redirect from the provider.
        Raises:
            AuthenticationError: The provider did not authenticate the user, or its response is invalid.
            ForbiddenError: The user has no role.
            BusyError: The provider cannot be reached.
        """
        next_url = str(request.session.pop(_NEXT, ""))
        try:
            token = await self._client.authorize_access_token(request)
            claims = dict(token.get("userinfo") or {})
            if claims and _claim(claims, self._configuration.role_claim) is None:
                extra = await self._client.userinfo(token=token)
                if extra.get("sub") == claims.get("sub"):  # the subjects must match (OpenID Connect Core, 5.3.2)
                    claims = {**extra, **claims}
        except (AuthlibBaseError, JoseError) as error:
            # The messages of these errors may contain client input.
            raise AuthenticationError(
                "the identity provider did not authenticate the user", hint="Try again"
            ) from error
        except (httpx2.HTTPError, ValueError, RuntimeError) as error:
            raise _unavailable() from error
        return self._user(claims), next_url

    def _user(self, claims: Mapping[str, Any]) -> AuthenticatedUser:
        name = _claim(claims, self._configuration.user_claim)
        if not isinstance(name, str):
            raise AuthenticationError(
                f"the identity provider states no claim {self._configuration.user_claim!r}",
                hint="Ask an administrator to check the configuration",
            )
        try:
            validate_name(name)
        except UsageError as error:
            raise AuthenticationError(
                "the name of the user has unsupported characters, or is reserved",
                hint="Ask an administrator for another name",
            ) from error
        stated = _claim(claims, self._configuration.role_claim)
        values = [stated] if isinstance(stated, str) else stated if isinstance(stated, list) else []
        granted = [role for role in self._configuration.roles if self._configuration.roles[role] in values]
        if not granted:
            raise ForbiddenError(
                N_("the user has no role for this service"), hint=N_("Ask an administrator for a role")
            )
        return AuthenticatedUser(name, max(granted, key=ROLES.index))


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """Return a claim, or a nested one such as "realm_access.roles"; None if it is missing."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _unavailable() -> BusyError:
    return BusyError("the identity provider cannot be reached", hint="Try again, or sign in with a token")

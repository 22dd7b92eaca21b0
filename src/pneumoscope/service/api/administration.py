"""Routes of the HTTP API for administrators: deletion, tokens, and the exchange with other nodes.

The docstrings are the descriptions in OpenAPI.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path

from pneumoscope.service.api.dependencies import (
    AppService,
    AppTokens,
    Id,
    NoParameters,
    User,
    api_router,
    require_json,
)
from pneumoscope.service.api.exception_handlers import problem_responses
from pneumoscope.service.api.schemas import AddedTokenDocument, ExchangeDocument, TokenListDocument, TokenRequest

__all__ = ["administrator_router"]

_TokenId = Annotated[str, Path(pattern=r"^[0-9a-f]{8}$", examples=["0123abcd"])]

administrator_router = api_router("administration", "administrator")


@administrator_router.delete(
    "/studies/{study_key}", status_code=204, summary="Delete a study with its predictions and images",
    responses=problem_responses(404, 409),
)  # fmt: skip
def remove_study(service: AppService, user: User, study_key: Id, _: NoParameters) -> None:
    """Keep only the events in the audit log. If an image also belongs to another patient, the request fails with
    `image_of_two_patients`."""
    service.repository.remove_study(study_key, user=user)


@administrator_router.delete(
    "/patients/{patient_key}", status_code=204, summary="Delete a patient with all studies, predictions and images",
    responses=problem_responses(404, 409),
)  # fmt: skip
def remove_patient(service: AppService, user: User, patient_key: Id, _: NoParameters) -> None:
    """Keep only the events in the audit log. If an image also belongs to another patient, the request fails with
    `image_of_two_patients`."""
    service.repository.remove_patient(patient_key, user=user)


@administrator_router.delete(
    "/predictions/{id}", status_code=204, summary="Delete a prediction and its image",
    responses=problem_responses(404),
)  # fmt: skip
def remove(service: AppService, user: User, id: Id, _: NoParameters) -> None:
    """Keep only the events in the audit log, without the name of the image."""
    service.repository.remove(id, user=user)


@administrator_router.delete(
    "/unreadable/{id}", status_code=204, summary="Delete the record of a file that could not be read",
    responses=problem_responses(404),
)  # fmt: skip
def remove_unreadable(service: AppService, user: User, id: Id, _: NoParameters) -> None:
    """Keep only the event in the audit log, without the name of the file."""
    service.repository.unreadable_files.remove(id, user=user)


@administrator_router.get("/exchange", summary="Show what waits for a prediction and for delivery")
def exchange(service: AppService, _: NoParameters) -> ExchangeDocument:
    """Received instances wait for the end of their study's quiet period; results wait until their destination confirms them."""
    return ExchangeDocument(service.repository.inbox.status(), service.repository.outbox.status())


@administrator_router.get("/tokens", summary="List tokens")
def list_tokens(tokens: AppTokens, _: NoParameters) -> TokenListDocument:
    """List active tokens first, then revoked ones, without their secrets."""
    return TokenListDocument(tokens.list())


@administrator_router.post(
    "/tokens", status_code=201, summary="Add a token", responses=problem_responses(400, 413, 415),
    dependencies=[Depends(require_json)],
)  # fmt: skip
def add_token(tokens: AppTokens, user: User, _: NoParameters, body: TokenRequest) -> AddedTokenDocument:
    """Return the secret, which clients send as `Authorization: Bearer SECRET`. It is not stored and cannot be shown again."""
    token, secret = tokens.add(body.user, body.role, created_by=user)
    return AddedTokenDocument(token, secret)


@administrator_router.delete(
    "/tokens/{token_id}", status_code=204, summary="Revoke a token", responses=problem_responses(404)
)
def revoke_token(tokens: AppTokens, user: User, token_id: _TokenId, _: NoParameters) -> None:
    """End the token's sessions as well. The token stays in the list."""
    tokens.revoke(token_id, user=user)

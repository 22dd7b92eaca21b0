"""Errors of the FHIR interface: problem documents become OperationOutcome resources, wherever they come from."""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pneumoscope.service.api.exception_handlers import PROBLEM_MEDIA_TYPE, problem_responses
from pneumoscope.service.fhir.resources import FHIR_MEDIA_TYPE, operation_outcome

__all__ = ["FHIR_PREFIX", "OutcomeMiddleware", "outcome_responses"]

FHIR_PREFIX = "/fhir"
_SCHEMA = {
    "type": "object",
    "required": ["resourceType", "issue"],
    "properties": {
        "resourceType": {"const": "OperationOutcome"},
        "issue": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["severity", "code"]}},
    },
}


def _outcome(problem: dict[str, Any]) -> dict[str, Any]:
    return operation_outcome(problem["status"], problem["code"], problem["detail"], problem["hint"])


def outcome_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of an operation for OpenAPI."""
    responses = problem_responses(*statuses)
    for response in responses.values():
        problem = response["content"].pop(PROBLEM_MEDIA_TYPE)
        response["content"][FHIR_MEDIA_TYPE] = {"schema": _SCHEMA, "example": _outcome(problem["example"])}
    return responses


class OutcomeMiddleware:
    """Middleware that turns the problem documents of paths below /fhir into OperationOutcome resources.

    Args:
        app: The application behind it, whose middleware and exception handlers write problem documents.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and convert its response if it is a problem document."""
        if scope["type"] != "http" or not scope["path"].startswith(f"{FHIR_PREFIX}/"):
            await self.app(scope, receive, send)
            return
        await self.app(scope, receive, _OutcomeSender(send))


class _OutcomeSender:
    """Sends the response to one request, converted if it is a problem document.

    Args:
        send: Sends a message of ASGI.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None  # of a problem document, until its body is complete
        self._body = b""

    async def __call__(self, message: Message) -> None:
        """Send a message, or keep it until the problem document is complete."""
        if message["type"] == "http.response.start":
            if Headers(raw=message["headers"]).get("Content-Type") == PROBLEM_MEDIA_TYPE:
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_outcome(self._start)
            return
        await self._send(message)

    async def _send_outcome(self, start: Message) -> None:
        content = json.dumps(_outcome(json.loads(self._body)), ensure_ascii=False).encode()
        headers = MutableHeaders(raw=start["headers"])
        headers["Content-Type"], headers["Content-Length"] = FHIR_MEDIA_TYPE, str(len(content))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": content})

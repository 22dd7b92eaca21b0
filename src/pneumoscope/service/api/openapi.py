"""The description of the API (OpenAPI): what FastAPI says of it by itself, with errors and tokens."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from pneumoscope.service.api.problems import Problem

__all__ = ["describe"]

_SCHEME = "bearer"


def describe(app: FastAPI, *, asks: bool) -> None:
    """Complete the description of an application.

    Args:
        app: whose errors are problem documents (see `problems.responses`).
        asks: whether its paths below /v1/ ask for a token.
    """
    by_itself = app.openapi

    def whole() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = by_itself()
            parts = document.setdefault("components", {})
            parts.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
            if asks:
                said = "A token of the file that the service was started with"
                parts["securitySchemes"] = {_SCHEME: {"type": "http", "scheme": "bearer", "description": said}}
                for path, operations in document["paths"].items():
                    if path.startswith("/v1/"):
                        for operation in operations.values():
                            operation["security"] = [{_SCHEME: []}]
        return app.openapi_schema or {}

    app.openapi = whole  # type: ignore[method-assign]  # as FastAPI's own documentation extends it

"""The HTTP API: routes, schemas, dependencies and exception handlers."""

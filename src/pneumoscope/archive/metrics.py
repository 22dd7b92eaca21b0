"""Progress of a run as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from pneumoscope.archive.progress import Progress
from pneumoscope.core.errors import UsageError

__all__ = ["serve_metrics"]

_GAUGES = {
    "total": ("pneumoscope_archive_images", "Images of the archive"),
    "done": ("pneumoscope_archive_images_scored", "Images that are scored, by this run and earlier ones"),
    "failed": ("pneumoscope_archive_images_failed", "Scored images that could not be read"),
    "rate": ("pneumoscope_archive_images_per_second", "Images per second in the last two minutes"),
}


def serve_metrics(port: int, address: str = "127.0.0.1") -> Callable[[Progress], None]:
    """Serve metrics at http://127.0.0.1:PORT/metrics until this process exits, and return a function that updates them.

    Raises:
        UsageError: The port is in use.
    """
    registry = CollectorRegistry()
    gauges = {field: Gauge(name, text, registry=registry) for field, (name, text) in _GAUGES.items()}
    try:
        start_http_server(port, address, registry)
    except OSError as error:
        raise UsageError(
            f"cannot serve metrics on port {port}: {error.strerror or error}",
            hint="Choose another port with --metrics-port",
        ) from error

    def update(progress: Progress) -> None:
        for field, gauge in gauges.items():
            gauge.set(getattr(progress, field))

    return update
